"""What a spec's `source` may be, one file a kind: each opens headers and returns what a pipeline is made of.

folder       a folder in diffusers' layout
single_file  one safetensors file in the layout of LDM or SGM
hub          a model of a hub at a pinned commit: its folder in the local cache
names        tables of how single files call tensors
reading      which tensors of a file are a component's, and how they lie there
tokenizers   CLIP's own tokenizer, for files that come without one
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ..families import Family
from ..ir import Component
from ..tensors import Tensor

MODEL_ROLES = frozenset({"denoiser", "text", "vae"})


@dataclass(frozen=True)
class Opened:
    """A model by its headers.

    `files` are all that a build may read, as (label in the lock, path); `settings` are the source's values
    of the family's; `notes` say what of the source is left behind.
    """

    family: Family
    components: Mapping[str, Component]
    tensors: Mapping[str, Tensor]
    files: tuple[tuple[str, Path], ...]
    settings: Mapping[str, bool]
    notes: tuple[str, ...] = ()
