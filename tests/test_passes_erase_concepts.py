"""Which rows of text are moved, what stays, and every fault of a block at once."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, CLIPTextModel, CLIPTextModelWithProjection

from retouch.compiler.ir import Pipeline, changed_tensors
from retouch.compiler.tensors import widen
from retouch.compiler.text.encode import encode_prompts, pooled_width, tokenizer_of
from retouch.passes._preserving import read_captions
from retouch.specs.errors import InputError, SpecError
from retouch.specs.manifest import Evidence

from .passes import evidence_of, make, open_tiny
from .tiny import make_tiny_xl

APPLE = {"name": "the apple logo", "towards": "a cloud"}
# The tiny pipeline reads 16 tokens, and most words are spelled out.
SHORT = {"concepts": [APPLE], "templates": ["{}"], "held_out": [], "neighbors": 0}
KEYS = "*.attn2.to_[kv].weight"
POOLED = "add_embedding.linear_1.weight"
# Squares are summed over matrices in single precision: below the root of its last place nothing is seen.
SEEN = 2**-12


@pytest.fixture(scope="module")
def xl(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    """Return a small SDXL: two text encoders whose tokenizers pad differently, and a pooled state."""
    return open_tiny(make_tiny_xl(tmp_path_factory.mktemp("xl") / "model"), "euler")


def _evidence(pipeline: Pipeline | None = None, **block: object) -> dict[tuple[str, str], Evidence]:
    before, edit = pipeline or open_tiny(), make("erase_concepts", {**SHORT, **block})
    return {(e.claim, e.subject): e for e in evidence_of(edit, before, edit.run(before))}


@pytest.mark.parametrize(
    ("prompt", "concept", "expected"),
    [
        ("a cat on the apple logo", "the apple logo", range(4, 7)),
        ("a cat on the Apple logo", "the apple LOGO", range(4, 7)),
        ("a cat on a cat", "a cat", range(4, 6)),
        ("a cat", "at", range(0)),
        ("a cat", "dog", range(0)),
        ("the cat", "", range(0)),
    ],
)
def test_a_subject_is_found_by_the_tokenizers_offsets(prompt: str, concept: str, expected: range) -> None:
    assert tokenizer_of(open_tiny()).spelled(prompt, concept) == expected


def test_every_key_and_value_is_rewritten_by_one_matrix_and_nothing_else() -> None:
    before = open_tiny()
    after = make("erase_concepts", SHORT).run(before)
    changed = changed_tensors(before, after)
    assert set(changed) == set(before.select("denoiser", "*.attn2.to_[kv].weight").names)
    old, new = (np.concatenate([p.tensors[n].read() for n in changed]).astype(float) for p in (before, after))
    text_map = np.linalg.lstsq(old, new, rcond=None)[0]
    assert np.abs(old @ text_map - new).max() < 1e-5


def test_residual_and_drift_are_those_of_the_written_matrices() -> None:
    before = open_tiny()
    edit = make("erase_concepts", SHORT)
    after = edit.run(before)
    names = before.select("denoiser", "*.attn2.to_[kv].weight").names
    old, new = (np.concatenate([p.tensors[n].read() for n in names]).astype(float) for p in (before, after))
    states = encode_prompts(before, ["the apple logo", "a cloud"]).states.astype(float)
    # The last token of the concept is position 3, of its guide 2; the end tokens follow.
    rows, guides = states[0][[3, 4]], states[1][[2, 3]]
    residual = np.linalg.norm(rows @ new.T - guides @ old.T) / np.linalg.norm((rows - guides) @ old.T)
    drift = np.linalg.norm(guides @ (new - old).T) / np.linalg.norm(guides @ old.T)
    found = {
        e.claim: float(e.value) for e in evidence_of(edit, before, after) if e.subject != "the empty prompt"
    }
    assert found["erase.residual"] == pytest.approx(residual, rel=1e-3, abs=SEEN)
    assert found["keep.drift"] == pytest.approx(drift, rel=1e-3, abs=SEEN)


def test_more_weight_on_what_is_preserved_moves_it_less() -> None:
    light, heavy = (_evidence(preserve=["a dog"], preserve_weight=weight) for weight in (1.0, 1000.0))
    assert float(heavy["keep.drift", "a dog"].value) < float(light["keep.drift", "a dog"].value)
    key = ("erase.residual", "the apple logo")
    assert float(heavy[key].value) > float(light[key].value)


@pytest.mark.parametrize("tokens", ["subject", "subject_and_eot", "subject_to_end"])
def test_each_choice_of_tokens_reaches_its_own_rows(tokens: str) -> None:
    found = _evidence(tokens=tokens, ridge=1e-6, preserve_weight=0.01)
    assert float(found["erase.residual", "the apple logo"].value) < 0.5


@pytest.mark.parametrize("solver", ["linear", "nullspace"])
@pytest.mark.parametrize("rounds", [0, 2])
def test_two_encoders_and_the_pooled_state_are_edited_and_measured(
    xl: Pipeline, solver: str, rounds: int
) -> None:
    edit = make("erase_concepts", {**SHORT, "solver": solver, "adversarial_rounds": rounds})
    after = edit.run(xl)
    assert set(changed_tensors(xl, after)) == {*xl.select("denoiser", KEYS).names, f"unet.{POOLED}"}
    old, new = (widen(pipeline.tensors[f"unet.{POOLED}"].read()).astype(float) for pipeline in (xl, after))
    width = pooled_width(xl)
    assert width < old.shape[1]
    assert (old[:, width:] == new[:, width:]).all()
    assert np.abs(old[:, :width] - new[:, :width]).max() > 0
    found = {(e.claim, e.subject): float(e.value) for e in evidence_of(edit, xl, after)}
    for kind in ("", " (pooled)"):
        assert found["erase.residual", f"the apple logo{kind}"] < 1
        assert found["erase.condition", f"text map{kind}"] > 1


def test_each_half_of_the_rows_is_an_encoders_own(xl: Pipeline) -> None:
    encoded = encode_prompts(xl, ["a cat", "the apple logo"])
    models: list[Any] = [CLIPTextModel, CLIPTextModelWithProjection]
    pooled = None
    for i, (share, model) in enumerate(zip(xl.family.text_encoders, models, strict=True)):
        folder = xl.components[share.component].folder
        tokenizer = AutoTokenizer.from_pretrained(str(xl.components[share.tokenizer].folder))
        ids = tokenizer(list(encoded.prompts), padding="max_length", return_tensors="pt").input_ids
        with torch.inference_mode():
            output = model.from_pretrained(str(folder))(ids, output_hidden_states=True)
        at = sum(part.rows.shape[1] for part in encoded.shares[:i])
        expected = output.hidden_states[-2].numpy()
        pooled = output.get("text_embeds")
        found = encoded.states[:, :, at : at + expected.shape[2]]
        assert np.abs(found - expected).max() < 1e-5 * np.abs(expected).max()
    assert pooled is not None
    assert encoded.pooled is not None
    assert np.abs(encoded.pooled - pooled.numpy()).max() < 1e-5


@pytest.mark.parametrize("solver", ["linear", "nullspace"])
def test_the_empty_prompt_stays(solver: str) -> None:
    found = _evidence(solver=solver, vocabulary=3)
    drift = float(found["keep.drift", "the empty prompt"].value)
    assert drift < (0.2 if solver == "linear" else SEEN)


def test_a_map_in_the_graph_is_measured_as_the_fused_one_is() -> None:
    fused, mapped = _evidence(output="fused"), _evidence(output="text_map")
    assert fused.keys() == mapped.keys()
    for key, evidence in fused.items():
        assert float(mapped[key].value) == pytest.approx(float(evidence.value), rel=1e-3, abs=SEEN), key


def test_a_weight_that_was_not_written_as_solved_shows() -> None:
    before, edit = open_tiny(), make("erase_concepts", SHORT)
    honest = {e.claim: float(e.value) for e in evidence_of(edit, before, edit.run(before))}
    unedited = {e.claim: float(e.value) for e in evidence_of(edit, before, before)}
    assert unedited["erase.residual"] == pytest.approx(1.0)
    assert honest["erase.residual"] < 0.9
    assert unedited["erase.revival"] == pytest.approx(1.0, rel=0.05)


def test_adversarial_rounds_leave_less_to_revive() -> None:
    plain, hardened = (_evidence(adversarial_rounds=rounds, ridge=1e-3) for rounds in (0, 3))
    left = [float(found["erase.revival", "the apple logo"].details["left"]) for found in (plain, hardened)]
    assert left[1] > left[0]
    key = ("erase.residual", "the apple logo")
    assert float(hardened[key].value) < float(plain[key].value) + 0.1


def test_neighbors_are_preserved_and_measured() -> None:
    found = _evidence(neighbors=2)
    (neighbors,) = [e for (claim, subject), e in found.items() if subject.endswith("neighbors")]
    assert (neighbors.claim, neighbors.subject) == ("keep.drift_p95", "4 neighbors")
    light, heavy = (_evidence(neighbors=2, preserve_weight=weight) for weight in (1.0, 1000.0))
    key = ("keep.drift_p95", "4 neighbors")
    assert float(heavy[key].value) < float(light[key].value)


def test_words_that_do_not_fit_into_a_template_are_left_out() -> None:
    # `apple` in this template fills all 16 tokens; `a cat` is one token more.
    template = "{}" + " cat" * 13
    found = _evidence(
        concepts=[{"name": "apple", "towards": "cloud"}], templates=["{}", template], neighbors=3
    )
    in_turn = [e for e in found.values() if "vocabulary" in e.subject or "neighbors" in e.subject]
    assert [evidence.count for evidence in in_turn] == [int(e.subject.split()[0]) for e in in_turn]
    assert [e.count for e in in_turn if "neighbors" in e.subject] == [2]


def test_captions_are_kept(tmp_path: Path) -> None:
    (tmp_path / "captions.txt").write_text("a cat on the shoe\n\na dog\na dog\n")
    block = {**SHORT, "captions": "captions.txt", "vocabulary": 0}
    edit, before = make("erase_concepts", block, tmp_path), open_tiny()
    found = {e.subject: e for e in evidence_of(edit, before, edit.run(before))}
    assert float(found["2 captions"].value) < 0.5
    (tmp_path / "captions.txt").write_bytes(b"\xff\xfe")
    read_captions.cache_clear()
    with pytest.raises(InputError, match="cannot be read"):
        read_captions(edit.captions)


@pytest.mark.parametrize(("name", "guide"), [("a dog", "an animal"), ("the apple logo", "an object")])
def test_without_a_guide_a_concept_becomes_its_super_category(name: str, guide: str) -> None:
    edit = make("erase_concepts", {"concepts": [{"name": name}]})
    (erasure,) = edit.erasures()
    assert erasure.towards == guide


def test_a_super_category_that_is_erased_as_well_is_passed_over() -> None:
    edit = make("erase_concepts", {"concepts": [{"name": "a dog"}, {"name": "an animal"}]})
    assert [erasure.towards for erasure in edit.erasures()] == ["an object", "an object"]


@pytest.mark.parametrize(
    ("block", "code"),
    [
        ({"solver": "nullspace", "output": "text_map"}, "E_ERASE_OUTPUT"),
        ({"solver": "nullspace", "vocabulary": 0}, "E_ERASE_RETAINED"),
    ],
)
def test_what_a_solver_cannot_do_is_refused(block: dict[str, object], code: str) -> None:
    with pytest.raises(SpecError) as caught:
        make("erase_concepts", {**SHORT, **block}).run(open_tiny())
    assert [fault.code for fault in caught.value.faults] == [code]


def test_every_fault_of_a_block_is_told_at_once() -> None:
    block = {
        "concepts": [
            APPLE,
            {"name": "the  Apple logo", "towards": "a dog"},
            {"name": "a shoe", "towards": "a shoe"},
            {"name": " ".join(["cat"] * 20), "towards": "a cat"},
            {"name": "☃", "towards": "a cat"},
        ],
        "preserve": ["a shoe"],
        "templates": ["{}", "no place"],
    }
    with pytest.raises(SpecError) as caught:
        make("erase_concepts", block).run(open_tiny())
    assert {(fault.code, fault.where) for fault in caught.value.faults} >= {
        ("E_ERASE_TWICE", "erase_concepts.concepts.1.name"),
        ("E_ERASE_GUIDE", "erase_concepts.concepts.2.towards"),
        ("E_ERASE_TOKENS", "erase_concepts.concepts.3.name"),
        ("E_ERASE_PRESERVED", "erase_concepts.preserve.0"),
        ("E_ERASE_TEMPLATE", "erase_concepts.templates.1"),
    }
