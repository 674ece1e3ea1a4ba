"""Structural edits inside a denoiser: parameters that its module gets beside its own, and what reads them.

They are made on the torch module, before it is traced or run, so that every form of its graph has them and
parity compares like with like. Their numbers are weights like any other, bound later by name.

`text_map` maps text states before anything reads them. The matrix is [D, D], [out, in] as in any linear map.
"""

import inspect
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from ..ir import GraphEdit
from ..text.text_map import EDIT, TENSORS
from .interfaces import OWN

if TYPE_CHECKING:
    import torch

# Edits that are carried out here; others concern what stands around the denoiser.
INSIDE = frozenset({EDIT})


def edit_module(module: "torch.nn.Module", component: str, edits: Iterable[GraphEdit]) -> "torch.nn.Module":
    """Make a component's edits on its module, in place, with parameters named as the pipeline's tensors."""
    for edit in edits:
        if edit.component == component and edit.name in INSIDE:
            _map_text(module, edit.parameters)
    return module


def _map_text(module: Any, widths: Mapping[str, Any]) -> None:
    """Map each kind of text state by a matrix of its width, [width, width]."""
    import torch

    own = torch.nn.Module()
    for kind, width in widths.items():
        own.register_parameter(TENSORS[kind].removeprefix(OWN), torch.nn.Parameter(torch.zeros(width, width)))
    module.register_module(OWN.removesuffix("."), own)
    signature = inspect.signature(module.forward)

    def mapped(_: Any, args: Any, kwargs: Any) -> Any:
        given = signature.bind(*args, **kwargs)
        for kind in widths:
            matrix = getattr(own, TENSORS[kind].removeprefix(OWN))
            holder, key = _holder(given.arguments, kind)
            states = holder[key]
            # The map is kept in float64 until it is written. A trace is all float32 and must see no cast.
            matched = matrix if matrix.dtype == states.dtype else matrix.to(states.dtype)
            holder[key] = torch.nn.functional.linear(states, matched)
        return given.args, given.kwargs

    module.register_forward_pre_hook(mapped, with_kwargs=True)


def _holder(arguments: dict[str, Any], kind: str) -> tuple[dict[str, Any], str]:
    """Return the mapping that holds a kind of text state in a U-Net's call, and its key there."""
    if kind == "sequence":
        return arguments, "encoder_hidden_states"
    arguments["added_cond_kwargs"] = dict(arguments["added_cond_kwargs"])
    return arguments["added_cond_kwargs"], "text_embeds"
