"""Tables of names at the published models' true sizes: modules on the meta device, no weight anywhere."""

from functools import cache
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers.loaders.lora_conversion_utils import (
    _convert_non_diffusers_lora_to_diffusers,
    _maybe_map_sgm_blocks_to_diffusers,
)
from diffusers.utils.state_dict_utils import convert_unet_state_dict_to_peft

from benchmarks._hollow import Hollow, hollow_pipeline
from retouch.compiler.adapters.blocks import VECTORS, block_of, factors
from retouch.compiler.adapters.spellings import KOHYA, Place, places_of, table_of
from retouch.compiler.ir import Pipeline
from retouch.compiler.torch_models.modules import build_module
from retouch.specs.errors import InputError

SD, SD2, XL = "stable-diffusion-v1-5", "stable-diffusion-2-1", "stable-diffusion-xl-base-1.0"
REFINER = "stable-diffusion-xl-refiner-1.0"


@cache
def published(model: str) -> Pipeline:
    """Return a published model with the header of every tensor and no element."""
    return hollow_pipeline(model)


def _kohya(place: Place, name: str) -> list[str]:
    return [f"{prefix}_{name}".replace(".", "_") for prefix in KOHYA[place.component]]


@pytest.mark.parametrize("model", [SD, SD2, XL, REFINER])
def test_every_kohya_name_of_every_module_leads_to_it_alone(model: str) -> None:
    table, places = table_of(published(model)), places_of(published(model))
    for place in places:
        optional = published(model).family.optional_prefixes.get(place.component, "")
        names = _kohya(place, optional + place.module) + (_kohya(place, place.ldm) if place.ldm else [])
        assert [table[name].places for name in names] == [(place,)] * len(names)
    spelled = [name for name, spelling in table.items() if spelling.layout.startswith("kohya")]
    assert {place for name in spelled for place in table[name].places} == set(places)


@pytest.mark.parametrize("model", [SD, SD2, XL, REFINER])
def test_every_linear_map_and_convolution_is_in_the_table(model: str) -> None:
    """Against torch's own modules; embeddings are adapted by another formula."""
    pipeline = published(model)
    for name, component in pipeline.components.items():
        if component.role not in ("denoiser", "text"):
            continue
        with torch.device("meta"):
            modules = build_module(component).named_modules()
        expected = {path for path, module in modules if isinstance(module, torch.nn.Linear | torch.nn.Conv2d)}
        found = {place.target for place in places_of(pipeline) if place.component == name}
        assert found == {f"{name}.{path}.weight" for path in expected}


def test_names_of_sgm_are_those_that_diffusers_converts() -> None:
    """The U-Net's modules that sd-scripts trains, plain (attention) and with convolutions (LoCon).

    Of SDXL's base only: diffusers 0.42 takes input_blocks_1 for the start of input_blocks_10.
    """
    pipeline = published(XL)
    trained = [place for place in places_of(pipeline) if place.component == "unet" and _trained(place.module)]
    assert len(trained) > 300
    state = {}
    for place in trained:
        (stem,) = _kohya(place, place.ldm)
        state |= {f"{stem}.lora_{side}.weight": torch.zeros(1) for side in ("down", "up")}
    config = SimpleNamespace(**pipeline.components["unet"].config)
    mapped = _maybe_map_sgm_blocks_to_diffusers(state, config)
    converted, _ = _convert_non_diffusers_lora_to_diffusers(mapped)
    found = convert_unet_state_dict_to_peft(converted)
    assert {key.rpartition(".lora_")[0] for key in found} == {str(place) for place in trained}


def _trained(module: str) -> bool:
    return any(part in module for part in (".attentions.", ".resnets.", "samplers."))


def test_only_peft_needs_to_be_told_which_text_encoder_it_means() -> None:
    for model in (SD, SD2, REFINER):
        assert all(len(spelling.places) == 1 for spelling in table_of(published(model)).values())
    table = table_of(published(XL))
    twofold = [spelling for spelling in table.values() if len(spelling.places) > 1]
    assert twofold
    assert {spelling.layout for spelling in twofold} == {"PEFT"}
    for component in ("text_encoder", "text_encoder_2"):
        assert all(len(spelling.places) == 1 for spelling in table_of(published(XL), component).values())


def test_underscores_that_make_two_modules_one_are_seen() -> None:
    pipeline = published(SD)
    weight = Hollow(np.dtype(np.float16), (4, 4))
    clash = {"unet.mid.a_b.weight": weight, "unet.mid.a.b.weight": weight}
    found = table_of(pipeline.with_tensors(clash))["lora_unet_mid_a_b"]
    assert [place.module for place in found.places] == ["mid.a.b", "mid.a_b"]


# sd-webui-lora-block-weight's BLOCKID lists, and where sd-scripts' converter puts modules of diffusers.
NUMBERS = {
    SD: {
        "conv_in": "IN00",
        "down_blocks.0.attentions.1.proj_in": "IN02",
        "down_blocks.0.downsamplers.0.conv": "IN03",
        "down_blocks.2.attentions.0.proj_in": "IN07",
        "down_blocks.3.resnets.1.conv1": "IN11",
        "mid_block.attentions.0.proj_in": "M00",
        "up_blocks.0.resnets.0.conv1": "OUT00",
        "up_blocks.0.upsamplers.0.conv": "OUT02",
        "up_blocks.1.attentions.0.proj_in": "OUT03",
        "up_blocks.3.attentions.2.proj_in": "OUT11",
        "time_embedding.linear_1": "",
        "conv_out": "",
    },
    XL: {
        "down_blocks.1.attentions.0.proj_in": "IN04",
        "down_blocks.1.attentions.1.proj_in": "IN05",
        "down_blocks.2.attentions.1.proj_in": "IN08",
        "up_blocks.0.attentions.0.proj_in": "OUT00",
        "up_blocks.1.attentions.2.proj_in": "OUT05",
        "up_blocks.2.resnets.2.conv1": "OUT08",
    },
}


@pytest.mark.parametrize("model", NUMBERS)
def test_blocks_are_numbered_as_the_webuis_extension_does(model: str) -> None:
    by_name = {place.module: place for place in places_of(published(model)) if place.component == "unet"}
    assert {name: block_of(by_name[name]) for name in NUMBERS[model]} == NUMBERS[model]


@pytest.mark.parametrize(("model", "short", "long"), [(SD, 17, 26), (XL, 12, 20)])
def test_a_short_vector_numbers_what_plain_lora_reaches(model: str, short: int, long: int) -> None:
    pipeline = published(model)
    plain = [p for p in places_of(pipeline) if ".attentions." in p.module or "self_attn" in p.module]
    blocks = [place for place in places_of(pipeline) if block_of(place) or place.component != "unet"]
    for length, places in ((short, plain), (long, blocks)):
        vector = tuple(float(number) for number in range(length))
        found = factors(vector, places, pipeline, "a.safetensors")
        named = {p: "BASE" if p.component != "unet" else block_of(p) for p in places}
        assert {VECTORS[length].index(name) for name in named.values()} == set(range(length))
        assert all(found[place] == VECTORS[length].index(named[place]) for place in places)


@pytest.mark.parametrize(("model", "length", "fitting"), [(SD, 12, "17 or 26"), (XL, 26, "12 or 20")])
def test_a_vector_for_another_denoiser_is_refused(model: str, length: int, fitting: str) -> None:
    with pytest.raises(InputError, match=f"give {fitting} numbers, or patterns"):
        factors((1.0,) * length, places_of(published(model)), published(model), "a.safetensors")


@pytest.mark.parametrize(
    ("length", "module"), [(17, "down_blocks.0.downsamplers.0.conv"), (26, "time_embedding.linear_1")]
)
def test_a_module_that_a_vector_does_not_number_is_refused(length: int, module: str) -> None:
    places = [
        place for place in places_of(published(SD)) if place.module in (module, "mid_block.resnets.0.conv1")
    ]
    with pytest.raises(InputError, match=f"says nothing of 1 modules, such as unet.{module}"):
        factors((1.0,) * length, places, published(SD), "a.safetensors")
