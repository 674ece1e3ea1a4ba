"""What torch computes is what ships: text states, drawings and modules around a pipeline's own tensors."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from retouch.compiler.evidence.trial import pipeline_drawer
from retouch.compiler.probes._tokens import Effort, search_tokens
from retouch.compiler.text.encode import encode_prompts
from retouch.compiler.torch_models.drawing import draw, unit_noise
from retouch.compiler.torch_models.gradients import Gradients, Words
from retouch.compiler.torch_models.inversion import Search, denoising_loss, invert
from retouch.compiler.torch_models.modules import load_module
from retouch.specs.errors import InputError

from .passes import open_tiny

PROMPTS = ("a cat", "the apple logo")


@pytest.fixture(scope="module")
def model() -> Gradients:
    return Gradients(open_tiny())


def test_text_states_are_those_of_the_encoder_that_builds_use(model: Gradients) -> None:
    found = model.encode([model.words(prompt) for prompt in PROMPTS]).sequence.numpy()
    encoded = encode_prompts(model.pipeline, PROMPTS)
    for prompt, states in zip(PROMPTS, found, strict=True):
        rows = encoded.rows(prompt)
        assert np.abs(states[: len(rows)] - rows).max() < 1e-5


def test_a_drawing_is_the_runtimes(model: Gradients, skeletons: Path) -> None:
    table = model.pipeline.sampling.table()
    states, empty = model.encode([model.words("a cat")]), model.encode([model.words("")])
    drawn = draw(model, states.repeat(2), empty, table, unit_noise(model, [3, 4])).latents.numpy()
    with pipeline_drawer(model.pipeline, skeletons) as drawer:
        shipped = drawer.sampler.latents(["a cat"] * 2, [3, 4])
    assert np.abs(drawn - shipped).max() < 1e-3 * np.abs(shipped).max()


def test_embeddings_of_real_words_are_read_as_those_words(model: Gradients) -> None:
    said = model.words("a cat")
    ids = said.ids[0]
    end = int((ids == ids[-1]).nonzero()[0])
    learned = model.with_prefix("", [model.embeddings(0)[ids[1:end]]])
    one, other = (model.encode([words]).sequence for words in (said, learned))
    assert torch.allclose(one, other, atol=1e-6)


def test_low_rank_changes_are_what_fusing_them_gives(model: Gradients) -> None:
    name = model.pipeline.select("denoiser", "*mid_block*.attn2.to_k.weight").names[0]
    outputs, inputs = model.pipeline.tensors[name].shape
    dice = torch.Generator().manual_seed(0)
    down, up = torch.randn(2, inputs, generator=dice), 0.1 * torch.randn(outputs, 2, generator=dice)
    fused = Gradients(
        model.pipeline.select("denoiser", name.partition(".")[2]).map(
            lambda w: w + (up @ down).numpy(), "test"
        )
    )
    sample, timestep = unit_noise(model, [0]), torch.tensor([301.0])
    states = model.encode([model.words("a cat")])
    beside = model.predict(sample, timestep, states, {name: (down, up)})
    assert torch.allclose(beside, fused.predict(sample, timestep, states), atol=1e-5)
    assert not torch.allclose(beside, model.predict(sample, timestep, states), atol=1e-5)


def test_a_learned_word_denoises_better_than_it_began(model: Gradients) -> None:
    latents = 0.5 * unit_noise(model, range(4))
    short, longer = (invert(model, latents, Search(steps=n, rate=0.1, batch=4)) for n in (1, 25))
    assert _loss(model, latents, longer) < _loss(model, latents, short)


def test_a_token_search_repeats_and_never_takes_a_worse_token(model: Gradients) -> None:
    latents = 0.5 * unit_noise(model, range(2))
    effort = Effort(tokens=2, steps=4, candidates=3, batch=2)
    one, other = (search_tokens(model, latents, "a cat", effort) for _ in range(2))
    assert one.text == other.text
    assert torch.equal(one.words.learned[0], other.words.learned[0])
    assert one.words.places == (1, 2)


def test_a_module_holds_the_pipelines_tensors_and_learns_nothing() -> None:
    pipeline = open_tiny()
    module = load_module(pipeline, "unet")
    name = "mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight"
    held = module.get_parameter(name)
    assert np.array_equal(held.numpy(), pipeline.tensors[f"unet.{name}"].read())
    assert not any(parameter.requires_grad for parameter in module.parameters())


def test_a_module_says_every_tensor_that_is_missing() -> None:
    pipeline = open_tiny()
    left = {name: t for name, t in pipeline.tensors.items() if not name.startswith("unet.mid_block")}
    with pytest.raises(InputError) as caught:
        load_module(replace(pipeline, tensors=left), "unet")
    assert len(caught.value.faults) == len(pipeline.tensors) - len(left)


def _loss(model: Gradients, latents: torch.Tensor, words: Words) -> float:
    with torch.no_grad():
        return float(denoising_loss(model, latents, words, 16, torch.Generator().manual_seed(9)))
