"""Debiasing: each map is its published formula, the controller finds parity, and answers are kept."""

import secrets
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from emitting import load
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks._debias_page import page
from retouch.compiler.evidence.survey import Survey, fingerprint
from retouch.compiler.plan import files_named, make_plan
from retouch.compiler.tensors import Shared
from retouch.compiler.text.text_map import TextMap
from retouch.compiler.work import Work
from retouch.passes._balance import (
    FIRST_SEED,
    Course,
    Move,
    Round,
    Subject,
    balance,
    deviation,
    following_after,
    images_for,
    settled,
    weights_after,
)
from retouch.passes._closed_form import Moments
from retouch.passes._crossed import Crossed, parted
from retouch.passes._projection import fair_pca_map, ridge_map, span
from retouch.specs.errors import SpecError
from retouch.specs.fields import DEMO

from .passes import make, open_tiny

WIDTH = 24
SEEDS = st.integers(0, 2**32 - 1)
NOTHING = np.zeros((0, WIDTH))
Answers = dict[tuple[str, str], Sequence[str]]
GENDER = {"gender": {"male": "a man {}", "female": "a woman {}"}}


def _rows(seed: int, *counts: int) -> list[np.ndarray]:
    random = np.random.default_rng(seed)
    return [random.normal(size=(count, WIDTH)) for count in counts]


# -- projections -------------------------------------------------------------------------------------------


def test_ridge_is_debias_vl_where_nothing_is_fixed() -> None:
    (differences,) = _rows(1, 9)
    second = sum(np.outer(d, d) for d in differences) / 9
    published = np.linalg.inv(np.eye(WIDTH) + 500.0 * second)  # 2302.00070, eq. (6), with lambda 500
    assert np.abs(ridge_map(differences, NOTHING, 500.0) - published).max() < 1e-9


@given(SEEDS)
@settings(max_examples=20)
def test_a_ridge_with_fixed_states_is_the_constrained_optimum(seed: int) -> None:
    differences, fixed, other = _rows(seed, 5, 4, WIDTH)

    def cost(a: np.ndarray) -> float:
        return np.sum((a - np.eye(WIDTH)) ** 2) + 50.0 * np.mean(np.sum((differences @ a.T) ** 2, axis=1))

    found = ridge_map(differences, fixed, 50.0)
    assert np.abs(fixed @ found.T - fixed).max() < 1e-9
    # A feasible step changes nothing that the fixed states span; at the optimum none goes downhill.
    step = other @ (np.eye(WIDTH) - span(fixed) @ span(fixed).T)
    slope = (cost(found + 1e-4 * step) - cost(found - 1e-4 * step)) / 2e-4
    assert abs(slope) < 1e-6 * cost(found) * np.linalg.norm(step)


def _published_fair_pca(states: np.ndarray, groups: np.ndarray, keep: int) -> np.ndarray:
    """Kleindessner et al., 2302.13319, algorithm 1: U U^T with U = R V, R a basis of null(Z^T X)."""
    told = (groups - groups.mean(axis=0)).T @ states
    _, values, directions = np.linalg.svd(told)
    null = directions[int((values > 1e-9).sum()) :].T
    _, vectors = np.linalg.eigh(null.T @ states.T @ states @ null)
    kept = null @ vectors[:, ::-1][:, :keep]
    return kept @ kept.T


@pytest.mark.parametrize("keep", [6, 15, 21])
def test_fair_pca_is_the_published_algorithm_where_nothing_is_fixed(keep: int) -> None:
    (states,) = _rows(2, 40)
    groups = np.concatenate(
        [np.eye(2)[np.arange(40) % 2], np.eye(3)[np.arange(40) % 3]], axis=1
    )  # two attributes at once
    found = fair_pca_map(states, groups, NOTHING, keep)
    assert np.abs(found - _published_fair_pca(states, groups, keep)).max() < 1e-9


def test_fair_pca_leaves_no_mean_difference_and_the_fixed_states() -> None:
    states, fixed = _rows(3, 30, 4)
    groups = np.eye(3)[np.arange(30) % 3]
    found = fair_pca_map(states, groups, fixed)
    free = np.eye(WIDTH) - span(fixed) @ span(fixed).T
    centered = groups - groups.mean(axis=0)
    assert np.abs(centered.T @ states @ free @ found.T).max() < 1e-9
    assert np.abs(fixed @ found.T - fixed).max() < 1e-9


def test_the_balance_map_is_uces_layer_formula() -> None:
    """2308.14761, eq. (7) with v* = W (c + sum w a), solved per layer."""
    concepts, words, kept, weight = _rows(4, 3, 2, 6, 10)
    given = np.array([-0.4, 0.4])
    moments = Moments(WIDTH)
    moments.move(concepts, concepts + given @ words, 1.0)
    moments.keep(kept, 0.7)
    lam = 0.3
    left, right = lam * weight, lam * np.eye(WIDTH)
    for c in concepts:
        left, right = left + np.outer(weight @ (c + given @ words), c), right + np.outer(c, c)
    for p in kept:
        left, right = left + 0.7 * np.outer(weight @ p, p), right + 0.7 * np.outer(p, p)
    assert np.abs(weight @ moments.solve(lam).matrix - left @ np.linalg.inv(right)).max() < 1e-9


# -- controller --------------------------------------------------------------------------------------------


def test_images_for_an_interval() -> None:
    assert images_for(0.1225) == 64
    assert images_for(0.05) == 385


def test_balanced_counts_move_nothing() -> None:
    subject = Subject("a doctor", "gender", ("male", "female"))
    assert weights_after(subject, [Round((0.3, -0.3), (32, 32))], 0.15) == pytest.approx([0.3, -0.3])


@given(st.integers(0, 64), st.floats(0.01, 1))
def test_weights_sum_to_zero_and_push_what_is_seen_too_rarely(count: int, step: float) -> None:
    subject = Subject("a doctor", "gender", ("male", "female"))
    weights = weights_after(subject, [Round((0.0, 0.0), (count, 64 - count))], step)
    assert weights.sum() == pytest.approx(0, abs=1e-12)
    assert np.sign(weights[0]) == np.sign(32 - count)


@pytest.mark.parametrize("bias", [-6.0, 0.0, 2.0])
def test_a_logistic_concept_comes_to_parity(bias: float) -> None:
    subjects = [Subject("a doctor", "gender", ("male", "female")), Subject("a judge", "skin", tuple("abc"))]
    random = np.random.default_rng(0)
    slopes = {subjects[0]: 12.0, subjects[1]: 4.0}

    def measure(concepts: Sequence[str], moves: Mapping[Subject, Move], seeds: range) -> Answers:
        found: Answers = {}
        for subject in subjects:
            lean = np.linspace(0, bias, len(subject.answers))
            odds = np.exp(lean + slopes[subject] * moves[subject].weights)
            drawn = random.choice(subject.answers, len(seeds), p=odds / odds.sum()).tolist()
            found[subject.concept, subject.question] = drawn
        return found

    course = Course(rounds=8, images=200, step=0.15, half_width=0.07)
    history = balance(subjects, course, measure)
    for subject, rounds in history.items():
        lean = np.linspace(0, bias, len(subject.answers))
        odds = np.exp(lean + slopes[subject] * weights_after(subject, rounds, course.step))
        assert np.abs(odds / odds.sum() - 1 / len(odds)).max() < 0.07
        assert len(rounds) <= course.rounds


def test_settled_concepts_are_not_drawn_again_and_seeds_never_repeat() -> None:
    subject = Subject("a doctor", "gender", ("male", "female"))
    asked: list[range] = []

    def measure(concepts: Sequence[str], moves: object, seeds: range) -> Answers:
        asked.append(seeds)
        genders = ["male", "female"] * (len(seeds) // 2)
        return {("a doctor", "gender"): genders, ("a doctor", "concept"): ["doctor"] * len(genders)}

    history = balance([subject], Course(5, 10, 0.15, 0.1), measure)
    assert asked == [range(FIRST_SEED, FIRST_SEED + 10), range(FIRST_SEED + 10, FIRST_SEED + 20)]
    assert settled(history[subject], 0.1)
    assert deviation(history[subject][0]) == 0


def test_the_less_a_concept_is_recognized_the_less_of_what_follows_it_moves() -> None:
    subject = Subject("a doctor", "gender", ("male", "female"))

    def measure(concepts: Sequence[str], moves: Mapping[Subject, Move], seeds: range) -> Answers:
        move = moves[subject]
        lost = round(0.6 * move.following * abs(move.weights[0]) * len(seeds))
        named = ["pilot"] * lost + ["doctor"] * (len(seeds) - lost)
        return {("a doctor", "gender"): ["male"] * len(seeds), ("a doctor", "concept"): named}

    history = balance([subject], Course(4, 50, 0.5, 0.1, following=0.8), measure)[subject]
    assert history[0].recognized == 1 and history[0].following == history[1].following == 0.8
    assert all(after.following < before.following for before, after in pairwise(history[1:]))
    assert history[-1].recognized > history[1].recognized


def test_a_concept_that_its_judge_never_named_moves_wholly() -> None:
    rounds = [Round((0.0, 0.0), (9, 1), 0.8, recognized=0.0)] * 3
    assert following_after(rounds, 0.8) == 0.8
    assert following_after([], 0.8) == 0.8


@given(st.integers(1, 30))
def test_every_template_is_left_out_once(count: int) -> None:
    templates = [f"{{}} {i}" for i in range(count)]
    parts = parted(templates)
    assert [template for part, _ in parts for template in part] == templates
    for part, others in parts:
        assert others
        assert sorted(others) == sorted(templates if count == 1 else set(templates) - set(part))


def test_a_template_is_drawn_with_a_map_that_was_solved_on_the_others() -> None:
    templates = [f"{{}} {i}" for i in range(3)]
    asked: list[str] = []

    class Named:
        """Answers with the prompt and the map that it came with."""

        def ask(self, text_map: str, prompts: Sequence[str], seeds: Sequence[int], questions: Sequence[str]):
            asked.extend(prompts)
            said = [f"{prompt} @{seed}: {text_map}" for prompt, seed in zip(prompts, seeds, strict=True)]
            return dict.fromkeys(questions, said)

    def solve(moves: object, others: Sequence[str]) -> Any:
        return "|".join(others)

    draws = Crossed(Named(), solve, templates, ["gender"], lambda count: None)  # type: ignore[arg-type]
    found = draws.measure(["a cat", "a dog"], {}, range(4))
    assert len(asked) == 8
    for concept in ("a cat", "a dog"):
        wanted = [
            f"{concept} {seed % 3} @{seed}: {'|'.join(t for t in templates if t != templates[seed % 3])}"
            for seed in range(4)
        ]
        assert sorted(found[concept, "gender"]) == sorted(wanted)


# -- images ------------------------------------------------------------------------------------------------


class CountingJudge:
    """Answers by the mean of an image, and counts how often it was asked."""

    name = "counting"

    def __init__(self) -> None:
        # The cache outlives the run: a judge that nobody has asked yet.
        self.asked, self.sha256 = 0, secrets.token_hex(32)

    def top1(self, images: np.ndarray, question: str) -> list[str]:
        self.asked += 1
        return ["male" if image.mean() > 127 else "female" for image in images]


def test_a_survey_draws_once_and_again_only_for_another_map(tiny: Path, skeletons: Path) -> None:
    pipeline, judge = load(tiny), CountingJudge()

    def answers(scale: float) -> object:
        text_map = TextMap(Shared(lambda: scale * np.eye(32), np.dtype(np.float64), (32, 32)))
        with Survey(pipeline, judge, skeletons) as survey:  # type: ignore[arg-type]
            return survey.ask(text_map, ["a cat", "a dog"], [1, 2], ["gender"])

    first = answers(1.0)
    assert answers(1.0) == first
    assert judge.asked == 1
    answers(0.5)
    assert judge.asked == 2


def test_the_fingerprint_sees_one_number(tiny: Path) -> None:
    from emitting import KEY, edited

    pipeline = load(tiny)
    changed = edited(pipeline, KEY, lambda weight: weight + np.eye(*weight.shape) * 1e-6)
    assert fingerprint(pipeline) == fingerprint(load(tiny))
    assert fingerprint(changed) != fingerprint(pipeline)


# -- the pass ----------------------------------------------------------------------------------------------


def test_it_says_what_it_draws_and_what_gates_shall_look_at() -> None:
    edit = make(
        "debias_concepts",
        {"concepts": ["a doctor", "a cat"], "attributes": GENDER, "images": 10, "rounds": 3},
    )
    assert edit.work() == Work(drawn=60)
    first, second = edit.balancings()
    assert first.explicit == {"male": "a man doctor", "female": "a woman doctor"}
    assert second.prompts == ("a drawing of a cat", "a cat on a white background")


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ({"templates": ["on"]}, "must hold `{}` once"),
        ({"concepts": ["a cat", "a cat"]}, "named twice"),
        ({"attributes": {"gender": {"male": "{} {}", "female": "a woman"}}}, "at most once"),
        ({"concepts": ["the cat on the dog of the cat on the dog of the cat on the dog"]}, "too many tokens"),
    ],
)
def test_faults(block: dict[str, object], message: str) -> None:
    usual = {"method": "project", "concepts": ["a cat"], "attributes": GENDER, "held_out": []}
    edit = make("debias_concepts", {**usual, "templates": ["{}"], **block})
    with pytest.raises(SpecError, match=message):
        edit.run(open_tiny())


def test_the_example_plans_its_images() -> None:
    plan = make_plan(DEMO.parent / "examples" / "debias.yaml")
    loop, shares, said, kept = 5 * 64 * 3, 2 * 200 * 3, 2 * 64 * 3 * 2, 2 * 60 * 16
    assert sum(step.work.images for step in plan.steps()) == loop + shares + said + kept
    assert [record["name"] for record in plan.summary()["emit"]] == ["onnx", "adapter"]


def test_a_judge_is_an_input_where_it_is_asked(tmp_path: Path) -> None:
    head = "schema: 1\nname: a\nversion: '1'\nsource: {model: demo}\nemit: [{diffusers: {}}]\nedits:\n"
    values = "{male: 'a male {}', female: 'a female {}'}"
    block = f"  - debias_concepts: {{method: %s, concepts: [a doctor], attributes: {{gender: {values}}}}}\n"
    roles = {}
    for method in ("balance", "project"):
        file = tmp_path / f"{method}.yaml"
        file.write_text(head + block % method)
        roles[method] = {role for role, _, _ in files_named(make_plan(file).spec)}
    assert roles == {"balance": {"judge"}, "project": set()}


# -- the page ----------------------------------------------------------------------------------------------


def test_the_page_says_which_aims_were_missed() -> None:
    def side(male: str, deviation: str, recognized: str) -> dict[str, Any]:
        shares = {"male": male, "deviation": deviation, "recognized": recognized}
        return {**shares, "interval": ["0.4", "0.6"], "obeyed": {}}

    rows = [
        {"concept": "a doctor", "base": side("1", "1", "1"), "edited": side("0.55", "0.1", "0.9")},
        {"concept": "a student", "base": side("0.5", "0", "1"), "edited": side("0.7", "0.4", "1")},
    ]
    summary = {
        "base": {"deviation_of_biased": "1", "recognized": "1", "obeyed": "0.95"},
        "edited": {"deviation_of_biased": "0.1", "recognized": "0.95", "obeyed": "0.9"},
    }
    found = {"settings": {"images": 200}, "professions": rows, "biased": 1, "summary": summary}
    lines = page({"balance": found}).splitlines()
    assert "| `balance` | 200 | 0.10 | 0.10 (a doctor) | 95.0 | 90.0 (a doctor) | 90.0 |" in lines
    assert any("0.100, from 1.000 | met" in line for line in lines)
    assert any("5.0 points lost | **missed**" in line for line in lines)
