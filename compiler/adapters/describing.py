"""What does an adapter file say of itself, without a model? Headers and alphas are read, no factor is.

Names are taken apart here only to be shown: what a file changes in a model is found by `reading`.
"""

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from ...specs.errors import InputError
from ..families.published import published
from ..headers import Header, read_header
from ..tensors import Stored
from .kinds import form_of, refusal
from .reading import stored_alpha
from .scaling import Settings, read_settings
from .spellings import KOHYA, split

# How a name starts -> layout and component; the first that fits counts.
STARTS: tuple[tuple[str, str, str], ...] = (
    *((f"{start}_", "kohya", name) for name, starts in KOHYA.items() for start in starts),
    ("base_model.model.", "PEFT", ""),
    *((f"{name}.", "diffusers", name) for name in KOHYA),
)
BLOCK = re.compile(
    r"(down_blocks|up_blocks|input_blocks|output_blocks)[._](\d+)|mid_block|middle_block|layers"
)
READS_TEXT = re.compile(r"attn2[._](?:processor[._])?to_[kv]$")
# A checkpoint's tensors lie under one of these in LDM and SGM layout.
CHECKPOINT = ("model.diffusion_model.", "first_stage_model.", "cond_stage_model.", "conditioner.")
# What trainers write of the training. Source: sd-scripts (ss_*) and Stability's ModelSpec.
TRAINING = (
    *("ss_output_name", "ss_base_model_version", "ss_sd_model_name", "ss_network_module", "ss_network_dim"),
    *("ss_network_alpha", "ss_num_train_images", "ss_num_epochs", "ss_steps", "ss_training_comment"),
    *("modelspec.title", "modelspec.author", "modelspec.license", "modelspec.architecture"),
    *("modelspec.trigger_phrase", "modelspec.usage_hint", "modelspec.description", "modelspec.date"),
)
MOST_TAGS, LONGEST = 10, 200
# The part whose first size is the rank, the one that counts first.
RANKED = ("down", "hada_w1_b", "lokr_w2_b", "lokr_w1_b")


@dataclass(frozen=True)
class Module:
    """One module that a file names."""

    name: str
    layout: str
    component: str
    parts: Mapping[str, Stored]

    @property
    def block(self) -> str:
        """The block that the module stands in, as the file calls it."""
        return block_name(self.name)

    @property
    def rank(self) -> int | None:
        """The rank, where the parts say it."""
        held = [self.parts[part] for part in RANKED if part in self.parts]
        return held[0].shape[0] if held and held[0].shape else None

    @property
    def reads(self) -> int | None:
        """The width of the text states that the module reads, where it reads any."""
        shape = self._narrow.shape if self._narrow else ()
        return shape[1] if len(shape) > 1 and READS_TEXT.search(self.name) else None

    @property
    def _narrow(self) -> Stored | None:
        """The part that is `[r, in]`."""
        return self.parts.get("down", self.parts.get("hada_w1_b"))


@dataclass
class Described:
    """What an adapter file says of itself; `reasons` are why it is not supported, whatever the model.

    `widths` are those of the text states that its modules read, `bases` the published models that have
    such text states.
    """

    forms: Counter[str] = field(default_factory=Counter)
    layouts: Counter[str] = field(default_factory=Counter)
    components: Counter[str] = field(default_factory=Counter)
    blocks: Counter[str] = field(default_factory=Counter)
    ranks: Counter[str] = field(default_factory=Counter)
    alphas: Counter[str] = field(default_factory=Counter)
    scales: Counter[str] = field(default_factory=Counter)
    precisions: Counter[str] = field(default_factory=Counter)
    bytes: int = 0
    widths: list[int] = field(default_factory=list)
    bases: list[str] = field(default_factory=list)
    training: dict[str, str] = field(default_factory=dict)
    tags: dict[str, int] = field(default_factory=dict)
    reasons: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """Return all of it as plain data, counts in the order of their names."""
        return {
            name: dict(sorted(value.items())) if isinstance(value, Counter) else value
            for name, value in vars(self).items()
        }


def is_adapter(header: Header) -> bool:
    """Say whether a file looks like an adapter, of a kind that is supported or not, and not like a model."""
    if any(key.startswith(CHECKPOINT) for key in header.tensors):
        return False
    return any(split(key)[1] or refusal(key) for key in header.tensors)


def describe(file: Path, config: Path | None) -> Described:
    """Describe an adapter file; `config` is PEFT's adapter_config.json.

    Raises:
        InputError: the file is malformed, is a pickle, or is missing.
    """
    header = read_header(file)
    modules, odd = _modules(header)
    found = Described(reasons=odd)
    settings = Settings({})
    try:
        settings = read_settings(header, file, config, any(module.layout == "PEFT" for module in modules))
    except InputError as error:
        found.reasons += [fault.message for fault in error.faults]
    for tensor in header.tensors.values():
        found.precisions[tensor.dtype.name] += 1
        found.bytes += tensor.size
    for module in modules:
        _count(module, settings, found)
    found.widths = sorted({module.reads for module in modules if module.reads})
    found.bases = [name for width in found.widths for name in bases().get(width, ())]
    found.training = {key: header.metadata[key][:LONGEST] for key in TRAINING if header.metadata.get(key)}
    found.tags = _tags(header.metadata.get("ss_tag_frequency", ""))
    return found


def block_name(name: str) -> str:
    """Return the block in a module's name.

    >>> block_name("lora_unet_down_blocks_1_attentions_0_proj_in"), block_name("encoder.layers.3.mlp.fc1")
    ('down_blocks.1', 'layers')
    """
    found = BLOCK.search(name)
    if not found:
        return "elsewhere"
    return f"{found[1]}.{found[2]}" if found[1] else found[0]


@cache
def bases() -> Mapping[int, tuple[str, ...]]:
    """Return the published models by the width of the text states that their denoisers read."""
    found: dict[int, tuple[str, ...]] = {}
    for model in published():
        found[model.width] = (*found.get(model.width, ()), model.name)
    return found


def _modules(header: Header) -> tuple[list[Module], list[str]]:
    """Return the modules that a file names, and what is not one, by its reason."""
    parts: dict[str, dict[str, Stored]] = {}
    reasons: dict[str, int] = {}
    for key, tensor in sorted(header.tensors.items()):
        name, part = split(key)
        reason = refusal(key) or ("" if part else "keys of no known layout")
        if reason:
            reasons[reason] = reasons.get(reason, 0) + 1
        else:
            parts.setdefault(name, {})[part] = tensor
    modules = [Module(name, *_start(name), found) for name, found in parts.items()]
    return modules, [f"{reason} ({count} keys)" for reason, count in reasons.items()]


def _start(name: str) -> tuple[str, str]:
    """Return the layout and the component that a name's start says."""
    for start, layout, component in STARTS:
        if name.startswith(start):
            return "attention processor" if ".processor." in name else layout, component
    return "attention processor" if ".processor." in name else "diffusers", "unet"


def _count(module: Module, settings: Settings, found: Described) -> None:
    found.layouts[module.layout] += 1
    found.components[module.component or "not said"] += 1
    found.blocks[f"{module.component}.{module.block}".lstrip(".")] += 1
    try:
        found.forms[form_of([part for part in module.parts if part != "alpha"]).name] += 1
        if module.rank:
            names = (module.name.removeprefix("base_model.model.").removeprefix(f"{module.component}."),)
            strength = settings.strength(module.component, names, module.rank, stored_alpha(module.parts))
            found.ranks[str(strength.rank)] += 1
            found.alphas[f"{strength.alpha:g}"] += 1
            found.scales[f"{strength.scale:g}"] += 1
    except ValueError as problem:
        found.reasons.append(f"{module.name}: {problem}")


def _tags(text: str) -> dict[str, int]:
    """Return the commonest words of the training's captions, from kohya's {folder: {tag: count}}."""
    try:
        folders = json.loads(text or "{}")
    except (ValueError, RecursionError):
        return {}
    counted: Counter[str] = Counter()
    for tag, count in _pairs(folders):
        counted[tag.strip()[:LONGEST]] += count
    return dict(sorted(counted.items(), key=lambda item: (-item[1], item[0]))[:MOST_TAGS])


def _pairs(folders: Any) -> Iterator[tuple[str, int]]:
    for tags in folders.values() if isinstance(folders, dict) else ():
        for tag, count in tags.items() if isinstance(tags, dict) else ():
            if type(count) is int and count > 0:
                yield tag, count
