"""Probes examine the bytes that ship, with a control beside each attempt, and their report can be checked."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from building import spec_folder
from PIL import Image

from retouch.compiler.build import Options, build
from retouch.compiler.plan import make_plan
from retouch.compiler.probes._control import figures, likeness
from retouch.compiler.probes._patient import Patient
from retouch.compiler.probes.noise import draw_noisy
from retouch.compiler.probes.static import Maps
from retouch.compiler.registry import probes
from retouch.compiler.torch_models.gradients import Gradients
from retouch.compiler.torch_models.shipped import check_parity, shipped_pipeline
from retouch.runtime.artefact import open_artefact, verify
from retouch.runtime.cli import main
from retouch.runtime.judges import Judge
from retouch.specs.canonical import digest_file, merkle_root, sealed
from retouch.specs.errors import GateError, IntegrityError, UndecidedError
from retouch.specs.probes import ProbeReport

from .passes import metered

LABELS = ("cat", "dog", "cloud")
SPEC = """
schema: 1
name: tiny
version: 1.0.0
source: {model: model}
edits:
  - erase_by_training:
      concepts: [{name: a cat, towards: a cloud}]
      templates: ["{}"]
      steps: 4
      rounds: 0
      vocabulary: 2
      batch: 2
sampling: {sampler: ddim, steps: 3}
emit:
  - onnx: {}
"""
# The first leaves records, which must not lie in the artefact yet when the second opens it.
GATE = """gates:
  - erased: {at_most: '1', images: 2, judge: judge.onnx}
  - probed: {at_most: '0.1', images: 4, judge: judge.onnx, probes: [noise, static]}
"""
QUICK = ("--images", "4", "--effort", "inversion.steps=2", "--effort", "token_search.steps=2")


@pytest.fixture(scope="module")
def folder(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A spec, the model that it edits, and a judge."""
    return spec_folder(tmp_path_factory.mktemp("spec"), tiny, SPEC, concept=LABELS)


@pytest.fixture(scope="module")
def artefact(folder: Path, skeletons: Path) -> Path:
    build(make_plan(folder / "edit.yaml"), folder / "built", Options(cache=skeletons))
    return folder / "built"


@pytest.fixture(scope="module")
def patient(artefact: Path) -> Patient:
    return Patient(artefact)


def probe(*arguments: object) -> int:
    return main(["probe", *map(str, arguments)])


def result_of(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, dict[str, Any]]:
    capsys.readouterr()
    code = probe(*arguments, "--json")
    return code, json.loads(capsys.readouterr().out)


def test_probes_are_found_by_file_name() -> None:
    assert probes.names() == ["inversion", "noise", "plain", "static", "token_search"]


def test_the_modules_hold_the_shipped_bytes(folder: Path, artefact: Path) -> None:
    edited = make_plan(folder / "edit.yaml").pipeline
    shipped = shipped_pipeline(open_artefact(artefact))
    for name, tensor in edited.tensors.items():
        if not name.startswith("vae.") and "position_ids" not in name:
            spelled = edited.family.module_name(*name.split(".", 1))
            found = next(t for n, t in shipped.tensors.items() if n.endswith(spelled))
            assert np.array_equal(found.read(), tensor.read()), name


def test_modules_that_compute_something_else_are_not_examined(patient: Patient) -> None:
    pipeline = patient.model.pipeline
    other = Gradients(pipeline.select("denoiser", "conv_in.weight").map(lambda weight: 1.1 * weight, "test"))
    with pytest.raises(UndecidedError, match="differ by"):
        check_parity(pipeline, other.modules, patient.folder)


def test_every_probe_reports_with_a_control_and_verify_accepts_the_report(
    folder: Path, artefact: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    shutil.copytree(artefact, tmp_path / "built")
    spec, judge = folder / "edit.yaml", folder / "judge.onnx"
    code, value = result_of(capsys, tmp_path / "built", "--spec", spec, "--judge", judge, *QUICK, "--attach")
    assert code == 0
    assert [evidence["claim"] for evidence in value["evidence"]] == [f"probe.{n}" for n in probes.names()]
    assert all({"control", "control_is"} <= set(evidence["details"]) for evidence in value["evidence"])
    assert value["probes"]["inversion"]["steps"] == 2

    verify(tmp_path / "built")
    (file,) = (tmp_path / "built" / "attestations").glob("probes-*.json")
    assert main(["verify", str(tmp_path / "built")]) == 0
    shown = capsys.readouterr().out
    assert f"attestations/{file.name}, judge judge" in shown
    assert all(f"probe.{name} (a cat): " in shown for name in probes.names())
    assert main(["verify", str(tmp_path / "built"), "--json"]) == 0
    (shown,) = json.loads(capsys.readouterr().out)["probes"]
    assert shown["path"] == f"attestations/{file.name}"
    assert shown["evidence"] == value["evidence"]

    report = json.loads(file.read_bytes())
    digest = report.pop("digest")
    assert ProbeReport.model_validate_json(json.dumps(report)).text() == file.read_bytes()
    file.write_bytes(file.read_bytes().replace(digest[:8].encode(), b"00000000"))
    with pytest.raises(IntegrityError):
        verify(tmp_path / "built")


def test_an_attached_document_that_is_no_report_is_refused(
    artefact: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    shutil.copytree(artefact, tmp_path / "built")
    about = {"manifest_sha256": digest_file(artefact / "manifest.json")}
    for name, more, code in (("old", {}, "E_INVALID"), ("new", {"schema": 2}, "E_SCHEMA_VERSION")):
        file = tmp_path / "built" / "attestations" / f"probes-{name}.json"
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(sealed({**about, **more}))
        assert main(["verify", str(tmp_path / "built"), "--json"]) in (3, 4)
        (fault,) = json.loads(capsys.readouterr().out)["faults"]
        assert (fault["code"], fault["where"]) == (code, f"attestations/{file.name}")
        file.unlink()


def test_two_examinations_find_the_same(
    folder: Path, artefact: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = (artefact, "--spec", folder / "edit.yaml", "--judge", folder / "judge.onnx", *QUICK)
    assert result_of(capsys, *arguments) == result_of(capsys, *arguments)


def test_pictures_stand_in_for_a_base_that_is_gone(
    folder: Path, artefact: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    shutil.copytree(artefact, tmp_path / "built")
    judge = folder / "judge.onnx"
    code, value = result_of(capsys, tmp_path / "built", "--judge", judge)
    assert (code, value["faults"][0]["code"]) == (2, "E_SOURCE")

    (tmp_path / "cats").mkdir()
    Image.new("RGB", (40, 30), (200, 10, 10)).save(tmp_path / "cats" / "one.png")
    given = ("--shown", f"a cat={tmp_path / 'cats'}", "--concept", "a cat")
    effort = ("--probes", "inversion", "--effort", "inversion.steps=1", "--images", "2")
    code, value = result_of(capsys, tmp_path / "built", "--judge", judge, *given, *effort)
    assert code == 0
    assert value["evidence"][0]["details"]["shown"] == 1


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("--concept", "a shoe"), "E_PROBE_CONCEPT"),
        (("--probes", "inversoin"), "E_UNKNOWN_NAME"),
        (("--effort", "inversion.steps=0"), "E_USAGE"),
        (("--effort", "inversion.stpes=1"), "E_USAGE"),
        (("--effort", "inversion.steps"), "E_USAGE"),
        (("--probes", "plain", "--effort", "noise.strengths=1"), "E_USAGE"),
    ],
)
def test_what_cannot_be_carried_out_is_said(
    folder: Path, artefact: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], code: str
) -> None:
    given = (artefact, "--spec", folder / "edit.yaml", "--judge", folder / "judge.onnx")
    exit_code, value = result_of(capsys, *given, *arguments)
    assert (exit_code, value["faults"][0]["code"]) == (2, code)


def test_probes_ask_for_what_they_say(
    folder: Path, artefact: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = (artefact, "--spec", folder / "edit.yaml", "--judge", folder / "judge.onnx", *QUICK)
    _, dry = result_of(capsys, *given, "--dry-run")
    with metered() as asked:
        assert result_of(capsys, *given)[0] == 0
    said = {
        kind: sum(part[kind] for part in dry["cost"].values()) for kind in ("predicted", "differentiated")
    }
    assert asked["differentiated"] == said["differentiated"]
    # A judge may know fewer other things than are compared with; modules are held against graphs once.
    assert 0.5 * said["predicted"] <= asked["predicted"] <= 1.1 * said["predicted"]


def test_a_dry_run_says_what_every_probe_costs_and_examines_nothing(
    folder: Path, artefact: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Patient, "__init__", lambda *_: pytest.fail("the artefact was opened for probing"))
    given = ("--spec", folder / "edit.yaml", "--judge", folder / "judge.onnx", "--images", "4", "--dry-run")
    code, value = result_of(capsys, artefact, *given, "--effort", "inversion.steps=5")
    assert code == 0
    cost = value["cost"]
    assert list(cost) == ["images to compare with", *probes.names()]
    # Images for the concept and the control, each 3 steps guided; 5 steps of 8 samples for each.
    assert cost["plain"]["predicted"] == 2 * 4 * 6
    assert cost["inversion"]["predicted"] == 2 * 4 * 6
    assert cost["inversion"]["differentiated"] == 2 * 5 * 8
    assert cost["static"]["predicted"] == 0
    assert all(part["seconds"] >= 0 for part in cost.values())


def test_a_probe_that_draws_nothing_costs_nothing(
    folder: Path, artefact: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Patient, "latents", lambda *_: pytest.fail("something was drawn"))
    given = ("--spec", folder / "edit.yaml", "--judge", folder / "judge.onnx", "--probes", "static")
    code, value = result_of(capsys, artefact, *given, "--dry-run")
    assert (code, {part["predicted"] for part in value["cost"].values()}) == (0, {0})
    code, value = result_of(capsys, artefact, *given)
    assert (code, len(value["evidence"])) == (0, 1)


def test_an_output_that_exists_is_refused_before_anything_is_drawn(
    folder: Path, artefact: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Patient, "__init__", lambda *_: pytest.fail("the artefact was opened for probing"))
    given = ("--spec", folder / "edit.yaml", "--judge", folder / "judge.onnx")
    code, value = result_of(capsys, artefact, *given, "-o", folder / "edit.yaml")
    assert (code, value["faults"][0]["code"]) == (2, "E_OUTPUT")


def test_what_is_not_an_artefact_to_probe_is_refused_with_a_code(
    folder: Path, artefact: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    given = ("--spec", folder / "edit.yaml", "--judge", folder / "judge.onnx")
    code, value = result_of(capsys, tmp_path, *given)
    assert (code, value["faults"][0]["code"]) == (3, "E_MISSING")

    shutil.copytree(artefact, tmp_path / "built")
    weights = max((tmp_path / "built" / "unet").iterdir(), key=lambda file: file.stat().st_size)
    flipped = bytearray(weights.read_bytes())
    flipped[100] ^= 1
    weights.write_bytes(flipped)
    code, value = result_of(capsys, tmp_path / "built", *given)
    assert (code, value["faults"][0]["code"]) == (3, "E_CHANGED")


def without_weights(folder: Path) -> None:
    graph = folder / "unet" / "model.onnx"
    model = onnx.load_model(graph, load_external_data=False)
    del model.graph.initializer[:]
    graph.write_bytes(model.SerializeToString())


def of_no_class(folder: Path) -> None:
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps({**index, "unet": ["os", "system"]}))


@pytest.mark.parametrize(
    ("spoil", "code"),
    [
        (without_weights, "E_TENSOR_MISSING"),
        (of_no_class, "E_COMPONENT"),
        (lambda folder: (folder / "unet" / "model.onnx").write_bytes(b"no graph"), "E_GRAPH"),
        (lambda folder: (folder / "unet" / "config.json").write_text("[]"), "E_CONFIG"),
        (
            lambda folder: (folder / "unet" / "config.json").write_text('{"down_block_types": [1]}'),
            "E_CONFIG",
        ),
    ],
)
def test_a_sealed_artefact_that_holds_no_model_is_refused_with_a_code(
    folder: Path,
    artefact: Path,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    spoil: Callable[[Path], object],
    code: str,
) -> None:
    """The seal is whole: who made this could write whatever they wanted."""
    shutil.copytree(artefact, tmp_path / "built")
    spoil(tmp_path / "built")
    reseal(tmp_path / "built")
    given = ("--spec", folder / "edit.yaml", "--judge", folder / "judge.onnx")
    exit_code, value = result_of(capsys, tmp_path / "built", *given)
    assert (exit_code, value["faults"][0]["code"]) == (2, code)


def reseal(folder: Path) -> None:
    """Write the manifest of what lies in a folder now, as an attacker could."""
    value = json.loads((folder / "manifest.json").read_bytes())
    del value["digest"]
    for record in value["files"]:
        file = folder / record["path"]
        record |= {"size": file.stat().st_size, "sha256": digest_file(file)}
    value["merkle_root"] = merkle_root(sorted((r["path"], r["sha256"]) for r in value["files"]))
    (folder / "manifest.json").write_bytes(sealed(value))
    shutil.rmtree(folder / "attestations", ignore_errors=True)


def test_another_spec_is_refused(
    folder: Path, artefact: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "other.yaml").write_text(SPEC + "# changed\n")
    code, value = result_of(capsys, artefact, "--spec", tmp_path / "other.yaml")
    assert (code, value["faults"][0]["code"]) == (2, "E_PROBE_SPEC")


def test_a_gate_writes_what_probes_find_into_the_manifest(
    folder: Path, skeletons: Path, tmp_path: Path
) -> None:
    spec = folder / "gated.yaml"
    spec.write_text(SPEC + GATE)
    options = Options(cache=skeletons, keep_failed=True)
    with pytest.raises(GateError, match=r"probe\.noise"):
        build(make_plan(spec), tmp_path / "gated", options)
    assert not (tmp_path / "gated").exists()
    found = verify(tmp_path / "gated.failed").manifest.gates
    # Of four images none can meet a limit of 10 %; what draws no image has no limit.
    assert [(e.claim, e.passed) for e in found] == [
        ("erased", True),
        ("probe.noise", False),
        ("probe.static", None),
    ]


def test_noise_of_strength_zero_is_plain_ddim(patient: Patient) -> None:
    plain = patient.draw(patient.model.words("a dog"), [1, 2])
    noisy = draw_noisy(patient, patient.model, "a dog", [1, 2], 0.0)
    # The last step of DDIM here keeps the noise of timestep 0, the probe's ends without any.
    assert np.abs(plain.astype(int) - noisy).mean() < 3
    assert np.abs(draw_noisy(patient, patient.model, "a dog", [1, 2], 1.0).astype(int) - noisy).mean() > 1


def test_restoring_through_an_invertible_map_is_its_inverse() -> None:
    random = np.random.default_rng(0)
    weights, states = random.normal(size=(40, 6)), random.normal(size=(3, 6))
    text_map = np.eye(6) + 0.3 * random.normal(size=(6, 6))
    edited = weights @ text_map
    maps = Maps(("w",), edited.T @ edited, edited.T @ weights, weights.T @ weights)
    found = maps.restore(states, states, 1e-12)
    assert np.allclose(found, np.linalg.solve(text_map, states.T).T, atol=1e-6)
    assert maps.residual(found, states) < 1e-4 * maps.residual(states, states)
    direct = np.linalg.norm(states @ edited.T - states @ weights.T)
    assert maps.residual(states, states) == pytest.approx(direct)


def test_the_control_is_the_same_everywhere_and_told_from_other_things(folder: Path) -> None:
    images = figures(6, 32, 48)
    assert images.shape == (6, 32, 48, 3)
    assert np.array_equal(images[:3], figures(3, 32, 48))
    judge = Judge.open(folder, "judge")
    red = np.zeros((2, 32, 48, 3), np.uint8)
    red[..., 0] = 255
    recognized = likeness(judge, images[:3], [red])
    assert recognized(images[3:]).all()
    assert not recognized(red).any()
