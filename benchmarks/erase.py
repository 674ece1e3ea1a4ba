"""How long does erasing n concepts from the text path take, and how much memory, layer by layer or at once?

    python -m benchmarks.erase [--concepts 1,10,100,1000] [--limit 60]

Matrices have the shapes of Stable Diffusion 1.5 and SDXL, their values are random, and both methods get
the same text states: a row a concept, its guide's, and 100 preserved ones. "Published" is a loop over the
layers as in UCE's code of 2025, a sum of outer products each; past `--limit` seconds it is timed on some
layers of each shape, and scaled by their number. "One product" is that method with its sums vectorized.
Each method reads every matrix from a safetensors file, edits it and writes it. Encoding is timed apart, on
random text encoders of the published configs, against the bare matrix products that its tokens need.

Every measurement runs in a process of its own. Seconds are the processor's, with one thread: what a clock
shows on an idle machine. Prints tables, writes results/erase.json.
"""

import json
import multiprocessing
import os
import platform
import resource
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from benchmarks._results import write_results

CONFIGS = Path(__file__).parents[1] / "compiler" / "families" / "configs"
MODELS = {"SD 1.5": "stable-diffusion-v1-5", "SDXL": "stable-diffusion-xl-base-1.0"}
PRESERVED = 100
LAM = 0.5  # of UCE's code
# What erase_concepts moves by default: two tokens in each of four templates.
DEFAULT_ROWS = 8
# Encoding: tokens of a template around a concept, of a concept, and concepts with their guides.
TEMPLATES, CONCEPT_TOKENS, ENCODED = ((0, 0), (3, 0), (3, 0), (0, 4)), 2, 200

Floats = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class States:
    """Text states of a task: concepts and guides [N, D], preserved ones [P, D]."""

    concepts: Floats
    guides: Floats
    preserved: Floats

    @classmethod
    def random(cls, count: int, width: int) -> "States":
        """Rows of unit variance around a common mean, as text states are."""
        random = np.random.default_rng(0)
        mean = random.normal(size=width)
        return cls(*(mean + random.normal(size=(rows, width)) for rows in (count, count, PRESERVED)))


def shapes_of(model: str) -> list[tuple[int, int]]:
    """Return the shapes of a denoiser's cross-attention key and value matrices, by name."""
    import torch
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    config = json.loads((CONFIGS / MODELS[model] / "unet" / "config.json").read_text())
    with torch.device("meta"):
        denoiser: Any = UNet2DConditionModel.from_config(config)
    found = denoiser.state_dict()
    names = sorted(name for name in found if name.endswith(("attn2.to_k.weight", "attn2.to_v.weight")))
    return [(found[name].shape[0], found[name].shape[1]) for name in names]


# ---------------------------------------------------------------------------------------------------
# The methods


def published(weight: Floats, states: States) -> Floats:
    """UCE's solution for one layer, a concept at a time, in float32."""
    weight = weight.astype(np.float32)
    left, right = LAM * weight, LAM * np.eye(weight.shape[1], dtype=np.float32)
    for concept, guide in zip(
        states.concepts.astype(np.float32), states.guides.astype(np.float32), strict=True
    ):
        left += np.outer(weight @ guide, concept)
        right += np.outer(concept, concept)
    for prompt in states.preserved.astype(np.float32):
        left += np.outer(weight @ prompt, prompt)
        right += np.outer(prompt, prompt)
    return left @ np.linalg.inv(right)


def one_product(weight: Floats, states: States) -> Floats:
    """The same with each sum of outer products as one matrix product."""
    weight = weight.astype(np.float32)
    concepts, guides, preserved = (
        rows.astype(np.float32) for rows in (states.concepts, states.guides, states.preserved)
    )
    left = LAM * weight + (weight @ guides.T) @ concepts + (weight @ preserved.T) @ preserved
    right = LAM * np.eye(weight.shape[1], dtype=np.float32) + concepts.T @ concepts + preserved.T @ preserved
    return left @ np.linalg.inv(right)


def ours(file: Path, target: Path, states: States) -> None:
    """Solve once, then read, edit and write every matrix of a file."""
    from retouch.compiler.headers import read_header
    from retouch.passes._closed_form import Moments

    moments = Moments(states.concepts.shape[1])
    moments.move(states.concepts, states.guides, 1.0)
    moments.keep(states.preserved, 1.0)
    change = moments.solve(LAM)
    with target.open("wb") as written:
        for tensor in read_header(file).tensors.values():
            edited = change.edit(tensor.read().astype(np.float32))
            written.write(edited.astype(tensor.dtype).data)


# ---------------------------------------------------------------------------------------------------
# Measuring: one process a measurement


@dataclass(frozen=True)
class Cost:
    """Seconds and peak memory of one process; `layers` of all were timed, the rest follows by number."""

    seconds: float
    peak_bytes: int
    layers: int


def cost_of_layers(method: Callable[[Floats, States], Floats], file: Path, count: int, limit: float) -> Cost:
    """Time a method that works layer by layer; past `limit` seconds, only layers of shapes not seen yet."""
    from retouch.compiler.headers import read_header

    tensors = sorted(read_header(file).tensors.values(), key=lambda tensor: tensor.shape)
    states = States.random(count, tensors[0].shape[1])
    numbers = Counter(tensor.shape for tensor in tensors)
    spent: dict[tuple[int, ...], list[float]] = {}
    with tempfile.TemporaryFile(dir=file.parent) as written:
        for tensor in tensors:
            if sum(map(sum, spent.values())) > limit and tensor.shape in spent:
                continue
            started = time.process_time()
            written.write(method(tensor.read().astype(np.float32), states).astype(tensor.dtype).data)
            spent.setdefault(tensor.shape, []).append(time.process_time() - started)
    seconds = sum(sum(times) / len(times) * numbers[shape] for shape, times in spent.items())
    return Cost(seconds, peak_bytes(), sum(map(len, spent.values())))


def cost_of_ours(file: Path, count: int, layers: int) -> Cost:
    """Time our edit of a whole file, reading and writing included."""
    with tempfile.NamedTemporaryFile(dir=file.parent) as target:
        from retouch.compiler.headers import read_header

        width = next(iter(read_header(file).tensors.values())).shape[1]
        states = States.random(count, width)
        started = time.process_time()
        ours(file, Path(target.name), states)
        return Cost(time.process_time() - started, peak_bytes(), layers)


def cost_of_encoding(model: str, component: str, layer: int | None, pooled: bool) -> dict[str, float]:
    """Time the encoder and the bare products that its tokens need, on random weights."""
    from retouch.compiler.text.text_encoder import PrefixTree, run_text_encoder

    config = json.loads((CONFIGS / MODELS[model] / component / "config.json").read_text())
    weights = random_encoder(config)
    prompts = random_prompts(config["vocab_size"])
    tree = PrefixTree.of(prompts)
    ends = np.array([path[-1] for path in tree.paths]) if pooled else None
    started = time.process_time()
    run_text_encoder(weights, tree, layer, ends)
    seconds = time.process_time() - started
    deepest = (
        config["num_hidden_layers"] if layer is None or pooled else config["num_hidden_layers"] + 1 + layer
    )
    return {
        "prompts": len(prompts),
        "tokens": sum(map(len, prompts)),
        "tokens_computed": len(tree.tokens),
        "seconds": seconds,
        "seconds_of_bare_products": bare_products(config, sum(map(len, prompts)), deepest),
    }


def bare_products(config: dict[str, Any], tokens: int, layers: int) -> float:
    """Return the seconds that the layers' matrix products take for so many tokens: the least it can be.

    One layer is timed and multiplied by their number; products run on as many rows as the encoder's do.
    """
    from retouch.compiler.text.text_encoder import ROWS

    width, wide = config["hidden_size"], config["intermediate_size"]
    random = np.random.default_rng(0)
    square, up, down = (
        random.normal(size=shape).astype(np.float32)
        for shape in ((width, width), (wide, width), (width, wide))
    )
    rows = [
        random.normal(size=(min(ROWS, tokens - at), width)).astype(np.float32)
        for at in range(0, tokens, ROWS)
    ]
    started = time.process_time()
    for part in rows:
        for _ in range(4):  # query, key, value, output
            _ = part @ square.T
        _ = (part @ up.T) @ down.T
    return (time.process_time() - started) * layers


def random_encoder(config: dict[str, Any]) -> Any:
    """Return half-precision weights of a text encoder, the same in every layer: bigG's 32 are 1.4 GB."""
    from retouch.compiler.tensors import Shared
    from retouch.compiler.text.text_encoder import LAYER, TextEncoderWeights

    random = np.random.default_rng(0)
    width, wide = config["hidden_size"], config["intermediate_size"]

    def tensor(*shape: int) -> Shared:
        values = (random.normal(size=shape) * width**-0.5).astype(np.float16)
        return Shared(lambda: values, values.dtype, shape)

    def shape(name: str) -> tuple[int, ...]:
        out, into = {"mlp.fc1": (wide, width), "mlp.fc2": (width, wide)}.get(
            name.rpartition(".")[0], (width, width)
        )
        return (out,) if name.endswith("bias") or "norm" in name else (out, into)

    layer = {name: tensor(*shape(name)) for name in LAYER}
    tensors = {
        f"encoder.layers.{number}.{name}": part
        for number in range(config["num_hidden_layers"])
        for name, part in layer.items()
    }
    tensors |= {
        "embeddings.token_embedding.weight": tensor(config["vocab_size"], width),
        "embeddings.position_embedding.weight": tensor(config["max_position_embeddings"], width),
        "final_layer_norm.weight": tensor(width),
        "final_layer_norm.bias": tensor(width),
        "text_projection.weight": tensor(config.get("projection_dim", width), width),
    }
    return TextEncoderWeights(config, tensors)


def random_prompts(vocabulary: int) -> list[tuple[int, ...]]:
    """Return token ids of every concept in every template, up to the end token."""
    random = np.random.default_rng(0)
    texts = [tuple(random.integers(0, vocabulary - 2, CONCEPT_TOKENS).tolist()) for _ in range(ENCODED)]
    around = [
        tuple(tuple(random.integers(0, vocabulary - 2, count).tolist()) for count in pair)
        for pair in TEMPLATES
    ]
    return [
        (vocabulary - 2, *before, *text, *after, vocabulary - 1) for before, after in around for text in texts
    ]


def peak_bytes() -> int:
    """Return the most memory that this process held."""
    # ru_maxrss is in KiB on Linux and in bytes on macOS.
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def alone(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function in a fresh process and return its result."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(function, *arguments).result()


def write_matrices(file: Path, shapes: list[tuple[int, int]]) -> None:
    """Write random half-precision matrices, one at a time."""
    from retouch.compiler.headers import header_bytes

    half = np.dtype(np.float16)
    random = np.random.default_rng(0)
    with file.open("wb") as written:
        written.write(header_bytes([(f"{i:03}", half, shape) for i, shape in enumerate(shapes)], {}))
        for out, width in shapes:
            values = random.standard_normal((out, width), dtype=np.float32) * np.float32(width**-0.5)
            written.write(values.astype(half).data)


# ---------------------------------------------------------------------------------------------------


@click.command()
@click.option("--concepts", default="1,10,100,1000", show_default=True)
@click.option("--limit", default=60.0, show_default=True, help="Seconds after which layers are sampled.")
def main(concepts: str, limit: float) -> None:
    """Measure every method on every shape."""
    # Before any child starts: NumPy's BLAS reads it once.
    os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    counts = [int(part) for part in concepts.split(",")]
    rows: list[dict[str, Any]] = []
    for model in MODELS:
        rows += solving(model, counts, limit)
        save(rows, [])
    encoding = [
        {"model": model, "encoder": component, **alone(cost_of_encoding, model, component, layer, pooled)}
        for model, component, layer, pooled in (
            ("SD 1.5", "text_encoder", None, False),
            ("SDXL", "text_encoder", -2, False),
            ("SDXL", "text_encoder_2", -2, True),
        )
    ]
    show(rows, encoding)
    save(rows, encoding)


def save(rows: list[dict[str, Any]], encoding: list[dict[str, Any]]) -> None:
    """Write what was measured so far: a run that is stopped keeps its models."""
    facts = {"machine": platform.machine(), "numpy": np.__version__, "threads": 1}
    write_results("erase", {"solving": rows, "encoding": encoding, **facts})


def solving(model: str, counts: list[int], limit: float) -> list[dict[str, Any]]:
    """Return one row a number of concepts: what each method costs on a model's matrices."""
    shapes = alone(shapes_of, model)
    with tempfile.TemporaryDirectory() as name:
        file = Path(name) / "matrices.safetensors"
        write_matrices(file, shapes)
        found = []
        for count in counts:
            costs = {
                "published": alone(cost_of_layers, published, file, count, limit),
                "one_product": alone(cost_of_layers, one_product, file, count, limit),
                "ours": alone(cost_of_ours, file, count, len(shapes)),
                "ours_default_rows": alone(cost_of_ours, file, count * DEFAULT_ROWS, len(shapes)),
            }
            row = {"model": model, "matrices": len(shapes), "concepts": count}
            found.append(row | {method: asdict(cost) for method, cost in costs.items()})
        return found


def show(rows: list[dict[str, Any]], encoding: list[dict[str, Any]]) -> None:
    """Print both tables."""
    table = Table(
        "model", "concepts", "published", "one product", "ours", "times faster", "ours, 8 rows each", "peak"
    )
    for row in rows:
        seconds = {
            name: row[name]["seconds"] for name in ("published", "one_product", "ours", "ours_default_rows")
        }
        faster = seconds["published"] / seconds["ours"]
        peak = max(row["ours"]["peak_bytes"], row["ours_default_rows"]["peak_bytes"])
        shown = [f"{value:.2f} s" for value in seconds.values()]
        table.add_row(
            row["model"], str(row["concepts"]), *shown[:3], f"{faster:.0f}", shown[3], f"{peak / 1e6:.0f} MB"
        )
    Console().print(table)
    table = Table("model", "encoder", "prompts", "tokens", "computed", "seconds", "bare products", "ratio")
    for row in encoding:
        ratio = row["seconds"] / row["seconds_of_bare_products"]
        numbers = [str(row[name]) for name in ("prompts", "tokens", "tokens_computed")]
        times = [f"{row[name]:.1f} s" for name in ("seconds", "seconds_of_bare_products")]
        table.add_row(row["model"], row["encoder"], *numbers, *times, f"{ratio:.2f}")
    Console().print(table)


if __name__ == "__main__":
    main()
