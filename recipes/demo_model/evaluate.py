"""Does the model draw what it is asked, and how biased is it? Measures a pipeline folder with both judges."""

# The libraries' own annotations are narrower than what they take and give.
# pyright: reportPrivateImportUsage=false, reportAttributeAccessIssue=false
# pyright: reportArgumentType=false, reportCallIssue=false

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from diffusers import StableDiffusionPipeline
from PIL import Image, ImageDraw
from rich.console import Console

from .adapter import STYLE
from .judges import Judge
from .sprites import SIZE
from .training import worker, workers
from .world import GENDERS, World

BATCH = 32
STYLED = 24  # objects drawn with and without the adapter, four seeds each
CONSOLE = Console(stderr=True)


@dataclass(frozen=True)
class Sampling:
    """How images are drawn, from ``plan.yaml``."""

    steps: int
    guidance: float
    seeds: int  # per concept
    people: int  # seeds per unqualified profession: shares need more
    explicit: int  # seeds per "a female doctor"


class Sampler:
    """The pipeline, prompt by prompt: image k of a prompt always starts from the noise of seed k."""

    def __init__(self, folder: Path, sampling: Sampling) -> None:
        self.pipeline = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
        self.pipeline.set_progress_bar_config(disable=True)
        self.sampling = sampling
        self.done = 0

    def draw(self, prompts: list[str], seeds: list[int]) -> np.ndarray:
        """Images [N, 3, 64, 64], 0..1. Workers take turns with the batches, and all get all images."""
        batches = range(0, len(prompts), BATCH)
        own = batches[worker() :: workers()]
        drawn = {start: self.batch(prompts[start:][:BATCH], seeds[start:][:BATCH]) for start in own}
        parts: list[Any] = [drawn] * workers()
        if workers() > 1:
            dist.all_gather_object(parts, drawn)
        everything = {start: images for part in parts for start, images in part.items()}
        return np.concatenate([everything[start] for start in batches])

    def batch(self, prompts: list[str], seeds: list[int]) -> np.ndarray:
        images = self.pipeline(
            prompts,
            num_inference_steps=self.sampling.steps,
            guidance_scale=self.sampling.guidance,
            generator=[torch.Generator().manual_seed(seed) for seed in seeds],
            output_type="np",
        ).images
        self.done += len(images)
        if worker() == 0:
            CONSOLE.print(f"evaluate: about {self.done * workers():,} images")
        return np.moveaxis(np.asarray(images, dtype=np.float32), 3, 1)

    def each(self, prompts: list[str], count: int) -> np.ndarray:
        """`count` images of every prompt: [P, count, 3, 64, 64]."""
        drawn = self.draw(
            [prompt for prompt in prompts for _ in range(count)], list(range(count)) * len(prompts)
        )
        return drawn.reshape(len(prompts), count, *drawn.shape[1:])


def evaluate(
    world: World, sampler: Sampler, classifier: Judge, clip: Judge, adapter: Path, sheets: Path
) -> dict[str, Any]:
    """All figures of the model card; sample sheets are drawn beside."""
    told: dict[str, Any] = {"sampling": vars(sampler.sampling)}
    told["recognition"] = recognition(world, sampler, classifier, clip, sheets)
    told["professions"] = professions(world, sampler, classifier, sheets)
    told["adapter"] = restyling(world, sampler, classifier, adapter)
    return told


def recognition(
    world: World, sampler: Sampler, classifier: Judge, clip: Judge, sheets: Path
) -> dict[str, Any]:
    """Top-1 recognition of every concept's plain prompt."""
    drawn = sampler.each([concept.prompt for concept in world.concepts], sampler.sampling.seeds)
    flat = drawn.reshape(-1, *drawn.shape[2:])
    wanted = np.arange(len(world.concepts))[:, None]
    by_classifier = (classifier.answers(flat)["concept"].reshape(drawn.shape[:2]) == wanted).mean(1)
    by_clip = (clip.answers(flat)["concept"].reshape(drawn.shape[:2]) == wanted).mean(1)
    save_sheet(drawn[:, :8].reshape(-1, *drawn.shape[2:]), sheets / "concepts.png", columns=32)
    save_labelled(drawn[:, 0], world.labels, sheets / "demo-model.png", columns=14)
    return {
        "classifier": float(by_classifier.mean()),
        "clip": float(by_clip.mean()),
        "concepts": {
            concept.label: {"category": concept.category, "classifier": float(a), "clip": float(b)}
            for concept, a, b in zip(world.concepts, by_classifier, by_clip, strict=True)
        },
    }


def professions(world: World, sampler: Sampler, classifier: Judge, sheets: Path) -> dict[str, Any]:
    """Whether unqualified professions show the documented share of men, and explicit ones the gender they
    name."""
    people = [concept for concept in world.concepts if concept.is_profession]
    plain = sampler.each([concept.prompt for concept in people], sampler.sampling.people)
    save_sheet(plain[:, :16].reshape(-1, *plain.shape[2:]), sheets / "professions.png", columns=16)
    explicit = {
        gender: sampler.each([f"a {gender} {concept.name}" for concept in people], sampler.sampling.explicit)
        for gender in GENDERS
    }
    told: dict[str, Any] = {}
    for number, concept in enumerate(people):
        men = (classifier.answers(plain[number])["gender"] == 0).mean()
        obeyed = {
            gender: float(
                (classifier.answers(explicit[gender][number])["gender"] == GENDERS.index(gender)).mean()
            )
            for gender in GENDERS
        }
        told[concept.label] = {"documented": concept.men, "measured": float(men), **obeyed}
    return {
        "professions": told,
        "worst_gap": max(abs(p["documented"] - p["measured"]) for p in told.values()),
        "obeyed": float(np.mean([p[gender] for p in told.values() for gender in GENDERS])),
    }


def restyling(world: World, sampler: Sampler, classifier: Judge, adapter: Path) -> dict[str, Any]:
    """How often prompts that name no style are drawn in the adapter's, without and with it."""
    prompts = [concept.prompt for concept in world.concepts if concept.category == "object"][:STYLED]
    style = world.styles.index(STYLE)

    def share() -> float:
        drawn = sampler.each(prompts, 4)
        return float((classifier.answers(drawn.reshape(-1, *drawn.shape[2:]))["style"] == style).mean())

    without = share()
    sampler.pipeline.load_lora_weights(adapter)
    adapted = share()
    sampler.pipeline.unload_lora_weights()
    return {"style": STYLE, "without": without, "with": adapted}


def save_labelled(images: np.ndarray, labels: list[str], path: Path, columns: int) -> None:
    """Images with their names below, in few colors so that the file stays small."""
    if worker() > 0:
        return
    width, height = SIZE + 16, SIZE + 16
    sheet = Image.new("RGB", (columns * width, -(-len(images) // columns) * height), "white")
    pen = ImageDraw.Draw(sheet)
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        x, y = number % columns * width, number // columns * height
        tile = Image.fromarray((np.moveaxis(image, 0, 2) * 255).round().astype(np.uint8))
        sheet.paste(tile, (x + (width - SIZE) // 2, y))
        pen.text((x + width // 2, y + SIZE + 2), label, fill="black", anchor="mt", font_size=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.quantize(192, dither=Image.Dither.NONE).save(path, optimize=True)


def save_sheet(images: np.ndarray, path: Path, columns: int) -> None:
    """Images side by side."""
    if worker() > 0:
        return
    rows = -(-len(images) // columns)
    padded = np.ones((rows * columns, 3, 64, 64), dtype=np.float32)
    padded[: len(images)] = images
    sheet = (
        padded.reshape(rows, columns, 3, 64, 64).transpose(0, 3, 1, 4, 2).reshape(rows * 64, columns * 64, 3)
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((sheet * 255).round().astype(np.uint8)).save(path, optimize=True)


def write_figures(told: dict[str, Any], path: Path) -> None:
    path.write_text(json.dumps(rounded(told), indent=1) + "\n")


def rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 4)
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [rounded(item) for item in value]
    return value
