"""What does a step of a build ask of a model? Counted before it starts; how long that takes, cost.py says."""

from __future__ import annotations

from dataclasses import dataclass, fields

LARGEST = frozenset({"at_once", "compared_values"})


@dataclass(frozen=True)
class Work:
    """What a pass, a target, a gate or a probe does with a model, counted in images and samples.

    On all cores, by graphs as they are shipped: `drawn` images of the edited model, `drawn_before` of its
    source.

    On one thread, so that bytes and verdicts do not depend on the machine: `sampled` images drawn in torch;
    samples that the denoiser predicts in torch, `predicted` without and `differentiated` with a gradient;
    and `multiplied`, the multiplications of graphs and of torch where both are compared.

    In a process of its own: `engines` that are built, of `engine_bytes` of weights.

    Of several works, these are the largest and not the sum: `at_once`, samples that are differentiated at a
    time, and `compared_values`, numbers that the widest layer gives of what is compared at a time.
    """

    drawn: int = 0
    drawn_before: int = 0
    sampled: int = 0
    predicted: int = 0
    differentiated: int = 0
    multiplied: int = 0
    engines: int = 0
    engine_bytes: int = 0
    at_once: int = 0
    compared_values: int = 0

    @property
    def with_modules(self) -> bool:
        """Whether torch modules of the model are held for it."""
        return any((self.sampled, self.predicted, self.differentiated))

    @property
    def in_torch(self) -> bool:
        """Whether torch is imported for it."""
        return self.with_modules or self.multiplied > 0

    @property
    def images(self) -> int:
        """Images, whatever draws them."""
        return self.drawn + self.drawn_before + self.sampled

    def __add__(self, other: Work) -> Work:
        pairs = {f.name: (getattr(self, f.name), getattr(other, f.name)) for f in fields(self)}
        return Work(**{name: (max if name in LARGEST else sum)(pair) for name, pair in pairs.items()})

    def __mul__(self, count: int) -> Work:
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return Work(**{n: value if n in LARGEST else count * value for n, value in values.items()})


@dataclass(frozen=True)
class Step:
    """A part of a build that asks something of the model: a pass, or `emit/NAME`, or `gates/NAME`.

    `cells` is how many each latent has of the images that it draws; None is the model's own number.
    """

    name: str
    work: Work
    cells: int | None = None
