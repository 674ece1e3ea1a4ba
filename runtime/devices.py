"""Which devices run graphs here, and what is missing where one does not.

A package that is missing is one thing, a driver another, and two packages over each other a third:
all that is wrong is named at once, each with what mends it.
"""

import ctypes
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

from ..specs.errors import Fault, UndecidedError, raise_all

RTX_PLUGIN = "onnxruntime_ep_nv_tensorrt_rtx"


@dataclass(frozen=True)
class Device:
    """Something that graphs run on.

    `extra` is the extra of retouch that brings what it needs, `module` or onnxruntime's `provider`;
    `driver` is whether it needs NVIDIA's. `target` is the folder of an artefact with graphs for it, the
    artefact itself where that is empty, and `profile` the kind of graphs that it prefers there.
    """

    extra: str = ""
    module: str = ""
    provider: str = ""
    driver: bool = False
    target: str = ""
    profile: str = ""


DEVICES: Mapping[str, Device] = {
    "cpu": Device(provider="CPUExecutionProvider"),
    "cuda": Device("gpu", provider="CUDAExecutionProvider", driver=True, profile="cuda"),
    "openvino": Device("openvino", module="openvino"),
    "rtx": Device("rtx-run", module=RTX_PLUGIN, driver=True, target="tensorrt_rtx"),
}
# Distributions that put the same files in the same place: the later install wins, half.
CLASHING = ("onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino")


def check_device(name: str) -> Device:
    """Return a device that can be used here.

    Raises:
        UndecidedError: it is unknown, or a package or the driver is missing; all that is.
    """
    if name not in DEVICES:
        hint = f"there are: {', '.join(sorted(DEVICES))}"
        raise UndecidedError(Fault("E_DEVICE", f"no device `{name}`", hint=hint))
    device = DEVICES[name]
    raise_all(UndecidedError, [*_missing_package(device), *_missing_driver(device)])
    return device


def has_driver() -> bool:
    """Whether this machine has NVIDIA's driver."""
    try:
        ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return False
    return True


def clashing_distributions() -> list[str]:
    """Return the distributions of onnxruntime that are installed over each other, none where one is alone."""
    found = [name for name in CLASHING if _is_installed(name)]
    return found if len(found) > 1 else []


def _missing_package(device: Device) -> list[Fault]:
    if device.module and find_spec(device.module) is None:
        hint = f"pip install 'retouch[{device.extra}]'"
        return [Fault("E_EXTRA", f"the package `{device.module}` is not installed", hint=hint)]
    if not device.provider:
        return []
    import onnxruntime

    if device.provider not in onnxruntime.get_available_providers():
        return [Fault("E_EXTRA", f"onnxruntime has no {device.provider} here", hint=_other_build(device))]
    return []


def _other_build(device: Device) -> str:
    clashing = clashing_distributions()
    if clashing:
        names = " and ".join(f"`{name}`" for name in clashing)
        return (
            f"{names} are installed over each other: `pip uninstall {' '.join(clashing)}`, "
            f"then `pip install onnxruntime-{device.extra}`"
        )
    return f"`pip uninstall onnxruntime`, then `pip install 'retouch[{device.extra}]'`"


def _missing_driver(device: Device) -> list[Fault]:
    if not device.driver or has_driver():
        return []
    hint = "it comes with the system, not with a package; without an NVIDIA GPU use --device cpu or openvino"
    return [Fault("E_DRIVER", "there is no NVIDIA driver here", hint=hint)]


def _is_installed(distribution: str) -> bool:
    try:
        return bool(version(distribution))
    except PackageNotFoundError:
        return False
