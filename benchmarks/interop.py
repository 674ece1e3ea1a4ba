"""Do other tools draw the same from our artefact? optimum-onnx on the ONNX, diffusers on the diffusers emit.

    python -m benchmarks.interop --optimum-python PATH

PATH is the Python of an environment with transformers 4.57.6, diffusers 0.36.0, optimum 2.1.0 and
optimum-onnx 0.1.0, which cannot share ours. All draw from the same unit noise, schedule and constant
scale; prints PSNR in dB against `retouch run` for each sampler, and writes results/interop.json.
"""

import json
import subprocess
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from retouch.compiler.build import Options, build
from retouch.compiler.plan import make_plan
from retouch.runtime.artefact import open_artefact
from retouch.runtime.noise import normal
from retouch.runtime.sampler import Sampler
from retouch.specs.fields import DEMO_SPEC

RESULTS = Path(__file__).parent / "results"
PROMPTS = ["a dog", "the apple logo", "a pizza in noto style", "a female doctor on a blue background"]
STEPS, SCALE = 20, 4.0  # the demo spec's steps, and a scale of its own
Pixels = NDArray[np.uint8]


@click.command()
@click.option("--optimum-python", type=click.Path(path_type=Path, exists=True), required=True)
def main(optimum_python: Path) -> None:
    """Compare on the demo model."""
    table = Table("sampler", "optimum-onnx, dB", "diffusers emit, dB")
    results = {}
    for sampler in ("ddim", "dpmpp_2m", "euler"):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            ours, noise = draw_ours(folder, sampler)
            peers = {
                "optimum_onnx": draw_optimum(folder, noise, optimum_python),
                "diffusers": draw_diffusers(folder, noise),
            }
        results[sampler] = {peer: round(psnr(ours, pixels), 1) for peer, pixels in peers.items()}
        table.add_row(sampler, *(f"{value}" for value in results[sampler].values()))
    Console().print(table)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "interop.json").write_text(json.dumps(results, indent=2, sort_keys=True) + "\n")


def draw_ours(folder: Path, sampler: str) -> tuple[Pixels, NDArray[np.float32]]:
    """Build the demo spec with this sampler and no schedule; return our images and the noise behind them."""
    spec = folder / "edit.yaml"
    text = DEMO_SPEC.read_text().replace("sampler: dpmpp_2m", f"sampler: {sampler}")
    spec.write_text(text)
    plan = make_plan(spec)
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
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(
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


def as_pixels(images: Any) -> Pixels:
    return np.round(np.asarray(images) * 255).astype(np.uint8)


def psnr(a: Pixels, b: Pixels) -> float:
    """Peak signal-to-noise ratio, in dB."""
    error = np.mean((a.astype(np.float64) - b.astype(np.float64)) ** 2)
    return float("inf") if error == 0 else float(10 * np.log10(255**2 / error))


if __name__ == "__main__":
    main()
