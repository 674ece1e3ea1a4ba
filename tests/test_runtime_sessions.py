"""Sessions run where they were asked to, and say what is missing where they cannot."""

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from runtime_artefact import make_artefact, seal

from retouch.runtime import sessions
from retouch.runtime.artefact import open_artefact
from retouch.runtime.sessions import Placement, load_session, open_session, providers
from retouch.specs.errors import InputError, UndecidedError

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
    options = sessions._options(3)
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
    monkeypatch.setattr(sessions, "_is_installed", lambda name: name == "onnxruntime")
    with pytest.raises(UndecidedError, match=r"no CUDAExecutionProvider here\n.*retouch\[gpu\]"):
        providers("cuda")
    monkeypatch.setattr(sessions, "_is_installed", lambda name: True)
    with pytest.raises(UndecidedError, match="both installed and overwrite each other: `pip uninstall"):
        providers("cuda")


def test_a_device_that_is_here_falls_back_for_single_operators(monkeypatch: pytest.MonkeyPatch) -> None:
    available = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: available)
    assert providers("cuda") == available
    assert providers("cpu") == ["CPUExecutionProvider"]


def test_an_unknown_device_is_refused() -> None:
    with pytest.raises(UndecidedError, match="no device `tpu`"):
        load_session(b"", "graph", [], [], Placement(device="tpu"))
