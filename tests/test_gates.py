"""Gates decide by the bound of the interval, on paired images, and say so when they cannot."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest

from retouch.compiler.contract import Balancing, Erasure
from retouch.compiler.gates import Draw, Images, Trial, _judging, balanced, erased, kept
from retouch.compiler.gates.balanced import Balanced
from retouch.compiler.gates.erased import Erased
from retouch.compiler.gates.kept import Kept
from retouch.compiler.gates.probed import Probed
from retouch.compiler.probes import OF_EACH, OTHERS, SHOWN
from retouch.compiler.registry import gates
from retouch.compiler.work import Work
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
    assert gates.names() == ["balanced", "erased", "kept", "probed"]
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


def test_a_gate_says_what_it_will_draw() -> None:
    assert Erased("0.05", 128).work(3) == Work(drawn=384, drawn_before=384)
    assert Kept("0.03", 60, 16).work(3) == Work(drawn=960, drawn_before=960)
    draw_twice = Probed("0.5", probes=("plain", "static"), images=10).work(3)
    assert draw_twice == Work(sampled=3 * 2 * 10 + 3 * SHOWN + (OTHERS + 1) * OF_EACH)


class PersonJudge(PixelJudge):
    """Reads the answer to `gender` from the first pixel."""

    answers = MappingProxyType({"gender": ("male", "female")})
    accuracy: Mapping[str, float] = MappingProxyType({})

    def top1(self, images: Images, question: str = "concept") -> list[str]:
        assert question == "gender"
        return [self.answers["gender"][image[0, 0, 0]] for image in images]


def people(share: float, explicit: bool = True) -> Draw:
    """Draw a doctor as a woman in a share of seeds; where a gender is asked for, that one if `explicit`."""

    def draw(prompts: Sequence[str], seeds: Sequence[int]) -> Images:
        shown = [
            ("female" in prompt) if explicit and "male" in prompt else seed % 100 < 100 * share
            for prompt, seed in zip(prompts, seeds, strict=True)
        ]
        return np.stack([np.full((2, 2, 3), int(one), np.uint8) for one in shown])

    return draw


def balanced_evidence(monkeypatch: pytest.MonkeyPatch, edited: Draw, images: int = 200) -> list[Any]:
    monkeypatch.setattr(balanced, "open_judge", lambda _: PersonJudge())
    said = {"male": "a male doctor", "female": "a female doctor"}
    asked = Balancing("a doctor", "gender", ("male", "female"), ("a drawing of a doctor",), said)
    held = Trial(edited, people(0.02), (), lambda *_: None, lambda _: None, balanced=(asked,))
    return Balanced("0.15", images).decide(held)


@pytest.mark.parametrize(("share", "passed"), [(0.5, True), (0.44, True), (0.37, False), (0.02, False)])
def test_balanced_uses_both_bounds(monkeypatch: pytest.MonkeyPatch, share: float, passed: bool) -> None:
    found = balanced_evidence(monkeypatch, people(share))
    shares = [evidence for evidence in found if evidence.claim == "balanced"]
    assert [evidence.passed for evidence in shares] == [passed, passed]
    assert [evidence.details["base"] for evidence in shares] == ["0.98", "0.02"]
    assert [evidence.passed for evidence in found if evidence.claim == "obeyed"] == [True, True]


def test_few_images_cannot_show_balance(monkeypatch: pytest.MonkeyPatch) -> None:
    found = balanced_evidence(monkeypatch, people(0.5), images=100)
    assert [evidence.passed for evidence in found if evidence.claim == "balanced"] == [True, True]
    assert not balanced_evidence(monkeypatch, people(0.5), images=20)[0].passed


def test_prompts_that_say_a_value_must_be_obeyed(monkeypatch: pytest.MonkeyPatch) -> None:
    found = balanced_evidence(monkeypatch, people(0.5, explicit=False))
    # The first 32 seeds show women, whatever the prompt says.
    assert [evidence.passed for evidence in found if evidence.claim == "obeyed"] == [False, True]


def test_balanced_counts_its_images() -> None:
    asked = Balancing("a doctor", "gender", ("male", "female"), ("a doctor",), {"male": "a male doctor"})
    assert Balanced("0.15", 200, explicit=32).work(0, (asked, asked)).images == 2 * (400 + 64)


class ProfessionJudge(PersonJudge):
    """Reads the gender from the first channel of the first pixel, the profession from the second."""

    labels = ("doctor", "pilot")

    def top1(self, images: Images, question: str = "concept") -> list[str]:
        return (
            [ProfessionJudge.labels[image[0, 0, 1]] for image in images]
            if question == "concept"
            else (super().top1(images, question))
        )


@pytest.mark.parametrize(("pilots", "passed"), [(0, True), (30, False)])
def test_a_balanced_concept_must_still_be_recognized(
    monkeypatch: pytest.MonkeyPatch, pilots: int, passed: bool
) -> None:
    monkeypatch.setattr(balanced, "open_judge", lambda _: ProfessionJudge())

    def edited(prompts: Sequence[str], seeds: Sequence[int]) -> Images:
        images = people(0.5)(prompts, seeds)
        images[..., 1] = np.asarray([seed < pilots for seed in seeds])[:, None, None]
        return images

    def base(prompts: Sequence[str], seeds: Sequence[int]) -> Images:
        return people(0.02)(prompts, seeds) * np.array([1, 0, 0], np.uint8)

    asked = Balancing("a doctor", "gender", ("male", "female"), ("a drawing of a doctor",), {})
    held = Trial(edited, base, (), lambda *_: None, lambda _: None, balanced=(asked,))
    *_, evidence = Balanced("0.15", lost="0.03").decide(held)
    assert (evidence.claim, evidence.passed) == ("recognized", passed)
    assert evidence.details["edited"] == f"{1 - pilots / 200:g}"
    assert evidence.details["seen_instead"] == ({"pilot": pilots} if pilots else {})
