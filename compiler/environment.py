"""The versions and the CPU capability that an artefact's bytes depend on."""

import platform
from functools import cache
from importlib.metadata import PackageNotFoundError, version

# Libraries whose version can change a byte of an artefact.
_LIBRARIES = (
    "diffusers",
    "numpy",
    "onnx",
    "onnxruntime",
    "tokenizers",
    "torch",
    "transformers",
)


def retouch_version() -> str:
    """Return the version of the installed distribution."""
    return version("retouch")


def environment() -> dict[str, str]:
    """Return library versions and CPU capability: no host name, no time, no path."""
    found = {name: installed(name) for name in _LIBRARIES}
    found["python"] = platform.python_version()
    found["machine"] = platform.machine()
    found["cpu"] = _cpu_capability()
    return found


@cache
def installed(name: str) -> str:
    """Return the version of a library; one that is missing has none, which is no other's either.

    Finding out takes milliseconds, and every graph's key asks.
    """
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def _cpu_capability() -> str:
    """Return the vector instructions that NumPy found: they decide the last bits of a product."""
    from numpy._core._multiarray_umath import __cpu_features__ as features

    return " ".join(
        sorted(
            name
            for name, present in features.items()
            if present and name.startswith(("AVX", "FMA", "ASIMD", "NEON"))
        )
    )
