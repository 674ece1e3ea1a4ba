"""What importing must not do: layers point one way, and light verbs stay light."""

import subprocess
import sys

import pytest

HEAVY = ("torch", "diffusers", "transformers", "onnxscript")


def loaded(statement: str) -> set[str]:
    """Return the modules that a fresh interpreter has loaded after a statement."""
    code = f"{statement}\nimport sys; print('\\n'.join(sys.modules))"
    return set(
        subprocess.run(
            [sys.executable, "-c", code], check=True, capture_output=True, text=True
        ).stdout.split()
    )


@pytest.mark.parametrize(
    "module",
    ["retouch.specs.read", "retouch.runtime.sampler", "retouch.compiler.load", "retouch.compiler.plan"],
)
def test_no_heavy_library(module: str) -> None:
    assert not set(HEAVY) & loaded(f"import {module}")


def test_runtime_knows_no_compiler() -> None:
    verbs = "retouch.runtime.commands.run, retouch.runtime.commands.verify"
    modules = loaded(f"import retouch.runtime.cli, retouch.runtime.sampler, {verbs}")
    assert not [name for name in modules if name.startswith(("retouch.compiler", "retouch.passes"))]


def test_specs_know_nothing_else() -> None:
    modules = loaded("import retouch.specs.read, retouch.specs.lock, retouch.specs.manifest")
    assert not [
        name for name in modules if name.startswith(("retouch.compiler", "retouch.passes", "retouch.runtime"))
    ]


@pytest.mark.parametrize("registry", ["passes", "emitters", "gates"])
def test_reading_a_spec_needs_no_build_extra(registry: str) -> None:
    statement = f"from retouch.compiler.registry import {registry} as r\nfor name in r.names(): r.load(name)"
    assert not {*HEAVY, "onnx", "onnx_ir", "safetensors"} & loaded(statement)
