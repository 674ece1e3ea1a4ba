"""Run a traced program in torch, one operation at a time: what emitted graphs are compared with.

Each weight is read when an operation needs it and each value is dropped after its last use, so memory
is a few activations and one weight, however large the model is.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..graphs.program import Op, Program, Ref, Shape, refs

Arrays = Mapping[str, NDArray[Any]]


@dataclass
class Peak:
    """The largest magnitude among the values that weights had a part in, and the operation that gave it."""

    value: float = 0.0
    operation: str = ""

    def see(self, op: Op, value: float) -> None:
        """Keep the value if it is the largest yet; an infinite one or a NaN stays."""
        if not value <= self.value:
            self.value, self.operation = value, op.name


@dataclass
class _Run:
    """Values that are still needed, and the dimensions known so far."""

    program: Program
    read: Callable[[str], NDArray[Any]]
    values: dict[str, Any] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._weights = {name for name, _ in self.program.weights}
        self._numbers = dict(self.program.numbers)

    def learn(self, shape: Shape, found: Any) -> None:
        """Remember what dimensions turned out to be."""
        self.sizes.update(
            (size, int(number)) for size, number in zip(shape, found, strict=True) if isinstance(size, str)
        )

    def argument(self, value: Any, parameter: str) -> Any:
        import torch

        if isinstance(value, Ref):
            return self._tensor(value.name)
        if isinstance(value, list):
            return [self.argument(item, parameter) for item in value]
        if isinstance(value, str) and parameter == "dtype":
            return getattr(torch, value)
        return self.sizes.get(value, UNKNOWN) if isinstance(value, str) and parameter not in WORDS else value

    def _tensor(self, name: str) -> Any:
        import torch

        if name in self._weights:
            return torch.from_numpy(np.array(self.read(name), np.float32))
        if name in self._numbers:
            return torch.arange(self._numbers[name])[None]
        return self.values[name]


# A dimension that no value has yet: torch infers one of a reshape.
UNKNOWN = -1
# Parameters whose texts are words of torch, not dimensions.
WORDS = frozenset({"approximate", "device", "mode", "rounding_mode"})


def run_program(
    program: Program, inputs: Arrays, outputs: list[str], read: Callable[[str], NDArray[Any]]
) -> tuple[dict[str, NDArray[Any]], Peak]:
    """Return the outputs of a program under the names given, and its largest value.

    `inputs` are in the program's order; `read` returns a weight's elements by name, as the module
    holds them.
    """
    import torch

    run, peak = _Run(program, read), Peak()
    for (name, _, shape), array in zip(program.inputs, inputs.values(), strict=True):
        run.values[name] = torch.from_numpy(np.asarray(array))
        run.learn(shape, array.shape)
    last, weighted = _last_uses(program), {name for name, _ in program.weights}
    with torch.inference_mode():
        for place, op in enumerate(program.ops):
            result = _call(run, op)
            weighted.update([op.name] if weighted.intersection(refs(list(op.args))) else [])
            for shape, tensor in zip(op.shapes, _parts(result), strict=True):
                run.learn(shape, tensor.shape)
                if op.name in weighted and tensor.is_floating_point():
                    peak.see(op, float(tensor.abs().max()))
            run.values[op.name] = result
            for name in last.get(place, ()):
                run.values.pop(name, None)
        found = {port: run.values[name].numpy() for port, name in zip(outputs, program.outputs, strict=True)}
    return found, peak


def _call(run: _Run, op: Op) -> Any:
    """Call torch's own operation."""
    import torch

    if op.kind == "operator.getitem":
        return run.values[op.args[0].name][op.args[1]]
    _, packet, overload = op.kind.split(".")
    function = getattr(getattr(torch.ops.aten, packet), overload)
    parameters = [parameter.name for parameter in function._schema.arguments]
    arguments = [run.argument(value, name) for value, name in zip(op.args, parameters, strict=False)]
    options = {name: run.argument(value, name) for name, value in op.options.items()}
    result = function(*arguments, **options)
    return tuple(result) if isinstance(result, list) else result


def _parts(result: Any) -> tuple[Any, ...]:
    return result if isinstance(result, tuple) else (result,)


def _last_uses(program: Program) -> dict[int, list[str]]:
    """Return by place which values nobody reads after it."""
    last: dict[str, int] = {}
    for place, op in enumerate(program.ops):
        last.update(dict.fromkeys(refs([op.args, list(op.options.values())]), place))
    kept: set[str] = set(program.outputs)
    dead: dict[int, list[str]] = {}
    for name, place in last.items():
        if name not in kept:
            dead.setdefault(place, []).append(name)
    return dead
