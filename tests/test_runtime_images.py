"""PNG files carry their provenance, and sheets show every pixel where its label says."""

import io
import json
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from PIL import Image

from retouch.runtime.images import GAP, SOURCE_TYPE, Provenance, contact_sheet, encode_png

RANDOM = np.random.default_rng(4)
IMAGES = RANDOM.integers(0, 256, (4, 8, 8, 3), dtype=np.uint8)
RDF = "{http://www.w3.org/1999/02/22-rdf-syntax-ns#}"
IPTC = "{http://iptc.org/std/Iptc4xmpExt/2008-02-29/}"


def provenance(prompt: str) -> Provenance:
    return Provenance(
        prompt=prompt,
        seed=2**64 - 1 if not prompt else 3,
        artefact="fake",
        version="1.0.0",
        manifest_digest="ab" * 32,
        sampler="ddim, 3 steps",
        retouch="0.1.0",
    )


@pytest.mark.parametrize("prompt", ["a cat", "ein Käfer 🐱", "<x> & \x1b[31m \u202e", "", "\ud800"])
def test_a_png_says_where_it_comes_from(prompt: str) -> None:
    content = encode_png(IMAGES[0], provenance(prompt))
    image = Image.open(io.BytesIO(content))
    np.testing.assert_array_equal(np.asarray(image), IMAGES[0])
    assert isinstance(image.info["retouch"], str)
    record = json.loads(image.info["retouch"])
    assert record["signature"] == "not signed"
    assert record["digital_source_type"] == SOURCE_TYPE
    assert record["manifest_digest"] == "ab" * 32
    xmp = ElementTree.fromstring(image.info["XML:com.adobe.xmp"].strip("\ufeff"))
    assert next(xmp.iter(f"{IPTC}DigitalSourceType")).text == SOURCE_TYPE
    assert next(xmp.iter(f"{RDF}li")).text is not None or not prompt


def test_the_prompt_survives_as_written() -> None:
    image = Image.open(io.BytesIO(encode_png(IMAGES[0], provenance("two\nlines, ünïcode"))))
    assert json.loads(image.info["retouch"])["prompt"] == "two\nlines, ünïcode"


def test_the_same_image_is_the_same_bytes() -> None:
    assert encode_png(IMAGES[0], provenance("a cat")) == encode_png(IMAGES[0], provenance("a cat"))
    assert encode_png(IMAGES[0], provenance("a cat")) != encode_png(IMAGES[0], provenance("a dog"))


def find(sheet: np.ndarray, image: np.ndarray) -> tuple[int, int]:
    """Return the row and column of pixels at which an enlarged image lies in a sheet."""
    large = image.repeat(16, axis=0).repeat(16, axis=1)
    tops, lefts = np.nonzero((sheet[:-127, :-127] == large[0, 0]).all(axis=-1))
    found = [
        (int(top), int(left))
        for top, left in zip(tops, lefts, strict=True)
        if (sheet[top : top + 128, left : left + 128] == large).all()
    ]
    assert len(found) == 1
    return found[0]


def test_every_image_lies_in_its_row_and_column() -> None:
    rows = {"first": [IMAGES[0], IMAGES[1]], "second": [IMAGES[2], IMAGES[3]]}
    captions = {"first": ["a", "b"], "second": ["a caption that is much too long for its place " * 3, ""]}
    sheet = np.asarray(contact_sheet(rows, ["base", "edited"], captions, "A title", "A note."))
    places = [find(sheet, image) for image in IMAGES]
    (top, left), (_, right), (bottom, _), _ = places
    assert places == [(top, left), (top, right), (bottom, left), (bottom, right)]
    assert right - left == 128 + GAP
    assert bottom - top > 128 + GAP


def test_text_stays_out_of_the_images_and_inside_the_sheet() -> None:
    long = "a_very_long_word_without_a_break_" * 5 + " and many more words" * 20
    bare = contact_sheet({long: [IMAGES[0]]}, [long])
    find(np.asarray(bare), IMAGES[0])
    border = np.asarray(bare)[:, [0, 1, -2, -1]]
    assert (border == 255).all()


def test_large_images_keep_their_size() -> None:
    image = RANDOM.integers(0, 256, (300, 200, 3), dtype=np.uint8)
    sheet = contact_sheet({"row": [image]}, ["column"])
    assert sheet.height < 300 + 200
    assert sheet.width < 200 + 400
