"""Merged weights act as PEFT's runtime does, whatever library saved the adapter; nothing is guessed."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from safetensors.numpy import load_file, save_file
from transformers import CLIPTextModel

from retouch.compiler.ir import Pipeline, changed_tensors
from retouch.specs.errors import InputError

from .passes import make, open_tiny, style, tiny_folder

TARGETS = ["to_q", "to_k", "to_v", "to_out.0", "conv1", "conv_shortcut", "proj_in"]
SETTINGS = {"r": 3, "lora_alpha": 5, "alpha_pattern": {"conv1": 2}, "rank_pattern": {"to_q": 2}}


def _shake(module: torch.nn.Module) -> None:
    """Give every factor values, those that start at zero too."""
    generator = torch.Generator().manual_seed(7)
    for name, parameter in module.named_parameters():
        if "lora_" in name:
            parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator)


def _merge(path: str, folder: Path, **more: object) -> Pipeline:
    return make("merge_adapters", {"adapters": [{"path": path, **more}]}, folder).run(open_tiny())


def _loaded(pipeline: Pipeline, component: str, model: torch.nn.Module) -> torch.nn.Module:
    state = {name: torch.tensor(tensor.read()) for name, tensor in pipeline.tensors_of(component).items()}
    model.load_state_dict(state)
    return model.eval()


def _draw(unet: torch.nn.Module) -> np.ndarray:
    generator = torch.Generator().manual_seed(3)
    sample, states = (torch.randn(shape, generator=generator) for shape in ((2, 4, 8, 8), (2, 16, 32)))
    with torch.inference_mode():
        return unet(sample, torch.tensor(500), states).sample.numpy()


def _close(found: np.ndarray, expected: np.ndarray) -> None:
    assert np.abs(found - expected).max() < 1e-5 * max(1.0, np.abs(expected).max())


@pytest.mark.parametrize("rslora", [False, True])
def test_a_denoiser_saved_by_peft_acts_as_at_run_time(tmp_path: Path, rslora: bool) -> None:
    unet = UNet2DConditionModel.from_pretrained(tiny_folder() / "unet")
    plain = _draw(unet)
    config = LoraConfig(target_modules=TARGETS, use_rslora=rslora, **SETTINGS)
    wrapped = get_peft_model(unet, config).eval()
    _shake(wrapped)
    wrapped.save_pretrained(str(tmp_path))
    merged = _merge("adapter_model.safetensors", tmp_path, config="adapter_config.json")
    found = _draw(_loaded(merged, "unet", UNet2DConditionModel.from_pretrained(tiny_folder() / "unet")))
    _close(found, _draw(wrapped))
    assert np.abs(found - plain).max() > 1e-3


def test_both_parts_saved_by_diffusers_act_as_at_run_time(tmp_path: Path) -> None:
    unet = UNet2DConditionModel.from_pretrained(tiny_folder() / "unet")
    text = CLIPTextModel.from_pretrained(tiny_folder() / "text_encoder")
    unet.add_adapter(LoraConfig(target_modules=TARGETS, **SETTINGS))
    text.add_adapter(LoraConfig(target_modules=["q_proj", "fc1"], r=2, lora_alpha=3))
    _shake(unet)
    _shake(text)
    # diffusers' annotations are narrower than what its own loader passes here.
    layers: dict[str, Any] = {
        "unet_lora_layers": get_peft_model_state_dict(unet),
        "text_encoder_lora_layers": get_peft_model_state_dict(text, adapter_name="default"),
        "unet_lora_adapter_metadata": vars(unet)["peft_config"]["default"].to_dict(),
        "text_encoder_lora_adapter_metadata": vars(text)["peft_config"]["default"].to_dict(),
    }
    StableDiffusionPipeline.save_lora_weights(tmp_path, **layers)
    merged = _merge("pytorch_lora_weights.safetensors", tmp_path)
    again = UNet2DConditionModel.from_pretrained(tiny_folder() / "unet")
    _close(_draw(_loaded(merged, "unet", again)), _draw(unet))
    ids = torch.arange(16)[None]
    words = _loaded(merged, "text_encoder", CLIPTextModel.from_pretrained(tiny_folder() / "text_encoder"))
    with torch.inference_mode():
        _close(words(ids).last_hidden_state.numpy(), text(ids).last_hidden_state.numpy())


def _style_file(folder: Path, name: str, seed: int) -> None:
    save_file(style(open_tiny(), seed), folder / name)


def _bytes(pipeline: Pipeline) -> dict[str, bytes]:
    return {name: pipeline.tensors[name].read().tobytes() for name in changed_tensors(open_tiny(), pipeline)}


def test_a_strength_of_zero_leaves_the_very_same_tensors() -> None:
    before = open_tiny()
    block = {"adapters": [{"path": "style.safetensors", "weight": 0}]}
    assert changed_tensors(before, make("merge_adapters", block).run(before)) == ()
    half = {"adapters": [{"path": "style.safetensors", "weight": 1, "text_encoder_weight": 0}]}
    assert {n.split(".")[0] for n in changed_tensors(before, make("merge_adapters", half).run(before))} == {
        "unet"
    }


def test_changes_are_linear_in_the_strength() -> None:
    before = open_tiny()
    delta = {}
    for weight in (1.0, -2.0):
        block = {"adapters": [{"path": "style.safetensors", "weight": weight}]}
        after = make("merge_adapters", block).run(before)
        for name in changed_tensors(before, after):
            delta[name, weight] = after.tensors[name].read() - before.tensors[name].read()
    for name, weight in delta:
        if weight == 1.0:
            assert delta[name, -2.0] == pytest.approx(-2 * delta[name, 1.0], abs=1e-6)


def test_two_adapters_in_either_order_give_the_same_bytes(tmp_path: Path) -> None:
    adapters = [{"path": "a.safetensors", "weight": 0.7}, {"path": "b.safetensors", "weight": -0.4}]
    _style_file(tmp_path, "a.safetensors", 1)
    _style_file(tmp_path, "b.safetensors", 2)
    one, other = (
        make("merge_adapters", {"adapters": order}, tmp_path).run(open_tiny())
        for order in (adapters, adapters[::-1])
    )
    assert _bytes(one)
    assert _bytes(one) == _bytes(other)


def test_both_spellings_of_a_text_encoder_are_one(tmp_path: Path) -> None:
    weights = style(open_tiny())
    save_file(
        {key.replace("text_encoder.", "text_encoder.text_model."): weights[key] for key in weights},
        tmp_path / "a.safetensors",
    )
    _style_file(tmp_path, "b.safetensors", 0)
    assert _bytes(_merge("a.safetensors", tmp_path)) == _bytes(_merge("b.safetensors", tmp_path))


def test_every_fault_of_every_file_is_told_at_once(tmp_path: Path) -> None:
    weights = style(open_tiny())
    keys = sorted(weights)
    weights[keys[0]] = weights[keys[0]][:, :-1].copy()
    weights[keys[2]] = np.full_like(weights[keys[2]], np.nan)
    del weights[keys[5]]
    weights["unet.nowhere.lora_A.weight"] = np.zeros((2, 2), np.float32)
    weights["unet.conv_in.dora_scale"] = np.zeros((2, 2), np.float32)
    weights[keys[6].replace("lora_A.", "lora_A.default.")] = 2 * weights[keys[6]]
    save_file(weights, tmp_path / "bad.safetensors")
    adapters = [{"path": "bad.safetensors"}, {"path": "missing.safetensors"}]
    with pytest.raises(InputError) as caught:
        make("merge_adapters", {"adapters": adapters}, tmp_path).run(open_tiny())
    assert sorted({fault.code for fault in caught.value.faults}) == [
        "E_ADAPTER_KIND",
        "E_ADAPTER_NUMBER",
        "E_ADAPTER_SHAPE",
        "E_ADAPTER_TWICE",
        "E_ADAPTER_UNMATCHED",
        "E_ADAPTER_UNPAIRED",
        "E_FILE",
    ]


def test_a_peft_file_without_its_config_is_refused(tmp_path: Path) -> None:
    weights = {"base_model.model." + k.removeprefix("unet."): v for k, v in style(open_tiny()).items()}
    save_file(weights, tmp_path / "peft.safetensors")
    with pytest.raises(InputError, match="as `config`"):
        _merge("peft.safetensors", tmp_path)


def test_dora_in_a_config_is_refused(tmp_path: Path) -> None:
    _style_file(tmp_path, "a.safetensors", 0)
    (tmp_path / "config.json").write_text('{"r": 2, "lora_alpha": 2, "use_dora": true}')
    with pytest.raises(InputError, match="use_dora"):
        _merge("a.safetensors", tmp_path, config="config.json")


def test_a_narrow_type_is_cast_once_and_its_loss_is_told() -> None:
    before = open_tiny()
    edit = make("merge_adapters", {"adapters": [{"path": "style.safetensors", "weight": 0.01}]})
    after = edit.run(before)
    (observer,) = edit.observers(before, after)
    for name in sorted(observer.names):
        exact = after.tensors[name].read()
        observer.see(name, before.tensors[name].read(), exact.astype(np.float16))
    (loss,) = [evidence for evidence in observer.evidence() if evidence.claim == "merge.cast_loss"]
    assert 1e-3 < float(loss.value) < 1
    assert loss.count == len(load_file(tiny_folder() / "style.safetensors")) // 2 - 1
