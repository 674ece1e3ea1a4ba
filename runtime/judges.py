"""What does an image show? Judges are ONNX graphs with their labels beside them.

A judge is two files: `NAME.onnx` takes `image` [N, 3, 64, 64] in 0..1 and gives logits [N, K] for each
question (`concept` always; `gender`, `style`, `skin` where it was asked), maybe `features` [N, F];
`NAME.json` maps each question to its answers in order, and may hold the graph's `sha256`.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..specs.errors import Fault, InputError
from ..specs.fields import DEMO
from .sessions import Placement, Session, load_session

BUILT_IN: Mapping[str, Path] = {"demo": DEMO / "judges"}
CONCEPT = "concept"
BATCH = 32

Images = NDArray[np.uint8]


@dataclass(frozen=True)
class Judge:
    """A classifier of images; `sha256` names the graph that judged, for the evidence."""

    name: str
    sha256: str
    answers: Mapping[str, tuple[str, ...]]
    session: Session

    @classmethod
    def open(cls, where: Path | str, name: str = "classifier", placement: Placement | None = None) -> "Judge":
        """Load a judge from a folder, or a built-in one (`demo`).

        Raises:
            InputError: the files are missing, do not belong together or are no judge.
        """
        folder = BUILT_IN.get(where) if isinstance(where, str) else where
        folder = folder or Path(where)
        graph, document = _read(folder / f"{name}.onnx"), _read_document(folder / f"{name}.json")
        sha256 = hashlib.sha256(graph).hexdigest()
        expected = document.pop("sha256", sha256)
        if sha256 != expected:
            message = f"SHA-256 is {sha256}, expected {expected}"
            raise InputError(Fault("E_JUDGE", message, str(folder / f"{name}.onnx")))
        session = load_session(graph, f"{name}.onnx", ["image"], [CONCEPT], placement)
        return cls(name, sha256, _answers(document, session, folder / f"{name}.json"), session)

    @property
    def labels(self) -> tuple[str, ...]:
        """Every concept that the judge can tell from others."""
        return self.answers[CONCEPT]

    def logits(self, images: Images, question: str = CONCEPT) -> NDArray[np.float32]:
        """Return logits [N, K] of images [N, H, W, 3] in the order of `answers[question]`."""
        return self._run(images, question)

    def top1(self, images: Images, question: str = CONCEPT) -> list[str]:
        """Return the likeliest answer for each image [N, H, W, 3]."""
        answers = self.answers[question]
        return [answers[number] for number in self.logits(images, question).argmax(axis=1)]

    def recognized(self, images: Images, label: str) -> NDArray[np.bool_]:
        """Return for each image whether `label` is the likeliest concept.

        Raises:
            InputError: the judge has no such label, so it cannot see the concept at all.
        """
        if label not in self.labels:
            near = get_close_matches(label, self.labels, n=1)
            hint = f"did you mean `{near[0]}`?" if near else "choose a judge that knows the concept"
            raise InputError(Fault("E_JUDGE_LABEL", f"judge {self.name} has no label `{label}`", hint=hint))
        return self.logits(images).argmax(axis=1) == self.labels.index(label)

    def features(self, images: Images) -> NDArray[np.float32]:
        """Return features [N, F] to compare images by. Raises InputError where the judge has none."""
        if "features" not in self.session.outputs:
            raise InputError(Fault("E_JUDGE", f"judge {self.name} gives no features"))
        return self._run(images, "features")

    def _run(self, images: Images, output: str) -> NDArray[np.float32]:
        size = self.session.inputs["image"].shape[2:]
        parts = [images[start : start + BATCH] for start in range(0, len(images), BATCH)]
        return np.concatenate([self.session(image=_as_input(part, size))[output] for part in parts])


def _as_input(images: Images, size: Sequence[int | None]) -> NDArray[np.float32]:
    """Return images [N, H, W, 3] as [N, 3, h, w] in 0..1, resized where the judge sees another size."""
    height, width = (fixed or have for fixed, have in zip(size, images.shape[1:3], strict=True))
    if images.shape[1:3] != (height, width):
        images = np.stack([_resize(image, height, width) for image in images])
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2), dtype=np.float32) / np.float32(255)


def _resize(image: Images, height: int, width: int) -> Images:
    # A mean over the covered area loses no detail that survives; larger needs a smooth kernel.
    shrinks = height <= image.shape[0] and width <= image.shape[1]
    method = Image.Resampling.BOX if shrinks else Image.Resampling.LANCZOS
    return np.asarray(Image.fromarray(image).resize((width, height), method))


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise InputError(Fault("E_JUDGE", f"cannot be read: {error.strerror}", str(file))) from error


def _read_document(file: Path) -> dict[str, Any]:
    try:
        document = json.loads(_read(file))
    except ValueError as error:
        raise InputError(Fault("E_JUDGE", f"is no JSON: {error}", str(file))) from error
    if not isinstance(document, dict) or CONCEPT not in document:
        raise InputError(Fault("E_JUDGE", f"expected a mapping with the key `{CONCEPT}`", str(file)))
    return document


def _answers(document: Mapping[str, Any], session: Session, file: Path) -> dict[str, tuple[str, ...]]:
    """Return the answers to each question that the graph has logits for."""
    answers = {name: tuple(document[name]) for name in session.outputs if name in document}
    for question, labels in answers.items():
        count = session.outputs[question].shape[-1]
        if len(set(labels)) != len(labels) or count not in (None, len(labels)):
            message = f"`{question}` lists {len(set(labels))} different labels, the graph tells {count} apart"
            raise InputError(Fault("E_JUDGE", message, str(file)))
    return answers
