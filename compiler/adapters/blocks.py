"""How strongly does each block of a model count? One factor a module, from patterns or from a vector.

Patterns are shell patterns of module names, with or without the component before them. Of those that
match a module the longest counts, so that `{"*": 0, "up_blocks.1.*": 1}` means what it says in any order.

A vector numbers the U-Net as LDM does: BASE (text encoders), IN00.., M00, OUT00... Source: the lists
BLOCKID12, 17, 20 and 26 of hako-mikan/sd-webui-lora-block-weight, which sd-scripts has too. The short
ones number the blocks that plain LoRA reaches; on a module elsewhere the webui takes 0 and sd-scripts
takes 1, so here it is refused.
"""

import fnmatch
from collections.abc import Collection, Iterator, Mapping

from ...specs.errors import Fault, InputError, quoted, raise_all
from ..ir import Pipeline
from .spellings import Place, places_of

Blocks = Mapping[str, float] | tuple[float, ...]


def _numbered(into: Collection[int], out: Collection[int]) -> tuple[str, ...]:
    return ("BASE", *(f"IN{i:02}" for i in into), "M00", *(f"OUT{i:02}" for i in out))


VECTORS: Mapping[int, tuple[str, ...]] = {
    17: _numbered((1, 2, 4, 5, 7, 8), range(3, 12)),
    26: _numbered(range(12), range(12)),
    12: _numbered((4, 5, 7, 8), range(6)),
    20: _numbered(range(9), range(9)),
}
# How many input blocks the denoiser has that a vector is made for: 12 in SD 1.x and 2.x, 9 in SDXL.
MADE_FOR: Mapping[int, int] = {17: 12, 26: 12, 12: 9, 20: 9}


def factors(blocks: Blocks, places: Collection[Place], pipeline: Pipeline, where: str) -> dict[Place, float]:
    """Return the factor of each place; 1 where no pattern matches.

    Raises:
        InputError: a pattern matches none of the places, two of one length contradict each other, or a
            vector is made for another denoiser.
    """
    if isinstance(blocks, Mapping):
        return _by_pattern(blocks, places, where)
    return _by_number(blocks, places, pipeline, where)


def block_of(place: Place) -> str:
    """Return the number that a vector gives to a place's block, or "" where it has none.

    >>> block_of(Place("unet", "conv_in", "unet.conv_in.weight", (4, 4, 3, 3), "input_blocks.0.0"))
    'IN00'
    """
    side, _, rest = place.ldm.partition(".")
    if side == "middle_block":
        return "M00"
    number = rest.partition(".")[0]
    return f"{SIDES[side]}{int(number):02}" if side in SIDES else ""


SIDES: Mapping[str, str] = {"input_blocks": "IN", "output_blocks": "OUT"}


def _by_pattern(blocks: Mapping[str, float], places: Collection[Place], where: str) -> dict[Place, float]:
    hint = f"it changes {len(places)} modules, such as `{min(map(str, places))}`" if places else ""
    faults = [
        Fault(
            "E_ADAPTER_BLOCKS", f"{quoted(pattern)} matches no module that the adapter changes", where, hint
        )
        for pattern in sorted(blocks)
        if not any(_matches(pattern, place) for place in places)
    ]
    found: dict[Place, float] = {}
    for place in places:
        fitting = [pattern for pattern in sorted(blocks) if _matches(pattern, place)]
        longest = [pattern for pattern in fitting if len(pattern) == max(map(len, fitting))]
        if len({blocks[pattern] for pattern in longest}) > 1:
            said = " and ".join(map(quoted, longest))
            faults.append(Fault("E_ADAPTER_BLOCKS", f"{said} give {place} different factors", where))
        found[place] = blocks[longest[0]] if longest else 1.0
    raise_all(InputError, faults)
    return found


def _matches(pattern: str, place: Place) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for name in (place.module, str(place)))


def _by_number(
    vector: tuple[float, ...], places: Collection[Place], pipeline: Pipeline, where: str
) -> dict[Place, float]:
    raise_all(InputError, _vector_faults(vector, places, pipeline, where))
    named = dict(zip(VECTORS[len(vector)], vector, strict=True))
    return {place: named[_block(place, pipeline)] for place in places}


def _vector_faults(
    vector: tuple[float, ...], places: Collection[Place], pipeline: Pipeline, where: str
) -> Iterator[Fault]:
    known = {block_of(place) for place in places_of(pipeline)}
    count = sum(block.startswith("IN") for block in known)
    if count != MADE_FOR[len(vector)]:
        fitting = [str(length) for length, made_for in MADE_FOR.items() if made_for == count]
        hint = f"give {' or '.join(fitting)} numbers, or patterns" if fitting else "give patterns"
        message = (
            f"{len(vector)} numbers are for {MADE_FOR[len(vector)]} input blocks, this denoiser has {count}"
        )
        yield Fault("E_ADAPTER_BLOCKS", message, where, hint)
        return
    numbered = VECTORS[len(vector)]
    missed = sorted(place for place in places if _block(place, pipeline) not in numbered)
    if missed:
        message = f"a vector of {len(vector)} says nothing of {len(missed)} modules, such as {missed[0]}"
        yield Fault("E_ADAPTER_BLOCKS", message, where, "use a longer vector, or patterns")


def _block(place: Place, pipeline: Pipeline) -> str:
    return "BASE" if pipeline.components[place.component].role == "text" else block_of(place)
