"""What does an image show? Judges are ONNX graphs with their labels beside them.

A judge is two files: `NAME.onnx` takes `image` [N, 3, 64, 64] in 0..1 and gives logits [N, K] for each
question (`concept` always; `gender`, `style`, `skin` where it was asked), maybe `features` [N, F];
`NAME.json` holds `labels` (the answers to each question, in order), and may hold `prompts` (what asks a
text-to-image model for each concept), `held_out_accuracy` (the judge's own, by question) and the
graph's `sha256`.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import BaseModel, Field, ValidationError

from ..specs.errors import Fault, InputError, quoted
from .sessions import Placement, Session, load_session

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
    prompts: Mapping[str, str] = field(default_factory=dict)
    accuracy: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def open(cls, folder: Path, name: str = "classifier", placement: Placement | None = None) -> "Judge":
        """Load the judge called `name` from a folder.

        Raises:
            InputError: the files are missing, do not belong together or are no judge.
        """
        graph, about = _read(folder / f"{name}.onnx"), _read_document(folder / f"{name}.json")
        sha256 = hashlib.sha256(graph).hexdigest()
        if about.sha256 not in (None, sha256):
            message = f"SHA-256 is {sha256}, expected {about.sha256}"
            raise InputError(Fault("E_JUDGE", message, str(folder / f"{name}.onnx")))
        session = load_session(graph, f"{name}.onnx", ["image"], [CONCEPT], placement)
        answers = _answers(about.labels, session, folder / f"{name}.json")
        return cls(name, sha256, answers, session, about.prompts, about.held_out_accuracy)

    @property
    def labels(self) -> tuple[str, ...]:
        """Every concept that the judge can tell from others."""
        return self.answers[CONCEPT]

    def prompt_of(self, label: str) -> str:
        """Return what asks a text-to-image model for a concept: the label itself where nothing is known."""
        return self.prompts.get(label, label)

    @property
    def error(self) -> float | None:
        """Share of held-out images whose concept the judge itself gets wrong, where that was measured."""
        return 1 - self.accuracy[CONCEPT] if CONCEPT in self.accuracy else None

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
            raise InputError(
                Fault("E_JUDGE_LABEL", f"judge {self.name} has no label {quoted(label)}", hint=hint)
            )
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


class _About(BaseModel):
    """NAME.json; other keys are notes."""

    labels: dict[str, tuple[str, ...]]
    prompts: dict[str, str] = Field(default_factory=dict)
    held_out_accuracy: dict[str, float] = Field(default_factory=dict)
    sha256: str | None = None


def _read_document(file: Path) -> _About:
    try:
        about = _About.model_validate_json(_read(file))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise InputError(Fault("E_JUDGE", f"{place}: {first['msg']}".lstrip(": "), str(file))) from error
    if CONCEPT not in about.labels:
        raise InputError(Fault("E_JUDGE", f"`labels` has no `{CONCEPT}`", str(file)))
    return about


def _answers(
    labels: Mapping[str, tuple[str, ...]], session: Session, file: Path
) -> dict[str, tuple[str, ...]]:
    """Return the answers to each question that the graph has logits for."""
    answers = {name: labels[name] for name in session.outputs if name in labels}
    for question, given in answers.items():
        count = session.outputs[question].shape[-1]
        if len(set(given)) != len(given) or count not in (None, len(given)):
            message = f"`{question}` lists {len(set(given))} different labels, the graph tells {count} apart"
            raise InputError(Fault("E_JUDGE", message, str(file)))
    return answers
