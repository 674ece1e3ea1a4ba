"""Makes the demo model: ``python -m recipes.demo_model [STAGE ...] [--work FOLDER] [--threads N]``.

Stages, in order; without any named, all of them run. Each reads what the ones before it left in the work
folder, goes on from its checkpoint if it was stopped, and does nothing if it is done.

    fetch        npm packages, their digests checked
    sprites      every drawing, rendered once
    clip         tokenizer, text encoder and vision tower
    untangle     trains the towers on until concepts can be moved apart
    vae          the autoencoder
    check-text   whether concepts can be moved apart in the text space; stops the recipe if not
    classifier   the independent judge
    encode       latents of the denoiser's training scenes
    unet         the denoiser
    lora         an adapter for one style
    export       the pipeline folder, adapters and judges, as they ship
    evaluate     recognition by both judges, bias, obedience; sample sheets
    card         the model's README, from the figures
"""

# The libraries' own annotations are narrower than what they take and give.
# pyright: reportPrivateImportUsage=false, reportAttributeAccessIssue=false
# pyright: reportArgumentType=false, reportCallIssue=false

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
import torch.distributed as dist
import yaml
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPModel, CLIPTextModel, CLIPTokenizer

from . import (
    adapter,
    card,
    denoiser,
    evaluate,
    export,
    fetch,
    gate,
    judge,
    judges,
    pixels,
    sprites,
    text,
    tokenizer,
    untangle,
)
from .scenes import Painter
from .training import Plan, worker
from .world import HERE, World, read_world


@dataclass
class Recipe:
    """The recipe at one scale, in one work folder."""

    work: Path
    scale: str = "full"
    stop_at: int | None = None
    workers: int = 1
    concepts: list[str] | None = None  # a subset, for quick runs

    @property
    def out(self) -> Path:
        """Everything that ships, to be copied to ``specs/demo/`` once it is good."""
        return self.work / "export"

    @cached_property
    def world(self) -> World:
        return read_world().only(self.concepts)

    @cached_property
    def numbers(self) -> dict:
        return yaml.safe_load((HERE / "plan.yaml").read_text())[self.scale]

    @property
    def seed(self) -> int:
        return self.numbers["seed"]

    def plan(self, stage: str) -> Plan:
        plan = Plan(**self.numbers[stage])
        return replace(plan, batch=plan.batch // self.workers)

    @cached_property
    def painter(self) -> Painter:
        return Painter(self.world, sprites.load_sprites(self.work / "sprites.npz"))

    @cached_property
    def tokenizer(self) -> CLIPTokenizer:
        return CLIPTokenizer.from_pretrained(self.work / "tokenizer")

    @cached_property
    def encoder(self) -> CLIPTextModel:
        return CLIPTextModel.from_pretrained(self.work / "text_encoder").eval()

    @cached_property
    def autoencoder(self) -> AutoencoderKL:
        model = AutoencoderKL.from_pretrained(self.work / "vae")
        return model.eval().to(memory_format=torch.channels_last)

    @cached_property
    def latents(self) -> denoiser.Latents:
        count = self.numbers["encode"]["scenes"]
        make = lambda: denoiser.encode_scenes(self.painter, self.autoencoder, count, self.seed)  # noqa: E731
        return denoiser.stored(self.work / "latents.pt", make)

    @cached_property
    def pairs(self) -> denoiser.Pairs:
        make = lambda: denoiser.with_states(self.latents, self.encoder, self.tokenizer)  # noqa: E731
        return denoiser.stored(self.work / "pairs.pt", make)

    def fetch(self) -> None:
        fetch.fetch(self.work / "packages")

    def sprites(self) -> None:
        if not (self.work / "sprites.npz").exists():
            sprites.render_sprites(self.world, self.work / "packages").save(self.work / "sprites.npz")

    def clip(self) -> None:
        if not (self.work / "tokenizer").exists():
            tokenizer.learn_tokenizer(self.world, self.work / "tokenizer")
        if not (self.work / "clip_contrastive").exists():
            text.train_clip(
                self.painter, self.tokenizer, self.plan("clip"), self.work, self.seed, self.stop_at
            )

    def untangle(self) -> None:
        if not (self.work / "text_encoder").exists():
            model = CLIPModel.from_pretrained(self.work / "clip_contrastive")
            plan = self.plan("untangle")
            untangle.untangle(model, self.painter, self.tokenizer, plan, self.work, self.seed, self.stop_at)

    def vae(self) -> None:
        if not (self.work / "vae").exists():
            pixels.train_vae(self.painter, self.plan("vae"), self.work, self.seed, self.stop_at)

    def check_text(self) -> None:
        verdict = gate.check_text(self.world, self.encoder, self.tokenizer, self.work / "check_text.json")
        print(verdict)
        if not verdict.passes and self.scale == "full":
            raise SystemExit(
                "Concepts lie too close together in this text space: train the text encoder further."
            )

    def classifier(self) -> None:
        if not (self.work / "classifier.pt").exists():
            plan = self.plan("classifier")
            judge.train_classifier(self.painter, self.autoencoder, plan, self.work, self.seed, self.stop_at)

    def encode(self) -> None:
        print(
            f"{len(self.latents.captions):,} scenes, {len(set(self.latents.captions)):,} different captions"
        )

    def unet(self) -> None:
        if not (self.work / "unet").exists():
            denoiser.train_unet(self.pairs, self.plan("unet"), self.work, self.seed, self.stop_at)

    def lora(self) -> None:
        if not (self.work / "adapters").exists():
            unet = UNet2DConditionModel.from_pretrained(self.work / "unet")
            style = self.world.styles.index(adapter.STYLE)
            adapter.train_adapter(
                unet, self.pairs, style, self.plan("lora"), self.work, self.seed, self.stop_at
            )

    def export(self) -> None:
        export.export_pipeline(self.work, self.out / "model")
        export.write_concepts(self.world, self.out / "concepts.json")
        if (self.work / "adapters").exists():
            shutil.copytree(self.work / "adapters", self.out / "adapters", dirs_exist_ok=True)
        held_out = judges.held_out(self.painter, self.seed)
        for name, judge_outputs in (("classifier", self.classifier_outputs()), ("clip", self.zero_shot())):
            path = self.out / "judges" / f"{name}.onnx"
            judges.export_judge(judge_outputs, path)
            accuracy = judges.held_out_accuracy(judges.Judge(path), held_out)
            told = {
                "held_out_accuracy": accuracy,
                "trained_on": export.data_digests(),
                "outputs": judge_outputs.names,
            }
            judges.write_labels(path, self.world, evaluate.rounded(told))

    def classifier_outputs(self) -> judges.ClassifierOutputs:
        classifier = judge.Classifier(judge.questions(self.world))
        classifier.load_state_dict(torch.load(self.work / "classifier.pt"))
        return judges.ClassifierOutputs(classifier.eval())

    def zero_shot(self) -> judges.ZeroShot:
        return judges.ZeroShot(CLIPModel.from_pretrained(self.work / "clip"), self.tokenizer, self.world)

    def evaluate(self) -> None:
        sampler = evaluate.Sampler(self.out / "model", evaluate.Sampling(**self.numbers["evaluate"]))
        classifier, clip = (
            judges.Judge(self.out / "judges" / f"{name}.onnx") for name in ("classifier", "clip")
        )
        adapter_file = self.out / "adapters" / f"{adapter.STYLE}_style.safetensors"
        sheets = self.work / "sheets"
        told = evaluate.evaluate(self.world, sampler, classifier, clip, adapter_file, sheets)
        if worker() == 0:
            evaluate.write_figures(told, self.out / "figures.json")

    def card(self) -> None:
        card.write_facts(self.work, self.seed, self.out / "facts.json")
        (self.out / "README.md").write_text(card.render(self.out))


STAGES: dict[str, Callable[[Recipe], None]] = {
    "fetch": Recipe.fetch,
    "sprites": Recipe.sprites,
    "clip": Recipe.clip,
    "untangle": Recipe.untangle,
    "vae": Recipe.vae,
    "check-text": Recipe.check_text,
    "classifier": Recipe.classifier,
    "encode": Recipe.encode,
    "unet": Recipe.unet,
    "lora": Recipe.lora,
    "export": Recipe.export,
    "evaluate": Recipe.evaluate,
    "card": Recipe.card,
}
# The stages that workers can share; the first of them does the others alone.
SHARED = {"clip", "untangle", "vae", "classifier", "unet", "lora", "evaluate"}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m recipes.demo_model", description="Makes the demo model.")
    parser.add_argument(
        "stages", nargs="*", metavar="STAGE", help=f"any of {', '.join(STAGES)} (default: all)"
    )
    parser.add_argument(
        "--work", type=Path, default=Path("build/demo_model"), help="folder for everything made"
    )
    parser.add_argument(
        "--threads", type=int, default=1, help="CPU threads (may differ between legs of a stage)"
    )
    parser.add_argument(
        "--workers", type=int, default=1, help="processes that share every batch, each with its threads"
    )
    parser.add_argument("--stop-at", type=int, help="stop training at this step; a later run goes on from it")
    parser.add_argument("--scale", default="full", help="a section of plan.yaml")
    given = parser.parse_args()
    if unknown := set(given.stages) - set(STAGES):
        parser.error(f"no such stage: {', '.join(sorted(unknown))}")
    if given.workers > 1 and not dist.is_torchelastic_launched():
        raise SystemExit(share_among(given.workers))
    if given.workers > 1:
        dist.init_process_group("gloo")
    torch.set_num_threads(given.threads)
    torch.set_flush_denormal(True)  # optimizer states that fade out would slow every step down
    recipe = Recipe(given.work, given.scale, given.stop_at, given.workers)
    for stage in given.stages or STAGES:
        if worker() == 0 or stage in SHARED:
            STAGES[stage](recipe)
        if given.workers > 1:
            dist.barrier()


def share_among(workers: int) -> int:
    """Runs the same command in several processes that find each other; its exit status."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(workers)]
    return subprocess.run([*launch, "-m", "recipes.demo_model", *sys.argv[1:]]).returncode


if __name__ == "__main__":
    main()
