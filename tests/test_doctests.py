"""Examples in docstrings run."""

import doctest
import importlib
import pkgutil

import pytest

PARTS = ("compiler", "passes", "runtime", "specs")


def modules() -> list[str]:
    found = []
    for part in PARTS:
        package = importlib.import_module(f"retouch.{part}")
        found += [module.name for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")]
    return sorted(found)


@pytest.mark.parametrize("name", modules())
def test_docstring_examples(name: str) -> None:
    assert doctest.testmod(importlib.import_module(name)).failed == 0
