"""Which shapes do an artefact's engines take? Batches are fitted to them, so that callers need not know.

An engine is built for a range of batches and image sizes, or for one. A batch that is too large runs in
parts, one that is too small is filled up with copies of its last row, whose results are thrown away.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import PurePosixPath
from typing import Any

import numpy as np
from pydantic import TypeAdapter, ValidationError

from ..specs.errors import Fault, IntegrityError
from .artefact import MANIFEST, Artefact
from .sessions import Session, Taken

Run = Callable[[dict[str, Any]], Sequence[Any]]
WRAPPER = "model.onnx"  # the graph that refers to an engine beside it
PROFILE = TypeAdapter(dict[str, Taken])


def taken_by(artefact: Artefact, path: str) -> dict[str, Taken]:
    """Return what the manifest says of the engine of a graph: the shapes that each of its inputs takes.

    That is nothing for inputs of one shape, and for `combine.onnx`, which is no engine.

    Raises:
        IntegrityError: what it says are no shapes.
    """
    graph = PurePosixPath(artefact.target, path)
    subject = str(graph.parent) if graph.name == WRAPPER else ""
    claims = [evidence for target in artefact.manifest.targets for evidence in target.evidence]
    profiles = [
        each.details["profile"] for each in claims if each.subject == subject and "profile" in each.details
    ]
    try:
        return PROFILE.validate_python(profiles[0]) if profiles else {}
    except ValidationError as error:
        message = f"the shapes of the engine `{subject}` cannot be read"
        raise IntegrityError(Fault("E_MANIFEST", message, MANIFEST)) from error


def fitted(session: Session, taken: Mapping[str, Taken]) -> Session:
    """Return a session that takes batches of any size; other dimensions are as the engine has them."""
    if not taken:
        return session
    inputs = {name: replace(port, taken=taken.get(name)) for name, port in session.inputs.items()}
    return Session(inputs, session.outputs, _in_parts(session.run, taken))


def _in_parts(run: Run, taken: Mapping[str, Taken]) -> Run:
    first = next(iter(taken))
    least, most = taken[first].smallest[0], taken[first].largest[0]

    def run_in_parts(feeds: dict[str, Any]) -> Sequence[Any]:
        count = len(feeds[first])
        pieces = []
        for start in range(0, count, most):
            rows = np.minimum(np.arange(start, start + max(least, min(most, count - start))), count - 1)
            part = {name: value[rows] if name in taken else value for name, value in feeds.items()}
            pieces.append([output[: count - start] for output in run(part)])
        return [np.concatenate(outputs) for outputs in zip(*pieces, strict=True)]

    return run_in_parts
