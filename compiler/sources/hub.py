"""A model of a hub at a pinned commit -> the folder of its files in the local cache.

Only the files that a build reads are fetched, weights only as safetensors. What the cache holds whole is
opened without asking the hub: a commit never changes. Access, resuming, progress (on stderr), HF_ENDPOINT,
HF_HUB_OFFLINE and the cache itself are those of huggingface_hub.
"""

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import HfApi, hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from ...specs.errors import Fault, InputError, RetouchError, raise_all
from ..families import Family
from ..headers import PICKLE_SUFFIXES
from ..layout import TOKENIZER
from . import MODEL_ROLES
from .folder import INDEX, WEIGHTS, config_name, family_named, index_name, read_json, shard_names

Read = Callable[[str], Path]


def snapshot(repo: str, revision: str, variant: str | None = None, given: Collection[str] = ()) -> Path:
    """Return the cache's folder of a hub's model, with every file that a build reads.

    Args:
        repo: owner/name.
        revision: a commit, 40 hex digits.
        variant: of the weights, such as fp16; None means the plain ones.
        given: components whose weights come from elsewhere.

    Raises:
        InputError: the model does not exist, may not be read, or lacks a file; or a link of the cache leads
            out of it.
    """
    with told(repo, revision):
        folder = _cached(repo, revision, variant, given) or _fetched(repo, revision, variant, given)
    _check_links(folder)
    return folder


def wanted(
    names: Collection[str], family: Family, variant: str | None, given: Collection[str], read: Read
) -> list[str]:
    """Return the files of a listing that a build reads, model_index.json first.

    Args:
        read: returns a file of the listing, fetched where need be: indexes of shards are looked into.

    Raises:
        InputError: a component lacks its config or weights, with all faults.
    """
    chosen, faults = [INDEX], []
    for component, role in family.roles.items():
        if role == "tokenizer":
            chosen += [f"{component}/{name}" for name in TOKENIZER if f"{component}/{name}" in names]
            continue
        config = f"{component}/{config_name(role)}"
        if config in names:
            chosen.append(config)
        else:
            faults.append(Fault("E_FILE", "the model has no such file", config))
        if role in MODEL_ROLES and component not in given:
            weights = _weights(names, component, variant, read)
            chosen += weights
            faults += [] if weights else [_no_weights(names, component, variant)]
    raise_all(InputError, faults)
    return chosen


def _weights(names: Collection[str], component: str, variant: str | None, read: Read) -> list[str]:
    """Return a component's weights: the one file, or the index of shards and what it lists."""
    middle = f".{variant}" if variant else ""
    for stem in WEIGHTS:
        index = f"{component}/{index_name(stem, variant)}"
        if index in names:
            return [index, *(f"{component}/{name}" for name in shard_names(read(index)))]
        if f"{component}/{stem}{middle}.safetensors" in names:
            return [f"{component}/{stem}{middle}.safetensors"]
    return []


def _no_weights(names: Collection[str], component: str, variant: str | None) -> Fault:
    """Say what a component has instead of the weights that were asked for."""
    there = sorted(name.rpartition("/")[2] for name in names if name.startswith(f"{component}/"))
    kinds = sorted({name.split(".")[1] for name in there
                    if name.endswith(".safetensors") and name.count(".") == 2})  # fmt: skip
    if kinds:
        hint = (
            f"add `variant: {kinds[0]}` under `source`" if not variant else f"there are: {', '.join(kinds)}"
        )
        return Fault("E_FILE", f"no {variant or 'plain'} weights, only variants", component, hint)
    if any(Path(name).suffix in PICKLE_SUFFIXES for name in there):
        hint = "look for a commit with safetensors; hubs often have one on a branch of the model"
        return Fault("E_PICKLE", "only pickled weights, which are refused", component, hint)
    return Fault("E_FILE", f"no {variant or 'plain'} weights in safetensors", component)


def _cached(repo: str, revision: str, variant: str | None, given: Collection[str]) -> Path | None:
    """Return the cache's folder where it holds every file already; None where it does not."""
    index = try_to_load_from_cache(repo, INDEX, revision=revision)
    if not isinstance(index, str):
        return None
    folder = Path(index).parent
    names = {file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()}
    try:
        files = wanted(
            names, family_named(folder, read_json(folder / INDEX)), variant, given, folder.joinpath
        )
    except InputError:
        return None
    return folder if set(files) <= names and _tokenized(files) else None


def _fetched(repo: str, revision: str, variant: str | None, given: Collection[str]) -> Path:
    """Fetch what is missing, and return the cache's folder."""

    def fetch(name: str) -> Path:
        return Path(hf_hub_download(repo, name, revision=revision))

    folder = fetch(INDEX).parent
    listing = HfApi().model_info(repo, revision=revision)
    if listing.sha != revision:
        raise InputError(Fault("E_HUB", f"the hub answers with commit {listing.sha}, not {revision}", repo))
    names = {file.rfilename for file in listing.siblings or ()}
    family = family_named(folder, read_json(folder / INDEX))
    for name in wanted(names, family, variant, given, fetch):
        fetch(name)
    return folder


def _tokenized(files: Collection[str]) -> bool:
    """Whether a tokenizer is among the files: a listing of the cache cannot tell none from not yet."""
    return any(name.startswith("tokenizer") for name in files)


def _check_links(folder: Path) -> None:
    """Refuse links that lead out of the model's part of the cache: blobs/ beside snapshots/COMMIT/."""
    room = folder.parents[1].resolve()
    faults = [
        Fault("E_LINK", "a link in the cache leads out of the model's folder", str(file))
        for file in sorted(folder.rglob("*"))
        if not file.resolve().is_relative_to(room)
    ]
    raise_all(InputError, faults)


@contextmanager
def told(repo: str, revision: str) -> Iterator[None]:
    """Turn what huggingface_hub raises into one of ours, with what to do about it."""
    where = f"{repo}@{revision[:12]}"
    try:
        yield
    except RetouchError:
        raise
    except GatedRepoError as error:
        hint = "accept its terms on the model's page, then `hf auth login`"
        raise InputError(Fault("E_HUB", "the model is gated", where, hint)) from error
    except RevisionNotFoundError as error:
        raise InputError(Fault("E_HUB", "the model has no such commit", where)) from error
    except RepositoryNotFoundError as error:
        hint = "check the spelling; for a private model, `hf auth login`"
        message = "the hub has no such model, or does not show it"
        raise InputError(Fault("E_HUB", message, where, hint)) from error
    except (OfflineModeIsEnabled, LocalEntryNotFoundError) as error:
        hint = "is the network there, and HF_HUB_OFFLINE unset? what has been fetched is kept"
        message = "the cache lacks a file, and the hub cannot be asked"
        raise InputError(Fault("E_HUB", message, where, hint)) from error
    except EntryNotFoundError as error:
        hint = "only models in diffusers' layout can be opened from a hub; fetch a single file yourself"
        raise InputError(
            Fault("E_HUB", f"a file cannot be had: {_first_line(error)}", where, hint)
        ) from error
    except Exception as error:  # Its HTTP library, and with it the errors, differ between versions.
        hint = "try again: what has been fetched is kept, and fetching goes on from there"
        raise InputError(Fault("E_HUB", f"fetching failed: {_first_line(error)}", where, hint)) from error


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
