"""Merged weights act as PEFT's runtime does, whatever library saved the adapter; nothing is guessed."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from safetensors.numpy import load_file, save_file
from transformers import CLIPTextModel

from retouch.compiler.adapters import reading
from retouch.compiler.build import Options, build, watches_of
from retouch.compiler.headers import read_header
from retouch.compiler.ir import Pipeline, changed_tensors
from retouch.compiler.load import BUILT_IN_MODELS, load_pipeline
from retouch.compiler.plan import make_plan
from retouch.compiler.studio import Quiet
from retouch.specs.errors import InputError

from .adapting import SETTINGS, TARGETS, close, encode, load, predict, shake
from .passes import make, open_tiny, style, tiny_folder
from .tiny import DENOISER


def _merge(path: str, folder: Path, **more: object) -> Pipeline:
    return make("merge_adapters", {"adapters": [{"path": path, **more}]}, folder).run(open_tiny())


@pytest.mark.parametrize("rslora", [False, True])
def test_a_denoiser_saved_by_peft_acts_as_at_run_time(tmp_path: Path, rslora: bool) -> None:
    unet = UNet2DConditionModel.from_pretrained(tiny_folder() / "unet")
    plain = predict(unet)
    config = LoraConfig(target_modules=TARGETS, use_rslora=rslora, **SETTINGS)
    wrapped = get_peft_model(unet, config).eval()
    shake(wrapped)
    wrapped.save_pretrained(str(tmp_path))
    merged = _merge("adapter_model.safetensors", tmp_path, config="adapter_config.json")
    again = UNet2DConditionModel.from_pretrained(tiny_folder() / "unet")
    close(predict(load(merged, "unet", again)), predict(wrapped), plain)


def test_both_parts_saved_by_diffusers_act_as_at_run_time(tmp_path: Path) -> None:
    unet = UNet2DConditionModel.from_pretrained(tiny_folder() / "unet")
    text = CLIPTextModel.from_pretrained(tiny_folder() / "text_encoder")
    plain = predict(unet), encode(text)
    unet.add_adapter(LoraConfig(target_modules=TARGETS, **SETTINGS))
    text.add_adapter(LoraConfig(target_modules=["q_proj", "fc1"], r=2, lora_alpha=3))
    shake(unet)
    shake(text)
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
    close(predict(load(merged, "unet", again)), predict(unet), plain[0])
    words = load(merged, "text_encoder", CLIPTextModel.from_pretrained(tiny_folder() / "text_encoder"))
    close(encode(words), encode(text), plain[1])


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
    weights[keys[2]] = weights[keys[2]].astype(np.int16)
    del weights[keys[5]]
    weights["unet.nowhere.lora_A.weight"] = np.zeros((2, 2), np.float32)
    weights["unet.conv_in.dora_scale"] = np.zeros((2, 2), np.float32)
    weights[keys[6].replace("lora_A.", "lora_A.default.")] = weights[keys[6]].astype(np.float16)
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


def test_a_factor_that_is_not_finite_is_planned_and_stops_the_build(tmp_path: Path) -> None:
    weights = style(open_tiny())
    key = sorted(weights)[2]
    weights[key] = np.full_like(weights[key], np.nan)
    save_file(weights, tmp_path / "bad.safetensors")
    spec = {
        "schema": 1,
        "name": "broken",
        "version": "1",
        "source": {"model": str(tiny_folder())},
        "edits": [{"merge_adapters": {"adapters": [{"path": "bad.safetensors"}]}}],
        "emit": [{"single_file": {}}],
    }
    (tmp_path / "edit.yaml").write_text(json.dumps(spec))
    plan = make_plan(tmp_path / "edit.yaml")
    with pytest.raises(InputError) as caught:
        build(plan, tmp_path / "out", Options(cache=tmp_path / "cache"))
    (fault,) = caught.value.faults
    assert (fault.code, fault.where) == ("E_NOT_FINITE", f"{tmp_path / 'bad.safetensors'}: {key}")
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "cache") == [
        "bad.safetensors",
        "edit.yaml",
    ]


def test_a_build_reads_an_adapter_s_header_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _style_file(tmp_path, "style.safetensors", 1)
    block = {"merge_adapters": {"adapters": [{"path": "style.safetensors"}]}}
    source = {"model": str(tiny_folder())}
    spec = {
        "schema": 1,
        "name": "once",
        "version": "1",
        "source": source,
        "edits": [block],
        "emit": [{"onnx": {}}],
    }
    (tmp_path / "edit.yaml").write_text(yaml.safe_dump(spec))
    opened: list[Path] = []
    monkeypatch.setattr(reading, "read_header", lambda file: opened.append(file) or read_header(file))
    plan = make_plan(tmp_path / "edit.yaml").at_work(tmp_path, Quiet())
    assert plan.statements()
    assert watches_of(plan)
    assert watches_of(plan)
    assert opened == [tmp_path / "style.safetensors"]


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
        observer.add(observer.see(name, before.tensors[name].read(), exact.astype(np.float16)))
    (loss,) = [evidence for evidence in observer.evidence() if evidence.claim == "merge.cast_loss"]
    assert 1e-3 < float(loss.value) < 1
    assert loss.count == len(load_file(tiny_folder() / "style.safetensors")) // 2 - 1


ATTENTION = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q.weight"
CONVOLUTION = "unet.conv_in.weight"
TEXT = "text_encoder.encoder.layers.0.self_attn.q_proj.weight"


def _strengths(folder: Path, **more: object) -> dict[str, float]:
    """Return how many times its change each tensor got, to 4 digits."""
    full, found = _merge("style.safetensors", folder), _merge("style.safetensors", folder, **more)
    strengths = {}
    for name in (ATTENTION, CONVOLUTION, TEXT):
        tensors = (pipeline.tensors[name].read() for pipeline in (open_tiny(), full, found))
        before, whole, part = (tensor.astype(np.float64) for tensor in tensors)
        strengths[name] = round(
            float(np.vdot(part - before, whole - before) / np.sum((whole - before) ** 2)), 4
        )
    return strengths


def test_patterns_weigh_blocks_and_the_longest_counts() -> None:
    blocks = {"*": 0, "mid_block.*": 0.5, "mid_block.*.attn1.*": 2, "text_encoder.*": 3}
    found = _strengths(tiny_folder(), weight=0.5, blocks=blocks)
    assert found == {ATTENTION: 1.0, CONVOLUTION: 0.0, TEXT: 1.5}
    assert found == _strengths(tiny_folder(), weight=0.5, blocks=dict(reversed(blocks.items())))


def test_a_block_of_factor_zero_keeps_the_very_same_tensors() -> None:
    before = open_tiny()
    block = {"adapters": [{"path": "style.safetensors", "blocks": {"conv_in": 0, "encoder.*": 0}}]}
    changed = changed_tensors(before, make("merge_adapters", block).run(before))
    assert {name.split(".")[1] for name in changed} == {"mid_block"}


def test_text_encoders_are_weighed_by_name() -> None:
    found = _strengths(tiny_folder(), weight=0.5, text_encoder_weight={"text_encoder": -1.0})
    assert found == {ATTENTION: 0.5, CONVOLUTION: 0.5, TEXT: -1.0}
    with pytest.raises(InputError, match="no text encoder `text_encoder_2`"):
        _merge("style.safetensors", tiny_folder(), text_encoder_weight={"text_encoder_2": 1})


def test_patterns_that_match_nothing_or_disagree_are_refused_together() -> None:
    blocks = {"up_blocks.*": 1, "nowhere": 0, "*q": 0.5, "*k": 0.5, "c*": 1, "*n": 2}
    with pytest.raises(InputError) as caught:
        _merge("style.safetensors", tiny_folder(), blocks=blocks)
    assert sorted(fault.message for fault in caught.value.faults) == [
        "`*n` and `c*` give unet.conv_in different factors",
        "`nowhere` matches no module that the adapter changes",
        "`up_blocks.*` matches no module that the adapter changes",
    ]


def test_a_vector_of_another_length_is_refused_where_the_spec_is_read() -> None:
    with pytest.raises(ValueError, match="one of 12, 17, 20, 26 numbers, not 3"):
        make("merge_adapters", {"adapters": [{"path": "style.safetensors", "blocks": [1, 0, 1]}]})


def test_a_vector_weighs_each_block_by_its_number(tmp_path: Path) -> None:
    """Four blocks of two layers, as SD 1.x has them, very narrow."""
    folder = shutil.copytree(tiny_folder(), tmp_path / "model")
    blocks = {"block_out_channels": (4, 4, 4, 4), "layers_per_block": 2}
    kinds = {
        "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    }
    unet: Any = UNet2DConditionModel.from_config({**DENOISER, **blocks, **kinds})
    unet.save_pretrained(folder / "unet")
    before = load_pipeline(folder, "ddim", 8)
    modules = {
        "text_encoder.encoder.layers.1.mlp.fc1": 0,  # BASE
        "unet.conv_in": 1,  # IN00
        "unet.down_blocks.1.attentions.0.proj_in": 5,  # IN04
        "unet.mid_block.attentions.0.proj_in": 13,  # M00
        "unet.up_blocks.3.attentions.2.proj_in": 25,  # OUT11
    }
    weights = {}
    for module in modules:
        out, *rest = before.tensors[f"{module}.weight"].shape
        weights |= {f"{module}.lora_A.weight": np.ones((1, *rest), np.float32)}
        weights |= {f"{module}.lora_B.weight": np.ones((out, 1), np.float32)}
    save_file(weights, folder / "a.safetensors")
    vector = [number / 10 for number in range(1, 27)]
    block = {"adapters": [{"path": "a.safetensors", "blocks": vector}]}
    after = make("merge_adapters", block, folder).run(before)
    for module, number in modules.items():
        name = f"{module}.weight"
        delta = after.tensors[name].read() - before.tensors[name].read()
        assert delta == pytest.approx(np.full_like(delta, vector[number]), abs=1e-6)


def test_the_demos_adapter_is_the_same_in_both_of_its_layouts() -> None:
    demo = load_pipeline(BUILT_IN_MODELS["demo"], "ddim", 8)
    plain, kohya = (
        make("merge_adapters", {"adapters": [{"path": f"demo:adapters/twemoji_style{end}.safetensors"}]}).run(
            demo
        )
        for end in ("", "_kohya")
    )
    names = changed_tensors(demo, plain)
    assert names == changed_tensors(demo, kohya)
    assert len(names) > 10
    for name in names:
        assert plain.tensors[name].read().tobytes() == kohya.tensors[name].read().tobytes()
        assert plain.tensors[name].read().tobytes() != demo.tensors[name].read().tobytes()
