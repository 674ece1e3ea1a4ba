"""A judge says what its graph says, under the labels beside it."""

import hashlib
import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from retouch.runtime.judges import Judge
from retouch.specs.errors import InputError

COLORS = ["red", "green", "blue"]
SIZE = 64
FLOAT32_SUM = 1e-5  # relative error of a mean over an image in float32


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A judge that names the brightest channel; its features are the mean color."""
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 3, SIZE, SIZE])
    outputs = [
        helper.make_tensor_value_info("concept", TensorProto.FLOAT, ["N", 3]),
        helper.make_tensor_value_info("style", TensorProto.FLOAT, ["N", 2]),
        helper.make_tensor_value_info("features", TensorProto.FLOAT, ["N", 3]),
    ]
    nodes = [
        helper.make_node("ReduceMean", ["image", "pixels"], ["features"], keepdims=0),
        helper.make_node("Identity", ["features"], ["concept"]),
        helper.make_node("MatMul", ["features", "brightness"], ["style"]),
    ]
    weights = [
        numpy_helper.from_array(np.array([2, 3]), "pixels"),
        numpy_helper.from_array(np.array([[1, -1]] * 3, np.float32), "brightness"),
    ]
    graph = helper.make_graph(nodes, "judge", [image], outputs, weights)
    opsets = [helper.make_opsetid("", 20)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), tmp_path / "classifier.onnx")
    write_labels(tmp_path, concept=COLORS, style=["light", "dark"])
    return tmp_path


def write_labels(folder: Path, more: dict[str, object] | None = None, /, **labels: object) -> None:
    (folder / "classifier.json").write_text(json.dumps({"labels": labels, **(more or {})}))


def plain(*colors: tuple[int, int, int], size: int = SIZE) -> np.ndarray:
    return np.stack([np.broadcast_to(np.array(c, np.uint8), (size, size, 3)) for c in colors])


def test_answers_are_the_graphs(folder: Path) -> None:
    judge = Judge.open(folder)
    images = plain((200, 9, 9), (9, 9, 200), (9, 200, 9), (200, 0, 0))
    assert judge.labels == tuple(COLORS)
    assert judge.top1(images) == ["red", "blue", "green", "red"]
    assert judge.recognized(images, "red").tolist() == [True, False, False, True]
    assert set(judge.top1(images, "style")) == {"light"}
    np.testing.assert_allclose(judge.features(images)[3], [200 / 255, 0, 0], rtol=FLOAT32_SUM)


def test_many_images_are_judged_in_order(folder: Path) -> None:
    colors = [((200, 9, 9), (9, 200, 9), (9, 9, 200))[number % 3] for number in range(70)]
    assert Judge.open(folder).top1(plain(*colors)) == [COLORS[number % 3] for number in range(70)]


@pytest.mark.parametrize("size", [16, 64, 200])
def test_other_sizes_are_resized(folder: Path, size: int) -> None:
    judge = Judge.open(folder)
    features = judge.features(plain((10, 20, 30), size=size))
    np.testing.assert_allclose(features[0], np.array([10, 20, 30]) / 255, rtol=FLOAT32_SUM)


def test_shrinking_takes_means(folder: Path) -> None:
    random = np.random.default_rng(0).integers(0, 256, (1, 128, 128, 3), dtype=np.uint8)
    expected = random.reshape(64, 2, 64, 2, 3).mean(axis=(0, 1, 2, 3)) / 255
    np.testing.assert_allclose(Judge.open(folder).features(random)[0], expected, atol=1 / 255)


def test_the_graph_is_named_by_its_digest(folder: Path) -> None:
    digest = hashlib.sha256((folder / "classifier.onnx").read_bytes()).hexdigest()
    write_labels(folder, {"sha256": digest}, concept=COLORS, style=["light", "dark"])
    assert Judge.open(folder).sha256 == digest
    write_labels(folder, {"sha256": "0" * 64}, concept=COLORS)
    with pytest.raises(InputError, match=rf"SHA-256 is {digest}, expected 0000"):
        Judge.open(folder)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ({"concept": ["red", "green"]}, "lists 2 different labels, the graph tells 3 apart"),
        ({"concept": ["red", "green", "red"]}, "lists 2 different labels"),
        ({"style": ["light", "dark"]}, "`labels` has no `concept`"),
    ],
)
def test_labels_that_do_not_fit_are_refused(folder: Path, labels: dict[str, list[str]], message: str) -> None:
    write_labels(folder, None, **labels)
    with pytest.raises(InputError, match=message):
        Judge.open(folder)


def test_notes_beside_the_labels_are_allowed(folder: Path) -> None:
    write_labels(folder, {"trained_on": ["plain colors"]}, concept=COLORS)
    assert list(Judge.open(folder).answers) == ["concept"]


def test_a_judge_knows_its_prompts_and_its_own_error(folder: Path) -> None:
    notes = {"prompts": {"red": "a red field"}, "held_out_accuracy": {"concept": 0.75}}
    write_labels(folder, notes, concept=COLORS)
    judge = Judge.open(folder)
    assert (judge.prompt_of("red"), judge.prompt_of("green"), judge.error) == ("a red field", "green", 0.25)


def test_labels_of_another_shape_are_refused(folder: Path) -> None:
    (folder / "classifier.json").write_text('{"labels": {"concept": [1, 2, 3]}}')
    with pytest.raises(InputError, match=r"labels\.concept\.0: Input should be a valid string"):
        Judge.open(folder)


def test_an_unknown_label_is_not_seen_as_absent(folder: Path) -> None:
    with pytest.raises(InputError, match="no label `gren`\n  hint: did you mean `green`"):
        Judge.open(folder).recognized(plain((0, 0, 0)), "gren")


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"clip\.onnx: cannot be read"):
        Judge.open(tmp_path, "clip")


def test_images_reach_the_graph_unchanged(folder: Path) -> None:
    image = np.zeros((1, SIZE, SIZE, 3), np.uint8)
    image[0, 0, 1] = (255, 0, 0)  # one pixel
    assert Image.fromarray(image[0]).getpixel((1, 0)) == (255, 0, 0)
    np.testing.assert_allclose(Judge.open(folder).features(image), [[1 / SIZE**2, 0, 0]], rtol=FLOAT32_SUM)
