"""Do rounds of inversion make a trained erasure harder to undo? One concept of the demo model.

    python -m benchmarks.training_rounds [--label "nike logo"] [--rounds 3] [--steps 80] [--images 16]

The concept is trained away. Then, so many times, inversion looks for a word that still draws it and training
goes on with that word, its rate falling to zero in each round. After every round probes examine the model:
the plain prompt, and a word learned by inversion at the probe's usual effort, each with its control; and
near neighbors are drawn, the last round first. Results are written after every part, to
results/training_rounds.json: a run that was stopped goes on.
"""

import json
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
from pydantic import TypeAdapter

from retouch.compiler.cache import default_cache
from retouch.compiler.contract import Erasure
from retouch.compiler.evidence.trial import pipeline_drawer, write_trial
from retouch.compiler.gates._judging import JudgeFile, open_judge
from retouch.compiler.ir import Pipeline
from retouch.compiler.load import load_pipeline
from retouch.compiler.probes import Probe
from retouch.compiler.probes._examine import Examination
from retouch.compiler.probes.inversion import Inversion
from retouch.compiler.probes.plain import Plain
from retouch.compiler.registry import passes
from retouch.compiler.studio import Quiet, Studio
from retouch.compiler.tensors import Shared, Tensor
from retouch.compiler.threads import single_threaded
from retouch.compiler.torch_models.gradients import Gradients
from retouch.passes import _esd, _training
from retouch.passes.erase_by_training import EraseByTraining
from retouch.runtime.judges import Judge
from retouch.specs.fields import DEMO

from .erasure_table import CONCEPTS, DRAWN, SHOWN, _prompt

RESULTS = Path(__file__).parent / "results" / "training_rounds.json"
SEEDS_FROM = 10_000  # of neighbors
NEIGHBORS = ("whatsapp logo", "apple logo", "github logo", "mastercard logo", "volkswagen logo")


@click.command()
@click.option("--label", default="nike logo", show_default=True)
@click.option("--rounds", default=3, show_default=True)
@click.option("--steps", default=80, show_default=True, help="Of training, a round.")
@click.option("--images", default=16, show_default=True, help="Drawn a probe.")
@click.option("--results", type=click.Path(path_type=Path), default=RESULTS)
def main(label: str, rounds: int, steps: int, images: int, results: Path) -> None:
    """Measure what has not been measured after the training and after each round."""
    source = load_pipeline(DEMO / "model", "dpmpp_2m", 10, 2.0)
    source = replace(source, studio=Studio(source.sampling, default_cache(), Quiet()))
    judge = open_judge(JudgeFile.resolve("demo", Path()))
    edit = _edit(label, steps)
    key = {"training": _training.checkpoint_of(edit, source).stem, "images": images, "label": label}
    known = json.loads(results.read_text()) if results.is_file() else {}
    known = known if known.get("key") == key else {"key": key, "steps": steps, "rounds": {}}
    trained = [_trained(replace(edit, rounds=n), source, key["training"]) for n in range(rounds + 1)]
    for number in sorted({0, 1, rounds}, reverse=True):
        found = known["rounds"].setdefault(str(number), {})
        for part in (part for part in PARTS if part not in found):
            found[part] = PARTS[part](source, trained[number], label, judge, images)
            results.write_text(json.dumps(known, indent=1) + "\n")
        print(_line(number, found), flush=True)


def _edit(label: str, steps: int) -> EraseByTraining:
    guide = next(guide for known, guide, _ in CONCEPTS if known == label)
    concept = {"name": _prompt(label), "towards": guide, "synonyms": [label]}
    block = {"concepts": [concept], "templates": list(SHOWN), "steps": steps, "rounds": 0}
    return TypeAdapter[Any](passes.load("erase_by_training")).validate_json(json.dumps(block))


def _trained(edit: EraseByTraining, source: Pipeline, key: str) -> Pipeline:
    """Go on from the end of the round before until the next has ended, and return the model as it is then."""
    folder = default_cache() / "benchmarks"
    checkpoint, before = (folder / f"rounds-{key}-{n}.safetensors" for n in (edit.rounds, edit.rounds - 1))
    if before.is_file() and not checkpoint.is_file():
        shutil.copy(before, checkpoint)
    with single_threaded():
        model, start = Gradients(source), _training._start(edit, source)
        state = _esd.train(model, edit.course(source), checkpoint, start)
    changed: dict[str, Tensor] = {}
    for name, (down, up) in state.deltas.items():
        weight = np.asarray(source.tensors[name].read(), np.float32) + (up @ down).detach().numpy()
        changed[name] = Shared(lambda weight=weight: weight, weight.dtype, weight.shape)
    return source.with_tensors(changed)


def _probed(
    probe: Probe, source: Pipeline, edited: Pipeline, label: str, judge: Judge, images: int
) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        write_trial(edited, Path(folder), default_cache())
        erasures = [Erasure((_prompt(label),), "")]
        (found,) = Examination(Path(folder), erasures, [probe], judge, images, source).run(Quiet())
    whole = found.model_dump(mode="json")
    return {key: whole[key] for key in ("value", "interval", "count", "details")}


def _neighbors(source: Pipeline, edited: Pipeline, label: str, judge: Judge, images: int) -> dict[str, int]:
    """Return how many images show each neighbor, of half as many as are probed."""
    del source, label
    seeds = range(SEEDS_FROM, SEEDS_FROM + images // 2)
    found = {}
    with pipeline_drawer(edited, default_cache()) as draw:
        for neighbor in NEIGHBORS:
            prompts = [DRAWN[seed % len(DRAWN)].replace("{}", _prompt(neighbor)) for seed in seeds]
            found[neighbor] = int(judge.recognized(draw(prompts, seeds), neighbor).sum())
    return found


PARTS: dict[str, Callable[..., dict[str, Any]]] = {
    "plain": partial(_probed, Plain()),
    "inversion": partial(_probed, Inversion()),
    "neighbors": _neighbors,
}


def _line(number: int, found: dict[str, Any]) -> str:
    kept = ", ".join(f"{label} {count}" for label, count in found["neighbors"].items())
    probed = "; ".join(f"{name} {_said(found[name])}" for name in ("plain", "inversion"))
    return f"after round {number}: {probed}; neighbors {kept}"


def _said(probe: dict[str, Any]) -> str:
    return f"{probe['value']} ({' to '.join(probe['interval'])}), control {probe['details']['control']}"


if __name__ == "__main__":
    main()
