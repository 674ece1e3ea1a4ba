"""Single files, there and back: the same tensors as in the folder, and as diffusers' own loader finds."""

import json
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
import transformers
from diffusers.loaders import single_file_utils as theirs
from emitting import emit
from safetensors.numpy import load_file, save_file
from tiny import make_tiny, make_tiny_v2, make_tiny_xl

from benchmarks._hollow import hollow_pipeline, write_hollow
from retouch.compiler.canonical_text import difference
from retouch.compiler.emit.diffusers import Diffusers
from retouch.compiler.emit.onnx import Onnx
from retouch.compiler.emit.single_file import FILE, SingleFile
from retouch.compiler.ir import Component, Pipeline
from retouch.compiler.load import load_pipeline, open_source, source_files
from retouch.compiler.sources import MODEL_ROLES
from retouch.compiler.sources.names import layouts, modules
from retouch.specs.errors import InputError, RetouchError, SpecError
from retouch.specs.fields import InputFile
from retouch.specs.schema import Source

MAKERS = {"sd1": make_tiny, "sd2": make_tiny_v2, "sdxl": make_tiny_xl}
PUBLISHED = (
    "stable-diffusion-v1-5",
    "stable-diffusion-inpainting",
    "stable-diffusion-2-1",
    "stable-diffusion-2-inpainting",
    "stable-diffusion-xl-base-1.0",
    "stable-diffusion-xl-refiner-1.0",
)


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("folders")
    return {name: make(root / name) for name, make in MAKERS.items()}


@pytest.fixture(scope="session")
def files(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return each tiny model as the single file that we emit."""
    root = tmp_path_factory.mktemp("files")
    for name, folder in folders.items():
        emit(SingleFile(), load_pipeline(folder, "ddim", 5), root / name, root / "cache")
    return {name: root / name / FILE for name in folders}


def open_file(file: Path, config: Path | None, **keys: Any) -> Pipeline:
    given: Any = {} if config is None else {"config": InputFile(str(config), config)}
    return open_source(Source(str(file), **given, **keys), file.parent, "ddim", 5)


def models(pipeline: Pipeline) -> list[Component]:
    return [component for component in pipeline.components.values() if component.role in MODEL_ROLES]


def spelled(pipeline: Pipeline, component: str) -> dict[str, Any]:
    """Return a component's tensors in the spelling that all library versions share."""
    found = pipeline.tensors_of(component)
    return {pipeline.family.module_name(component, name): tensor for name, tensor in found.items()}


@pytest.mark.parametrize("model", MAKERS)
def test_there_and_back_keeps_every_tensor(
    model: str, folders: dict[str, Path], files: dict[str, Path]
) -> None:
    before, after = load_pipeline(folders[model], "ddim", 5), open_file(files[model], folders[model])
    assert after.family == before.family
    assert after.settings == before.settings
    assert after.sampling == before.sampling
    for component in models(before):
        one, other = spelled(before, component.name), spelled(after, component.name)
        assert set(one) == set(other)
        assert all(np.array_equal(one[name].read(), other[name].read()) for name in one)
        assert all(one[name].dtype == other[name].dtype for name in one)
        assert after.components[component.name].config == component.config


@pytest.mark.parametrize("model", MAKERS)
def test_diffusers_finds_the_same_in_the_file(
    model: str, folders: dict[str, Path], files: dict[str, Path]
) -> None:
    ours = open_file(files[model], folders[model])
    for component in models(ours):
        found = spelled(ours, component.name)
        expected = {
            ours.family.module_name(component.name, name): value
            for name, value in load_theirs(files[model], folders[model], component).state_dict().items()
            if not name.endswith("position_ids")
        }
        assert set(found) == set(expected)
        assert all(np.array_equal(found[name].read(), expected[name].numpy()) for name in found)


def load_theirs(file: Path, config: Path, component: Component) -> torch.nn.Module:
    """Load a component from a single file as diffusers does, with the configs of a local folder."""
    local: dict[str, Any] = {"config": str(config), "subfolder": component.name, "local_files_only": True}
    if component.role == "text":
        kind, checkpoint = (
            getattr(transformers, component.class_name),
            theirs.load_single_file_checkpoint(file),
        )
        return theirs.create_diffusers_clip_model_from_ldm(kind, checkpoint, **local)
    return getattr(diffusers, component.class_name).from_single_file(str(file), **local)


@pytest.mark.parametrize("model", MAKERS)
def test_the_folder_of_a_file_draws_the_same_images(
    model: str, folders: dict[str, Path], files: dict[str, Path], tmp_path: Path
) -> None:
    emit(Diffusers(), open_file(files[model], folders[model]), tmp_path / "out", tmp_path)
    np.testing.assert_array_equal(draw(folders[model]), draw(tmp_path / "out" / "diffusers"))


def draw(folder: Path) -> np.ndarray:
    pipeline: Any = diffusers.DiffusionPipeline.from_pretrained(folder)
    # the emitted folder's scheduler is that of the spec's sampler
    pipeline.scheduler = diffusers.DDIMScheduler.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    latents = torch.randn((1, 4, 8, 8), generator=torch.Generator().manual_seed(0))
    return pipeline("a cat", num_inference_steps=2, latents=latents, output_type="np").images


@pytest.mark.parametrize("model", MAKERS)
def test_the_artefact_of_a_file_is_that_of_its_folder(
    model: str, folders: dict[str, Path], files: dict[str, Path], skeletons: Path, tmp_path: Path
) -> None:
    emit(Onnx(), load_pipeline(folders[model], "ddim", 5), tmp_path / "folder", skeletons)
    emit(Onnx(), open_file(files[model], folders[model]), tmp_path / "file", skeletons)
    one, other = (
        {path.relative_to(root): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}
        for root in (tmp_path / "folder", tmp_path / "file")
    )
    assert len(one) > 10
    assert one == other


def test_the_file_is_written_in_the_words_of_its_layout(files: dict[str, Path]) -> None:
    names = {model: set(load_file(file)) for model, file in files.items()}
    keys = theirs.CHECKPOINT_KEY_NAMES
    assert keys["clip"] in names["sd1"]
    assert keys["open_clip"] in names["sd2"]
    assert {keys["clip_sdxl"], keys["open_clip_sdxl"]} <= names["sdxl"]
    flat = load_file(files["sd1"])["first_stage_model.encoder.mid.attn_1.q.weight"]
    assert flat.shape == (16, 16, 1, 1)
    assert "v_pred" in names["sd2"]
    assert "v_pred" not in names["sd1"]


@cache
def hollow(model: str) -> Pipeline:
    return hollow_pipeline(model)


@pytest.fixture(scope="session")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder for files of true size and no data, each written once."""
    return tmp_path_factory.mktemp("published")


def published_file(model: str, folder: Path) -> Path:
    file = folder / f"{model}.safetensors"
    return file if file.exists() else write_hollow(hollow(model), file)


@pytest.mark.parametrize("model", PUBLISHED)
def test_every_name_of_a_published_model_is_mapped_once_and_back(model: str, published: Path) -> None:
    before = hollow(model)
    prediction = None if model != "stable-diffusion-2-1" else "v_prediction"
    after = open_file(published_file(model, published), None, prediction=prediction)
    assert after.family == before.family
    assert {name: after.components[name].config for name in after.components} == {
        name: before.components[name].config for name in before.components
    }
    for component in models(before):
        shapes = {name: tensor.shape for name, tensor in spelled(before, component.name).items()}
        assert {name: tensor.shape for name, tensor in spelled(after, component.name).items()} == shapes


@pytest.mark.parametrize(
    "model", ["stable-diffusion-v1-5", "stable-diffusion-2-1", "stable-diffusion-xl-base-1.0"]
)
def test_diffusers_maps_a_published_model_alike(model: str, published: Path) -> None:
    before = hollow(model)
    checkpoint = meta_checkpoint(published_file(model, published))
    for component in models(before):
        expected = convert_theirs(checkpoint, component)
        found = {name: tensor.shape for name, tensor in spelled(before, component.name).items()}
        assert {
            before.family.module_name(component.name, name): tuple(tensor.shape)
            for name, tensor in expected.items()
        } == found


def meta_checkpoint(file: Path) -> dict[str, torch.Tensor]:
    from retouch.compiler.headers import read_header

    tensors = read_header(file).tensors
    return {name: torch.empty(tensor.shape, device="meta") for name, tensor in tensors.items()}


def convert_theirs(checkpoint: dict[str, torch.Tensor], component: Component) -> dict[str, torch.Tensor]:
    """Convert a component's tensors as diffusers does, by shapes alone."""
    config = dict(component.config)
    if component.role == "denoiser":
        return theirs.convert_ldm_unet_checkpoint(checkpoint, config)
    if component.role == "vae":
        return theirs.convert_ldm_vae_checkpoint(checkpoint, config)
    if component.class_name == "CLIPTextModel" and config["hidden_act"] == "quick_gelu":
        return theirs.convert_ldm_clip_checkpoint(checkpoint)
    with torch.device("meta"):
        module = transformers.CLIPTextModel(transformers.CLIPTextConfig.from_dict(config))
    prefix = (
        "conditioner.embedders.1.model." if component.name == "text_encoder_2" else "cond_stage_model.model."
    )
    return theirs.convert_open_clip_checkpoint(module, checkpoint, prefix)


def test_modules_have_the_names_that_adapters_use() -> None:
    names = modules("unet", hollow("stable-diffusion-xl-base-1.0").components["unet"])
    inner = "attentions.1.transformer_blocks.1.attn2.to_k"
    assert names[f"down_blocks.1.{inner}"] == "input_blocks.5.1.transformer_blocks.1.attn2.to_k"
    assert names["up_blocks.0.resnets.2.conv_shortcut"] == "output_blocks.2.0.skip_connection"
    assert names["up_blocks.1.upsamplers.0.conv"] == "output_blocks.5.2.conv"
    assert (
        names["mid_block.attentions.0.transformer_blocks.9.ff.net.2"]
        == "middle_block.1.transformer_blocks.9.ff.net.2"
    )


def altered(file: Path, target: Path, change: Any, metadata: dict[str, str] | None = None) -> Path:
    """Write a copy of a file after `change` has had its tensors, by name, in hand."""
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, target, metadata=metadata or {"format": "pt"})
    return target


def test_averages_and_what_training_left_are_set_aside_and_said(
    folders: dict[str, Path], files: dict[str, Path], tmp_path: Path
) -> None:
    def add(tensors: dict[str, np.ndarray]) -> None:
        tensors["model_ema.diffusion_modelinput_blocks00weight"] = np.ones(3, np.float32)
        tensors["model_ema.decay"] = np.ones((), np.float32)
        tensors["alphas_cumprod"] = np.ones(1000, np.float32)
        tensors["cond_stage_model.transformer.text_model.embeddings.position_ids"] = np.arange(16)[None]
        tensors["first_stage_model.loss.logvar"] = np.ones((), np.float32)

    file = altered(files["sd1"], tmp_path / "x.safetensors", add)
    with_more, plain = open_file(file, folders["sd1"]), open_file(files["sd1"], folders["sd1"])
    assert set(with_more.tensors) == set(plain.tensors)
    assert with_more.notes == ("2 averaged weights (model_ema.*) are left behind",)
    assert plain.notes == ()


def test_there_and_back_drops_only_what_2x_does_not_read(
    folders: dict[str, Path], files: dict[str, Path], tmp_path: Path
) -> None:
    start = "cond_stage_model.model."
    last, layer = f"{start}transformer.resblocks.1.", f"{start}transformer.resblocks.2."
    unread: dict[str, np.ndarray] = {f"{start}text_projection": np.ones((32, 32), np.float32)}
    unread[f"{start}logit_scale"] = np.ones((), np.float32)

    def add(tensors: dict[str, np.ndarray]) -> None:
        beside = [name for name in tensors if name.startswith(last)]
        unread.update({layer + name.removeprefix(last): tensors[name] for name in beside})
        tensors.update(unread)

    file = altered(files["sd2"], tmp_path / "x.safetensors", add)
    emit(Diffusers(), open_file(file, folders["sd2"]), tmp_path / "folder", tmp_path)
    encoder = tmp_path / "folder" / "diffusers" / "text_encoder" / "model.safetensors"
    positions = {"text_model.embeddings.position_ids": np.arange(16)[None]}  # as older folders hold them
    altered(encoder, encoder, lambda tensors: tensors.update(positions))
    folder = load_pipeline(tmp_path / "folder" / "diffusers", "ddim", 5)
    assert f"text_encoder.{next(iter(positions))}" in folder.tensors
    emit(SingleFile(), folder, tmp_path / "back", tmp_path)
    before, after = load_file(file), load_file(tmp_path / "back" / FILE)
    assert set(after) == set(before) - set(unread)
    assert sum(name.startswith(layer) for name in unread) == 12
    assert all(np.array_equal(before[name], after[name]) for name in after)


def test_older_spellings_are_read(folders: dict[str, Path], files: dict[str, Path], tmp_path: Path) -> None:
    def rename(tensors: dict[str, np.ndarray]) -> None:
        for name in list(tensors):
            older = name.replace("transformer.text_model.", "transformer.")
            older = older.replace("first_stage_model.", "vae.")
            tensors[older] = tensors.pop(name)
            if older.endswith("attn_1.q.weight"):
                tensors[older] = tensors[older][:, :, 0, 0]

    file = altered(files["sd1"], tmp_path / "x.safetensors", rename)
    before, after = open_file(files["sd1"], folders["sd1"]), open_file(file, folders["sd1"])
    assert difference(before, after) == ()


@pytest.mark.parametrize("missing", ["vae", "text_encoder"])
def test_a_part_that_is_absent_is_asked_for_and_can_be_given(
    missing: str, folders: dict[str, Path], files: dict[str, Path], tmp_path: Path
) -> None:
    prefixes = layouts().layouts["stable_diffusion"].parts[missing].prefixes

    def drop(tensors: dict[str, np.ndarray]) -> None:
        for name in [name for name in tensors if name.startswith(prefixes)]:
            del tensors[name]

    def keep(tensors: dict[str, np.ndarray]) -> None:
        for name in [name for name in tensors if not name.startswith(prefixes)]:
            del tensors[name]

    file = altered(files["sd1"], tmp_path / "x.safetensors", drop)
    with pytest.raises(InputError, match=rf"holds no `{missing}`\n.*components: \{{{missing}: PATH\}}"):
        open_file(file, folders["sd1"])
    whole = open_file(files["sd1"], folders["sd1"])
    part = altered(files["sd1"], tmp_path / "part.safetensors", keep)
    for place in (folders["sd1"] / missing, part):
        given = open_file(file, folders["sd1"], components={missing: InputFile(str(place), place)})
        assert spelled(given, missing).keys() == spelled(whole, missing).keys()
        assert f"{missing}/" in "".join(label for label, _ in source_files(given))


def test_a_folder_takes_its_autoencoder_from_elsewhere(folders: dict[str, Path], tmp_path: Path) -> None:
    other = make_tiny(tmp_path / "other", seed=1)
    given: Any = {"vae": InputFile("other/vae", other / "vae")}
    pipeline = open_source(Source(str(folders["sd1"]), components=given), tmp_path, "ddim", 5)
    name = "vae.decoder.conv_in.weight"
    expected = load_pipeline(other, "ddim", 5).tensors[name]
    assert np.array_equal(pipeline.tensors[name].read(), expected.read())
    assert ("vae/diffusion_pytorch_model.safetensors", expected.file) in source_files(pipeline)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("model.diffusion_model.input_blocks.1.1.lora.weight", "a tensor that is no part of the model"),
        ("surprise", "a tensor that is no part of the model"),
        ("first_stage_model.encoder.down.7.block.0.conv1.weight", "a tensor that is no part of the model"),
    ],
)
def test_a_tensor_that_nobody_knows_stops(
    name: str, message: str, folders: dict[str, Path], files: dict[str, Path], tmp_path: Path
) -> None:
    file = altered(
        files["sd1"], tmp_path / "x.safetensors", lambda t: t.update({name: np.ones(2, np.float32)})
    )
    with pytest.raises(InputError, match=message) as caught:
        open_file(file, folders["sd1"])
    assert name in str(caught.value)


def test_a_tensor_that_is_missing_or_misshapen_stops_with_all_of_them(
    folders: dict[str, Path], files: dict[str, Path], tmp_path: Path
) -> None:
    fused = "cond_stage_model.model.transformer.resblocks.0.attn.in_proj_weight"
    flat = "first_stage_model.decoder.mid.attn_1.k.weight"

    def change(tensors: dict[str, np.ndarray]) -> None:
        del tensors["model.diffusion_model.out.2.weight"]
        tensors[fused] = tensors[fused][:-1]
        tensors[flat] = np.ones((16, 16, 3, 3), np.float32)

    file = altered(files["sd2"], tmp_path / "x.safetensors", change)
    with pytest.raises(InputError) as caught:
        open_file(file, folders["sd2"])
    assert {fault.code for fault in caught.value.faults} == {"E_SHAPE", "E_TENSOR_MISSING"}
    assert all(name in str(caught.value) for name in (fused, flat, "out.2.weight"))


def test_shapes_that_the_configs_do_not_describe_stop_before_anything_is_written(
    folders: dict[str, Path], files: dict[str, Path], skeletons: Path, tmp_path: Path
) -> None:
    def change(tensors: dict[str, np.ndarray]) -> None:
        tensors["model.diffusion_model.time_embed.0.weight"] = np.ones((33, 8), np.float32)
        tensors["first_stage_model.decoder.conv_out.bias"] = np.ones(4, np.float32)

    file = altered(files["sd1"], tmp_path / "x.safetensors", change)
    pipeline = open_file(file, folders["sd1"])
    with pytest.raises(InputError) as caught:
        emit(Onnx(), pipeline, tmp_path / "out", skeletons)
    assert [(fault.code, fault.where) for fault in caught.value.faults] == [
        ("E_TENSOR_SHAPE", "unet.time_embedding.linear_1.weight"),
        ("E_TENSOR_SHAPE", "vae.decoder.conv_out.bias"),
    ]
    assert list((tmp_path / "out").iterdir()) == []


def said(file: Path, **keys: Any) -> tuple[str, bool, int]:
    """Return what a file of true size is taken to predict, whether with zero SNR, and its latent size."""
    pipeline = open_file(file, None, **keys)
    (scheduler,) = pipeline.of_role("scheduler")
    zero = bool(scheduler.config.get("rescale_betas_zero_snr"))
    return pipeline.sampling.schedule.prediction, zero, pipeline.sampling.latent.height


def with_header(file: Path, target: Path, change: Any) -> Path:
    """Write a copy of a hollow file with another header."""
    with file.open("rb") as stream:
        header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
    size = max(entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__")
    change(header)
    text = json.dumps(header).encode()
    with target.open("xb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        stream.truncate(8 + len(text) + size)
    return target


def flag(*names: str) -> Any:
    entry = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    return lambda header: header.update(dict.fromkeys(names, entry))


def metadata(**values: str) -> Any:
    return lambda header: header["__metadata__"].update({f"modelspec.{k}": v for k, v in values.items()})


def test_two_published_models_with_the_same_tensors_are_told_apart_or_asked_about(
    published: Path, tmp_path: Path
) -> None:
    file = published_file("stable-diffusion-2-1", published)
    with pytest.raises(InputError, match=r"(?s)cannot tell .*-2-1 .*-2-1-base .* add `prediction: epsilon`"):
        said(file)
    assert said(file, prediction="v_prediction") == ("v_prediction", False, 96)
    assert said(file, prediction="epsilon") == ("epsilon", False, 64)
    for i, (change, expected) in enumerate(
        [
            (metadata(prediction_type="v"), ("v_prediction", False, 96)),
            (metadata(architecture="stable-diffusion-v2-512"), ("epsilon", False, 64)),
            (flag("v_pred"), ("v_prediction", False, 96)),
        ]
    ):
        assert said(with_header(file, tmp_path / f"{i}.safetensors", change)) == expected


def test_flags_say_how_a_model_was_trained(published: Path, tmp_path: Path) -> None:
    file = published_file("stable-diffusion-xl-base-1.0", published)
    assert said(file) == ("epsilon", False, 128)
    assert said(with_header(file, tmp_path / "v.safetensors", flag("v_pred")))[0] == "v_prediction"
    both = with_header(file, tmp_path / "z.safetensors", flag("v_pred", "ztsnr"))
    pipeline = open_file(both, None)
    assert pipeline.sampling.schedule.spacing == "trailing"
    assert said(both) == ("v_prediction", True, 128)
    with pytest.raises(InputError, match="pure noise"):
        said(both, prediction="epsilon")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["lora_unet_mid_block_attentions_0_proj_in.lora_down.weight"], "an adapter"),
        (["control_model.time_embed.0.weight"], "a ControlNet"),
        (["model.diffusion_model.double_blocks.0.img_attn.norm.key_norm.scale"], "Flux"),
        (["model.diffusion_model.joint_blocks.0.context_block.attn.qkv.weight"], "Stable Diffusion 3"),
        (["emb_params"], "an embedding"),
        (["down_blocks.0.resnets.0.conv1.weight"], "one part of a diffusers folder"),
        (["decoder.up.0.block.0.conv1.weight"], "an autoencoder alone"),
        (["a", "b"], "its first tensor is `a`"),
        ([], "it holds no tensor"),
    ],
)
def test_a_file_of_another_kind_is_named(names: list[str], message: str, tmp_path: Path) -> None:
    save_file({name: np.ones((2, 2), np.float32) for name in names}, tmp_path / "x.safetensors")
    with pytest.raises(InputError, match=message):
        open_file(tmp_path / "x.safetensors", None)


def test_a_model_of_another_make_needs_its_configs(files: dict[str, Path]) -> None:
    with pytest.raises(InputError, match=r"4 channels and text states of width 32; .*\n.*`source\.config`"):
        open_file(files["sd1"], None)


def test_a_tokenizer_is_asked_for_where_clips_own_does_not_fit(
    folders: dict[str, Path], files: dict[str, Path], tmp_path: Path
) -> None:
    bare = tmp_path / "configs"
    for file in folders["sdxl"].rglob("*"):
        if file.suffix == ".json" and file.name not in ("vocab.json", "tokenizer.json"):
            place = bare / file.relative_to(folders["sdxl"])
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(file.read_bytes())
    with pytest.raises(InputError, match=r"knows \d+ tokens, CLIP's own tokenizer 49408") as caught:
        open_file(files["sdxl"], bare)
    assert len(caught.value.faults) == 2
    place = folders["sdxl"]
    given = open_file(files["sdxl"], bare, tokenizer=InputFile("x", place))
    assert given.components["tokenizer_2"].folder == place / "tokenizer_2"
    with pytest.raises(InputError, match="no `tokenizer` here"):
        open_file(files["sdxl"], bare, tokenizer=InputFile("x", place / "tokenizer"))


def test_the_lock_names_what_was_read(folders: dict[str, Path], files: dict[str, Path]) -> None:
    labels = [label for label, _ in source_files(open_file(files["sd1"], folders["sd1"]))]
    assert labels == sorted(labels)
    assert "model.safetensors" in labels
    assert {"unet/config.json", "scheduler/scheduler_config.json", "tokenizer/vocab.json"} <= set(labels)


def test_keys_that_mean_nothing_are_refused(folders: dict[str, Path], files: dict[str, Path]) -> None:
    with pytest.raises(SpecError, match=r"source\.prediction: means nothing for a folder"):
        open_source(Source(str(folders["sd1"]), prediction="epsilon"), Path(), "ddim", 5)
    with pytest.raises(SpecError, match=r"source\.variant: means nothing for a single file"):
        open_source(Source(str(files["sd1"]), variant="fp16"), Path(), "ddim", 5)
    with pytest.raises(RetouchError, match="has no such part"):
        open_file(files["sd1"], folders["sd1"], components={"text_encoder_2": InputFile("x", folders["sd1"])})
    with pytest.raises(InputError, match=r"source\.components\.vae: no file or folder"):
        open_file(files["sd1"], folders["sd1"], components={"vae": InputFile("x", Path("/nowhere"))})


def test_planning_with_a_file_of_true_size_reads_no_element_and_imports_no_torch(
    published: Path, tmp_path: Path
) -> None:
    file = published_file("stable-diffusion-xl-base-1.0", published)
    spec = {
        "schema": 1,
        "name": "plan",
        "version": "1",
        "source": {"model": str(file)},
        "emit": [{"onnx": {}}],
    }
    (tmp_path / "edit.yaml").write_text(json.dumps(spec))
    code = (
        "import sys; from pathlib import Path; from retouch.compiler.plan import make_plan;"
        "bytes = make_plan(Path(sys.argv[1])).summary()['source']['bytes'];"
        "print(bytes, sorted({'torch', 'diffusers', 'transformers', 'huggingface_hub'} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "edit.yaml")]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    size = sum(2 * int(np.prod(tensor.shape)) for tensor in hollow(file.stem).tensors.values())
    assert done.stdout == f"{size} []\n"
    assert file.stat().st_blocks * 512 < 1 << 20  # still a hole
