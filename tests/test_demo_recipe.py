"""The demo model: its recipe runs from drawings to card, and what ships is what its card says."""

import hashlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT))  # the recipe is no part of the package

for needed in ("diffusers", "peft", "resvg_py", "torch", "transformers", "onnx"):
    pytest.importorskip(needed)

import torch  # noqa: E402

from recipes.demo_model import captions, card, denoiser, fetch, judges, scenes, sprites, training, world  # noqa: E402
from recipes.demo_model.__main__ import STAGES, Recipe  # noqa: E402

FEW = ["dog", "apple", "pistol", "apple logo", "nike logo", "doctor"]
DEMO = ROOT / "specs" / "demo"


@pytest.fixture(scope="session")
def few_sprites() -> sprites.Sprites:
    """Real drawings of a few concepts, so that no package need be fetched."""
    folder = ROOT / "tests" / "data" / "sprites"
    said = json.loads((folder / "sheet.json").read_text())
    few = world.read_world().only(FEW)
    sheet = np.asarray(Image.open(folder / "sheet.png").convert("RGBA"))
    columns, size = said["columns"], sprites.SIZE
    tiles = sheet.reshape(-1, size, columns, size, 4).swapaxes(1, 2).reshape(-1, size, size, 4)
    shows = [(few.index(label), *rest) for label, *rest in said["shows"]]
    return sprites.Sprites(tiles[: len(shows)], np.array(shows, dtype=np.int16))


@pytest.fixture(scope="session")
def painter(few_sprites: sprites.Sprites) -> scenes.Painter:
    return scenes.Painter(world.read_world().only(FEW), few_sprites)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, few_sprites: sprites.Sprites) -> Recipe:
    """Every stage but the two that make the drawings, at a scale that learns nothing."""
    recipe = Recipe(tmp_path_factory.mktemp("recipe"), scale="tiny", concepts=FEW)
    few_sprites.save(recipe.work / "sprites.npz")
    for name, stage in STAGES.items():
        if name not in ("fetch", "sprites"):
            stage(recipe)
    return recipe


def test_every_stage_runs(finished: Recipe) -> None:
    told = json.loads((finished.out / "figures.json").read_text())
    assert set(told["recognition"]["concepts"]) == set(FEW)
    assert (finished.out / "README.md").read_text() == card.render(finished.out)


def test_a_finished_stage_does_nothing(finished: Recipe) -> None:
    weights = finished.work / "unet" / "diffusion_pytorch_model.safetensors"
    before = weights.stat().st_mtime_ns
    finished.unet()
    assert weights.stat().st_mtime_ns == before


def trained(folder: Path, stops: list[int | None]) -> list[float]:
    """Return what a linear model has learned after legs that stop at these steps."""
    plan = training.Plan(steps=6, batch=4, rate=0.1, average=0.9)
    weights: list[float] = []
    for stop in stops:
        torch.manual_seed(0)
        model = torch.nn.Linear(3, 1)

        def loss(dice: training.Dice, model: torch.nn.Linear = model) -> torch.Tensor:
            return (model(torch.randn(4, 3, generator=dice.torch)) - dice.numpy.random()).square().mean()

        training.train("stage", model, loss, plan, folder, seed=3, stop_at=stop)
        weights = model.weight.flatten().tolist()
    return weights


def test_a_stopped_run_goes_on_as_if_it_had_not_stopped(tmp_path: Path) -> None:
    assert trained(tmp_path / "once", [None]) == trained(tmp_path / "twice", [2, None])


def test_adapter_layouts_hold_the_same(finished: Recipe) -> None:
    from safetensors.torch import load_file

    plain = load_file(finished.out / "adapters" / "twemoji_style.safetensors")
    kohya = load_file(finished.out / "adapters" / "twemoji_style_kohya.safetensors")
    assert len(kohya) == len(plain) / 2 * 3  # two matrices each, and an alpha
    name = next(name for name in plain if name.endswith("lora_A.weight"))
    twin = "lora_" + name.removesuffix(".lora_A.weight").replace(".", "_") + ".lora_down.weight"
    assert kohya[twin].equal(plain[name])


def test_training_never_draws_what_is_held_out(painter: scenes.Painter) -> None:
    rng = np.random.default_rng(0)
    scales, shifts = painter.place(rng, 500, denoiser.RANGE)
    assert not ((scales > scenes.HELD_OUT_SCALE[0]) & (scales < scenes.HELD_OUT_SCALE[1])).any()
    assert not ((abs(shifts) > scenes.HELD_OUT_SHIFT[0]) & (abs(shifts) < scenes.HELD_OUT_SHIFT[1])).any()
    within = scenes.Range(scale=(0.7, 1.0), shift=0.1, unnamed_colors=1.0)
    backgrounds = np.array([painter.imagine(rng, within)[3] for _ in range(500)])
    distances = np.linalg.norm(backgrounds[:, None] - painter.held_out, axis=-1)
    assert distances.min() >= scenes.HELD_OUT_COLOR_RADIUS


def test_captions_follow_the_grammar() -> None:
    whole = world.read_world()
    said = captions.Words(whole.index("doctor"), style=0, gender=1, skin=3, color=6)
    assert captions.caption(whole, said) == "a dark skin female doctor in noto style on a blue background"
    assert captions.caption(whole, captions.Words(whole.index("apple logo"))) == "the apple logo"
    assert captions.caption(whole, captions.Words(whole.index("apple"))) == "an apple"


def test_unqualified_professions_follow_their_share(painter: scenes.Painter) -> None:
    drawn = painter.scenes(np.random.default_rng(0), 2000, denoiser.RANGE)
    number = painter.world.index("doctor")
    unsaid = (drawn.shows[:, 0] == number) & (drawn.says[:, 2] == sprites.NONE)
    documented = painter.world.concepts[number].men
    assert documented is not None
    assert abs((drawn.shows[unsaid, 2] == 0).mean() - documented) < 0.05


def test_other_packages_are_refused(tmp_path: Path) -> None:
    (tmp_path / fetch.read_sources()[0].archive).write_bytes(b"something else")
    with pytest.raises(SystemExit, match="not the file this recipe was written for"):
        fetch.fetch(tmp_path)


def test_shipped_model_draws() -> None:
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(DEMO / "model", safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)
    noise = [torch.Generator().manual_seed(seed) for seed in range(4)]
    images = pipeline(
        ["the nike logo"] * 4, num_inference_steps=12, guidance_scale=3.0, generator=noise, output_type="np"
    ).images  # pyright: ignore[reportAttributeAccessIssue]
    judge = judges.Judge(DEMO / "judges" / "classifier.onnx")
    answers = judge.answers(np.moveaxis(np.asarray(images), 3, 1).astype(np.float32))["concept"]
    assert (answers == world.read_world().index("nike logo")).mean() >= 0.75


def test_shipped_card_agrees_with_the_figures() -> None:
    assert (DEMO / "README.md").read_text() == card.render(DEMO)


def test_shipped_weights_are_small() -> None:
    assert sum(card.weights(DEMO).values()) <= 40e6


@pytest.mark.parametrize("name", ["classifier", "clip"])
def test_shipped_judges_know_the_concepts(name: str) -> None:
    about = json.loads((DEMO / "judges" / f"{name}.json").read_text())
    known = json.loads((DEMO / "concepts.json").read_text())["concepts"]
    assert about["labels"]["concept"] == [concept["label"] for concept in known]
    assert about["sha256"] == hashlib.sha256((DEMO / "judges" / f"{name}.onnx").read_bytes()).hexdigest()
