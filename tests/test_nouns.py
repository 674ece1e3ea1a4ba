"""The list of nouns is whole, and its super-categories lead somewhere wide."""

import gzip

import pytest

from retouch.passes._nouns import FILE, VAGUE, WIDE, bare, load_nouns, with_article


def test_every_line_leads_to_the_top() -> None:
    rows = [line.split("\t") for line in gzip.decompress(FILE.read_bytes()).decode().splitlines()]
    above = [int(row[1]) for row in rows]
    for start in range(len(rows)):
        steps, at = 0, start
        while above[at] != at:
            at, steps = above[at], steps + 1
            assert steps < 30
    uses = [int(row[2]) for row in rows]
    assert uses == sorted(uses, reverse=True)
    assert FILE.stat().st_size < 300_000


def test_the_words_are_single_and_listed_once() -> None:
    words = load_nouns().words
    assert len(words) == len(set(words)) > 20_000
    assert {"cat", "pistol", "guitar", "nurse"} <= set(words)


@pytest.mark.parametrize(
    ("concept", "expected"),
    [
        ("a cat", "an animal"),
        ("nurse", "a person"),
        ("the sports car", "a vehicle"),
        ("xyzzy", "an object"),
    ],
)
def test_super_categories_are_wide_and_familiar(concept: str, expected: str) -> None:
    assert load_nouns().super_category(concept) == expected


def test_a_super_category_is_never_vague_nor_what_must_go() -> None:
    nouns = load_nouns()
    for word in nouns.words[:2000]:
        found = bare(nouns.super_category(word, without=["person", "animal"]))
        assert found not in VAGUE | {"person", "animal"}
    assert WIDE > 1


def test_articles() -> None:
    assert with_article("apple") == "an apple"
    assert bare("  The  Nike Logo ") == "nike logo"
