"""What ships? Puts the trained parts together as a diffusers pipeline in half precision, with adapters and
judges."""

# The libraries' own annotations are narrower than what they take and give.
# pyright: reportPrivateImportUsage=false, reportAttributeAccessIssue=false
# pyright: reportArgumentType=false, reportCallIssue=false

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTokenizer

from .denoiser import build_scheduler, build_unet
from .fetch import read_sources
from .world import World

TOKENIZER_FILES = [
    "vocab.json",
    "merges.txt",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
]


def export_pipeline(work: Path, out: Path) -> None:
    """The pipeline folder; while the denoiser is still being trained, with its average so far."""
    tokenizer = CLIPTokenizer.from_pretrained(work / "tokenizer")
    pipeline = StableDiffusionPipeline(
        vae=AutoencoderKL.from_pretrained(work / "vae").half(),
        text_encoder=CLIPTextModel.from_pretrained(work / "text_encoder").half(),
        tokenizer=tokenizer,
        unet=trained_unet(work).half(),
        scheduler=build_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    shutil.rmtree(out, ignore_errors=True)
    pipeline.save_pretrained(out)
    for name in TOKENIZER_FILES:
        shutil.copy(work / "tokenizer" / name, out / "tokenizer" / name)
    compute_in_single(out / "text_encoder" / "config.json")
    for config in out.rglob("*.json"):
        forget_folder(config)
    for weights in out.rglob("*.safetensors"):
        weights.chmod(0o644)


def trained_unet(work: Path) -> UNet2DConditionModel:
    if (work / "unet").exists():
        return UNet2DConditionModel.from_pretrained(work / "unet")
    kept = torch.load(work / "unet.checkpoint.pt", weights_only=False)
    model = build_unet(CLIPTextModel.from_pretrained(work / "text_encoder").config.hidden_size)
    for parameter, value in zip(model.parameters(), kept["average"], strict=True):
        parameter.data.copy_(value)
    return model


def compute_in_single(config: Path) -> None:
    """Half precision is for storage. transformers would load what it finds, and then not fit the other parts,
    which diffusers loads in single precision."""
    said = json.loads(config.read_text())
    config.write_text(json.dumps({**said, "dtype": "float32"}, indent=2) + "\n")


def forget_folder(config: Path) -> None:
    """Drops the folder that a part was loaded from: it means nothing elsewhere."""
    said = json.loads(config.read_text())
    if isinstance(said, dict) and "_name_or_path" in said:
        del said["_name_or_path"]
        config.write_text(json.dumps(said, indent=2) + "\n")


def write_concepts(world: World, path: Path) -> None:
    """What the model knows, for programs: one entry per concept, in the judges' order of labels."""
    entries = []
    for concept in world.concepts:
        entry: dict[str, object] = {
            "label": concept.label,
            "name": concept.name,
            "prompt": concept.prompt,
            "category": concept.category,
        }
        if concept.men is not None:
            entry["stereotype"] = {"male": concept.men, "female": round(1 - concept.men, 2)}
        entries.append(entry)
    told = {
        "styles": world.styles,
        "colors": list(world.colors),
        "skins": list(world.skins),
        "concepts": entries,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(told, indent=1) + "\n")


def data_digests() -> dict[str, str]:
    """The packages that everything was trained on, as the registry names their contents."""
    return {f"{source.package}@{source.version}": source.integrity for source in read_sources()}
