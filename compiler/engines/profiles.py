"""Which shapes must an engine take? From what users think in: images drawn at once, sizes in pixels.

TensorRT wants for each input with a free dimension a smallest, a usual and a largest shape (an
"optimization profile"), and refuses every shape outside.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ...specs.errors import Fault, SpecError, raise_all
from ..graphs.interfaces import Interface, Port, interfaces
from ..ir import Pipeline
from .building import Shapes

Range = tuple[int, int, int]  # smallest, usual, largest


@dataclass(frozen=True)
class Extents:
    """The range of each dimension that a caller may choose.

    Heights and widths are in pixels; `cell` is the size of a latent cell in pixels.
    """

    batch: Range
    evaluations: Range  # images of a denoiser call: guided steps take two an image
    tokens: int
    height: Range
    width: Range
    cell: int

    def of(self, interface: Interface, dimension: str) -> Range:
        """Return the range of a dimension, by the name that an interface gives it."""
        denoiser = interface.component.role == "denoiser"
        if dimension == "batch":
            return self.evaluations if denoiser else self.batch
        if dimension == "sequence":
            return self.tokens, self.tokens, self.tokens
        pixels = self.height if dimension.endswith("height") else self.width
        if denoiser or dimension.startswith("latent_"):
            return _scaled(pixels, self.cell)
        return pixels


def profiles_of(pipeline: Pipeline, batch: Range, sizes: Sequence[str]) -> dict[str, dict[str, Shapes]]:
    """Return the profile of every graph, by folder: the shapes of each input that has a free dimension.

    `sizes` are `HEIGHTxWIDTH` in pixels, the usual one first; none means the model's own.

    Raises:
        SpecError: a range falls, or a size is no multiple of what the denoiser halves; all of them.
    """
    graphs = interfaces(pipeline)
    extents = _extents(pipeline, graphs, batch, sizes)
    return {graph.folder: _profile(graph, extents) for graph in graphs}


def own_size(pipeline: Pipeline) -> str:
    """Return the image size that a model draws by itself, `HEIGHTxWIDTH` in pixels."""
    latent = pipeline.sampling.table().latent
    return f"{latent.height * latent.downscale}x{latent.width * latent.downscale}"


def _profile(interface: Interface, extents: Extents) -> dict[str, Shapes]:
    free = [port for port in interface.inputs if any(isinstance(size, str) for size in port.shape)]
    return {port.name: _shapes(interface, port, extents) for port in free}


def _shapes(interface: Interface, port: Port, extents: Extents) -> Shapes:
    ranges = [
        extents.of(interface, size) if isinstance(size, str) else (size, size, size) for size in port.shape
    ]
    smallest, usual, largest = zip(*ranges, strict=True)
    return Shapes(smallest, usual, largest)


def _extents(pipeline: Pipeline, graphs: Sequence[Interface], batch: Range, sizes: Sequence[str]) -> Extents:
    table = pipeline.sampling.table()
    cell = table.latent.downscale
    asked = [tuple(map(int, size.split("x"))) for size in sizes or [own_size(pipeline)]]
    multiple = cell * max(graph.multiple for graph in graphs if graph.component.role == "denoiser")
    raise_all(SpecError, [*_falling(batch), *_uneven(asked, multiple)])
    guided = [1 + step.guided for step in table.steps]
    return Extents(
        batch=batch,
        evaluations=(min(guided) * batch[0], max(guided) * batch[1], max(guided) * batch[2]),
        tokens=_tokens(graphs),
        height=_range([height for height, _ in asked]),
        width=_range([width for _, width in asked]),
        cell=cell,
    )


def _scaled(pixels: Range, cell: int) -> Range:
    smallest, usual, largest = pixels
    return smallest // cell, usual // cell, largest // cell


def _range(values: Sequence[int]) -> Range:
    return min(values), values[0], max(values)


def _tokens(graphs: Sequence[Interface]) -> int:
    """Return the length of a prompt: what the text encoders take."""
    lengths = [port.shape[-1] for graph in graphs if graph.component.role == "text" for port in graph.inputs]
    return max(length for length in lengths if isinstance(length, int))


def _falling(batch: Range) -> list[Fault]:
    if list(batch) == sorted(batch):
        return []
    message = f"{list(batch)}, expected fewest, usual, most: numbers that do not fall"
    return [Fault("E_PROFILE", message, "batch")]


def _uneven(sizes: Sequence[Sequence[int]], multiple: int) -> list[Fault]:
    return [
        Fault("E_PROFILE", f"{height}x{width} pixels, expected multiples of {multiple}", "sizes")
        for height, width in sizes
        if height % multiple or width % multiple
    ]


def as_numbers(profile: Mapping[str, Shapes]) -> dict[str, list[list[int]]]:
    """Return a profile as plain data: smallest, usual and largest shape of each input."""
    return {
        name: [list(shapes.smallest), list(shapes.usual), list(shapes.largest)]
        for name, shapes in sorted(profile.items())
    }
