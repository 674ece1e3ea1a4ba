"""retouch run: draw images with an artefact, after verifying it."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import click

from ...specs.errors import Fault, InputError, SpecError
from ..artefact import Artefact, open_artefact
from ..console import json_option, one_line, print_result, reporter, warn
from ..devices import DEVICES, check_device
from ..images import Provenance, write_png
from ..sampler import Sampler
from ..sessions import Placement, Precision

MOST_IMAGES = 10_000  # of a prompt; keeps names sortable and seeds below 2^64
LARGEST_SEED = 2**64 - 1 - MOST_IMAGES


@dataclass(frozen=True)
class Image:
    """One image to draw, and where it goes."""

    prompt: str
    seed: int
    file: Path


@click.command("run")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option(
    "-p", "--prompt", "prompts", multiple=True, required=True, help="What to draw; may be repeated."
)
@click.option(
    "--seed", type=click.IntRange(0, LARGEST_SEED), default=0, show_default=True, help="Of the first image."
)
@click.option(
    "-n",
    "--count",
    type=click.IntRange(1, MOST_IMAGES),
    default=1,
    show_default=True,
    help="Images a prompt.",
)
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="PNG file to write.")
@click.option("--negative", help="What not to draw, in place of the artefact's negative prompt.")
@click.option("--guidance-scale", type=float, help="One scale for all steps, in place of the artefact's.")
@click.option(
    "--threads",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    help="CPU threads; 0: as many as cores.",
)
@click.option("--size", metavar="HEIGHTxWIDTH", help="Of the images, in pixels; else the model's own.")
@click.option(
    "--device",
    type=click.Choice(sorted(DEVICES)),
    default="cpu",
    show_default=True,
    help="What computes; rtx draws from TensorRT-RTX engines.",
)
@click.option(
    "--precision",
    type=click.Choice(get_args(Precision)),
    default="float32",
    show_default=True,
    help="What OpenVINO multiplies in; bfloat16 is faster where the CPU has it, and less exact.",
)
@click.option("--target", help="Folder of the artefact to draw from, where it holds several targets.")
@json_option
def command(
    folder: Path,
    prompts: tuple[str, ...],
    seed: int,
    count: int,
    output: Path,
    negative: str | None,
    guidance_scale: float | None,
    threads: int,
    size: str | None,
    device: str,
    precision: Precision,
    target: str | None,
    as_json: bool,
) -> None:
    """Draw images with the artefact in FOLDER, which is verified first.

    Image k of a prompt has seed SEED + k, so each can be drawn again alone. One image is written to
    OUTPUT itself; several to OUTPUT-000.png and so on, prompt by prompt. Each file says what it was
    drawn from, in metadata that is not signed.
    """
    _check_output(output)
    pixels_asked = None if size is None else _size(size)
    placement = Placement(device, threads, precision)
    check_device(device)
    artefact = open_artefact(folder)
    drawn_from = _target(artefact, device, target)
    images = _images(prompts, seed, count, output)
    sampler = Sampler.open(drawn_from, placement, pixels_asked, len(images))
    cut = _warn_about_cuts(sampler, prompts)
    if not artefact.manifest.passed:
        warn(f"{folder}: its evidence failed, see `retouch verify`")
    with reporter(quiet=as_json) as report:
        pixels = sampler.draw(
            [image.prompt for image in images],
            [image.seed for image in images],
            negative=negative,
            guidance_scale=guidance_scale,
            size=pixels_asked,
            on_step=report.task("draw", len(images) * len(sampler.table.steps)),
        )
    for image, drawn in zip(images, pixels, strict=True):
        write_png(image.file, drawn, _provenance(image, drawn_from, negative, guidance_scale))
    print_result(_value(artefact, images, cut), _text(artefact, images), as_json)


def _check_output(output: Path) -> None:
    if output.suffix.lower() != ".png":
        raise SpecError(
            Fault("E_OUTPUT", "does not end in .png", str(output), "only PNG holds the provenance")
        )
    if output.is_dir():
        raise SpecError(Fault("E_OUTPUT", "is a folder", str(output), "name a file in it"))
    if output.parent.is_dir() and not os.access(output.parent, os.W_OK):
        raise SpecError(Fault("E_OUTPUT", "its folder cannot be written", str(output), "choose another"))
    if not output.parent.is_dir():
        raise SpecError(
            Fault("E_OUTPUT", "its folder does not exist", str(output), f"mkdir -p {output.parent}")
        )


def _size(text: str) -> tuple[int, int]:
    """Return height and width of `HEIGHTxWIDTH`; whether a graph takes them is asked later."""
    height, _, width = text.partition("x")
    if not (height.isdecimal() and width.isdecimal() and len(text) < 12):
        hint = "for example 512x768: height, then width"
        raise SpecError(Fault("E_SIZE", f"`{one_line(text)}`, expected HEIGHTxWIDTH in pixels", "size", hint))
    return int(height), int(width)


def _target(artefact: Artefact, device: str, asked: str | None) -> Artefact:
    """Return the part of an artefact to draw from: what the user asked for, else what the device needs.

    Raises:
        InputError: there is none of that name.
    """
    wanted = DEVICES[device].target if asked is None else asked.strip("/")
    if wanted and wanted not in artefact.targets:
        there = ", ".join(f"`{name}`" for name in artefact.targets if name) or "none in folders of their own"
        hint = "" if asked is not None else f"add `- {wanted}: {{}}` under `emit` and build it again"
        raise InputError(Fault("E_TARGET", f"no target `{one_line(wanted)}`; there is: {there}", hint=hint))
    return artefact.within(wanted) if wanted else artefact


def _images(prompts: tuple[str, ...], seed: int, count: int, output: Path) -> list[Image]:
    wanted = [(prompt, seed + k) for prompt in prompts for k in range(count)]
    if len(wanted) == 1:
        return [Image(*wanted[0], output)]
    digits = max(3, len(str(len(wanted) - 1)))
    names = [f"{output.stem}-{number:0{digits}}{output.suffix}" for number in range(len(wanted))]
    return [Image(prompt, s, output.with_name(name)) for (prompt, s), name in zip(wanted, names, strict=True)]


def _warn_about_cuts(sampler: Sampler, prompts: tuple[str, ...]) -> dict[str, int]:
    """Return the prompts that are too long, each with the number of tokens that the model will not see."""
    cut = {prompt: tokens for prompt in prompts if (tokens := sampler.prompts.cut(prompt))}
    for prompt, tokens in cut.items():
        warn(one_line(f"the last {tokens} tokens do not fit and are not seen: {prompt}"))
    return cut


def _provenance(image: Image, artefact: Artefact, negative: str | None, scale: float | None) -> Provenance:
    manifest = artefact.manifest
    return Provenance(
        prompt=image.prompt,
        seed=image.seed,
        artefact=manifest.name,
        version=manifest.version,
        manifest_digest=manifest.digest,
        sampler=f"{artefact.table.sampler}, {len(artefact.table.steps)} steps",
        retouch=manifest.retouch,
        negative=negative,
        guidance_scale=scale,
    )


def _value(artefact: Artefact, images: list[Image], cut: dict[str, int]) -> dict[str, Any]:
    return {
        "artefact": artefact.manifest.name,
        "version": artefact.manifest.version,
        "digest": artefact.manifest.digest,
        "statement": artefact.verified.statement,
        "images": [{"file": str(i.file), "prompt": i.prompt, "seed": i.seed} for i in images],
        "tokens_cut": cut,
    }


def _text(artefact: Artefact, images: list[Image]) -> str:
    head = f"{artefact.folder}: {artefact.verified.statement}"
    return "\n".join([head, *(one_line(f"{i.file}: {i.prompt}, seed {i.seed}") for i in images)])
