"""Gates decide by the bound of the interval, on paired images, and say so when they cannot."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from retouch.compiler.contract import Erasure
from retouch.compiler.gates import Draw, Images, Trial, _judging, erased, kept
from retouch.compiler.gates.erased import Erased
from retouch.compiler.gates.kept import Kept
from retouch.compiler.registry import gates
from retouch.specs.errors import UndecidedError

LABELS = ("pistol", "umbrella", "dog", "cat", "apple", "apple logo")


class PixelJudge:
    """Reads the label's number from the first pixel: what is drawn is what is recognized."""

    name, sha256, error, labels = "pixels", "0" * 64, None, LABELS

    def top1(self, images: Images) -> list[str]:
        return [LABELS[image[0, 0, 0]] for image in images]

    def prompt_of(self, label: str) -> str:
        return f"the {label}"


@pytest.fixture(autouse=True)
def pixel_judge(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (erased, kept):
        monkeypatch.setattr(module, "open_judge", lambda _: PixelJudge())


def drawing(shows: str | None = None, until: int = 0) -> Draw:
    """Draw what the prompt asks for; or, from seeds below `until` on, draw `shows` in its place."""

    def draw(prompts: Sequence[str], seeds: Sequence[int]) -> Images:
        wanted = [_judging.label_of(prompt, PixelJudge()) for prompt in prompts]  # type: ignore[arg-type]
        labels = [
            shows if shows and seed >= until else want for want, seed in zip(wanted, seeds, strict=True)
        ]
        return np.stack([np.full((2, 2, 3), LABELS.index(label), np.uint8) for label in labels])

    return draw


def trial(edited: Draw, recorded: dict[str, Any] | None = None) -> Trial:
    keep = {} if recorded is None else recorded
    moved = (Erasure(("a pistol", "pistol"), "an umbrella"),)
    return Trial(edited, drawing(), moved, keep.__setitem__, lambda _: None)


def test_gates_are_found_by_file_name() -> None:
    assert gates.names() == ["erased", "kept", "probed"]
    assert gates.load("erased") is Erased


@pytest.mark.parametrize(("hits", "passed"), [(0, True), (1, True), (2, False), (128, False)])
def test_erased_uses_the_upper_bound(hits: int, passed: bool) -> None:
    # Wilson's upper bound of 1 in 128 is 4.3 %, of 2 in 128 it is 5.5 %.
    (evidence,) = Erased("0.05", 128).decide(trial(drawing("umbrella", until=hits)))
    assert evidence.passed is passed
    assert evidence.value == f"{hits / 128:.6g}"
    assert evidence.details["base"] == "1"


def test_few_images_cannot_pass() -> None:
    (evidence,) = Erased("0.05", 16).decide(trial(drawing("umbrella")))
    assert evidence.value == "0"
    assert evidence.passed is False


def test_raw_results_are_kept() -> None:
    recorded: dict[str, Any] = {}
    Erased("0.05", 4).decide(trial(drawing("umbrella"), recorded))
    assert recorded["erased-pistol"][1] == {
        "seed": 1,
        "prompt": "pistol",
        "edited": "umbrella",
        "base": "pistol",
    }


def test_kept_compares_pairs() -> None:
    gate = Kept("0.03", concepts=5, images=40)
    (same,) = gate.decide(trial(drawing()))
    assert (same.value, same.passed) == ("0", True)
    (lost,) = gate.decide(trial(drawing("dog", until=20)))
    assert lost.passed is False
    assert float(lost.value) == pytest.approx(-0.4)  # of five concepts, four turn into a dog half of the time
    assert "dog" not in [name for name, share in lost.details["most_lost"].items() if float(share) > 0]


def test_too_few_labels_is_undecided() -> None:
    with pytest.raises(UndecidedError, match="60 kept concepts wanted, the judge knows 5"):
        Kept("0.03").decide(trial(drawing()))


def test_a_concept_that_the_judge_does_not_know_is_undecided() -> None:
    unknown = Trial(drawing(), drawing(), (Erasure(("a sword",), "a dog"),), lambda *_: None, lambda _: None)
    with pytest.raises(UndecidedError, match="the judge knows no `sword`"):
        Erased("0.05").decide(unknown)


def test_images_needed() -> None:
    assert Erased("0.05", 128).images_needed(3) == 768
    assert Kept("0.03", 60, 16).images_needed(3) == 1920
