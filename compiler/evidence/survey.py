"""What do images of a pipeline show? Each question is drawn for once: answers are kept in the cache.

An answer's key is the digest of everything that it depends on: every tensor, config and token that draws,
the sampling table, the map of text states, prompts, seeds, the judge's own graph, and library versions. So
a loop that was stopped goes on where it was, and a rebuild repeats its bytes without drawing.
"""

import hashlib
import json
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from types import TracebackType

from ...runtime.judges import Judge
from ...specs.canonical import canonical, digest_of
from ..digests import feed
from ..environment import environment
from ..ir import Pipeline
from ..load import MODEL_ROLES
from ..store import Store
from ..text.encode import tokenizer_of
from ..text.text_map import TextMap
from .trial import Drawer, pipeline_drawer


class Survey:
    """Asks a judge about images of a pipeline; a context that emits the pipeline at the first drawing."""

    def __init__(self, pipeline: Pipeline, judge: Judge, cache: Path) -> None:
        self._pipeline, self._judge, self._cache = pipeline, judge, cache
        self._stack = ExitStack()
        self._drawer: Drawer | None = None

    def __enter__(self) -> "Survey":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def ask(
        self, text_map: TextMap | None, prompts: Sequence[str], seeds: Sequence[int], questions: Sequence[str]
    ) -> dict[str, list[str]]:
        """Return the judge's answers to each question, one an image, text states mapped by a map if given."""
        store, key = Store(self._cache), self._key(text_map, prompts, seeds, questions)
        kept = store.get(key)
        if kept is not None:
            return json.loads(kept)
        draw = self._draw if text_map is None else self._draw.through(text_map)
        images = draw(prompts, seeds)
        answers = {question: self._judge.top1(images, question) for question in questions}
        store.put(key, canonical(answers))
        return answers

    @property
    def _draw(self) -> Drawer:
        if self._drawer is None:
            self._drawer = self._stack.enter_context(pipeline_drawer(self._pipeline, self._cache))
        return self._drawer

    @cached_property
    def _about(self) -> str:
        return digest_of(
            {"pipeline": fingerprint(self._pipeline), "judge": self._judge.sha256, "with": environment()}
        )

    def _key(
        self, text_map: TextMap | None, prompts: Sequence[str], seeds: Sequence[int], questions: Sequence[str]
    ) -> str:
        parts = {} if text_map is None else text_map.parts
        maps = {kind: hashlib.sha256(part.read().tobytes()).hexdigest() for kind, part in parts.items()}
        ids = [
            [list(tokenizer_of(self._pipeline, encoder).tokens(prompt).ids) for prompt in prompts]
            for encoder in self._pipeline.family.text_encoders
        ]
        return digest_of([self._about, maps, ids, list(seeds), list(questions)])


def fingerprint(pipeline: Pipeline) -> str:
    """Return the SHA-256 of what a pipeline draws with, apart from its tokenizers; every tensor is read."""
    digest = hashlib.sha256()
    for component in pipeline.components.values():
        if component.role in MODEL_ROLES:
            digest.update(canonical({"name": component.name, "config": dict(component.config)}))
            feed(digest, pipeline.tensors_of(component.name).items())
    about = {
        "tensors": digest.hexdigest(),
        "edits": [asdict(edit) for edit in pipeline.graph_edits],
        "table": pipeline.sampling.table().model_dump(mode="json", by_alias=True),
    }
    return digest_of(about)
