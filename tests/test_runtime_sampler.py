"""The loop over the table computes what the table's formulas say, and no more than it must."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto
from runtime_artefact import (
    CELLS,
    CHANNELS,
    DOWNSCALE,
    EMBEDDING,
    PROJECTION,
    Recipe,
    make_artefact,
    seal,
    some_steps,
)

from retouch.runtime import sampler as sampler_module
from retouch.runtime.artefact import open_artefact
from retouch.runtime.noise import normal
from retouch.runtime.sampler import Sampler
from retouch.runtime.sessions import Placement
from retouch.specs.errors import InputError, SpecError, UndecidedError
from retouch.specs.sampling import Negative

SHAPE = (CHANNELS, CELLS, CELLS)
PROMPTS = ["a cat", "the logo", "an apple on a cloud", "", "a shoe"]
SEEDS = [5, 6, 7, 8, 9]


@pytest.fixture
def open_sampler(tmp_path: Path) -> Callable[[Recipe], Sampler]:
    def make(recipe: Recipe) -> Sampler:
        return Sampler.open(open_artefact(make_artefact(tmp_path / "artefact", recipe)), Placement(threads=1))

    return make


@pytest.fixture
def sampler(open_sampler: Callable[[Recipe], Sampler]) -> Sampler:
    return open_sampler(Recipe(steps=some_steps()))


def reference(sampler: Sampler, prompt: str, negative: str, unit: np.ndarray) -> np.ndarray:
    """The formulas of specs/sampling.py in float64, for one image."""

    def denoise(sample: np.ndarray, timestep: float, text: str) -> np.ndarray:
        (encoder,) = sampler.prompts.encoders
        states = EMBEDDING.astype(np.float64)[list(encoder.tokenizer.tokens(text).ids)]
        words = (states @ PROJECTION.astype(np.float64)).mean(axis=0)
        return 0.2 * sample + 0.001 * timestep + words[:, None, None]

    x = sampler.table.initial_scale * unit.astype(np.float64)
    before = np.zeros_like(x)
    for step in sampler.table.steps:
        given = denoise(step.input_scale * x, step.timestep, prompt)
        without = denoise(step.input_scale * x, step.timestep, negative)
        out = without + step.guidance_weight * (given - without)
        x0 = step.x0_from_sample * x + step.x0_from_output * out
        x = step.next_from_sample * x + step.next_from_x0 * x0 + step.next_from_previous_x0 * before
        before = x0
    return x


@pytest.mark.parametrize("initial_scale", [1.0, 14.6])
def test_latents_equal_the_formulas_in_float64(open_sampler, initial_scale: float) -> None:
    sampler = open_sampler(Recipe(steps=some_steps(), initial_scale=initial_scale))
    latents = sampler.latents(PROMPTS, SEEDS, negative="a cloud", batch_size=2)
    expected = [
        reference(sampler, p, "a cloud", normal(s, SHAPE)) for p, s in zip(PROMPTS, SEEDS, strict=True)
    ]
    np.testing.assert_allclose(latents, expected, rtol=2e-6, atol=2e-6)


def test_an_image_does_not_depend_on_its_neighbors(sampler: Sampler) -> None:
    """Up to the order in which onnxruntime sums: a few units in the last place of a float32."""
    together = sampler.latents(PROMPTS, SEEDS, batch_size=3)
    alone = [sampler.latents([p], [s])[0] for p, s in zip(PROMPTS, SEEDS, strict=True)]
    np.testing.assert_allclose(together, alone, rtol=0, atol=2e-6)
    images = sampler.draw(PROMPTS, SEEDS, batch_size=3)
    singly = np.stack([sampler.draw([p], [s])[0] for p, s in zip(PROMPTS, SEEDS, strict=True)])
    assert np.abs(images.astype(int) - singly).max() <= 1


def test_a_number_of_images_drawn_again_is_the_same_bytes(sampler: Sampler) -> None:
    first = sampler.latents(PROMPTS, SEEDS, batch_size=3)
    np.testing.assert_array_equal(first, sampler.latents(PROMPTS, SEEDS, batch_size=3))
    longer = sampler.latents([*PROMPTS, "a dog"], [*SEEDS, 10], batch_size=3)
    np.testing.assert_array_equal(first[:3], longer[:3])


def test_unguided_steps_skip_the_unconditional_half(open_sampler, monkeypatch: pytest.MonkeyPatch) -> None:
    sampler = open_sampler(Recipe(steps=some_steps((3.0, 1.0, 2.0, 1.0))))
    calls: list[int] = []
    combined: list[float] = []
    whole, combine = type(sampler.denoiser).__call__, sampler.combine

    def counted(session, **arrays):
        if session is sampler.denoiser:
            calls.append(len(arrays["sample"]))
        if session is combine:
            combined.append(float(arrays["guidance_weight"][0]))
        return whole(session, **arrays)

    monkeypatch.setattr(type(sampler.denoiser), "__call__", counted)
    sampler.latents(["a cat"] * 3, [1, 2, 3])
    assert calls == [6, 3, 6, 3]
    assert combined == [3.0, 2.0]
    assert sum(calls) == 3 * sampler.table.evaluations


def test_pixels_are_the_decoded_latents(sampler: Sampler) -> None:
    latents = sampler.latents(["a cat"], [3])
    (image,) = sampler.decode(latents)
    assert image.shape == (CELLS * DOWNSCALE, CELLS * DOWNSCALE, 3)
    values = np.clip(latents[0, :3] / 0.5 / 2 + 0.5, 0, 1) * 255
    expected = np.round(values).repeat(DOWNSCALE, axis=1).repeat(DOWNSCALE, axis=2).transpose(1, 2, 0)
    np.testing.assert_array_equal(image, expected)
    assert 0 < image.mean() < 255


def test_given_noise_takes_the_place_of_the_seeds(sampler: Sampler) -> None:
    noise = np.stack([normal(1, SHAPE), normal(2, SHAPE)])
    given = sampler.latents(["a cat", "a shoe"], [0, 0], noise=noise)
    np.testing.assert_array_equal(given, sampler.latents(["a cat", "a shoe"], [1, 2]))


def test_one_scale_takes_the_place_of_the_weights(open_sampler) -> None:
    sampler = open_sampler(Recipe(steps=some_steps((2.5, 2.5, 2.5))))
    np.testing.assert_array_equal(
        sampler.latents(["a cat"], [1]), sampler.latents(["a cat"], [1], guidance_scale=2.5)
    )
    assert not np.array_equal(
        sampler.latents(["a cat"], [1]), sampler.latents(["a cat"], [1], guidance_scale=4.0)
    )


def test_progress_counts_every_step_of_every_image(sampler: Sampler) -> None:
    done: list[int] = []
    sampler.draw(PROMPTS, SEEDS, on_step=done.append, batch_size=2)
    assert sum(done) == len(PROMPTS) * len(sampler.table.steps)


def test_float_timesteps_keep_their_fraction(open_sampler) -> None:
    sampler = open_sampler(Recipe(steps=some_steps(fraction=0.5), timestep_type=TensorProto.FLOAT))
    expected = reference(sampler, "a cat", "", normal(1, SHAPE))
    np.testing.assert_allclose(sampler.latents(["a cat"], [1])[0], expected, rtol=2e-6, atol=2e-6)


def test_fractions_are_refused_where_the_graph_takes_whole_timesteps(open_sampler) -> None:
    with pytest.raises(InputError, match="fractional timesteps"):
        open_sampler(Recipe(steps=some_steps(fraction=0.5)))


@pytest.mark.parametrize(
    ("recipe", "arguments", "code"),
    [
        (Recipe(steps=some_steps(), guidance_baked=True), {"guidance_scale": 2.0}, "E_GUIDANCE_BAKED"),
        (Recipe(steps=some_steps(), negative=Negative(baked=True)), {"negative": "x"}, "E_NEGATIVE_BAKED"),
        (Recipe(steps=some_steps((1.0, 1.0))), {"negative": "x"}, "E_NEGATIVE_UNUSED"),
        (Recipe(steps=some_steps()), {"guidance_scale": float("nan")}, "E_GUIDANCE"),
        (Recipe(steps=some_steps()), {"size": (7, 8)}, "E_SIZE"),
        (Recipe(steps=some_steps(), halvings=2), {"size": (8, 12)}, "E_SIZE"),
        (Recipe(steps=some_steps(), cells=(CELLS, CELLS)), {"size": (16, 8)}, "E_SIZE"),
    ],
)
def test_what_is_fixed_cannot_be_exchanged(open_sampler, recipe: Recipe, arguments: dict, code: str) -> None:
    with pytest.raises(SpecError) as caught:
        open_sampler(recipe).draw(["a cat"], [1], **arguments)
    assert [fault.code for fault in caught.value.faults] == [code]


def test_another_size_is_drawn_where_the_graph_allows_it(sampler: Sampler) -> None:
    assert sampler.draw(["a cat"], [1], size=(12, 16)).shape == (1, 12, 16, 3)


def test_numbers_that_are_no_colors_are_no_image(sampler: Sampler) -> None:
    with pytest.raises(UndecidedError, match="infinity or NaN"):
        sampler.decode(np.full((1, *SHAPE), np.nan, np.float32))


def test_each_prompt_needs_a_seed(sampler: Sampler) -> None:
    with pytest.raises(ValueError, match="expected one seed a prompt"):
        sampler.draw(["a cat"], [1, 2])


def test_the_graph_of_a_size_is_chosen_and_the_sizes_there_are_are_told(tmp_path: Path) -> None:
    recipe = Recipe(steps=some_steps(), cells=(4, 4), more_cells=((4, 6), (8, 4)))
    artefact = open_artefact(make_artefact(tmp_path / "fixed", recipe))
    folder = make_artefact(tmp_path / "free", Recipe(steps=some_steps()))
    # Two trainings of a tokenizer may number tokens of equal count differently.
    shutil.copytree(tmp_path / "fixed" / "tokenizer", folder / "tokenizer", dirs_exist_ok=True)
    seal(folder)
    free = open_artefact(folder)
    for size in [None, (8, 8), (8, 12), (16, 8)]:
        drawn = Sampler.open(artefact, size=size).draw(["a cat"], [1], size=size)
        np.testing.assert_array_equal(drawn, Sampler.open(free).draw(["a cat"], [1], size=size))
    with pytest.raises(SpecError, match=r"12 x 8 pixels.*\n.*there are: 8x8, 8x12, 16x8"):
        Sampler.open(artefact, size=(12, 8)).draw(["a cat"], [1], size=(12, 8))


def test_memory_is_asked_for_as_many_images_as_are_drawn_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    artefact = open_artefact(make_artefact(tmp_path / "artefact", Recipe(steps=some_steps())))
    network = json.loads(artefact.read("unet/config.json"))
    halves = 1 + any(step.guided for step in artefact.table.steps)
    of_one = 2 * 4 * halves * CELLS**2 * network["block_out_channels"][0]
    monkeypatch.setattr(sampler_module, "available_memory", lambda: 2 * of_one)
    for images in (1, 2):
        Sampler.open(artefact, images=images)
    for images, at_once in ((3, 3), (1000, 8)):
        with pytest.raises(UndecidedError, match=f"for {at_once} images at once"):
            Sampler.open(artefact, images=images)
    with pytest.raises(UndecidedError, match="draw a smaller image"):
        Sampler.open(artefact, size=(4 * CELLS * DOWNSCALE, CELLS * DOWNSCALE))


def test_a_decoder_of_another_size_is_refused_before_anything_is_drawn(tmp_path: Path) -> None:
    folder = make_artefact(
        tmp_path / "artefact", Recipe(steps=some_steps(), cells=(4, 4), more_cells=((4, 6),))
    )
    (folder / "vae_decoder/model.8x12.onnx").unlink()
    seal(folder)
    steps: list[int] = []
    with pytest.raises(SpecError, match="8 x 12 pixels"):
        Sampler.open(open_artefact(folder), size=(8, 12)).draw(
            ["a cat"], [1], size=(8, 12), on_step=steps.append
        )
    assert not steps


def test_what_the_graphs_are_fixed_to_is_drawn_where_no_size_is_asked_for(open_sampler) -> None:
    sampler = open_sampler(Recipe(steps=some_steps(), cells=(CELLS, 2 * CELLS)))
    assert sampler.draw(["a cat"], [1]).shape == (1, CELLS * DOWNSCALE, 2 * CELLS * DOWNSCALE, 3)
