"""`retouch inspect` says what models and adapters are, reads headers only, and refuses what is hostile."""

import json
import pickle
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from benchmarks._hollow import hollow_pipeline, write_hollow
from retouch.compiler.tensors import Stored
from retouch.runtime.cli import main
from retouch.specs.fields import DEMO

from .adapting import tiny_xl_folder
from .passes import open_tiny, tiny_folder

ADAPTERS = DEMO / "adapters"
KOHYA = ADAPTERS / "twemoji_style_kohya.safetensors"


def inspect(capsys: pytest.CaptureFixture[str], *arguments: object, code: int = 0) -> dict[str, Any]:
    """Return what the verb prints as JSON."""
    assert main(["inspect", *map(str, arguments), "--json"]) == code
    return json.loads(capsys.readouterr().out)


def text(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert main(["inspect", *map(str, arguments)]) == 0
    return capsys.readouterr().out


def test_a_model_is_told_by_its_headers(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(tensor: Stored) -> Any:
        raise AssertionError(f"read {tensor}")

    monkeypatch.setattr(Stored, "read", refuse)
    found = inspect(capsys, "demo")
    assert (found["kind"], found["family"], found["prediction"]) == ("model", "stable_diffusion", "epsilon")
    assert [part["name"] for part in found["parts"]] == ["text_encoder", "unet", "vae"]
    assert found["bytes"] == sum(part["bytes"] for part in found["parts"])
    assert found["pixels"] == [64, 64]
    shown = text(capsys, "demo")
    assert "UNet2DConditionModel" in shown
    assert "  prediction  epsilon\n" in shown


def test_sdxl_has_two_text_encoders(capsys: pytest.CaptureFixture[str]) -> None:
    found = inspect(capsys, tiny_xl_folder())
    assert found["family"] == "stable_diffusion_xl"
    assert [part["class"] for part in found["parts"]][:2] == ["CLIPTextModel", "CLIPTextModelWithProjection"]


def test_a_single_file_of_sdxls_true_size_and_an_adapter_for_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = hollow_pipeline("stable-diffusion-xl-base-1.0")
    file = write_hollow(model, tmp_path / "xl.safetensors")
    found = inspect(capsys, file)
    assert (found["kind"], found["family"], found["pixels"]) == ("model", "stable_diffusion_xl", [1024, 1024])
    parameters = sum(prod(tensor.shape) for tensor in model.tensors_of("unet").values())
    assert [part["parameters"] for part in found["parts"] if part["name"] == "unet"] == [parameters]
    stem = "lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k"
    tensors = {
        f"{stem}.lora_down.weight": np.ones((2, 2048), np.float16),
        f"{stem}.lora_up.weight": np.ones((640, 2), np.float16),
    }
    save_file(tensors, tmp_path / "lora.safetensors")
    (row,) = inspect(capsys, tmp_path / "lora.safetensors", "--base", file)["changes"]
    assert (row["block"], row["modules"], row["ratio"]) == ("unet.down_blocks.1", 1, None)
    assert row["change"] == pytest.approx(2 * np.sqrt(640 * 2048))


def test_what_a_file_does_not_say_is_called_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = hollow_pipeline("stable-diffusion-2-1")
    file = write_hollow(model, tmp_path / "v2.safetensors")
    found = inspect(capsys, file)
    assert (found["family"], found["prediction"], found["pixels"]) == ("stable_diffusion", "not said", None)
    assert "add `prediction: epsilon`" in found["notes"][-1]
    shown = text(capsys, file)
    assert "  prediction  not said\n" in shown
    assert "size not said" in shown
    save_file(load_file(KOHYA), tmp_path / "lora.safetensors")
    assert inspect(capsys, tmp_path / "lora.safetensors", "--base", file)["supported"] is False


def test_a_model_of_a_hub_is_not_fetched(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["owner/name"], [KOHYA, "--base", "owner/name"]):
        (fault,) = inspect(capsys, *arguments, code=2)["faults"]
        assert (fault["code"], fault["where"]) == ("E_SOURCE", "owner/name")
        assert "fetches nothing" in fault["message"]
        assert "revision: COMMIT" in fault["hint"]


CARDS = {
    "---\nlicense: openrail++\nbase_model: [a, b]\ntags: [x]\n---\n# Hi": {
        "license": "openrail++",
        "base_model": "a, b",
    },
    "---\nlicense: [\n---\n": {},
    "---\n- a list\n---\n": {},
    "# No front matter\nlicense: mit\n": {},
    "---\nlicense: !!python/object/apply:os.getcwd []\n---\n": {},
    "---\n" + "[" * 4000 + "\n---\n": {},
}


@pytest.mark.parametrize("card", CARDS)
def test_the_license_comes_from_the_model_card(
    card: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for entry in tiny_folder().iterdir():
        (tmp_path / entry.name).symlink_to(entry)
    (tmp_path / "README.md").write_text(card)
    assert inspect(capsys, tmp_path)["license"] == CARDS[card]


def test_an_adapter_is_told_by_itself(capsys: pytest.CaptureFixture[str]) -> None:
    found, modules = inspect(capsys, KOHYA), len(load_file(KOHYA)) // 3
    assert (found["kind"], found["supported"], found["reasons"]) == ("adapter", True, [])
    assert (found["forms"], found["layouts"]) == ({"LoRA": modules}, {"kohya": modules})
    assert (found["ranks"], found["alphas"], found["scales"]) == (
        {"8": modules},
        {"8": modules},
        {"1": modules},
    )
    assert sum(found["blocks"].values()) == sum(found["components"].values()) == modules
    assert found["changes"] is None


def test_a_base_shows_what_would_change(capsys: pytest.CaptureFixture[str]) -> None:
    found = inspect(capsys, tiny_folder() / "style.safetensors", "--base", tiny_folder())
    assert found["supported"] is True
    assert {row["block"]: row["modules"] for row in found["changes"]} == {
        "text_encoder.layers": 1,
        "unet.elsewhere": 1,
        "unet.mid_block": 2,
    }
    (row,) = [row for row in found["changes"] if row["block"] == "unet.elsewhere"]
    weights = load_file(tiny_folder() / "style.safetensors")
    down, up = (weights[f"unet.conv_in.lora_{side}.weight"].astype(np.float64) for side in "AB")
    delta = up.reshape(len(up), -1) @ down.reshape(len(down), -1)
    base = open_tiny().tensors["unet.conv_in.weight"].read().astype(np.float64)
    assert row["change"] == pytest.approx(np.linalg.norm(delta))
    assert row["ratio"] == pytest.approx(np.linalg.norm(delta) / np.linalg.norm(base))


def test_the_wrong_base_is_an_answer_with_its_reason(capsys: pytest.CaptureFixture[str]) -> None:
    found = inspect(capsys, KOHYA, "--base", tiny_folder())
    assert found["supported"] is False
    assert found["changes"] is None
    assert "supported   no, on" in text(capsys, KOHYA, "--base", tiny_folder())


def test_what_trainers_write_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stem = "lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k"
    tensors = {
        f"{stem}.lora_down.weight": np.zeros((4, 2048), np.float16),
        f"{stem}.lora_up.weight": np.zeros((640, 4), np.float16),
        f"{stem}.alpha": np.array(2, np.float16),
        "lora_te2_text_model_encoder_layers_3_mlp_fc1.dora_scale": np.zeros((4, 1), np.float16),
    }
    metadata = {
        "ss_base_model_version": "sdxl_base_v1-0",
        "ss_tag_frequency": json.dumps({"10_cat": {"red \x1b[31m": 7, "a cat": 9}, "odd": [1]}),
        "ss_secret": "not shown",
    }
    save_file(tensors, tmp_path / "a.safetensors", metadata)
    found = inspect(capsys, tmp_path / "a.safetensors")
    assert found["bases"] == ["stable-diffusion-xl-base-1.0", "stable-diffusion-xl-inpainting-1.0"]
    assert (found["ranks"], found["alphas"], found["scales"]) == ({"4": 1}, {"2": 1}, {"0.5": 1})
    assert found["training"] == {"ss_base_model_version": "sdxl_base_v1-0"}
    assert list(found["tags"].items()) == [("a cat", 9), ("red \x1b[31m", 7)]
    assert found["supported"] is False
    assert found["reasons"][0].startswith("DoRA is not supported")
    shown = text(capsys, tmp_path / "a.safetensors")
    assert "base_model_version" in shown
    assert "\x1b" not in shown


def test_a_peft_folder_is_read_with_its_config(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = "base_model.model.mid_block.attentions.0.proj_in.lora_"
    tensors = {f"{name}A.weight": np.ones((4, 8), np.float32), f"{name}B.weight": np.ones((8, 4), np.float32)}
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    assert "says nothing of alpha" in inspect(capsys, tmp_path)["reasons"][0]
    (tmp_path / "adapter_config.json").write_text('{"r": 4, "lora_alpha": 8, "use_rslora": true}')
    found = inspect(capsys, tmp_path)
    assert (found["supported"], found["alphas"], found["scales"]) == (True, {"8": 1}, {"4": 1})


def test_an_artefact_is_sent_to_verify(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "manifest.json").write_text("{}")
    assert inspect(capsys, tmp_path)["kind"] == "artefact"
    assert "retouch verify" in text(capsys, tmp_path)


class Boom:
    """A pickle that would run code."""

    def __reduce__(self) -> Any:
        return exec, ("raise SystemExit(99)",)


HOSTILE: dict[str, bytes] = {
    "a.safetensors": b"\xff" * 64,
    "b.safetensors": pickle.dumps(Boom()),
    "c.ckpt": pickle.dumps(Boom()),
    "d.safetensors": b"",
    "e.safetensors": (9).to_bytes(8, "little") + b'{"a":1}  ',
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_is_a_typed_error(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / name).write_bytes(HOSTILE[name])
    found = inspect(capsys, tmp_path / name, code=2)
    assert found["ok"] is False
    assert found["faults"][0]["code"] in ("E_SAFETENSORS", "E_PICKLE")


def test_what_is_not_there_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert inspect(capsys, tmp_path / "nothing", code=2)["ok"] is False
    assert inspect(capsys, tmp_path, code=2)["ok"] is False
