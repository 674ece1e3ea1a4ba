"""Draw images: the one loop over the table of sampling.json, whatever the sampler.

Guided steps run the denoiser once on both halves of the batch, unconditional first, and combine
them in a graph without weights; steps of weight 1 run the conditional half only. What the denoiser reads
beside the sample, the table says: this file knows no family of models.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np
from numpy.typing import NDArray

from ..specs.errors import Fault, InputError, SpecError, UndecidedError
from ..specs.sampling import SamplingTable, Step
from .artefact import Artefact
from .memory import available_memory
from .noise import normal
from .prompts import PromptEncoder, TextStates
from .sessions import Placement, Session, Signature, Size, open_session, sizes_beside

Floats = NDArray[np.float32]
BATCH = 8  # images a denoiser call, guided steps twice that
DENOISER, DECODER = "unet/model.onnx", "vae_decoder/model.onnx"
ON_HOST = ("cpu", "openvino")  # devices that compute in the host's memory
NEEDS: Mapping[str, str] = {
    "inpainting": "an image and a mask to fill in",
    "refining": "an image that another model has drawn",
}


@dataclass(frozen=True)
class Sampler:
    """The loaded parts of an artefact; `open` makes one.

    Rows and columns of a latent are multiples of `multiple`. `sizes` have graphs of their own, in pixels.
    """

    table: SamplingTable
    prompts: PromptEncoder
    denoiser: Session
    combine: Session
    decoder: Session
    multiple: int = 1
    sizes: Sequence[Size] = ()

    def __post_init__(self) -> None:
        whole = all(step.timestep.is_integer() for step in self.table.steps)
        if np.issubdtype(self.denoiser.inputs["timestep"].dtype, np.integer) and not whole:
            message = f"sampler {self.table.sampler} has fractional timesteps, the denoiser takes whole ones"
            raise InputError(Fault("E_TIMESTEPS", message, DENOISER))

    @classmethod
    def open(
        cls,
        artefact: Artefact,
        placement: Placement | None = None,
        size: Size | None = None,
        images: int = 1,
    ) -> "Sampler":
        """Load the graphs of an artefact: those for images of `size`, where it has some.

        `images` is how many will be drawn in one call; memory is asked for as many as are drawn at once.

        Raises:
            SpecError: its model does not draw from text alone.
            UndecidedError: not even the first layers' values of these images fit into memory.
            Error: what `open_session` raises.
        """
        _check_task(artefact.table)
        if (placement or Placement()).device in ON_HOST:
            _check_memory(artefact, size, min(images, BATCH))
        denoise_inputs = ["sample", "timestep", "encoder_hidden_states", *_added_inputs(artefact.table)]
        combine_inputs = ["unconditional", "conditional", "guidance_weight"]
        return cls(
            table=artefact.table,
            prompts=PromptEncoder.open(artefact, placement),
            denoiser=open_session(artefact, DENOISER, denoise_inputs, ["out_sample"], placement, size),
            combine=open_session(artefact, "unet/combine.onnx", combine_inputs, ["guided"], placement),
            decoder=open_session(artefact, DECODER, ["latent_sample"], ["sample"], placement, size),
            multiple=_network(artefact, DENOISER).multiple,
            sizes=sizes_beside(artefact, DENOISER),
        )

    def draw(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        *,
        negative: str | None = None,
        guidance_scale: float | None = None,
        size: Size | None = None,
        noise: Floats | None = None,
        on_step: Callable[[int], None] | None = None,
        batch_size: int = BATCH,
    ) -> NDArray[np.uint8]:
        """Return images [N, H, W, 3], one a prompt and seed. Arguments and errors as for `latents`."""
        latents = self.latents(
            prompts,
            seeds,
            negative=negative,
            guidance_scale=guidance_scale,
            size=size,
            noise=noise,
            on_step=on_step,
            batch_size=batch_size,
        )
        return np.concatenate([self.decode(latents[part]) for part in _batches(len(latents), batch_size)])

    def latents(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        *,
        negative: str | None = None,
        guidance_scale: float | None = None,
        size: Size | None = None,
        noise: Floats | None = None,
        on_step: Callable[[int], None] | None = None,
        batch_size: int = BATCH,
    ) -> Floats:
        """Return final latents [N, C, H, W], one a prompt and seed.

        An image depends on its prompt and seed, not on its neighbors: at most the last bits of a
        float differ, where onnxruntime multiplies matrices of another batch in another order.

        Args:
            negative: prompt of the unconditional half, in place of the table's.
            guidance_scale: one weight for all steps, in place of the table's.
            size: rows and columns of pixels, in place of those that the graphs are fixed to, or the table's.
            noise: unit noise [N, C, H, W] in place of the seeds' own.
            on_step: told, after each step of a batch, how many images took it.
            batch_size: images a call; guided steps run twice as many.

        Raises:
            SpecError: the artefact's guidance, negative prompt or size is fixed, or cannot be what is asked.
        """
        if not prompts or len(prompts) != len(seeds):
            raise ValueError(f"{len(prompts)} prompts and {len(seeds)} seeds, expected one seed a prompt")
        steps = self._steps(guidance_scale)
        unconditional = self._unconditional(steps, negative)
        shape = self._latent_shape(size)
        finished = []
        for part in _batches(len(prompts), batch_size):
            unit = np.stack([normal(seed, shape) for seed in seeds[part]]) if noise is None else noise[part]
            conditional = self.prompts.encode(prompts[part])
            finished.append(self._denoise(steps, unit, conditional, unconditional, on_step))
        return np.concatenate(finished)

    def decode(self, latents: Floats) -> NDArray[np.uint8]:
        """Return the images [N, H, W, 3] of latents [N, C, h, w].

        Raises:
            UndecidedError: the decoder gives numbers that are no colors.
        """
        latent = self.table.latent
        sample = self.decoder(latent_sample=latents / latent.scaling_factor + latent.shift_factor)["sample"]
        if not np.isfinite(sample).all():
            message = "an image holds infinity or NaN: its precision does not bear what was asked for"
            hint = "draw with a smaller --guidance-scale, or from a target of higher precision"
            raise UndecidedError(Fault("E_NOT_FINITE", message, DECODER, hint))
        unit = np.clip(sample.astype(np.float32) / 2 + 0.5, 0, 1)
        return np.round(unit * 255).astype(np.uint8).transpose(0, 2, 3, 1)

    def _denoise(
        self,
        steps: Sequence[Step],
        unit: Floats,
        conditional: TextStates,
        unconditional: TextStates,
        on_step: Callable[[int], None] | None,
    ) -> Floats:
        sample = self.table.initial_scale * np.asarray(unit, np.float32)
        x0_before = np.zeros_like(sample)
        for step in steps:
            out = self._predict(step, step.input_scale * sample, conditional, unconditional)
            x0 = step.x0_from_sample * sample + step.x0_from_output * out
            past = step.next_from_previous_x0 * x0_before
            sample, x0_before = step.next_from_sample * sample + step.next_from_x0 * x0 + past, x0
            if on_step:
                on_step(len(sample))
        return sample

    def _predict(
        self, step: Step, sample: Floats, conditional: TextStates, unconditional: TextStates
    ) -> Floats:
        if not step.guided:
            return self._call_denoiser(step, sample, conditional)
        states = unconditional.map(_halves, conditional)
        out = self._call_denoiser(step, np.concatenate([sample, sample]), states)
        without, given = np.split(out, 2)
        weight = np.array([step.guidance_weight])
        return self.combine(unconditional=without, conditional=given, guidance_weight=weight)["guided"]

    def _call_denoiser(self, step: Step, sample: Floats, states: TextStates) -> Floats:
        # A scalar, or a vector with an entry an image: as the graph declares it.
        shape = tuple(size or len(sample) for size in self.denoiser.inputs["timestep"].shape)
        inputs = {"sample": sample, "timestep": np.full(shape, step.timestep), **states.arrays()}
        if self.table.time_ids:
            inputs["time_ids"] = self._time_ids(sample)
        return self.denoiser(**inputs)["out_sample"]

    def _time_ids(self, sample: Floats) -> Floats:
        """Return what the denoiser is told of each image's size, [B, number of ids]: whole and uncropped."""
        height, width = (cells * self.table.latent.downscale for cells in sample.shape[2:])
        pixels = {"height": height, "width": width, "top": 0, "left": 0}
        row = [pixels[name.rpartition("_")[2]] for name in self.table.time_ids]
        return np.tile(np.array(row, np.float32), (len(sample), 1))

    def _steps(self, guidance_scale: float | None) -> list[Step]:
        if guidance_scale is None:
            return self.table.steps
        if self.table.guidance_baked:
            message = "the artefact's guidance is baked and cannot be exchanged"
            raise SpecError(
                Fault("E_GUIDANCE_BAKED", message, "guidance scale", "draw without a guidance scale")
            )
        if not math.isfinite(guidance_scale):
            message = f"found {guidance_scale}, expected a finite number"
            raise SpecError(Fault("E_GUIDANCE", message, "guidance scale"))
        return [
            step.model_copy(update={"guidance_weight": float(guidance_scale)}) for step in self.table.steps
        ]

    def _unconditional(self, steps: Sequence[Step], negative: str | None) -> TextStates:
        """Return the states of the unconditional half, of one image."""
        if negative is not None and self.table.negative.baked:
            message = "the artefact's negative prompt is baked and cannot be exchanged"
            raise SpecError(
                Fault("E_NEGATIVE_BAKED", message, "negative prompt", "draw without a negative prompt")
            )
        if negative is not None and not any(step.guided for step in steps):
            message = "no step is guided, so a negative prompt has no effect"
            raise SpecError(
                Fault("E_NEGATIVE_UNUSED", message, "negative prompt", "set a guidance scale other than 1")
            )
        states = self.prompts.encode([self.table.negative.prompt if negative is None else negative])
        return states.map(np.zeros_like) if negative is None and self.table.negative.zeros else states

    def _latent_shape(self, size: Size | None) -> tuple[int, int, int]:
        """Return the shape of a latent of images of a size, which the graphs take.

        Raises:
            SpecError: they do not; says which sizes there are.
        """
        downscale = self.table.latent.downscale
        height, width = self.own_size if size is None else size
        multiple = downscale * self.multiple
        if height <= 0 or width <= 0 or height % multiple or width % multiple:
            message = f"{height} x {width} pixels, expected multiples of {multiple}"
            raise SpecError(Fault("E_SIZE", message, "size"))
        cells = height // downscale, width // downscale
        if not all(port.takes(cells) for port in self._image_ports):
            message = f"{height} x {width} pixels, the graphs are made for other sizes"
            there = ", ".join(f"{rows}x{columns}" for rows, columns in self._made_for)
            raise SpecError(Fault("E_SIZE", message, "size", f"there are: {there}"))
        return self.table.latent.channels, *cells

    @property
    def own_size(self) -> Size:
        """The size in pixels that is drawn where none is asked for: what the denoiser was made for counts."""
        latent = self.table.latent
        height, width = self.denoiser.inputs["sample"].usual[2:]
        return (height or latent.height) * latent.downscale, (width or latent.width) * latent.downscale

    @property
    def _made_for(self) -> list[Size]:
        """The sizes in pixels that there are graphs for; of an engine the smallest and the largest too."""
        taken, scale = self.denoiser.inputs["sample"].taken, self.table.latent.downscale
        ends = [(shape[2] * scale, shape[3] * scale) for shape in taken] if taken else []
        return sorted({self.own_size, *self.sizes, *ends})

    @property
    def _image_ports(self) -> list[Signature]:
        """The inputs that are latents."""
        images = self.denoiser.inputs["sample"], self.combine.inputs["conditional"]
        return [*images, self.decoder.inputs["latent_sample"]]


def _check_task(table: SamplingTable) -> None:
    """Refuse a model that needs more than text."""
    if table.task != "text_to_image":
        message = f"the artefact does not draw from text alone, it needs {NEEDS[table.task]}"
        hint = "use it in a host for this task; its folder opens in diffusers' layout"
        raise SpecError(Fault("E_TASK", message, "sampling.json", hint))


@dataclass(frozen=True)
class Network:
    """What the config of a denoiser or a decoder says of its blocks: the channels of each, in order."""

    channels: Sequence[int] = (0,)

    @property
    def multiple(self) -> int:
        """What rows and columns of a latent are multiples of: they are halved between two blocks."""
        return 2 ** (len(self.channels) - 1)

    def bytes_of(self, cells: int) -> int:
        """Return the bytes of a convolution's input and output in the widest block, which sees so many cells.

        That is the first one of a denoiser, and the last one of a decoder, whose cells are pixels.
        """
        return 2 * cells * self.channels[0] * np.dtype(np.float32).itemsize


def _check_memory(artefact: Artefact, size: Size | None, images: int) -> None:
    """Refuse so many images at once where not even the values of one layer fit.

    Raises:
        UndecidedError: they take more memory than there is; without this a system may end the process.
    """
    table = artefact.table
    scale = table.latent.downscale
    pixels = size[0] * size[1] if size else table.latent.height * table.latent.width * scale**2
    halves = 1 + any(step.guided for step in table.steps)
    denoised = halves * images * _network(artefact, DENOISER).bytes_of(pixels // scale**2)
    needed = max(denoised, images * _network(artefact, DECODER).bytes_of(pixels))
    free = available_memory()
    if needed > free:
        many = f" for {images} images at once" if images > 1 else ""
        message = f"more than {needed / 1e9:.1f} GB of memory are needed{many}, {free / 1e9:.1f} GB are free"
        hint = "draw smaller images, or fewer in one call" if images > 1 else "draw a smaller image"
        raise UndecidedError(Fault("E_MEMORY", message, "size", hint))


def _network(artefact: Artefact, graph: str) -> Network:
    file = str(PurePosixPath(graph).with_name("config.json"))
    config = json.loads(artefact.read(file)) if file in artefact else {}
    blocks = config.get("block_out_channels") if isinstance(config, dict) else None
    if isinstance(blocks, list) and 0 < len(blocks) < 10 and all(isinstance(n, int) for n in blocks):
        return Network(blocks)
    return Network()


def _added_inputs(table: SamplingTable) -> list[str]:
    """Return the inputs that a denoiser has beside the usual three."""
    pooled = any(source.pooled is not None for source in table.text)
    return [*(["text_embeds"] if pooled else []), *(["time_ids"] if table.time_ids else [])]


def _halves(unconditional: Floats, conditional: Floats) -> Floats:
    """Return both halves of a guided batch: one prompt's states for every image, then each image's own."""
    return np.concatenate([np.broadcast_to(unconditional, conditional.shape), conditional])


def _batches(count: int, size: int) -> list[slice]:
    return [slice(start, start + size) for start in range(0, count, size)]
