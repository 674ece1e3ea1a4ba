"""Hub models against a stand-in of the hub on loopback: what is fetched, kept, resumed and refused."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hub import COMMIT, REPO, Hub, serve
from pydantic import TypeAdapter, ValidationError
from safetensors.numpy import save_file
from tiny import make_tiny

from retouch.compiler.families import family_of
from retouch.compiler.load import open_source
from retouch.compiler.sources.hub import told, wanted
from retouch.specs.errors import InputError, SpecError
from retouch.specs.schema import Source

PLAN = "import sys; from retouch.runtime.cli import main; sys.exit(main())"
SNAPSHOT = """
import json, sys
from retouch.compiler.sources.hub import snapshot
from retouch.specs.errors import RetouchError
try:
    print(snapshot(**json.loads(sys.argv[1])))
except RetouchError as error:
    print(error)
    sys.exit(error.exit_code)
"""
WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a repository as people publish them: with variants, pickles and files of other tools beside."""
    folder = make_tiny(tmp_path_factory.mktemp("repository") / "model")
    shutil.copy(folder / WEIGHTS, folder / WEIGHTS.replace(".safetensors", ".fp16.safetensors"))
    (folder / WEIGHTS).with_suffix(".bin").write_bytes(b"\x80\x04")
    for name in ("README.md", "model.ckpt", "unet/model.onnx", "safety_checker/model.safetensors"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"never fetched")
    return folder


@pytest.fixture
def hub(model: Path) -> Iterator[Hub]:
    with serve(model) as served:
        yield served


def ask(hub: Hub, folder: Path, offline: bool = False, **source: Any) -> tuple[Path | None, str]:
    """Ask for a snapshot in a process of its own; return its folder, or None and what was raised."""
    asked = {"repo": REPO, "revision": COMMIT, **source}
    done = run(hub, folder, offline, SNAPSHOT, json.dumps(asked))
    assert done.returncode in (0, 2), done.stderr
    return (Path(done.stdout.strip()), "") if done.returncode == 0 else (None, done.stdout)


def run(
    hub: Hub, folder: Path, offline: bool, code: str, *arguments: str
) -> subprocess.CompletedProcess[str]:
    """Run Python with the hub's address and a cache below `folder`: huggingface_hub reads them once."""
    environment = {
        **{key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING"))},
        "HF_ENDPOINT": hub.endpoint,
        "HF_HOME": str(folder / "hf"),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_OFFLINE": "1" if offline else "0",
        "NO_PROXY": "*",
    }
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


def fetched(hub: Hub) -> set[str]:
    start = f"/{REPO}/resolve/{COMMIT}/"
    return {path.removeprefix(start) for path in hub.files()}


def test_a_spec_with_a_hubs_model_is_planned(hub: Hub, tmp_path: Path) -> None:
    spec = {"schema": 1, "name": "hub", "version": "1", "emit": [{"diffusers": {}}]}
    spec |= {"source": {"model": REPO, "revision": COMMIT}}
    (tmp_path / "edit.yaml").write_text(json.dumps(spec))
    done = run(hub, tmp_path, False, PLAN, "plan", str(tmp_path / "edit.yaml"), "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["plan"]["source"]["model"] == REPO


def test_only_what_a_build_reads_is_fetched_and_then_nothing(hub: Hub, tmp_path: Path) -> None:
    folder, message = ask(hub, tmp_path)
    assert folder is not None, message
    assert fetched(hub) == {
        "model_index.json",
        "scheduler/scheduler_config.json",
        "text_encoder/config.json",
        "text_encoder/model.safetensors",
        *(f"tokenizer/{name}" for name in ("merges.txt", "special_tokens_map.json", "tokenizer.json")),
        *(f"tokenizer/{name}" for name in ("tokenizer_config.json", "vocab.json")),
        "unet/config.json",
        WEIGHTS,
        "vae/config.json",
        "vae/diffusion_pytorch_model.safetensors",
    }
    hub.asked.clear()
    assert ask(hub, tmp_path) == (folder, "")
    assert ask(hub, tmp_path, offline=True) == (folder, "")
    assert hub.asked == []


def test_a_broken_download_goes_on_where_it_stopped(model: Path, tmp_path: Path) -> None:
    shutil.copytree(model, tmp_path / "large")
    # more than huggingface_hub writes at once, so that half of it is on disk
    save_file({"x": np.arange(6 << 20, dtype=np.int32)}, tmp_path / "large" / WEIGHTS)
    with serve(tmp_path / "large") as hub:
        hub.break_once = Path(WEIGHTS).name
        folder, message = ask(hub, tmp_path)
    assert folder is not None, message
    assert hub.resumed == [Path(WEIGHTS).name]
    assert (folder / WEIGHTS).read_bytes() == (tmp_path / "large" / WEIGHTS).read_bytes()


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"revision": "f" * 40}, "no such commit"),
        ({"repo": "someone/else"}, "no such model"),
        ({"variant": "fp16"}, "no fp16 weights"),
    ],
)
def test_what_cannot_be_had_is_said(source: dict[str, Any], message: str, hub: Hub, tmp_path: Path) -> None:
    folder, said = ask(hub, tmp_path, **source)
    assert folder is None
    assert message in said


def test_a_commit_is_pinned() -> None:
    with pytest.raises(ValidationError, match="revision"):
        TypeAdapter(Source).validate_python({"model": REPO, "revision": "main"})
    with pytest.raises(SpecError, match=r"add `revision:`"):
        open_source(Source(REPO), Path(), "ddim", 5)


def test_offline_with_an_empty_cache(hub: Hub, tmp_path: Path) -> None:
    folder, message = ask(hub, tmp_path, offline=True)
    assert folder is None
    assert "the hub cannot be asked" in message
    assert hub.asked == []


def test_a_failure_on_the_way_is_ours() -> None:
    with (
        pytest.raises(InputError, match=r"fetching failed: refused\n.*goes on from there"),
        told(REPO, COMMIT),
    ):
        raise ConnectionError("refused")


def test_a_link_that_leads_out_of_the_cache_is_refused(hub: Hub, tmp_path: Path) -> None:
    folder, _ = ask(hub, tmp_path)
    assert folder is not None
    (tmp_path / "secret.json").write_text("{}")
    link = folder / "tokenizer" / "vocab.json"
    link.unlink()
    link.symlink_to(tmp_path / "secret.json")
    folder, message = ask(hub, tmp_path)
    assert folder is None
    assert "leads out of the model's folder" in message


def listed(*names: str, variant: str | None = None) -> list[str]:
    plain = [f"{part}/config.json" for part in ("text_encoder", "unet", "vae")]
    every = {*plain, "scheduler/scheduler_config.json", *names}
    family = family_of("StableDiffusionPipeline")
    return wanted(every, family, variant, ("text_encoder", "vae"), lambda name: Path(name))


def test_weights_are_chosen_by_variant_and_never_pickles(tmp_path: Path) -> None:
    stem = "unet/diffusion_pytorch_model"
    assert f"{stem}.safetensors" in listed(f"{stem}.safetensors", f"{stem}.fp16.safetensors", f"{stem}.bin")
    chosen = listed(f"{stem}.safetensors", f"{stem}.fp16.safetensors", variant="fp16")
    assert f"{stem}.fp16.safetensors" in chosen
    assert f"{stem}.safetensors" not in chosen
    with pytest.raises(InputError, match=r"no plain weights.*\n.*`variant: fp16`"):
        listed(f"{stem}.fp16.safetensors")
    with pytest.raises(InputError, match="only pickled weights"):
        listed(f"{stem}.bin")
    with pytest.raises(InputError, match="no plain weights in safetensors"):
        listed()


@pytest.mark.parametrize("shard", ["../../../escape.safetensors", "/etc/passwd", "shard.bin"])
def test_a_hostile_index_of_shards_is_refused(
    shard: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    index = Path("unet/diffusion_pytorch_model.safetensors.index.json")
    index.parent.mkdir()
    index.write_text(json.dumps({"weight_map": {"a": shard}}))
    with pytest.raises(InputError, match="not a plain safetensors file name"):
        listed(index.as_posix())
