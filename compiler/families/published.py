"""Configs of the published models: a folder each in diffusers' layout, without weights and vocabulary.

They are what a single file leaves unsaid, and what a benchmark at true size is built from. Facts only:
a checkpoint's own config, where it has one, always wins. Source: the published diffusers folders; the
parameter counts of the modules that they describe are checked in tests/test_families.py.
"""

from pathlib import Path

from ...specs.errors import Fault, InputError

CONFIGS = Path(__file__).parent / "configs"


def published_models() -> tuple[str, ...]:
    """Return the names of the published models whose configs are here, sorted."""
    return tuple(sorted(folder.name for folder in CONFIGS.iterdir()))


def published_folder(name: str) -> Path:
    """Return the folder that holds the configs of a published model: model_index.json, unet/config.json, ...

    Raises:
        InputError: there is none of this name.
    """
    if name not in published_models():
        known = ", ".join(published_models())
        raise InputError(Fault("E_PUBLISHED", f"no configs of `{name}`", hint=f"there are: {known}"))
    return CONFIGS / name
