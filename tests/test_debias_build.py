"""A build that balances draws while it writes, with the spec's own sampling; a second one draws nothing."""

from pathlib import Path

import pytest
from building import spec_folder

from retouch.compiler.build import Options, build
from retouch.compiler.cost import Pace
from retouch.compiler.evidence import survey
from retouch.compiler.plan import make_plan
from retouch.compiler.store import Store
from retouch.compiler.studio import Quiet
from retouch.runtime.artefact import verify
from retouch.specs.canonical import digest_file
from retouch.specs.manifest import Manifest

from .passes import metered

SPEC = """
schema: 1
name: tiny
version: 1.0.0
source: {model: model}
edits:
  - debias_concepts:
      concepts: [a doctor, a cat]
      attributes:
        tint: {red: "a man {}", green: "a woman {}"}
      templates: ["{}"]
      held_out: ["on {}"]
      rounds: 2
      images: 6
      step: 2.0
      vocabulary: 3
      judge: judge.onnx
  - bake_guidance: {scale: 3.0}
sampling: {sampler: ddim, steps: 2}
emit:
  - onnx: {parity: false}
gates:
  - balanced: {within: "0.5", images: 6, obeyed: "0", explicit: 2, judge: judge.onnx}
"""


@pytest.fixture(scope="module")
def folder(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A spec, the model that it edits, and a judge that asks which of two channels is brighter."""
    judged = {"concept": ("doctor", "cat"), "tint": ("red", "green")}
    return spec_folder(tmp_path_factory.mktemp("spec"), tiny, SPEC, **judged)


def _built(folder: Path, name: str, cache: Path) -> Manifest:
    build(make_plan(folder / "edit.yaml"), folder / name, Options(cache=cache))
    return verify(folder / name).manifest


def test_a_second_build_repeats_the_bytes_and_draws_nothing(
    folder: Path, skeletons: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = _built(folder, "one", skeletons)

    def refuse(*_: object) -> None:
        raise AssertionError("drew again for what is in the cache")

    monkeypatch.setattr(survey, "pipeline_drawer", refuse)
    second = _built(folder, "two", skeletons)
    assert second == first
    assert digest_file(folder / "two" / "manifest.json") == digest_file(folder / "one" / "manifest.json")

    weights = [evidence for evidence in first.statements if evidence.claim == "debias.weight"]
    assert {evidence.subject for evidence in weights} >= {"a doctor: tint red", "a cat: tint green"}
    assert all(one["images"] == 6 for evidence in weights for one in evidence.details["rounds"])
    assert any(float(evidence.value) != 0 for evidence in weights)
    assert {item.role for item in first.inputs} >= {"judge"}
    assert {evidence.claim for evidence in first.gates} == {"balanced", "obeyed"}


class Forgetful(Store):
    """A cache in which nothing is found."""

    def get(self, key: str) -> None:
        del key


def test_planning_counts_what_pass_and_gate_draw(
    folder: Path, skeletons: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(survey, "Store", Forgetful)
    plan = make_plan(folder / "edit.yaml")
    with metered() as asked:
        build(plan, folder / "counted", Options(cache=skeletons))
    steps = {step.name: step.work for step in plan.steps()}
    assert [*steps] == ["debias_concepts", "gates/balanced"]
    pace = Pace.of(plan.pipeline, plan.source)
    # The loop may end before its last round.
    assert asked["drawn"] <= sum(map(pace.evaluated, steps.values())) <= 2 * asked["drawn"]
    assert asked["predicted"] == asked["differentiated"] == 0


def test_the_loop_draws_with_the_guidance_that_comes_later(folder: Path) -> None:
    plan = make_plan(folder / "edit.yaml")
    at_work = plan.at_work(folder, Quiet())
    debias, guide = at_work.carried
    assert debias.before.studio is not None
    assert debias.before.studio.sampling == guide.after.sampling
    assert debias.before.sampling != guide.after.sampling
