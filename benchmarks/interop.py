"""Do other tools draw the same from our artefact? optimum-onnx on the ONNX, diffusers on the diffusers emit.

    python -m benchmarks.interop --optimum-python PATH

PATH is the Python of an environment with transformers 4.57.6, diffusers 0.36.0, optimum 2.1.0 and
optimum-onnx 0.1.0, which cannot share ours. All draw from the same unit noise, schedule and constant
scale; prints PSNR in dB against `retouch run` for each sampler on the demo model, and for small random
models of the other families, and writes results/interop.json.
"""

import json
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from benchmarks._pixels import as_pixels, psnr
from benchmarks._results import write_results
from retouch.compiler.build import Options, build
from retouch.compiler.plan import make_plan
from retouch.runtime.artefact import open_artefact
from retouch.runtime.noise import normal
from retouch.runtime.sampler import Sampler
from retouch.specs.fields import DEMO_SPEC
from tests.tiny import make_tiny_v2, make_tiny_xl

PROMPTS = ["a dog", "the apple logo", "a pizza in noto style", "a female doctor on a blue background"]
STEPS, SCALE = 20, 4.0  # the demo spec's steps, and a scale of its own
SMALL = """
schema: 1
name: small
version: 1.0.0
source: {{model: model}}
edits: []
sampling: {{sampler: {sampler}, steps: {steps}, guidance_scale: {scale}}}
emit: [onnx: {{parity: false}}, diffusers: {{}}]
"""
Pixels = NDArray[np.uint8]


@click.command()
@click.option("--optimum-python", type=click.Path(path_type=Path, exists=True), required=True)
def main(optimum_python: Path) -> None:
    """Compare on the demo model and on small models of the other families."""
    table = Table("model and sampler", "optimum-onnx, dB", "diffusers emit, dB")
    results = {}
    for case, write in CASES.items():
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            write(folder)
            ours, noise = draw_ours(folder)
            peers = {
                "optimum_onnx": draw_optimum(folder, noise, optimum_python),
                "diffusers": draw_diffusers(folder, noise),
            }
        values = {peer: psnr(ours, pixels) for peer, pixels in peers.items()}
        results[case] = values
        table.add_row(case, *(f"{value}" for value in values.values()))
    Console().print(table)
    write_results("interop", results)


def demo(sampler: str) -> Callable[[Path], None]:
    """Return what writes the demo spec with this sampler."""

    def write(folder: Path) -> None:
        text = DEMO_SPEC.read_text().replace("sampler: dpmpp_2m", f"sampler: {sampler}")
        (folder / "edit.yaml").write_text(text)

    return write


def small(make: Callable[[Path], Path], sampler: str) -> Callable[[Path], None]:
    """Return what writes a small random model of the tests, and a spec without edits."""

    def write(folder: Path) -> None:
        make(folder / "model")
        (folder / "edit.yaml").write_text(SMALL.format(sampler=sampler, steps=STEPS, scale=SCALE))

    return write


def draw_ours(folder: Path) -> tuple[Pixels, NDArray[np.float32]]:
    """Build the spec in `folder` without its schedule; return our images and the noise behind them."""
    plan = make_plan(folder / "edit.yaml")
    kept = tuple(edit for edit in plan.spec.edits if edit.name != "bake_guidance")
    constant = replace(plan, carried=plan.carried[: len(kept)], spec=replace(plan.spec, edits=kept))
    build(constant, folder / "artefact", Options())
    runtime = Sampler.open(open_artefact(folder / "artefact"))
    latent, seeds = runtime.table.latent, range(len(PROMPTS))
    noise = np.stack([normal(seed, (latent.channels, latent.height, latent.width)) for seed in seeds])
    return runtime.draw(PROMPTS, seeds, guidance_scale=SCALE, noise=noise), noise


def draw_optimum(folder: Path, noise: NDArray[np.float32], python: Path) -> Pixels:
    """Draw in optimum-onnx's environment, from the artefact as it is."""
    np.save(folder / "noise.npy", noise)
    (folder / "request.json").write_text(json.dumps({"prompts": PROMPTS, "steps": STEPS, "scale": SCALE}))
    child = Path(__file__).parent / "_optimum_child.py"
    command = [
        python,
        child,
        folder / "artefact",
        folder / "noise.npy",
        folder / "request.json",
        folder / "out.npy",
    ]
    subprocess.run(command, check=True)
    return as_pixels(np.load(folder / "out.npy"))


def draw_diffusers(folder: Path, noise: NDArray[np.float32]) -> Pixels:
    """Draw with diffusers from the diffusers emit."""
    import torch
    from diffusers import DiffusionPipeline

    pipeline: Any = DiffusionPipeline.from_pretrained(
        folder / "artefact" / "diffusers", torch_dtype=torch.float32
    )
    pipeline.set_progress_bar_config(disable=True)
    drawn = pipeline(
        PROMPTS,
        num_inference_steps=STEPS,
        guidance_scale=SCALE,
        latents=torch.from_numpy(noise),
        output_type="np",
        return_dict=False,
    )
    return as_pixels(drawn[0])


CASES: Mapping[str, Callable[[Path], None]] = {
    **{sampler: demo(sampler) for sampler in ("ddim", "dpmpp_2m", "euler")},
    "small SD 2.1, ddim": small(make_tiny_v2, "ddim"),
    "small SDXL, euler": small(make_tiny_xl, "euler"),
}


if __name__ == "__main__":
    main()
