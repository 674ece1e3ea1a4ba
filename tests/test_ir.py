"""The IR: lazy, shared, and strict about names and counts."""

from dataclasses import dataclass
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from tiny import make_tiny

from retouch.compiler.ir import changed_tensors, verify
from retouch.compiler.load import load_pipeline
from retouch.compiler.tensors import Edited, Shared, Tied, View, authors, cast
from retouch.specs.errors import InputError, SpecError

KEYS_AND_VALUES = "*.attn2.to_[kv].weight"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny(tmp_path_factory.mktemp("tiny"))


@dataclass(frozen=True)
class Held:
    """A tensor in memory that counts how often it is read."""

    array: np.ndarray
    reads: list[int]

    @property
    def dtype(self) -> np.dtype:
        return self.array.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return self.array.shape

    def read(self) -> np.ndarray:
        self.reads.append(1)
        return self.array


def held(*values: float, dtype: type = np.float32) -> Held:
    return Held(np.array(values, dtype), [])


def test_an_edit_computes_when_it_is_read_and_casts_once() -> None:
    source = held(1, 2, 3, dtype=ml_dtypes.bfloat16)
    seen: list[np.dtype] = []

    def rule(array: np.ndarray) -> np.ndarray:
        seen.append(array.dtype)
        return array * np.float64(1.001)

    edited = Edited((source,), rule, source.dtype, source.shape, "test")
    assert not source.reads
    assert edited.read().dtype == ml_dtypes.bfloat16
    assert seen == [np.float32]
    assert authors(Edited((edited,), rule, edited.dtype, edited.shape, "later")) == ("test", "later")


def test_a_wrong_shape_is_caught_where_it_was_made() -> None:
    edited = Edited((held(1, 2),), lambda array: array[:1], np.dtype(np.float32), (2,), "clipper")
    with pytest.raises(ValueError, match=r"clipper computed \(1,\), expected \(2,\)"):
        edited.read()


def test_a_shared_result_is_computed_once() -> None:
    calls: list[int] = []
    shared = Shared(lambda: (calls.append(1), np.eye(2))[1], np.dtype(np.float64), (2, 2))
    assert not calls
    assert shared.read() is shared.read()
    assert calls == [1]


def test_views_and_ties_hold_no_elements() -> None:
    source = held(1, 2, 3, 4)
    view = View(source, lambda array: array.reshape(2, 2).T, (2, 2))
    assert Tied(view).read().tolist() == [[1, 3], [2, 4]]
    assert cast(source, source.dtype, "cast") is source


def test_loading_reads_headers_only(folder: Path) -> None:
    pipeline = load_pipeline(folder, "ddim", 10, 3.0)
    chosen = pipeline.select("denoiser", KEYS_AND_VALUES)
    assert len(chosen) > 0
    assert all(name.startswith("unet.") for name, _ in chosen)
    assert pipeline.sampling.table().steps[0].guidance_weight == 3.0


def test_select_counts(folder: Path) -> None:
    pipeline = load_pipeline(folder, "ddim", 10)
    with pytest.raises(InputError, match=r"matches 0 tensors .* expected at least one"):
        pipeline.select("denoiser", "*.attn3.to_k.weight")
    with pytest.raises(InputError, match=r"expected 7 tensors"):
        pipeline.select("denoiser", KEYS_AND_VALUES, expect=7)
    with pytest.raises(InputError, match=r"matches 0 tensors of role `text`"):
        pipeline.select("text", KEYS_AND_VALUES)


def test_an_edit_shares_what_it_did_not_touch(folder: Path) -> None:
    before = load_pipeline(folder, "ddim", 10)
    chosen = before.select("denoiser", KEYS_AND_VALUES)
    after = chosen.map(lambda array: array * 2, "double")
    assert changed_tensors(before, after) == chosen.names
    untouched = set(before.tensors) - set(chosen.names)
    assert all(after.tensors[name] is before.tensors[name] for name in untouched)
    name = chosen.names[0]
    found, doubled = before.tensors[name].read(), after.tensors[name].read()
    np.testing.assert_array_equal(doubled, 2 * found.astype(np.float32))


def test_a_pass_cannot_leave_a_name_under_no_component(folder: Path) -> None:
    pipeline = load_pipeline(folder, "ddim", 10)
    with pytest.raises(InputError, match=r"`rogue` left a tensor name"):
        verify(pipeline.with_tensors({"nowhere.weight": held(1)}), "rogue")


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("model_index.json", '{"_class_name": "FluxPipeline"}', "`FluxPipeline` is not supported"),
        ("model_index.json", "[]", "not a JSON object"),
        ("model_index.json", '{"_class_name": "StableDiffusionPipeline"}', "no component `unet`"),
        ("unet/config.json", "{", "not JSON"),
        ("unet/config.json", "{}", "lacks a usable 'in_channels'"),
        ("scheduler/scheduler_config.json", '{"beta_schedule": "squaredcos_cap_v2"}', "is not supported"),
    ],
)
def test_broken_folders(file: str, text: str, message: str, tmp_path: Path) -> None:
    broken = make_tiny(tmp_path / "model")
    (broken / file).write_text(text)
    with pytest.raises(InputError, match=message):
        load_pipeline(broken, "ddim", 10)


def test_code_in_a_model_index_is_only_a_name(tmp_path: Path) -> None:
    broken = make_tiny(tmp_path / "model")
    index = (broken / "model_index.json").read_text()
    (broken / "model_index.json").write_text(index.replace("UNet2DConditionModel", "os.system"))
    with pytest.raises(InputError, match=r"`unet` is a `os\.system`, supported is `UNet2DConditionModel`"):
        load_pipeline(broken, "ddim", 10)


def test_only_pickled_weights_are_refused(tmp_path: Path) -> None:
    broken = make_tiny(tmp_path / "model")
    weights = broken / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(InputError, match=r"only pickled weights"):
        load_pipeline(broken, "ddim", 10)


def test_more_steps_than_timesteps(folder: Path) -> None:
    with pytest.raises(SpecError, match=r"1000 steps, expected 1 to 999"):
        load_pipeline(folder, "ddim", 1000)
