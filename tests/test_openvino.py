"""OpenVINO computes what onnxruntime does, from the same files; bfloat16 only when it was asked for."""

from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from runtime_artefact import CHANNELS, WIDTH, make_artefact, seal

from retouch.runtime import openvino_sessions
from retouch.runtime.artefact import open_artefact
from retouch.runtime.sampler import Sampler
from retouch.runtime.sessions import Placement, open_session
from retouch.specs.errors import InputError, UndecidedError

openvino = pytest.importorskip("openvino", reason="the extra `openvino` is not installed")
INPUTS = ["sample", "timestep", "encoder_hidden_states"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_artefact(tmp_path / "artefact")


def test_images_are_those_of_onnxruntime(folder: Path) -> None:
    artefact = open_artefact(folder)
    drawn = [
        Sampler.open(artefact, Placement(device, 1)).draw(["a photo of a cat", "an apple"], [1, 2])
        for device in ("cpu", "openvino")
    ]
    np.testing.assert_allclose(drawn[0].astype(int), drawn[1].astype(int), atol=1)
    assert drawn[0].std() > 1


def test_a_session_says_what_it_takes_and_gives(folder: Path) -> None:
    artefact = open_artefact(folder)
    ours = open_session(artefact, "unet/model.onnx", INPUTS, ["out_sample"], Placement("openvino", 1))
    theirs = open_session(artefact, "unet/model.onnx", INPUTS, ["out_sample"], Placement("cpu", 1))
    assert ours.inputs == theirs.inputs
    assert list(ours.outputs) == list(theirs.outputs)


def test_float32_is_the_default_even_where_a_cpu_has_less(folder: Path) -> None:
    """OpenVINO's own default on such CPUs is bfloat16, whose eight bits would show here."""
    artefact = open_artefact(folder)
    random = np.random.default_rng(0)
    feeds = {
        "sample": random.normal(size=(2, CHANNELS, 4, 4)).astype(np.float32),
        "timestep": np.array(500),
        "encoder_hidden_states": random.normal(size=(2, 12, WIDTH)).astype(np.float32),
    }
    results = [
        open_session(artefact, "unet/model.onnx", INPUTS, ["out_sample"], Placement(device, 1))(**feeds)
        for device in ("cpu", "openvino")
    ]
    np.testing.assert_allclose(*(result["out_sample"] for result in results), rtol=1e-5, atol=1e-5)


def test_a_cpu_without_bfloat16_is_told(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Core:
        def get_property(self, device: str, name: str) -> list[str]:
            return ["FP32"]

    monkeypatch.setattr(openvino_sessions, "import_module", lambda name: type("Module", (), {"Core": Core}))
    placement = Placement("openvino", precision="bfloat16")
    with pytest.raises(UndecidedError, match="this CPU does not multiply in bfloat16"):
        open_session(open_artefact(folder), "unet/model.onnx", INPUTS, ["out_sample"], placement)


def test_bfloat16_is_what_the_graph_is_compiled_for(folder: Path) -> None:
    core = import_module("openvino").Core()
    if "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        pytest.skip("this CPU does not multiply in bfloat16")
    placement = Placement("openvino", 1, "bfloat16")
    session = open_session(open_artefact(folder), "unet/model.onnx", INPUTS, ["out_sample"], placement)
    out = session(
        sample=np.ones((1, CHANNELS, 4, 4)),
        timestep=np.array(1),
        encoder_hidden_states=np.ones((1, 12, WIDTH)),
    )
    assert np.isfinite(out["out_sample"]).all()


def test_a_sealed_file_that_is_no_graph_is_refused(folder: Path) -> None:
    (folder / "unet/combine.onnx").write_bytes(b"nonsense")
    seal(folder)
    with pytest.raises(InputError, match=r"unet/combine\.onnx: OpenVINO cannot load it"):
        open_session(open_artefact(folder), "unet/combine.onnx", [], [], Placement("openvino"))
