"""What several test files share and what is dear to make: the tiny pipeline, and captured graphs."""

import os
from collections.abc import Iterator
from pathlib import Path

# Tests run one process a core: threads of their own would only wait for each other. Libraries ask at import.
os.environ |= {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}

import pytest
from hypothesis import settings
from tiny import make_tiny

# How long an example takes says more about the machine than about the code.
settings.register_profile("retouch", deadline=None, max_examples=60)
settings.load_profile("retouch")


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a tiny Stable Diffusion pipeline; do not write to it."""
    return make_tiny(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="session")
def skeletons(request: pytest.FixtureRequest) -> Path:
    """Return a cache of captured graphs that outlives the run: its keys hold the capturing code's digest."""
    return Path(request.config.cache.mkdir("skeletons"))


@pytest.fixture(scope="session", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep what tests encode out of the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RETOUCH_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield
