"""What tests of passes share: a tiny pipeline, adapters for it, and the goldens of each pass.

`python -m tests.passes` writes the goldens anew.
"""

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from threading import Lock
from typing import Any

import numpy as np
import pytest
import yaml
from pydantic import TypeAdapter
from safetensors.numpy import save_file

from retouch.compiler.canonical_text import difference, norms
from retouch.compiler.contract import Pass
from retouch.compiler.ir import Pipeline
from retouch.compiler.load import load_pipeline
from retouch.compiler.registry import passes
from retouch.runtime.sessions import Session
from retouch.specs.manifest import Evidence

from .tiny import make_tiny

GOLDENS = Path(__file__).parent / "goldens"


@cache
def tiny_folder() -> Path:
    """Return a folder with the tiny pipeline and `style.safetensors`, made once a test run."""
    folder = Path(mkdtemp(prefix="retouch-tiny-"))
    make_tiny(folder)
    save_file(style(open_tiny(folder)), folder / "style.safetensors")
    return folder


def open_tiny(folder: Path | None = None, sampler: str = "ddim") -> Pipeline:
    return load_pipeline(folder or tiny_folder(), sampler, 8, 5.0)


def style(pipeline: Pipeline, seed: int = 0) -> dict[str, np.ndarray]:
    """Return a LoRA in diffusers' spelling for one linear map, one convolution and one text layer."""
    random = np.random.default_rng(seed)
    found: dict[str, np.ndarray] = {}
    for name in STYLED:
        shape = pipeline.tensors[name].shape
        ones = (1,) * (len(shape) - 2)
        module = name.removesuffix(".weight")
        found[f"{module}.lora_A.weight"] = random.normal(0, 0.1, (2, *shape[1:])).astype(np.float32)
        found[f"{module}.lora_B.weight"] = random.normal(0, 0.1, (shape[0], 2, *ones)).astype(np.float32)
    return found


STYLED = (
    "text_encoder.encoder.layers.0.self_attn.q_proj.weight",
    "unet.conv_in.weight",
    "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q.weight",
    "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight",
)


@dataclass(frozen=True)
class Case:
    """A golden: the block of a pass, and the file that says what it changes in the tiny pipeline."""

    name: str
    file: Path

    @property
    def block(self) -> dict[str, Any]:
        return yaml.safe_load(self.file.read_text())

    @property
    def golden(self) -> Path:
        return self.file.with_suffix(".txt")

    def make(self) -> Any:
        return make(self.name, self.block)


def cases() -> list[Case]:
    """Return the goldens of every pass of the folder."""
    return [Case(name, file) for name in passes.names() for file in sorted((GOLDENS / name).glob("*.yaml"))]


def make(name: str, block: Mapping[str, Any], folder: Path | None = None) -> Any:
    """Return a pass from its block, as the spec reader makes it."""
    adapter = TypeAdapter(passes.load(name))
    return adapter.validate_json(json.dumps(block), context={"folder": folder or tiny_folder()})


def evidence_of(edit: Pass, before: Pipeline, written: Pipeline) -> list[Evidence]:
    """Return all evidence of a pass for a target that holds the tensors of `written`."""
    found = []
    for observer in edit.observers(before, written):
        for name in sorted(observer.names):
            after = written.tensors[name].read()
            # As in the write pass: a tensor that the pass added had no elements before.
            earlier = before.tensors[name].read() if name in before.tensors else np.empty(0, after.dtype)
            observer.add(observer.see(name, earlier, after))
        found += observer.evidence()
    return [*found, *edit.statements(before, written)]


@contextmanager
def metered() -> Iterator[Counter[str]]:
    """Count the samples that denoisers predict: in torch, with a gradient or without, and in graphs."""
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
    from torch.nn.modules.module import register_module_forward_hook

    seen: Counter[str] = Counter()
    call, lock = Session.__call__, Lock()

    def in_torch(module: Any, inputs: Any, output: Any) -> None:
        if isinstance(module, UNet2DConditionModel):
            seen["differentiated" if output[0].requires_grad else "predicted"] += len(inputs[0])

    def in_graph(session: Session, **arrays: Any) -> Any:
        with lock:
            seen["drawn"] += len(arrays["sample"]) if "encoder_hidden_states" in arrays else 0
        return call(session, **arrays)

    hook = register_module_forward_hook(in_torch)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Session, "__call__", in_graph)
        try:
            yield seen
        finally:
            hook.remove()


def write_goldens() -> None:
    """Write what every case changes today; read the difference in git before you keep it."""
    for case in cases():
        before = open_tiny()
        case.golden.write_text(norms(difference(before, case.make().run(before))))


if __name__ == "__main__":
    write_goldens()
