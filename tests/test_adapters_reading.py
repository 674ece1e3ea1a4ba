"""Broken, hostile and other files: every fault at once, each by its name, never a traceback."""

import json
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from retouch.compiler.adapters.kinds import REFUSED
from retouch.compiler.adapters.reading import read_adapter
from retouch.compiler.tensors import Array, Stored
from retouch.specs.errors import Fault, InputError, RetouchError

from .passes import open_tiny

STEM = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
GOOD = {
    f"{STEM}.lora_down.weight": np.full((2, 16), 0.5, np.float32),
    f"{STEM}.lora_up.weight": np.full((16, 2), 0.25, np.float32),
    f"{STEM}.alpha": np.array(1.0, np.float32),
}


def _faults(
    tensors: dict[str, np.ndarray], folder: Path, config: object = None, **metadata: str
) -> list[Fault]:
    """Return what is wrong with a file, after its `adapter_config.json` where one is given."""
    save_file(tensors, folder / "a.safetensors", metadata or None)
    if config is not None:
        (folder / "adapter_config.json").write_text(json.dumps(config))
    try:
        place = folder / "adapter_config.json" if config is not None else None
        read_adapter(folder / "a.safetensors", place, open_tiny())
    except InputError as error:
        return list(error.faults)
    return []


def test_a_good_file_has_no_faults_and_its_scale_is_alpha_over_r(tmp_path: Path) -> None:
    assert _faults(GOOD, tmp_path) == []
    (change,) = read_adapter(tmp_path / "a.safetensors", None, open_tiny())
    assert (change.layout, change.form.name) == ("kohya", "LoRA")
    assert (change.strength.rank, change.strength.alpha, change.strength.scale) == (2, 1.0, 0.5)
    assert np.array_equal(change.delta(2), np.full((16, 16), 2 * 0.5 * 2 * 0.125))


BROKEN: dict[str, tuple[dict[str, np.ndarray | None], str, str]] = {
    "no up": ({f"{STEM}.lora_up.weight": None}, "E_ADAPTER_UNPAIRED", "lora_up (lora_B) is missing"),
    "alpha alone": (
        {f"{STEM}.lora_up.weight": None, f"{STEM}.lora_down.weight": None},
        "E_ADAPTER_UNPAIRED",
        "lora_down (lora_A) and lora_up (lora_B) is missing",
    ),
    "a mix": (
        {f"{STEM}.hada_w1_a": np.ones((16, 2), np.float32)},
        "E_ADAPTER_UNPAIRED",
        "hada_w1_a cannot stand",
    ),
    "wide": (
        {f"{STEM}.lora_down.weight": np.ones((2, 17), np.float32)},
        "E_ADAPTER_SHAPE",
        "do not fit a weight",
    ),
    "flat": ({f"{STEM}.lora_up.weight": np.ones(32, np.float32)}, "E_ADAPTER_SHAPE", "do not fit a weight"),
    "rank 0": (
        {
            f"{STEM}.lora_down.weight": np.ones((0, 16), np.float32),
            f"{STEM}.lora_up.weight": np.ones((16, 0), np.float32),
        },
        "E_ADAPTER_SHAPE",
        "[0, 16]",
    ),
    "a core on a linear map": (
        {f"{STEM}.lora_mid.weight": np.ones((2, 2, 3, 3), np.float32)},
        "E_ADAPTER_SHAPE",
        "lora_mid [2, 2, 3, 3]",
    ),
    "alpha 0": ({f"{STEM}.alpha": np.array(0.0, np.float32)}, "E_ADAPTER_CONFIG", "alpha is 0"),
    "alpha infinite": (
        {f"{STEM}.alpha": np.array(np.inf, np.float32)},
        "E_NOT_FINITE",
        "not finite",
    ),
    "alphas": ({f"{STEM}.alpha": np.ones(2, np.float32)}, "E_ADAPTER_CONFIG", "no number but an array [2]"),
    "integers": ({f"{STEM}.lora_up.weight": np.ones((16, 2), np.int8)}, "E_ADAPTER_NUMBER", "lora_up"),
    "an unknown part": (
        {f"{STEM}.scalar": np.ones(1, np.float32)},
        "E_ADAPTER_UNMATCHED",
        "of no known layout",
    ),
    "a stranger": (
        {"lora_unet_nowhere.alpha": np.ones(1, np.float32)},
        "E_ADAPTER_UNMATCHED",
        "no such module",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_file_is_told_what_is_wrong(case: str, tmp_path: Path) -> None:
    changed, code, said = BROKEN[case]
    tensors = {key: value for key, value in {**GOOD, **changed}.items() if value is not None}
    found = _faults(tensors, tmp_path)
    assert [fault.code for fault in found] == [code]
    assert said in found[0].message


def test_only_headers_and_alphas_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = Stored.read

    def read_one(tensor: Stored) -> Array:
        assert tensor.shape == ()
        return read(tensor)

    monkeypatch.setattr(Stored, "read", read_one)
    assert _faults(GOOD, tmp_path) == []


@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_a_factor_that_is_not_finite_is_told_by_its_key_when_it_is_read(
    number: float, tmp_path: Path
) -> None:
    key = f"{STEM}.lora_up.weight"
    assert _faults({**GOOD, key: np.full((16, 2), number, np.float32)}, tmp_path) == []
    (change,) = read_adapter(tmp_path / "a.safetensors", None, open_tiny())
    with pytest.raises(InputError) as caught:
        change.delta()
    (fault,) = caught.value.faults
    assert (fault.code, fault.where) == ("E_NOT_FINITE", f"{tmp_path / 'a.safetensors'}: {key}")


def test_two_keys_for_one_part_must_hold_the_same(tmp_path: Path) -> None:
    one, other = f"{STEM}.lora_up.weight", f"{STEM}.lora_B.weight"
    assert _faults({**GOOD, other: GOOD[one]}, tmp_path) == []
    (change,) = read_adapter(tmp_path / "a.safetensors", None, open_tiny())
    assert np.array_equal(change.delta(), np.full((16, 16), 0.125))
    assert _faults({**GOOD, other: 2 * GOOD[one]}, tmp_path) == []
    (change,) = read_adapter(tmp_path / "a.safetensors", None, open_tiny())
    with pytest.raises(InputError, match="gives the same part other values"):
        change.delta()
    (fault,) = _faults({**GOOD, other: GOOD[one].astype(np.float16)}, tmp_path)
    assert fault.code == "E_ADAPTER_TWICE"


def test_all_that_is_wrong_comes_at_once(tmp_path: Path) -> None:
    other = "lora_te_text_model_encoder_layers_0_mlp_fc1"
    tensors = {
        **GOOD,
        f"{STEM}.dora_scale": np.ones((16, 1), np.float32),
        f"{other}.lora_down.weight": np.ones((2, 32), np.int16),
        f"{other}.alpha": np.ones(3, np.float32),
        "lora_unet_nowhere.alpha": np.ones(1, np.float32),
        "lora_unet_nobody.alpha": np.ones(1, np.float32),
    }
    found = sorted(fault.code for fault in _faults(tensors, tmp_path))
    assert found == [
        "E_ADAPTER_KIND",
        "E_ADAPTER_NUMBER",
        "E_ADAPTER_UNMATCHED",
        "E_ADAPTER_UNMATCHED",
        "E_ADAPTER_UNPAIRED",
    ]


def test_a_file_for_another_model_is_one_fault(tmp_path: Path) -> None:
    tensors = {f"lora_unet_input_blocks_{i}_9.alpha": np.ones(1, np.float32) for i in range(30)}
    (fault,) = _faults(tensors, tmp_path)
    assert (fault.code, fault.hint) == ("E_ADAPTER_UNMATCHED", "was it trained for another one?")
    assert "and 29 more" in fault.where


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    assert [fault.code for fault in _faults({}, tmp_path)] == ["E_ADAPTER_EMPTY"]


OTHER_KINDS = {
    "lora_unet_conv_in.dora_scale": "DoRA",
    "base_model.model.conv_in.lora_magnitude_vector.weight": "DoRA",
    "lora_unet_conv_in.hada_t1": "LoHa with Tucker cores",
    "lora_unet_conv_in.oft_blocks": "OFT",
    "base_model.model.conv_in.boft_R": "BOFT",
    "lora_unet_conv_in.on_input": "IA3",
    "lora_unet_conv_in.a1.weight": "GLoRA",
    "lora_unet_conv_in.diff": "whole differences",
    "base_model.model.conv_in.lora_B.bias": "LoRA with a bias",
    "base_model.model.token_embedding.lora_embedding_A": "LoRA of an embedding",
    "bundle_emb.word.string_to_param.x": "textual inversion",
    "ip_adapter.1.to_k_ip.weight": "IP-Adapter",
    "lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight": "another family (Flux)",
    "lora_unet_joint_blocks_0_x.lora_down.weight": "another family (Stable Diffusion 3)",
    "model.diffusion_model.out.2.weight": "a whole checkpoint",
}


@pytest.mark.parametrize("key", OTHER_KINDS)
def test_another_kind_is_refused_by_its_name(key: str, tmp_path: Path) -> None:
    found = _faults({**GOOD, key: np.ones((4, 4), np.float32)}, tmp_path)
    assert [fault.code for fault in found] == ["E_ADAPTER_KIND"]
    assert OTHER_KINDS[key] in found[0].message


def test_every_refusal_has_a_name() -> None:
    assert all(name for name, _ in REFUSED.values())


CONFIG = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "bias": "none", "task_type": None}
ODD_CONFIGS: dict[str, tuple[dict[str, object], str]] = {
    "DoRA": ({"use_dora": True}, "`use_dora: true` is not supported"),
    "PiSSA moves the base": ({"init_lora_weights": "pissa_niter_16"}, "pissa_niter_16"),
    "unknown to us": ({"use_something_new": 3}, "use_something_new"),
    "another method": ({"peft_type": "LOKR"}, "LOKR"),
    "0 is not false": ({"bias": 0}, "`bias: 0`"),
    "another rank": ({"r": 3}, "the config says rank 3, the factors have 2"),
    "alpha is text": ({"lora_alpha": "4"}, "expected a number"),
    "alpha is not a number": ({"lora_alpha": float("nan")}, "expected a number"),
    "rslora is text": ({"use_rslora": "yes"}, "expected true or false"),
    "patterns are no mapping": ({"rank_pattern": ["to_q"]}, "is no mapping"),
    "a slow expression": ({"alpha_pattern": {"(a+)+b": 1}}, "no plain expression"),
    "a long expression": ({"alpha_pattern": {".*.*.*.*.*x": 1}}, "more than 4"),
    "a broken expression": ({"alpha_pattern": {"[a": 1}}, "is no expression"),
}


@pytest.mark.parametrize("case", ODD_CONFIGS)
def test_a_config_that_means_something_else_is_refused(case: str, tmp_path: Path) -> None:
    changed, said = ODD_CONFIGS[case]
    prefix = "base_model.model.mid_block.attentions.0.transformer_blocks.0.attn1.to_q.lora_"
    tensors = {
        f"{prefix}A.weight": np.ones((2, 16), np.float32),
        f"{prefix}B.weight": np.ones((16, 2), np.float32),
    }
    assert _faults(tensors, tmp_path, CONFIG) == []
    assert any(said in fault.message for fault in _faults(tensors, tmp_path, {**CONFIG, **changed}))


@pytest.mark.parametrize("text", ["{", "[]", '"x"', "[" * 5000])
def test_metadata_that_is_no_object_is_refused(text: str, tmp_path: Path) -> None:
    (fault,) = _faults(GOOD, tmp_path, lora_adapter_metadata=text)
    assert fault.code == "E_ADAPTER_CONFIG"


def _bytes(tensors: dict[str, np.ndarray], folder: Path) -> bytes:
    save_file(tensors, folder / "good.safetensors")
    return (folder / "good.safetensors").read_bytes()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_file_with_flipped_bytes_is_read_or_refused(data: st.DataObject, tmp_path: Path) -> None:
    content = bytearray(_bytes(GOOD, tmp_path))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    _read_or_refuse(bytes(content[: data.draw(st.integers(0, len(content)))]), tmp_path)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=8,
)
ENDS = st.sampled_from(["lora_down.weight", "lora_up.weight", "lora_mid.weight", "alpha", "hada_w1_a", "x"])


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_file_with_another_header_is_read_or_refused(data: st.DataObject, tmp_path: Path) -> None:
    content = _bytes(GOOD, tmp_path)
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    key = data.draw(st.sampled_from(sorted(header)))
    match data.draw(st.sampled_from(["entry", "field", "key", "gone"])):
        case "entry":
            header[key] = data.draw(JSON)
        case "field":
            header[key][data.draw(st.sampled_from(["dtype", "shape", "data_offsets"]))] = data.draw(JSON)
        case "key":
            header[f"{STEM}.{data.draw(ENDS)}"] = header.pop(key)
        case "gone":
            del header[key]
    header["__metadata__"] = data.draw(
        st.dictionaries(st.just("lora_adapter_metadata"), st.text(max_size=20))
    )
    text = json.dumps(header).encode()
    _read_or_refuse(struct.pack("<Q", len(text)) + text + content[8 + length :], tmp_path)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    config=st.dictionaries(st.sampled_from([*CONFIG, "rank_pattern", "use_rslora", "x"]), JSON, max_size=5)
)
def test_any_config_is_read_or_refused(config: dict[str, object], tmp_path: Path) -> None:
    try:
        _faults(GOOD, tmp_path, config)
    except RetouchError as error:
        assert error.faults


def _read_or_refuse(content: bytes, folder: Path) -> None:
    file = folder / "a.safetensors"
    file.write_bytes(content)
    try:
        changes = read_adapter(file, None, open_tiny())
    except RetouchError as error:
        assert error.faults
        return
    for change in changes:
        try:
            assert np.isfinite(change.delta()).all()
        except InputError as error:
            assert [fault.code for fault in error.faults] == ["E_NOT_FINITE"]
