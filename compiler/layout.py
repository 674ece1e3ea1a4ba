"""The files of a diffusers folder that hold no tensors: index, configs, scheduler and tokenizer.

Both emitters write them, so an artefact says the same in each of its forms. What names the place
where a model was made (`_name_or_path`) is left out.
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .ir import Component, Pipeline
from .schedulers import scheduler_class, scheduler_config
from .text.tokenizer import tokenizer_json

TOKENIZER = ("vocab.json", "merges.txt", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
PRIVATE = frozenset({"_name_or_path"})
# Keys that hosts ask for, and the value that older configs mean by leaving them out.
MEANT: Mapping[str, Mapping[str, Any]] = {
    "denoiser": {"time_cond_proj_dim": None},
    "vae": {"scaling_factor": 0.18215, "shift_factor": None},
}


def write_layout(pipeline: Pipeline, folder: Path) -> None:
    """Write model_index.json, scheduler/ and tokenizer/ into an existing folder."""
    write_json(folder / "model_index.json", _index(pipeline))
    for component in pipeline.of_role("scheduler"):
        place = folder / component.name
        place.mkdir()
        write_json(place / "scheduler_config.json", scheduler_config(pipeline))
    for component in pipeline.of_role("tokenizer"):
        write_tokenizer(component.folder, folder / component.name)


def write_config(component: Component, folder: Path) -> None:
    """Write a component's config.json, with each key that hosts ask for."""
    config = {**MEANT.get(component.role, {}), **component.config}
    write_json(folder / "config.json", {key: config[key] for key in config if key not in PRIVATE})


def write_json(file: Path, value: Any) -> None:
    """Write JSON for people to read and for digests to agree on: sorted keys, one newline at the end."""
    file.write_text(json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")


def write_tokenizer(source: Path, folder: Path) -> None:
    """Write a CLIP tokenizer in each form that readers ask for; a missing one is made from the others.

    Raises:
        InputError: the source holds neither tokenizer.json nor vocab.json with merges.txt.
    """
    folder.mkdir()
    for name in TOKENIZER:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)
    if not (folder / "tokenizer.json").is_file():
        (folder / "tokenizer.json").write_text(tokenizer_json(source), encoding="utf-8")
    model = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    if not (folder / "vocab.json").is_file():
        write_json(folder / "vocab.json", model["vocab"])
    if not (folder / "merges.txt").is_file():
        pairs = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
        (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *pairs, ""]), encoding="utf-8")
    if not (folder / "special_tokens_map.json").is_file():
        write_json(folder / "special_tokens_map.json", _special_tokens(folder))


def _special_tokens(folder: Path) -> dict[str, Any]:
    """Return the special tokens that a tokenizer's config names."""
    config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    return {key: value for key, value in config.items() if key.endswith("_token") and value is not None}


def _index(pipeline: Pipeline) -> dict[str, Any]:
    """Return model_index.json; parts that the artefact leaves out are named as absent."""
    left_out = pipeline.family.left_out
    index: dict[str, Any] = {"_class_name": pipeline.family.pipeline_class, **pipeline.settings}
    index |= {name: [None, None] for name in left_out}
    if "safety_checker" in left_out:
        index["requires_safety_checker"] = False
    for component in pipeline.components.values():
        is_scheduler = component.role == "scheduler"
        class_name = scheduler_class(pipeline) if is_scheduler else component.class_name
        index[component.name] = [component.library, class_name]
    return index
