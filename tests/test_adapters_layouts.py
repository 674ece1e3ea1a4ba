"""Whatever library wrote a LoRA, merged weights act as that library's runtime does."""

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline, UNet2DConditionModel
from peft import LoHaConfig, LoKrConfig, LoraConfig, get_peft_model, get_peft_model_state_dict
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from retouch.compiler.adapters.spellings import places_of
from retouch.specs.errors import InputError

from .adapting import (
    ATTENTION,
    TARGETS,
    TEXT_TARGETS,
    Writer,
    adapt,
    close,
    dotted,
    encode,
    in_processor,
    kohya,
    load,
    merge,
    open_tiny_xl,
    predict,
    save,
    shake,
    tiny_xl_folder,
)
from .passes import open_tiny, tiny_folder


def _unet(folder: Path | None = None) -> Any:
    return UNet2DConditionModel.from_pretrained((folder or tiny_folder()) / "unet").eval()


def _text(part: str = "text_encoder", folder: Path | None = None) -> Any:
    kind = CLIPTextModelWithProjection if part == "text_encoder_2" else CLIPTextModel
    return kind.from_pretrained((folder or tiny_folder()) / part).eval()


# Layouts of the denoiser: who writes it, and the modules and settings that it can hold.
ALPHA_IS_RANK = {"lora_alpha": 3, "alpha_pattern": {}, "rank_pattern": {}}
LAYOUTS: dict[str, tuple[Writer, list[str], dict[str, Any]]] = {
    "kohya": (kohya("lora_unet"), TARGETS, {}),
    "kohya, no alpha": (kohya("lora_unet", alpha=False), TARGETS, ALPHA_IS_RANK),
    "diffusers": (dotted("unet.", ".lora_A.weight", ".lora_B.weight"), TARGETS, ALPHA_IS_RANK),
    "diffusers, of the denoiser alone": (
        dotted("", ".lora_A.weight", ".lora_B.weight"),
        TARGETS,
        ALPHA_IS_RANK,
    ),
    "diffusers 0.21": (dotted("unet.", ".lora.down.weight", ".lora.up.weight"), TARGETS, ALPHA_IS_RANK),
    "attention processors": (
        dotted("", "_lora.down.weight", "_lora.up.weight", in_processor),
        ATTENTION,
        ALPHA_IS_RANK,
    ),
    "attention processors in a pipeline": (
        dotted("unet.", "_lora.down.weight", "_lora.up.weight", in_processor),
        ATTENTION,
        ALPHA_IS_RANK,
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_denoiser_acts_as_at_run_time(layout: str, tmp_path: Path) -> None:
    write, targets, settings = LAYOUTS[layout]
    unet = _unet()
    plain = predict(unet)
    factors = adapt(unet, targets, **settings)
    merged = merge(save(write(factors), tmp_path / "a.safetensors"))
    close(predict(load(merged, "unet", _unet())), predict(unet), plain)


TEXT_LAYOUTS: dict[str, Writer] = {
    "kohya": kohya("lora_te_text_model"),
    "kohya, numbered": kohya("lora_te1_text_model"),
    "diffusers": dotted("text_encoder.text_model.", ".lora_A.weight", ".lora_B.weight"),
    "diffusers, linear layers": dotted(
        "text_encoder.text_model.", ".lora_linear_layer.down.weight", ".lora_linear_layer.up.weight"
    ),
}


@pytest.mark.parametrize("layout", TEXT_LAYOUTS)
def test_a_text_encoder_acts_as_at_run_time(layout: str, tmp_path: Path) -> None:
    encoder = _text()
    plain = encode(encoder)
    factors = adapt(encoder, TEXT_TARGETS, **ALPHA_IS_RANK)
    bare = {name.removeprefix("text_model."): factor for name, factor in factors.items()}
    merged = merge(save(TEXT_LAYOUTS[layout](bare), tmp_path / "a.safetensors"))
    close(encode(load(merged, "text_encoder", _text())), encode(encoder), plain)


def test_a_file_of_attention_processors_means_what_diffusers_reads_in_it(tmp_path: Path) -> None:
    factors = adapt(_unet(), ATTENTION, **ALPHA_IS_RANK)
    write = dotted("unet.", "_lora.down.weight", "_lora.up.weight", in_processor)
    file = save(write(factors), tmp_path / "a.safetensors")
    pipeline = _diffusers(StableDiffusionPipeline, tiny_folder())
    pipeline.load_lora_weights(tmp_path, weight_name=file.name)
    close(predict(load(merge(file), "unet", _unet())), predict(pipeline.unet), predict(_unet()))


def test_kohya_means_what_diffusers_reads_in_it(tmp_path: Path) -> None:
    factors, text = adapt(_unet(), TARGETS), adapt(_text(), TEXT_TARGETS, seed=2)
    bare = {name.removeprefix("text_model."): factor for name, factor in text.items()}
    tensors = kohya("lora_unet")(factors) | kohya("lora_te_text_model")(bare)
    file = save(tensors, tmp_path / "a.safetensors")
    pipeline = _diffusers(StableDiffusionPipeline, tiny_folder())
    pipeline.load_lora_weights(tmp_path, weight_name=file.name)
    merged = merge(file)
    close(predict(load(merged, "unet", _unet())), predict(pipeline.unet), predict(_unet()))
    close(encode(load(merged, "text_encoder", _text())), encode(pipeline.text_encoder), encode(_text()))


def test_kohya_of_sdxl_means_what_diffusers_reads_in_it(tmp_path: Path) -> None:
    """Names of the U-Net as SGM has them, both text encoders."""
    folder = tiny_xl_folder()
    sgm = {place.module: place.ldm for place in places_of(open_tiny_xl()) if place.ldm}
    tensors = kohya("lora_unet", sgm.__getitem__)(adapt(_unet(folder), TARGETS))
    for number, part in enumerate(("text_encoder", "text_encoder_2")):
        factors = adapt(_text(part, folder), TEXT_TARGETS, seed=number)
        bare = {name.removeprefix("text_model."): factor for name, factor in factors.items()}
        tensors |= kohya(f"lora_te{number + 1}_text_model")(bare)
    file = save(tensors, tmp_path / "a.safetensors")
    pipeline = _diffusers(StableDiffusionXLPipeline, folder)
    pipeline.load_lora_weights(tmp_path, weight_name=file.name)
    merged = merge(file, open_tiny_xl())
    close(predict(load(merged, "unet", _unet(folder))), predict(pipeline.unet), predict(_unet(folder)))
    for part in ("text_encoder", "text_encoder_2"):
        found = encode(load(merged, part, _text(part, folder)))
        close(found, encode(getattr(pipeline, part)), encode(_text(part, folder)))


def test_all_parts_of_sdxl_saved_by_diffusers_act_as_at_run_time(tmp_path: Path) -> None:
    folder = tiny_xl_folder()
    parts = {
        "unet": _unet(folder),
        **{name: _text(name, folder) for name in ("text_encoder", "text_encoder_2")},
    }
    layers: dict[str, Any] = {}
    for name, model in parts.items():
        adapt(model, TARGETS if name == "unet" else TEXT_TARGETS)
        layers[f"{name}_lora_layers"] = get_peft_model_state_dict(model, adapter_name="default")
        layers[f"{name}_lora_adapter_metadata"] = vars(model)["peft_config"]["default"].to_dict()
    StableDiffusionXLPipeline.save_lora_weights(tmp_path, **layers)
    merged = merge(tmp_path / "pytorch_lora_weights.safetensors", open_tiny_xl())
    close(predict(load(merged, "unet", _unet(folder))), predict(parts["unet"]), predict(_unet(folder)))
    for part in ("text_encoder", "text_encoder_2"):
        found = encode(load(merged, part, _text(part, folder)))
        close(found, encode(parts[part]), encode(_text(part, folder)))


PATTERNS: dict[str, Any] = {
    "rank_pattern": {
        r"down_blocks\.0\..*to_k": 2,
        "^mid_block.attentions.0.transformer_blocks.0.attn1.to_q": 4,
    },
    "alpha_pattern": {"(conv1|conv_shortcut)": 7, "up_blocks.1.*.to_[qv]": 1},
}


def test_patterns_of_rank_and_alpha_mean_what_peft_makes_of_them(tmp_path: Path) -> None:
    unet = _unet()
    plain = predict(unet)
    wrapped = get_peft_model(
        unet, LoraConfig(r=3, lora_alpha=5, target_modules=TARGETS, use_rslora=True, **PATTERNS)
    )
    shake(wrapped)
    wrapped.eval().save_pretrained(str(tmp_path))
    merged = merge(tmp_path / "adapter_model.safetensors", config="adapter_config.json")
    close(predict(load(merged, "unet", _unet())), predict(wrapped), plain)


def test_a_peft_file_says_whose_modules_it_means(tmp_path: Path) -> None:
    folder = tiny_xl_folder()
    wrapped = get_peft_model(_text("text_encoder", folder), LoraConfig(target_modules=TEXT_TARGETS, r=3))
    shake(wrapped)
    wrapped.eval().save_pretrained(str(tmp_path))
    file, more = tmp_path / "adapter_model.safetensors", {"config": "adapter_config.json"}
    with pytest.raises(InputError, match=r"may mean text_encoder\..* or text_encoder_2"):
        merge(file, open_tiny_xl(), **more)
    with pytest.raises(InputError, match="no part `text_encoder_3`"):
        merge(file, open_tiny_xl(), **more, component="text_encoder_3")
    merged = merge(file, open_tiny_xl(), **more, component="text_encoder")
    found = encode(load(merged, "text_encoder", _text("text_encoder", folder)))
    close(found, encode(wrapped), encode(_text("text_encoder", folder)))


def test_a_tucker_core_acts_as_three_convolutions(tmp_path: Path) -> None:
    """W x + s B (M (A x)), as LyCORIS runs it: 1x1, then the kernel, then 1x1."""
    generator = torch.Generator().manual_seed(5)
    unet = _unet()
    conv = unet.mid_block.resnets[0].conv1
    down, mid, up = (
        0.2 * torch.randn(shape, generator=generator)
        for shape in ((3, 16, 1, 1), (3, 3, 3, 3), (16, 3, 1, 1))
    )
    stem = "lora_unet_mid_block_resnets_0_conv1"
    parts = {
        "lora_down.weight": down,
        "lora_mid.weight": mid,
        "lora_up.weight": up,
        "alpha": torch.tensor(2.0),
    }
    file = save({f"{stem}.{part}": tensor for part, tensor in parts.items()}, tmp_path / "a.safetensors")

    def add(module: Any, given: Any, result: torch.Tensor) -> torch.Tensor:
        low = torch.conv2d(torch.conv2d(given[0], down), mid, padding=1)
        return result + 2 / 3 * torch.conv2d(low, up)

    plain = predict(unet)
    conv.register_forward_hook(add)
    close(predict(load(merge(file), "unet", _unet())), predict(unet), plain)


PRODUCTS: dict[str, Any] = {
    "LoHa": LoHaConfig(r=3, alpha=5, target_modules=TARGETS),
    "LoKr": LoKrConfig(r=1, alpha=5, target_modules=TARGETS),
    "LoKr, both factors low": LoKrConfig(r=1, alpha=5, target_modules=TARGETS, decompose_both=True),
    "LoKr with cores": LoKrConfig(r=1, alpha=5, target_modules=["conv1"], use_effective_conv2d=True),
    # alpha is r, since PEFT scales what other tools do not
    "LoKr, both factors whole": LoKrConfig(r=32, alpha=32, target_modules=TARGETS),
}


@pytest.mark.parametrize("kind", PRODUCTS)
def test_a_product_acts_as_at_run_time(kind: str, tmp_path: Path) -> None:
    unet = _unet()
    plain = predict(unet)
    wrapped = get_peft_model(unet, PRODUCTS[kind]).eval()
    shake(wrapped, size=0.3)
    tensors = {}
    for key, tensor in get_peft_model_state_dict(wrapped).items():
        # LyCORIS' names for the same tensors
        module, _, part = key.removeprefix("base_model.model.").rpartition(".")
        stem = "lora_unet_" + module.replace(".", "_")
        tensors |= {f"{stem}.{part}": tensor, f"{stem}.alpha": torch.tensor(float(PRODUCTS[kind].alpha))}
    merged = merge(save(tensors, tmp_path / "a.safetensors"))
    close(predict(load(merged, "unet", _unet())), predict(wrapped), plain)


def test_a_file_with_both_of_kohyas_names_counts_once(tmp_path: Path) -> None:
    names = {place.module: place.ldm for place in places_of(open_tiny()) if place.ldm}
    factors = adapt(_unet(), TARGETS)
    tensors = kohya("lora_unet")(factors)
    once = merge(save(tensors, tmp_path / "a.safetensors"))
    twice = merge(save(tensors | kohya("lora_unet", names.__getitem__)(factors), tmp_path / "b.safetensors"))
    for name in once.tensors:
        assert (once.tensors[name].read() == twice.tensors[name].read()).all()


def _diffusers(kind: Any, folder: Path) -> Any:
    more = {"safety_checker": None} if kind is StableDiffusionPipeline else {}
    pipeline = kind.from_pretrained(folder, **more)
    for name in ("unet", "text_encoder", "text_encoder_2"):
        if getattr(pipeline, name, None) is not None:
            getattr(pipeline, name).eval()
    return pipeline
