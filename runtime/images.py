"""PNG files that say where they come from, and contact sheets to look at.

Each image carries its provenance twice: as XMP, where other tools look for IPTC's digital source
type, and as JSON under the keyword `retouch`. Both are metadata that anyone can strip or
write, which is why they say `not signed`.
"""

import io
import json
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import ceil
from pathlib import Path
from xml.sax.saxutils import escape

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from .console import one_line

Pixels = NDArray[np.uint8]

# Source: IPTC NewsCodes, digital source type: "created by a model trained on captured content".
SOURCE_TYPE = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
XMP = """<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/">
 <rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
  <rdf:Description rdf:about=""
    xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/"
    xmlns:dc="http://purl.org/dc/elements/1.1/"
    xmlns:xmp="http://ns.adobe.com/xap/1.0/">
   <Iptc4xmpExt:DigitalSourceType>{source_type}</Iptc4xmpExt:DigitalSourceType>
   <xmp:CreatorTool>{tool}</xmp:CreatorTool>
   <dc:description><rdf:Alt><rdf:li xml:lang="x-default">{prompt}</rdf:li></rdf:Alt></dc:description>
  </rdf:Description>
 </rdf:RDF>
</x:xmpmeta>
<?xpacket end="r"?>"""

BACKGROUND, INK, FAINT, FRAME = "#ffffff", "#1b1f24", "#6a737d", "#d8dee4"
SMALLEST_CELL = 128  # pixels; smaller images are enlarged by a whole factor
MARGIN, GAP, ROW_LABEL, CAPTION_LINES = 24, 10, 190, 2
TITLE_SIZE, HEADER_SIZE, LABEL_SIZE, CAPTION_SIZE = 24, 16, 16, 13
LINE = 1.3  # line height in font sizes


@dataclass(frozen=True)
class Provenance:
    """What an image was drawn from; written into the file as it is."""

    prompt: str
    seed: int
    artefact: str
    version: str
    manifest_digest: str
    sampler: str
    retouch: str
    negative: str | None = None
    guidance_scale: float | None = None
    signature: str = "not signed"
    digital_source_type: str = SOURCE_TYPE


def encode_png(image: Pixels, provenance: Provenance) -> bytes:
    """Return an image [H, W, 3] as PNG; the same image and provenance give the same bytes."""
    info = PngInfo()
    info.add_itxt("XML:com.adobe.xmp", _xmp(provenance))
    info.add_itxt("retouch", json.dumps(asdict(provenance), sort_keys=True))
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "PNG", pnginfo=info)
    return stream.getvalue()


def write_png(file: Path, image: Pixels, provenance: Provenance) -> None:
    """Write one image with its provenance, whole or not at all."""
    part = file.with_name(f".{file.name}.part")
    try:
        part.write_bytes(encode_png(image, provenance))
        part.replace(file)
    except OSError as error:
        if error.errno is None:
            raise
        # A full disk does not say which file, and nobody asked for the one that was half written.
        raise OSError(error.errno, error.strerror, str(file)) from error
    finally:
        part.unlink(missing_ok=True)


def contact_sheet(
    rows: Mapping[str, Sequence[Pixels]],
    columns: Sequence[str],
    captions: Mapping[str, Sequence[str]] | None = None,
    title: str = "",
    note: str = "",
) -> Image.Image:
    """Return a grid of images [H, W, 3] of one size; `rows` maps each row's label to its images.

    `captions` has, under the same labels, one text an image; `note` stands below all of it. Small
    images are enlarged by a whole factor with nearest neighbors: every pixel stays as it was drawn.
    """
    height, width = next(iter(rows.values()))[0].shape[:2]
    factor = max(1, ceil(SMALLEST_CELL / max(height, width)))
    sheet = _Sheet(width * factor, height * factor, len(rows), len(columns), bool(captions), title, note)
    for column, text in enumerate(columns):
        sheet.write_header(column, text)
    for row, (label, images) in enumerate(rows.items()):
        sheet.write_label(row, label)
        for column, pixels in enumerate(images):
            sheet.paste(row, column, pixels, factor)
        for column, text in enumerate((captions or {}).get(label, ())):
            sheet.write_caption(row, column, text)
    return sheet.canvas


class _Sheet:
    """The geometry of a contact sheet: where each cell lies, and text that fits its place."""

    def __init__(
        self, width: int, height: int, rows: int, columns: int, captioned: bool, title: str, note: str
    ) -> None:
        self.width, self.height = width, height
        total = 2 * MARGIN + ROW_LABEL + columns * (width + GAP)
        title_lines = _wrap(title, _font(TITLE_SIZE), total - 2 * MARGIN, 3)
        note_lines = _wrap(note, _font(CAPTION_SIZE), total - 2 * MARGIN, 6)
        self.caption_height = _lines_height(CAPTION_LINES, CAPTION_SIZE) if captioned else 0
        self.header_top = MARGIN + (_lines_height(len(title_lines), TITLE_SIZE) + GAP if title_lines else 0)
        self.top = self.header_top + _lines_height(2, HEADER_SIZE) + GAP // 2
        bottom = self.top + rows * self.row_height
        note_height = _lines_height(len(note_lines), CAPTION_SIZE)
        self.canvas = Image.new("RGB", (total, bottom + note_height + MARGIN), BACKGROUND)
        self.pen = ImageDraw.Draw(self.canvas)
        self._write(title_lines, MARGIN, MARGIN, TITLE_SIZE, INK)
        self._write(note_lines, MARGIN, bottom, CAPTION_SIZE, FAINT)

    @property
    def row_height(self) -> int:
        return self.height + self.caption_height + GAP

    def write_header(self, column: int, text: str) -> None:
        lines = _wrap(text, _font(HEADER_SIZE), self.width, 2)
        start = self.top - GAP // 2 - _lines_height(len(lines), HEADER_SIZE)
        self._write(lines, self._left(column), start, HEADER_SIZE, INK)

    def write_label(self, row: int, text: str) -> None:
        lines = _wrap(
            text, _font(LABEL_SIZE), ROW_LABEL - 2 * GAP, max(1, self.height // _lines_height(1, LABEL_SIZE))
        )
        start = self._top(row) + (self.height - _lines_height(len(lines), LABEL_SIZE)) // 2
        self._write(lines, MARGIN, start, LABEL_SIZE, INK)

    def write_caption(self, row: int, column: int, text: str) -> None:
        lines = _wrap(text, _font(CAPTION_SIZE), self.width, CAPTION_LINES)
        self._write(lines, self._left(column), self._top(row) + self.height + 3, CAPTION_SIZE, FAINT)

    def paste(self, row: int, column: int, pixels: Pixels, factor: int) -> None:
        left, top = self._left(column), self._top(row)
        large = Image.fromarray(pixels.repeat(factor, axis=0).repeat(factor, axis=1))
        self.canvas.paste(large, (left, top))
        self.pen.rectangle((left - 1, top - 1, left + self.width, top + self.height), outline=FRAME)

    def _left(self, column: int) -> int:
        return MARGIN + ROW_LABEL + column * (self.width + GAP)

    def _top(self, row: int) -> int:
        return self.top + row * self.row_height

    def _write(self, lines: Sequence[str], left: int, top: int, size: int, color: str) -> None:
        for number, line in enumerate(lines):
            self.pen.text((left, top + _lines_height(number, size)), line, fill=color, font=_font(size))


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _lines_height(lines: int, size: int) -> int:
    return round(lines * size * LINE)


def _wrap(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int, most: int) -> list[str]:
    """Break a text into at most so many lines; what does not fit ends in an ellipsis."""
    lines: list[str] = []
    for word in _drawable(text).split():
        if lines and font.getlength(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    if len(lines) > most:
        lines = [*lines[: most - 1], lines[most - 1] + " …"]
    return [_shorten(line, font, width) for line in lines]


def _drawable(text: str) -> str:
    """Return a text in the letters of Pillow's built-in font: accents go, their letters stay."""
    apart = unicodedata.normalize("NFKD", one_line(text))
    return "".join(character for character in apart if not unicodedata.combining(character))


def _shorten(line: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    if font.getlength(line) <= width:
        return line
    kept = line.removesuffix("…").rstrip()
    while kept and font.getlength(kept + "…") > width:
        kept = kept[:-1]
    return kept + "…"


def _xmp(provenance: Provenance) -> str:
    tool = f"retouch {provenance.retouch}"
    return XMP.format(source_type=SOURCE_TYPE, tool=escape(tool), prompt=escape(one_line(provenance.prompt)))
