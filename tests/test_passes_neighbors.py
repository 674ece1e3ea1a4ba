"""Siblings of a concept: close in the tokenizer's own terms, never what is erased, never too many."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retouch.compiler.ir import Pipeline
from retouch.compiler.load import load_pipeline
from retouch.compiler.text.encode import token_embeddings, tokenizer_of
from retouch.passes import _neighbors
from retouch.passes._neighbors import namesakes, neighbor_prompts
from retouch.specs.fields import DEMO

CONCEPTS = ("the nike logo", "a pistol", "a crossed swords", "a wine", "facebook logo", "middle finger")


@pytest.fixture(scope="module")
def demo() -> Pipeline:
    return load_pipeline(DEMO / "model", "ddim", 5, 2.0)


def test_siblings_differ_in_one_word_and_stand_in_for_the_last_one_alone(demo: Pipeline) -> None:
    found = neighbor_prompts(demo, ["the nike logo"], 5, ["the nike logo"])
    logos = [text for text in found if text.endswith(" logo")]
    assert len(logos) == len(found) - len(logos) == 5
    assert all(text.startswith("the ") and len(text.split()) == 3 for text in logos)
    assert all(text.startswith("a ") and len(text.split()) == 2 for text in found[5:])


def test_the_closest_words_have_the_closest_embeddings(demo: Pipeline) -> None:
    words = [word for word in tokenizer_of(demo).words() if word.isalpha() and len(word) >= 3]
    ids = [tokenizer_of(demo).tokens(word).ids[1] for word in words]
    rows = token_embeddings(demo)[ids].astype(np.float64)
    rows -= rows.mean(axis=0)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    order = np.argsort(-rows @ rows[words.index("doctor")])
    closest = neighbor_prompts(demo, ["a doctor"], 4, ["doctor"])
    assert closest == tuple(f"a {words[place]}" for place in order[1:5])


@given(
    concepts=st.lists(st.sampled_from(CONCEPTS), min_size=1, max_size=4, unique=True),
    count=st.integers(0, 300),
    most=st.integers(1, 500),
)
def test_there_are_at_most_so_many_and_none_is_erased(
    demo: Pipeline, concepts: list[str], count: int, most: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_neighbors, "MOST", most)
        found = neighbor_prompts(demo, concepts, count, concepts)
    places = sum(2 if name.endswith(("logo", "swords", "finger")) else 1 for name in concepts)
    assert len(found) == len(set(found)) <= min(max(most, places), count * places)
    said = {word for name in concepts for word in name.split()} - {"a", "the"}
    replaced = [set(text.split()) & said for text in found]
    assert all(len(words) <= 1 for words in replaced)
    assert not {text.removeprefix("a ") for text in found} & said
    assert found == neighbor_prompts(demo, concepts, count, concepts) or most < count * places


@pytest.mark.parametrize(
    ("erased", "never"),
    [
        ("a pistol", {"a pistol"}),
        ("a fire", {"a fire", "a firefighter"}),
        ("pineapples", {"a pineapple", "a pineapples"}),
        ("an animal", {"a dog", "a cat", "a lion", "a pig"}),
        ("a lion", {"a lion"}),
    ],
)
def test_forms_kinds_and_super_categories_of_what_is_erased_are_no_neighbors(
    demo: Pipeline, erased: str, never: set[str]
) -> None:
    found = set(neighbor_prompts(demo, [erased], 300, [erased]))
    assert len(found) > 100
    assert not found & never


def test_a_sibling_that_is_erased_as_well_is_left_out(demo: Pipeline) -> None:
    erased = ["the nike logo", "tesla logo", "docker"]
    found = neighbor_prompts(demo, ["the nike logo"], 300, erased)
    assert "the python logo" not in found  # spelled in two tokens: the tokenizer does not know it whole
    assert not {"the tesla logo", "the docker logo", "a docker"} & set(found)
    assert "the beer logo" in found


def test_nouns_that_a_concept_is_named_after_are_namesakes() -> None:
    names = ["the apple logo", "the shell logo", "the nike logo", "a pistol", "the apple watch"]
    assert namesakes(names, names) == ("an apple", "a shell")


@pytest.mark.parametrize("erased", ["an apple", "apple"])
def test_a_namesake_that_is_erased_too_is_none(erased: str) -> None:
    assert namesakes(["the apple logo"], ["the apple logo", erased]) == ()
