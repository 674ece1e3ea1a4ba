"""A text-to-image model that gradients flow through: prompts -> text states -> the denoiser's prediction.

The modules are built around a pipeline's own tensors and frozen; what is learned is handed in from
outside: low-rank changes of weights, or embeddings of words that no vocabulary has. Only training and
probes need it. This file imports torch.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..families import TextEncoder
from ..ir import Pipeline
from ..text.tokenizer import load_tokenizer
from .modules import load_module

# A tensor as the pipeline calls it -> (down [rank, in], up [out, rank]), added to it as up @ down.
Deltas = Mapping[str, tuple[Tensor, Tensor]]
# What diffusers tells a refiner where nobody says a score; the other time ids: whole, not cropped.
AESTHETIC_SCORE = 6.0


@dataclass(frozen=True)
class States:
    """What the denoiser reads of prompts: `sequence` [B, S, D], and `pooled` [B, Dp] in some families."""

    sequence: Tensor
    pooled: Tensor | None = None

    def detach(self) -> "States":
        """Return the states without their gradients."""
        return States(self.sequence.detach(), None if self.pooled is None else self.pooled.detach())

    def repeat(self, count: int) -> "States":
        """Return the states of one prompt as a batch."""
        pooled = None if self.pooled is None else self.pooled.expand(count, -1)
        return States(self.sequence.expand(count, -1, -1), pooled)

    def __getitem__(self, rows: Any) -> "States":
        return States(self.sequence[rows], None if self.pooled is None else self.pooled[rows])

    @classmethod
    def cat(cls, parts: Sequence["States"]) -> "States":
        """Return several states as one batch."""
        pooled = [part.pooled for part in parts if part.pooled is not None]
        return cls(torch.cat([part.sequence for part in parts]), torch.cat(pooled) if pooled else None)


@dataclass(frozen=True)
class Words:
    """Token ids of one prompt, [S] for each encoder, and where learned embeddings take their place.

    `places` are positions, the same in every encoder; `learned` has an embedding [N, D] an encoder.
    """

    ids: tuple[Tensor, ...]
    places: tuple[int, ...] = ()
    learned: tuple[Tensor, ...] = ()


class Gradients:
    """The text encoders and the denoiser of a pipeline as frozen torch modules, and its noise schedule.

    Memory: these components in float32, less what is mapped; without `denoiser`, which then cannot
    predict, the text encoders alone.
    """

    def __init__(self, pipeline: Pipeline, denoiser: bool = True) -> None:
        self.pipeline, self.family = pipeline, pipeline.family
        self.shares: tuple[TextEncoder, ...] = pipeline.family.text_encoders
        self.encoders = tuple(load_module(pipeline, share.component) for share in self.shares)
        (component,) = pipeline.of_role("denoiser")
        self.denoiser_name = component.name
        self.denoiser = load_module(pipeline, component.name) if denoiser else nn.Identity()
        schedule = pipeline.sampling.schedule
        self.alphas_bar = torch.tensor(schedule.alphas_bar, dtype=torch.float64)
        self.prediction = schedule.prediction

    @property
    def modules(self) -> dict[str, nn.Module]:
        """The modules by component."""
        encoders = {share.component: module for share, module in zip(self.shares, self.encoders, strict=True)}
        return {**encoders, self.denoiser_name: self.denoiser}

    # -- words ---------------------------------------------------------------------------------------

    def words(self, prompt: str) -> Words:
        """Return the tokens of a prompt, padded and truncated as for drawing."""
        return Words(tuple(torch.from_numpy(ids) for ids in self._ids(prompt)))

    def with_prefix(self, prompt: str, learned: Sequence[Tensor]) -> Words:
        """Return a prompt with learned words in front: one embedding [N, D] an encoder."""
        count = len(learned[0])
        shifted = []
        for ids in self._ids(prompt):
            # Any id holds the place of a learned word: its embedding is exchanged. What does not fit is cut.
            longer = [ids[0], *[0] * count, *ids[1:]][: len(ids) - 1]
            shifted.append(torch.tensor([*longer, ids[-1]], dtype=torch.int64))
        return Words(tuple(shifted), tuple(range(1, count + 1)), tuple(learned))

    def spell(self, ids: Sequence[int]) -> str:
        """Return tokens as text, for people to read."""
        folder = self.pipeline.components[self.shares[0].tokenizer].folder
        return load_tokenizer(folder)._tokenizer.decode(list(ids))

    def embeddings(self, share: int) -> Tensor:
        """Return an encoder's token embeddings [V, D]."""
        module: Any = self.encoders[share]
        return module.get_input_embeddings().weight

    def _ids(self, prompt: str) -> list[NDArray[np.int64]]:
        folders = [self.pipeline.components[share.tokenizer].folder for share in self.shares]
        return [np.array(load_tokenizer(folder).tokens(prompt).ids, np.int64) for folder in folders]

    # -- text states ---------------------------------------------------------------------------------

    def encode(self, words: Sequence[Words], deltas: Deltas | None = None) -> States:
        """Return the text states of prompts."""
        parts, pooled = [], None
        for number, share in enumerate(self.shares):
            output = self._run_encoder(number, words, deltas or {})
            hidden = output.last_hidden_state if share.layer is None else output.hidden_states[share.layer]
            parts.append(hidden)
            pooled = output.text_embeds if share.pooled else pooled
        states = States(torch.cat(parts, dim=-1), pooled)
        return self._without_empty(states, words)

    def _run_encoder(self, number: int, words: Sequence[Words], deltas: Deltas) -> Any:
        module, share = self.encoders[number], self.shares[number]
        ids = torch.stack([prompt.ids[number] for prompt in words])
        learned = [(p.places, p.learned[number]) if p.places else None for p in words]
        with _low_rank(module, self._own(share.component, deltas)), _learned(module, learned):
            return module(ids, output_hidden_states=share.layer is not None)

    def _without_empty(self, states: States, words: Sequence[Words]) -> States:
        """Zero the states of the empty prompt where the family is used so (SDXL)."""
        if not self.pipeline.sampling.conditioning.zero_negative:
            return states
        blank = torch.tensor(
            [not prompt.places and bool((prompt.ids[0] == self._empty).all()) for prompt in words]
        )
        keep = (~blank).to(states.sequence.dtype)
        pooled = None if states.pooled is None else states.pooled * keep[:, None]
        return States(states.sequence * keep[:, None, None], pooled)

    @cached_property
    def _empty(self) -> Tensor:
        return self.words("").ids[0]

    # -- denoiser ------------------------------------------------------------------------------------

    def predict(
        self, sample: Tensor, timestep: Tensor, states: States, deltas: Deltas | None = None
    ) -> Tensor:
        """Return the denoiser's output for variance-preserving samples [B, C, H, W] at timesteps [B]."""
        given: dict[str, Any] = {"return_dict": False}
        if states.pooled is not None:
            given["added_cond_kwargs"] = {"text_embeds": states.pooled, "time_ids": self._time_ids(sample)}
        with _low_rank(self.denoiser, self._own(self.denoiser_name, deltas or {})):
            return self.denoiser(sample, timestep, states.sequence, **given)[0]

    def noised(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Return latents with noise at whole timesteps [B]. Source: Ho et al., 2006.11239, eq. (4)."""
        signal, spread = self._levels(timesteps)
        return signal * latents + spread * noise

    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Return what the denoiser should have said of `noised(latents, noise, timesteps)`."""
        signal, spread = self._levels(timesteps)
        match self.prediction:
            case "epsilon":
                return noise
            case "v_prediction":
                return signal * noise - spread * latents
        return latents

    def _levels(self, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        abar = self.alphas_bar[timesteps].to(torch.float32)[:, None, None, None]
        return abar.sqrt(), (1 - abar).sqrt()

    def _time_ids(self, sample: Tensor) -> Tensor:
        """Say that the image is whole and as large as it is drawn."""
        scale = self.pipeline.sampling.latent.downscale
        sizes = {"height": sample.shape[-2] * scale, "width": sample.shape[-1] * scale}
        row = [_time_id(name, sizes) for name in self.pipeline.sampling.conditioning.time_ids]
        return torch.tensor([row] * len(sample), dtype=torch.float32)

    def _own(self, component: str, deltas: Deltas) -> dict[str, tuple[Tensor, Tensor]]:
        """Return the changes of a component under the names that all library versions share."""
        start = component + "."
        return {
            self.family.module_name(component, name.removeprefix(start)): delta
            for name, delta in deltas.items()
            if name.startswith(start)
        }


@contextmanager
def _low_rank(module: nn.Module, deltas: Deltas) -> Iterator[None]:
    """Add a low-rank path beside linear layers while the block runs; their weights are left alone."""

    def beside(down: Tensor, up: Tensor) -> Any:
        return lambda _module, inputs, output: output + (inputs[0] @ down.T) @ up.T

    layers = dict(module.named_modules())
    handles = []
    try:
        for name, delta in deltas.items():
            place = name.removesuffix(".weight")
            layer = layers.get(place) or layers["text_model." + place]
            handles.append(layer.register_forward_hook(beside(*delta)))
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _learned(module: nn.Module, learned: Sequence[tuple[tuple[int, ...], Tensor] | None]) -> Iterator[None]:
    """Let learned embeddings stand in for those of the tokens at their places, while the block runs."""

    def exchange(_module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
        rows = list(output.unbind(0))
        for row, entry in enumerate(learned):
            if entry is not None:
                places, values = entry
                rows[row] = torch.cat([rows[row][: places[0]], values, rows[row][places[-1] + 1 :]])
        return torch.stack(rows)

    embedding: Any = module
    handle = embedding.get_input_embeddings().register_forward_hook(exchange)
    try:
        yield
    finally:
        handle.remove()


def _time_id(name: str, sizes: Mapping[str, int]) -> float:
    if name == "aesthetic_score":
        return AESTHETIC_SCORE
    return 0.0 if name.startswith("crop") else float(sizes[name.rpartition("_")[2]])
