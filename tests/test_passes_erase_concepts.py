"""Which rows of text are moved, what stays, and every fault of a block at once."""

import numpy as np
import pytest

from retouch.compiler.encode import encode_prompts, tokenizer_of
from retouch.compiler.ir import changed_tensors
from retouch.specs.errors import SpecError
from retouch.specs.manifest import Evidence

from .passes import evidence_of, make, open_tiny

APPLE = {"name": "the apple logo", "towards": "a cloud"}
# The tiny pipeline reads 16 tokens, and most words are spelled out.
SHORT = {"concepts": [APPLE], "templates": ["{}"], "held_out": []}


def _evidence(**block: object) -> dict[tuple[str, str], Evidence]:
    before, edit = open_tiny(), make("erase_concepts", {**SHORT, **block})
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
    # The last token of the concept is position 3, of its guide 2; the last row of the guide is padding.
    rows, guides = states[0][3:], states[1][[*range(2, 15)]]
    residual = np.linalg.norm(rows @ new.T - guides @ old.T) / np.linalg.norm((rows - guides) @ old.T)
    drift = np.linalg.norm(states[1][2:] @ (new - old).T) / np.linalg.norm(states[1][2:] @ old.T)
    found = {
        e.claim: float(e.value) for e in evidence_of(edit, before, after) if e.subject != "the empty prompt"
    }
    assert found["erase.residual"] == pytest.approx(residual, rel=1e-4)
    assert found["keep.drift"] == pytest.approx(drift, rel=1e-4)


def test_more_weight_on_what_is_preserved_moves_it_less() -> None:
    light, heavy = (_evidence(preserve=["a dog"], preserve_weight=weight) for weight in (1.0, 1000.0))
    assert float(heavy["keep.drift", "a dog"].value) < float(light["keep.drift", "a dog"].value)
    key = ("erase.residual", "the apple logo")
    assert float(heavy[key].value) > float(light[key].value)


@pytest.mark.parametrize("tokens", ["subject", "subject_and_eot", "subject_to_end"])
def test_each_choice_of_tokens_reaches_its_own_rows(tokens: str) -> None:
    found = _evidence(tokens=tokens, ridge=1e-6, preserve_weight=0.01)
    assert float(found["erase.residual", "the apple logo"].value) < 0.5


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
