"""What should someone who meets the model know? Fills the model card's template with measured figures."""

from __future__ import annotations

import json
from pathlib import Path
from string import Template
from typing import Any

import torch

from .evaluate import rounded
from .fetch import read_sources
from .world import HERE

TRAINED = ["clip", "untangle", "vae", "classifier", "unet", "lora"]


def write_facts(work: Path, seed: int, path: Path) -> None:
    """How the weights came about: seed, and per stage its legs, steps, minutes and last loss."""
    stages = {}
    for stage in TRAINED:
        checkpoint = work / f"{stage}.checkpoint.pt"
        if checkpoint.exists():
            kept = torch.load(checkpoint, weights_only=False)
            stages[stage] = {
                "legs": [{"commit": commit, "from_step": step} for commit, step in kept["legs"]],
                "steps": kept["step"],
                "minutes": round(kept["seconds"] / 60),
                "loss": round(kept["history"][-1][1], 4),
            }
    gate = json.loads((work / "check_text.json").read_text())
    told = {"seed": seed, "stages": stages, "check_text": rounded({"passes": gate["passes"], **gate["best"]})}
    path.write_text(json.dumps(told, indent=1) + "\n")


def render(folder: Path) -> str:
    """The card of everything in a folder; it says nothing that is not in the files beside it."""
    figures = json.loads((folder / "figures.json").read_text())
    facts = json.loads((folder / "facts.json").read_text())
    judges = {
        name: json.loads((folder / "judges" / f"{name}.json").read_text()) for name in ("classifier", "clip")
    }
    recognition, people = figures["recognition"], figures["professions"]
    gate = facts["check_text"]
    filled = {
        "concepts": len(recognition["concepts"]),
        "seed": facts["seed"],
        "steps": figures["sampling"]["steps"],
        "guidance": figures["sampling"]["guidance"],
        "seeds": figures["sampling"]["seeds"],
        "people": figures["sampling"]["people"],
        "explicit": figures["sampling"]["explicit"],
        "by_classifier": percent(recognition["classifier"]),
        "by_clip": percent(recognition["clip"]),
        "held_out_classifier": percent(judges["classifier"]["held_out_accuracy"]["concept"]),
        "held_out_clip": percent(judges["clip"]["held_out_accuracy"]["concept"]),
        "held_out_gender": percent(judges["classifier"]["held_out_accuracy"]["gender"]),
        "worst_gap": f"{100 * people['worst_gap']:.0f}",
        "obeyed": percent(people["obeyed"]),
        "without_adapter": percent(figures["adapter"]["without"]),
        "with_adapter": percent(figures["adapter"]["with"]),
        "residual": percent(gate["residual"]),
        "drift": percent(gate["drift"]),
        "megabytes": f"{sum(weights(folder).values()) / 1e6:.1f}",
        "sources": table(["package", "holds", "license", "tarball's sha512"], source_rows()),
        "stages": table(["stage", "recipe's commit", "steps", "minutes", "last loss"], stage_rows(facts)),
        "categories": table(
            ["category", "concepts", "classifier", "CLIP"], category_rows(recognition["concepts"])
        ),
        "worst": worst(recognition["concepts"], "classifier"),
        "worst_clip": worst(recognition["concepts"], "clip"),
        "per_concept": table(
            ["prompted concept", "category", "classifier", "CLIP"], concept_rows(recognition["concepts"])
        ),
        "bias": table(
            ["profession", "men, documented", "men, measured", "“male” obeyed", "“female” obeyed"],
            [
                [name, *(percent(p[k]) for k in ("documented", "measured", "male", "female"))]
                for name, p in people["professions"].items()
            ],
        ),
    }
    return Template((HERE / "card.md").read_text()).substitute(filled)


def weights(folder: Path) -> dict[str, int]:
    """Sizes of all weight files."""
    return {
        str(path.relative_to(folder)): path.stat().st_size
        for kind in ("*.safetensors", "*.onnx")
        for path in sorted(folder.rglob(kind))
    }


def percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def source_rows() -> list[list[str]]:
    return [
        [f"`{s.package}@{s.version}`", s.holds, s.license, f"`{s.integrity.removeprefix('sha512-')[:16]}…`"]
        for s in read_sources()
    ]


def stage_rows(facts: dict[str, Any]) -> list[list[str]]:
    return [
        [
            name,
            ", ".join(f"`{leg['commit'][:10]}` from step {leg['from_step']:,}" for leg in s["legs"]),
            f"{s['steps']:,}",
            str(s["minutes"]),
            str(s["loss"]),
        ]
        for name, s in facts["stages"].items()
    ]


def category_rows(concepts: dict[str, Any]) -> list[list[str]]:
    rows = []
    for category in dict.fromkeys(c["category"] for c in concepts.values()):
        members = [c for c in concepts.values() if c["category"] == category]
        means = [percent(sum(c[judge] for c in members) / len(members)) for judge in ("classifier", "clip")]
        rows.append([category, str(len(members)), *means])
    return rows


def concept_rows(concepts: dict[str, Any]) -> list[list[str]]:
    return [
        [name, c["category"], percent(c["classifier"]), percent(c["clip"])] for name, c in concepts.items()
    ]


def worst(concepts: dict[str, Any], judge: str, count: int = 8) -> str:
    """The concepts least recognized; fewer where the rest are always recognized."""
    ordered = sorted(concepts, key=lambda name: concepts[name][judge])[:count]
    shares = {name: concepts[name][judge] for name in ordered if concepts[name][judge] < 1}
    return ", ".join(f"{name} ({percent(share)})" for name, share in shares.items()) or "none below 100 %"
