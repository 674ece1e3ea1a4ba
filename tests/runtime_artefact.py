"""A whole artefact of a few kilobytes, for tests of the runtime: linear graphs and a real tokenizer.

Its denoiser is `out = 0.2 sample + 0.001 timestep + mean over tokens of (states @ PROJECTION)`, its
decoder repeats each latent cell `DOWNSCALE` times in three of the four channels, so that a test can
compute in NumPy what an image must be.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer

from retouch.specs.canonical import canonical, digest_file, merkle_root
from retouch.specs.manifest import Evidence, FileRecord, Manifest, TargetRecord
from retouch.specs.sampling import Latent, Negative, SamplingTable, Step

NO_NEGATIVE = Negative()
LENGTH, WIDTH, CHANNELS, CELLS, DOWNSCALE = 12, 6, 4, 4, 2
START, END = "<|startoftext|>", "<|endoftext|>"
CLIP_WORDS = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
TEXTS = ["a photo of a cat", "a drawing of an apple", "the logo on a cloud", "an orange cat's shoe, running!"]
FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64
_random = np.random.default_rng(20)
PROJECTION = _random.normal(size=(WIDTH, CHANNELS)).astype(np.float32)
EMBEDDING = _random.normal(size=(600, WIDTH)).astype(np.float32)


@dataclass(frozen=True)
class Recipe:
    """What a test can choose about an artefact."""

    steps: tuple[Step, ...] = ()
    initial_scale: float = 1.0
    negative: Negative = NO_NEGATIVE
    guidance_baked: bool = False
    timestep_type: int = INT64
    statements: tuple[Evidence, ...] = ()
    cells: tuple[int, int] | None = None  # that the graphs are fixed to
    more_cells: tuple[tuple[int, int], ...] = ()  # that there are further graphs for
    halvings: int = 0  # of the denoiser


def some_steps(weights: tuple[float, ...] = (3.0, 1.0, 2.0), fraction: float = 0.0) -> tuple[Step, ...]:
    """Return rows with every coefficient in use; the numbers mean nothing."""
    return tuple(
        Step(
            timestep=float(900 - 300 * i) + fraction,
            sigma=3.0 - i,
            input_scale=0.9 + 0.02 * i,
            x0_from_sample=1.1 - 0.1 * i,
            x0_from_output=-0.7 + 0.1 * i,
            next_from_sample=0.6,
            next_from_x0=0.5,
            next_from_previous_x0=0.0 if i == 0 else -0.1,
            guidance_weight=weight,
        )
        for i, weight in enumerate(weights)
    )


def make_artefact(folder: Path, recipe: Recipe | None = None) -> Path:
    """Write a sealed artefact and return its folder."""
    recipe = recipe or Recipe(steps=some_steps())
    folder.mkdir(parents=True)
    write_tokenizer(folder / "tokenizer")
    _write_graphs(folder, recipe)
    (folder / "model_index.json").write_text('{"_class_name": "OnnxStableDiffusionPipeline"}\n')
    table = SamplingTable(
        sampler="ddim",
        prediction="epsilon",
        initial_scale=recipe.initial_scale,
        guidance_baked=recipe.guidance_baked,
        negative=recipe.negative,
        latent=Latent(channels=CHANNELS, height=CELLS, width=CELLS, downscale=DOWNSCALE, scaling_factor=0.5),
        steps=list(recipe.steps),
    )
    (folder / "sampling.json").write_bytes(canonical(table.model_dump(mode="json", by_alias=True)) + b"\n")
    seal(folder, recipe.statements)
    return folder


def seal(folder: Path, statements: tuple[Evidence, ...] = (), targets: tuple[TargetRecord, ...] = ()) -> None:
    """Write the manifest of what lies in the folder."""
    (folder / "manifest.json").unlink(missing_ok=True)
    files = [
        FileRecord(path=str(file.relative_to(folder)), size=file.stat().st_size, sha256=digest_file(file))
        for file in folder.rglob("*")
        if file.is_file()
    ]
    files.sort(key=lambda record: record.path)
    some = FileRecord(path="edit.yaml", size=1, sha256="0" * 64)
    manifest = Manifest(
        retouch="0.1.0",
        name="fake",
        version="1.0.0",
        provider={"name": "Test & Söhne", "contact": ""},  # type: ignore[arg-type] # pydantic reads the mapping
        source={"model": "none"},
        spec=some,
        lock=some,
        inputs=[],
        passes=[],
        statements=list(statements),
        targets=list(targets),
        gates=[],
        environment={},
        limits=["It draws nothing but linear functions of its prompt."],
        not_claimed=["That the images show anything."],
        files=files,
        merkle_root=merkle_root((record.path, record.sha256) for record in files),
    ).sealed()
    (folder / "manifest.json").write_bytes(canonical(manifest.model_dump(mode="json", by_alias=True)) + b"\n")


def write_tokenizer(folder: Path, pad: str = END) -> None:
    """Train a byte-level BPE in CLIP's format on a few texts and write it as transformers does."""
    tokenizer = Tokenizer(BPE(unk_token=END, end_of_word_suffix="</w>"))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    words = pre_tokenizers.Split(Regex(CLIP_WORDS), behavior="removed", invert=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [words, pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = BpeTrainer(
        vocab_size=560,
        initial_alphabet=letters,
        end_of_word_suffix="</w>",
        special_tokens=[START, END],
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS + letters, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    end, start = ((token, model["vocab"][token]) for token in (END, START))
    tokenizer.post_processor = processors.RobertaProcessing(end, start, False, False)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(tokenizer.to_str())
    (folder / "vocab.json").write_text(json.dumps(model["vocab"]))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in model["merges"]))
    special = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": pad}
    (folder / "special_tokens_map.json").write_text(json.dumps(special))
    config = {"model_max_length": LENGTH, "tokenizer_class": "CLIPTokenizer", **special}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def _write_graphs(folder: Path, recipe: Recipe) -> None:
    _save(
        folder / "text_encoder/model.onnx",
        [
            helper.make_node("Gather", ["embedding", "input_ids"], ["last_hidden_state"]),
            helper.make_node("ReduceMean", ["last_hidden_state", "axis"], ["pooler_output"], keepdims=0),
        ],
        {"input_ids": (INT64, ["B", "S"])},
        {"last_hidden_state": (FLOAT, ["B", "S", WIDTH]), "pooler_output": (FLOAT, ["B", WIDTH])},
        {"embedding": EMBEDDING, "axis": np.array([1])},
    )
    _write_image_graphs(folder, "model.onnx", recipe.cells or ("H", "W"), recipe)
    for cells in recipe.more_cells:
        height, width = (DOWNSCALE * count for count in cells)
        _write_image_graphs(folder, f"model.{height}x{width}.onnx", cells, recipe)
    image = ["B", CHANNELS, "H", "W"]
    _save(
        folder / "unet/combine.onnx",
        [
            helper.make_node("Sub", ["conditional", "unconditional"], ["direction"]),
            helper.make_node("Mul", ["direction", "guidance_weight"], ["push"]),
            helper.make_node("Add", ["unconditional", "push"], ["guided"]),
        ],
        {"unconditional": (FLOAT, image), "conditional": (FLOAT, image), "guidance_weight": (FLOAT, [1])},
        {"guided": (FLOAT, image)},
        {},
    )
    config = {"block_out_channels": [8] * (recipe.halvings + 1)}
    (folder / "unet/config.json").write_text(json.dumps(config))


def _write_image_graphs(
    folder: Path, name: str, cells: tuple[int, int] | tuple[str, str], recipe: Recipe
) -> None:
    """Write denoiser and decoder under a name, of fixed size where `cells` are numbers."""
    image = ["B", CHANNELS, *cells]
    _save(
        folder / "unet" / name,
        [
            helper.make_node("MatMul", ["encoder_hidden_states", "projection"], ["per_token"]),
            helper.make_node("ReduceMean", ["per_token", "token_axis"], ["text"], keepdims=0),
            helper.make_node("Unsqueeze", ["text", "pixel_axes"], ["text_image"]),
            helper.make_node("Mul", ["sample", "share"], ["from_sample"]),
            helper.make_node("Cast", ["timestep"], ["time"], to=FLOAT),
            helper.make_node("Mul", ["time", "rate"], ["from_time"]),
            helper.make_node("Add", ["from_sample", "text_image"], ["partly"]),
            helper.make_node("Add", ["partly", "from_time"], ["out_sample"]),
        ],
        {
            "sample": (FLOAT, image),
            "timestep": (recipe.timestep_type, []),
            "encoder_hidden_states": (FLOAT, ["B", "S", WIDTH]),
        },
        {"out_sample": (FLOAT, image)},
        {
            "projection": PROJECTION,
            "token_axis": np.array([1]),
            "pixel_axes": np.array([2, 3]),
            "share": np.float32(0.2),
            "rate": np.float32(0.001),
        },
    )
    _save(
        folder / "vae_decoder" / name,
        [
            helper.make_node("Slice", ["latent_sample", "first", "last", "channel_axis"], ["colors"]),
            helper.make_node("Resize", ["colors", "", "scales"], ["sample"], mode="nearest"),
        ],
        {"latent_sample": (FLOAT, image)},
        {"sample": (FLOAT, ["B", 3, "H2", "W2"])},
        {
            "first": np.array([0]),
            "last": np.array([3]),
            "channel_axis": np.array([1]),
            "scales": np.array([1, 1, DOWNSCALE, DOWNSCALE], np.float32),
        },
    )


def _save(
    file: Path,
    nodes: list[onnx.NodeProto],
    inputs: dict[str, tuple[int, list]],
    outputs: dict[str, tuple[int, list]],
    weights: dict[str, np.ndarray | np.generic],
) -> None:
    graph = helper.make_graph(
        nodes,
        file.parent.name,
        [helper.make_tensor_value_info(name, *kind) for name, kind in inputs.items()],
        [helper.make_tensor_value_info(name, *kind) for name, kind in outputs.items()],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    file.parent.mkdir(exist_ok=True)
    (file.parent / "config.json").write_text("{}\n")
    # Only weights of a size go to the data file, as emitters do; shape constants stay in the graph.
    onnx.save(
        model, file, save_as_external_data=bool(weights), location=file.name + "_data", size_threshold=64
    )
