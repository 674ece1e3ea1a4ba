"""What does a step of a build ask of a model? Counted before it starts; how long that takes, cost.py says."""

from __future__ import annotations

from dataclasses import dataclass, fields


@dataclass(frozen=True)
class Work:
    """What a pass, a target, a gate or a probe does with a model, counted in images and samples.

    On all cores, by graphs as they are shipped: `drawn` images of the edited model, `drawn_before` of its
    source.

    On one thread, so that bytes and verdicts do not depend on the machine: `sampled` images drawn in torch;
    samples that the denoiser predicts in torch, `predicted` without and `differentiated` with a gradient;
    and `multiplied`, the multiplications of graphs and of torch where both are compared.

    In a process of its own: `engines` that are built, of `engine_bytes` of weights.
    """

    drawn: int = 0
    drawn_before: int = 0
    sampled: int = 0
    predicted: int = 0
    differentiated: int = 0
    multiplied: int = 0
    engines: int = 0
    engine_bytes: int = 0

    @property
    def in_torch(self) -> bool:
        """Whether torch is imported for it."""
        return any((self.sampled, self.predicted, self.differentiated, self.multiplied))

    @property
    def images(self) -> int:
        """Images, whatever draws them."""
        return self.drawn + self.drawn_before + self.sampled

    def __add__(self, other: Work) -> Work:
        return Work(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    def __mul__(self, count: int) -> Work:
        return Work(*(count * getattr(self, f.name) for f in fields(self)))
