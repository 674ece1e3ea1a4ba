"""Where builds keep what they can compute again: captured graphs, encoded prompts."""

import os
from pathlib import Path


def default_cache() -> Path:
    """Return the cache folder: $RETOUCH_CACHE, else `retouch` in the user's cache folder."""
    chosen = os.environ.get("RETOUCH_CACHE")
    if chosen:
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "retouch"
