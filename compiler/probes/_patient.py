"""The artefact under examination: torch modules of its own bytes, checked against its graphs.

Samples are drawn in torch, so that learned words and added noise can take part; the shipped decoder makes
images of them. This file imports torch.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from ...runtime.artefact import open_artefact
from ...runtime.sessions import Placement, open_session
from ...specs.errors import Fault, UndecidedError
from ..gates import Images
from ..ir import GraphEdit
from ..torch_models.drawing import draw, unit_noise
from ..torch_models.gradients import Gradients, States, Words
from ..torch_models.shipped import check_parity, shipped_pipeline

BATCH = 8


class Patient:
    """Opens an artefact for probes; `edits` are the graph edits of its spec.

    Raises:
        UndecidedError: its graphs compute something else than its torch modules, or it draws from images.
        what `open_artefact` and `load_module` raise.
    """

    def __init__(self, folder: Path, edits: tuple[GraphEdit, ...] = ()) -> None:
        artefact = open_artefact(folder)
        self.folder, self.manifest, self.table = folder, artefact.manifest, artefact.table
        if self.table.task != "text_to_image":
            raise UndecidedError(
                Fault("E_PROBE_TASK", "draws from images, probes know prompts only", str(folder))
            )
        self.model = Gradients(shipped_pipeline(artefact, edits))
        self.parity = check_parity(self.model.pipeline, self.model.modules, folder)
        alone = Placement(threads=1)
        self._decoder = open_session(artefact, "vae_decoder/model.onnx", ["latent_sample"], ["sample"], alone)
        self._encoder = open_session(
            artefact, "vae_encoder/model.onnx", ["sample"], ["latent_parameters"], alone
        )

    def draw(self, words: Words, seeds: Sequence[int], model: Gradients | None = None) -> Images:
        """Draw one image a seed for a prompt; with `model`, by another model in the artefact's place."""
        return self.decode(self.latents(words, seeds, model))

    def latents(
        self, words: Words, seeds: Sequence[int], model: Gradients | None = None
    ) -> NDArray[np.float32]:
        """Draw latents [N, C, H, W], one a seed."""
        model = model or self.model
        states, empty = self.states(words, model)
        found = []
        for start in range(0, len(seeds), BATCH):
            noise = unit_noise(model, seeds[start : start + BATCH])
            found.append(draw(model, states.repeat(len(noise)), empty, self.table, noise).latents.numpy())
        return np.concatenate(found)

    @torch.no_grad()
    def states(self, words: Words, model: Gradients) -> tuple[States, States]:
        """Return the states of a prompt and of the unconditional half."""
        return model.encode([words]), model.encode([model.words(self.table.negative.prompt)])

    def decode(self, latents: NDArray[np.float32]) -> Images:
        """Return the images [N, H, W, 3] that the shipped decoder makes of latents."""
        latent = self.table.latent
        parts = [
            self._decoder(latent_sample=part / latent.scaling_factor + latent.shift_factor)["sample"]
            for part in np.array_split(latents, -(-len(latents) // BATCH))
        ]
        unit = np.clip(np.concatenate(parts).astype(np.float32) / 2 + 0.5, 0, 1)
        return np.round(unit * 255).astype(np.uint8).transpose(0, 2, 3, 1)

    def encode(self, images: Images) -> NDArray[np.float32]:
        """Return the latents of images [N, H, W, 3], by the mean of the shipped encoder."""
        latent = self.table.latent
        sample = images.transpose(0, 3, 1, 2).astype(np.float32) / 127.5 - 1
        parameters = self._encoder(sample=sample)["latent_parameters"].astype(np.float32)
        mean = parameters[:, : latent.channels]
        return (mean - latent.shift_factor) * latent.scaling_factor
