"""Sessions run where they were asked to, and say what is missing where they cannot."""

import shutil
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from runtime_artefact import make_artefact, seal

from retouch.runtime import devices, sessions
from retouch.runtime.artefact import open_artefact
from retouch.runtime.devices import check_device
from retouch.runtime.sessions import Placement, load_session, open_session
from retouch.specs.errors import InputError, IntegrityError, SpecError, UndecidedError

COMBINE = ["unconditional", "conditional", "guidance_weight"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_artefact(tmp_path / "artefact")


def test_arrays_are_cast_to_what_the_graph_takes(folder: Path) -> None:
    session = open_session(
        open_artefact(folder), "text_encoder/model.onnx", ["input_ids"], ["last_hidden_state"]
    )
    out = session(input_ids=np.array([[0, 1]], np.int16))
    assert out["last_hidden_state"].shape == (1, 2, session.outputs["last_hidden_state"].shape[-1])
    assert session.inputs["input_ids"].shape == (None, None)


def test_threads_do_not_spin() -> None:
    options = sessions.session_options(3)
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"
    assert options.intra_op_num_threads == 3


def test_a_graph_with_other_inputs_is_refused(folder: Path) -> None:
    artefact = open_artefact(folder)
    with pytest.raises(InputError, match=r"takes conditional, guidance_weight, .*, expected sample"):
        open_session(artefact, "unet/combine.onnx", ["sample"], [])
    with pytest.raises(InputError, match="gives guided, expected state too"):
        open_session(artefact, "unet/combine.onnx", COMBINE, ["guided", "state"])


def test_a_sealed_file_that_is_no_graph_is_refused(folder: Path) -> None:
    (folder / "unet/combine.onnx").write_bytes(b"nonsense")
    seal(folder)
    with pytest.raises(InputError, match=r"unet/combine\.onnx: onnxruntime cannot load it"):
        open_session(open_artefact(folder), "unet/combine.onnx", COMBINE, ["guided"])


def test_weights_outside_the_folder_are_not_read(folder: Path) -> None:
    """A graph that points out of its folder is refused by onnxruntime; here we hold it to that."""
    graph = (folder / "unet/model.onnx").read_bytes().replace(b"model.onnx_data", b"../../elsewhere")
    (folder.parent / "elsewhere").write_bytes((folder / "unet/model.onnx_data").read_bytes())
    (folder / "unet/model.onnx").write_bytes(graph)
    seal(folder)
    inputs = ["sample", "timestep", "encoder_hidden_states"]
    with pytest.raises(InputError, match="cannot load"):
        open_session(open_artefact(folder), "unet/model.onnx", inputs, ["out_sample"])


def test_a_missing_graph_names_what_is_needed(folder: Path) -> None:
    with pytest.raises(InputError, match="only an artefact with an `onnx` target can be run"):
        open_session(open_artefact(folder), "vae_encoder/model.onnx", [], [])


def test_a_device_that_is_not_here_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    monkeypatch.setattr(devices, "_is_installed", lambda name: name == "onnxruntime")
    with pytest.raises(UndecidedError, match=r"no CUDAExecutionProvider here\n.*retouch\[gpu\]"):
        check_device("cuda")
    monkeypatch.setattr(devices, "_is_installed", lambda name: name != "onnxruntime-openvino")
    expected = r"`onnxruntime` and `onnxruntime-gpu` are installed over each other: `pip uninstall"
    with pytest.raises(UndecidedError, match=expected):
        check_device("cuda")


def test_a_missing_driver_is_not_a_missing_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr(devices, "has_driver", lambda: False)
    with pytest.raises(UndecidedError) as caught:
        check_device("cuda")
    assert [fault.code for fault in caught.value.faults] == ["E_DRIVER"]
    monkeypatch.setattr(devices, "find_spec", lambda name: None)
    with pytest.raises(UndecidedError, match=r"retouch\[rtx-run\]") as caught:
        check_device("rtx")
    assert [fault.code for fault in caught.value.faults] == ["E_EXTRA", "E_DRIVER"]
    with pytest.raises(UndecidedError, match=r"`openvino` is not installed\n.*retouch\[openvino\]"):
        check_device("openvino")


def test_a_provider_that_cannot_start_is_not_passed_over(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """onnxruntime itself goes on without it, on the CPU."""
    pretended = {**devices.DEVICES, "cuda": devices.Device("gpu", provider="CUDAExecutionProvider")}
    monkeypatch.setattr(sessions, "DEVICES", pretended)
    monkeypatch.setattr(sessions, "check_device", lambda name: pretended[name])
    with (
        pytest.warns(UserWarning, match="CUDAExecutionProvider"),
        pytest.raises(UndecidedError, match="cannot start its CUDAExecutionProvider"),
    ):
        open_session(open_artefact(folder), "unet/combine.onnx", COMBINE, ["guided"], Placement("cuda"))


def test_an_unknown_device_is_refused() -> None:
    with pytest.raises(UndecidedError, match="no device `tpu`"):
        load_session(b"", "graph", [], [], Placement(device="tpu"))


def test_only_openvino_has_a_choice_of_precision() -> None:
    with pytest.raises(SpecError, match="the device `cpu` computes in the precision of the graphs"):
        Placement("cpu", precision="bfloat16")


def test_a_graph_made_for_a_device_is_preferred_there(folder: Path) -> None:
    (folder / "unet/combine.cuda.onnx").write_bytes((folder / "unet/combine.onnx").read_bytes())
    seal(folder)
    artefact = open_artefact(folder)
    assert sessions._preferred(artefact, "unet/combine.onnx", "cuda") == "unet/combine.cuda.onnx"
    assert sessions._preferred(artefact, "unet/combine.onnx", "cpu") == "unet/combine.onnx"
    assert sessions._preferred(artefact, "unet/model.onnx", "cuda") == "unet/model.onnx"


def test_a_graph_for_a_size_comes_before_one_for_a_device(folder: Path) -> None:
    graph = (folder / "unet/combine.onnx").read_bytes()
    for name in ("combine.cuda.onnx", "combine.8x12.onnx", "combine.cuda.8x16.onnx", "combine.x8x.onnx"):
        (folder / "unet" / name).write_bytes(graph)
    seal(folder)
    artefact = open_artefact(folder)
    chosen = [
        sessions._preferred(artefact, "unet/combine.onnx", *wanted)
        for wanted in (("cuda", (8, 16)), ("cuda", (8, 12)), ("cuda", (9, 9)), ("cpu", (8, 16)))
    ]
    names = ["combine.cuda.8x16.onnx", "combine.8x12.onnx", "combine.cuda.onnx", "combine.onnx"]
    assert chosen == [f"unet/{name}" for name in names]
    assert sessions.sizes_beside(artefact, "unet/combine.onnx") == [(8, 12), (8, 16)]


def test_a_graph_that_cannot_be_run_is_no_bug_of_ours(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    session = open_session(open_artefact(folder), "unet/combine.onnx", COMBINE, ["guided"])
    halves = {"unconditional": np.zeros((1, 4, 2, 2)), "conditional": np.zeros((1, 4, 3, 3))}
    with pytest.raises(UndecidedError, match=r"cannot run it on .*conditional \[1, 4, 3, 3\]"):
        session(**halves, guidance_weight=np.ones(1))
    assert capfd.readouterr().err == ""


def test_a_target_s_folder_is_a_pipeline_by_itself(folder: Path) -> None:
    shutil.copytree(folder, folder.parent / "copy")
    (folder.parent / "copy/manifest.json").unlink()
    (folder.parent / "copy").rename(folder / "half")
    seal(folder)
    artefact = open_artefact(folder)
    assert artefact.targets == ("half", "")
    part = artefact.within("half")
    assert part.table == artefact.table
    assert part.folder == folder / "half"
    open_session(part, "unet/combine.onnx", COMBINE, ["guided"])
    (folder / "half/unet/model.onnx_data").write_bytes(b"changed")
    with pytest.raises(IntegrityError, match=r"half/unet/model\.onnx_data"):
        open_session(part, "unet/combine.onnx", COMBINE, ["guided"])
