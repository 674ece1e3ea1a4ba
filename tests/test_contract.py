"""What every pass promises, checked for each file of the folder: a new pass is tested with no edit here."""

import inspect
import re
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from pydantic import TypeAdapter

from retouch.compiler.canonical_text import difference, norms
from retouch.compiler.cost import Pace
from retouch.compiler.ir import Pipeline, changed_tensors
from retouch.compiler.registry import passes
from retouch.compiler.studio import Studio
from retouch.compiler.tensors import Array, Tensor
from retouch.compiler.work import Work

from .passes import Case, cases, evidence_of, make, metered, open_tiny

every_pass = pytest.mark.parametrize("name", passes.names())
every_case = pytest.mark.parametrize("case", cases(), ids=lambda case: f"{case.name}-{case.file.stem}")
NUMBER = re.compile(r"(?<![\w.])-?\d+\.\d+(?:e[-+]?\d+)?")


@dataclass(frozen=True)
class Spy:
    """A tensor whose elements nobody may read."""

    dtype: np.dtype
    shape: tuple[int, ...]

    def read(self) -> Array:
        raise AssertionError("a pass read elements while it ran")


def _spied(pipeline: Pipeline) -> Pipeline:
    spies: dict[str, Tensor] = {n: Spy(t.dtype, t.shape) for n, t in pipeline.tensors.items()}
    return replace(pipeline, tensors=spies)


@every_pass
def test_importing_it_loads_no_torch(name: str) -> None:
    code = (
        "import sys; from retouch.compiler.registry import passes; passes.load(sys.argv[1]); "
        "heavy = {'torch', 'transformers', 'onnx'} & {*sys.modules}; sys.exit(', '.join(heavy) or 0)"
    )
    ran = subprocess.run([sys.executable, "-c", code, name], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr


@every_pass
def test_it_says_what_it_does_from_where_and_how_far(name: str) -> None:
    text = inspect.getdoc(passes.load(name)) or ""
    assert text.split("\n\n")[0].endswith(".")
    assert "Source: " in text
    assert "Limits: " in text


@every_pass
def test_it_has_a_golden(name: str) -> None:
    assert [case.golden for case in cases() if case.name == name and case.golden.is_file()]


@every_case
def test_its_change_of_the_tiny_pipeline_is_the_golden(case: Case) -> None:
    before = open_tiny()
    found, golden = norms(difference(before, case.make().run(before))), case.golden.read_text()
    assert NUMBER.sub("#", found) == NUMBER.sub("#", golden)
    numbers = [[float(number) for number in NUMBER.findall(text)] for text in (found, golden)]
    assert numbers[0] == pytest.approx(numbers[1], rel=0.01)


@every_case
def test_it_returns_a_new_pipeline_and_leaves_its_argument(case: Case) -> None:
    before = open_tiny()
    tensors, sampling = dict(before.tensors), before.sampling
    after = case.make().run(before)
    assert after != before
    assert dict(before.tensors) == tensors
    assert before.sampling == sampling
    assert before.graph_edits == ()


@every_case
def test_names_types_and_shapes_stay(case: Case) -> None:
    before = open_tiny()
    after = case.make().run(before)
    assert set(before.tensors) <= set(after.tensors)
    for key in changed_tensors(before, after):
        if key in before.tensors:
            assert after.tensors[key].dtype == before.tensors[key].dtype
            assert after.tensors[key].shape == before.tensors[key].shape
            assert after.tensors[key].read().shape == before.tensors[key].shape


@every_case
def test_running_it_reads_no_element(case: Case) -> None:
    case.make().run(_spied(open_tiny()))


@every_case
def test_it_says_before_what_it_asks_of_the_model(case: Case, tmp_path: Path) -> None:
    """A pass that draws or trains and forgets to say so fails here; `plan` times what it says."""
    tiny, edit = open_tiny(), case.make()
    before = replace(tiny, studio=Studio(tiny.sampling, tmp_path))
    with metered() as asked:
        after = edit.run(before)
        evidence_of(edit, before, after)
        for key in changed_tensors(before, after):
            after.tensors[key].read()
    said, pace = edit.work(), Pace.of(after, before)
    in_torch = pace.evaluated(replace(said, drawn=0, drawn_before=0, differentiated=0))
    in_graphs = pace.evaluated(Work(drawn=said.drawn, drawn_before=said.drawn_before))
    told = {"differentiated": said.differentiated, "predicted": in_torch, "drawn": in_graphs}
    for kind, count in told.items():
        assert asked[kind] <= count <= 2 * asked[kind], kind


@every_case
def test_its_evidence_holds_on_the_edit_and_fails_without(case: Case) -> None:
    before = open_tiny()
    edit = case.make()
    held = [evidence.passed for evidence in evidence_of(edit, before, edit.run(before))]
    unedited = [evidence.passed for evidence in evidence_of(edit, before, before)]
    assert True in held
    assert False not in held
    assert False in unedited


@every_case
def test_its_block_survives_a_round_trip(case: Case) -> None:
    edit = case.make()
    block = TypeAdapter(type(edit)).dump_python(edit, mode="json")
    assert make(case.name, block) == edit
    assert {key: block[key] for key in case.block if not isinstance(block[key], list)} == {
        key: value for key, value in case.block.items() if not isinstance(value, list)
    }


@every_case
def test_two_runs_give_the_same_bytes(case: Case) -> None:
    before = open_tiny()
    one, other = case.make().run(before), case.make().run(before)
    for key in changed_tensors(before, one):
        assert one.tensors[key].read().tobytes() == other.tensors[key].read().tobytes()
