"""Erase concepts by training low-rank changes of the text path: for when closed form fails its gate."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict, Field

from ..compiler.contract import Erasure, Observer, Pass, Stage
from ..compiler.ir import Pipeline
from ..compiler.tensors import Array, Edited, Shared
from ..compiler.text.tokenizer import load_tokenizer
from ..compiler.work import Work
from ..runtime.statistics import decimal
from ..specs.errors import Fault, InputError, SpecError, quoted, raise_all
from ..specs.manifest import Decimal, Evidence
from ._course import Course, work_of
from ._templates import TEMPLATES, Text, fill, template_faults

Floats = NDArray[np.floating]
Where = Literal["cross_attention", "text_encoder"]
Start = Literal["unedited", "linear"]

# The layer that HiRM trains: the first one's linear maps. Source: HiRM (ICLR 2026), section 4.
FIRST_LAYER = ("*encoder.layers.0.self_attn.*_proj.weight", "*encoder.layers.0.mlp.fc?.weight")


@dataclass(frozen=True)
class TrainedConcept:
    """A concept, other names that it goes by, and what its prompts are led to; by default nothing."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", strict=True)

    name: Text
    towards: Annotated[str, Field(max_length=500)] = ""
    synonyms: tuple[Text, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        return (self.name, *self.synonyms)


@dataclass(frozen=True)
class EraseByTraining(Pass):
    """Train until prompts for a concept draw its guide, and what else the model reads stays.

    On samples that the model draws for the concept, its prediction learns to be that of `towards`, less
    `strength` times the concept's own direction. What is learned is a change of rank `rank` of each key and
    value matrix of cross-attention, or of the linear maps in the text encoder's first layer (`where`); it
    is fused afterwards. With `start: linear` it is learned on top of the closed-form erasure of the same
    concepts (`erase_concepts`): the default where every concept has a guide and keys and values are trained.

    What stays is `preserve`, the guides, siblings of each concept by the `neighbors` closest words and
    `vocabulary` words of the tokenizer: `keep_weight` weighs how far predictions on samples of them move,
    and how far what the denoiser reads of them does. After `steps` steps, `rounds` times: textual inversion
    looks for a word that still draws the concept, and another `steps` steps erase that word too.

    Memory: denoiser and text encoders in float32, and what a gradient of the denoiser holds for `batch`
    images. Training that was stopped goes on from the build cache; the same spec gives the same bytes.

    Source: Gandikota et al., Erasing Concepts from Diffusion Models, 2303.07345, eq. (6); Srivatsan et
    al., STEREO, 2408.16807; Hu et al., LoRA, 2106.09685.
    Limits: what is trained is the text path, so this is avoidance too; a word learned after the last
    round, images as prompts, and adapters merged later can bring a concept back.
    """

    stage = Stage.ERASE

    concepts: Annotated[tuple[TrainedConcept, ...], Field(min_length=1)]
    preserve: tuple[Text, ...] = ()
    start: Start | None = None
    where: Where = "cross_attention"
    templates: Annotated[tuple[Text, ...], Field(min_length=1)] = TEMPLATES
    strength: Annotated[float, Field(ge=0, le=10)] = 0.0
    rank: Annotated[int, Field(ge=1, le=128)] = 4
    steps: Annotated[int, Field(ge=1, le=100_000)] = 160
    rounds: Annotated[int, Field(ge=0, le=20)] = 1
    rate: Annotated[float, Field(gt=0, le=1)] = 0.02
    batch: Annotated[int, Field(ge=1, le=64)] = 4
    keep_weight: Annotated[float, Field(ge=0, le=1e6)] = 1.0
    neighbors: Annotated[int, Field(ge=0, le=1000)] = 10
    vocabulary: Annotated[int, Field(ge=0, le=100_000)] = 200
    seed: Annotated[int, Field(ge=0, le=2**31)] = 0
    residual_at_most: Decimal | None = None
    drift_at_most: Decimal | None = None

    def run(self, pipeline: Pipeline) -> Pipeline:
        raise_all(SpecError, self._faults(pipeline))
        targets = self._targets(pipeline)
        sizes = {name: self.rank * sum(shape) for name, shape in targets.items()}
        factors = Shared(lambda: self._factors(pipeline), np.dtype(np.float32), (sum(sizes.values()),))
        begun = self.begun(pipeline)
        changed, place = {}, 0
        for name, shape in targets.items():
            tensor = begun.tensors[name]
            rule = _Add(place, shape, self.rank)
            changed[name] = Edited((tensor, factors), rule, tensor.dtype, tensor.shape, self.name)
            place += sizes[name]
        return begun.with_tensors(changed)

    def begun(self, pipeline: Pipeline) -> Pipeline:
        """Return the pipeline that training begins at; the closed form is solved when a tensor is read."""
        if self.begins_at == "unedited":
            return pipeline
        from ._warm_start import closed_form

        return closed_form(self).run(pipeline)

    def observers(self, before: Pipeline, after: Pipeline) -> Iterable[Observer]:
        del after
        return [_Outcome(self, before)]

    def statements(self, before: Pipeline, after: Pipeline) -> list[Evidence]:
        """Say how the loss fell; what was trained is read from the build cache."""
        from ._esd import losses

        # A build may ask while it writes, before any tensor was read: that is what trains.
        after.tensors[min(self._targets(before))].read()

        seen = losses(self._checkpoint(before), self.course(before))
        tenth = max(1, len(seen) // 10)
        details = {"first": decimal(float(np.mean(seen[:tenth]))), "mean_over": tenth}
        last = float(np.mean(seen[-tenth:]))
        return [
            self.measured("train.loss", f"{len(self.concepts)} concepts", last, len(seen), details=details)
        ]

    def work(self, targets: int = 1) -> Work:
        return work_of(self, targets)

    def erasures(self) -> Iterable[Erasure]:
        return [Erasure(concept.names, concept.towards) for concept in self.concepts]

    def course(self, pipeline: Pipeline) -> Course:
        """Return what to train, in numbers; prompts filled in."""
        return Course(
            concepts=tuple(tuple(self._filled(concept.names)) for concept in self.concepts),
            guides=tuple(tuple(self._guides(concept)) for concept in self.concepts),
            kept=("", *self._filled(self.preserved), *self._unnamed(pipeline)),
            targets=self._targets(pipeline),
            rank=self.rank,
            steps=self.steps,
            rounds=self.rounds,
            rate=self.rate,
            strength=self.strength,
            keep_weight=self.keep_weight,
            batch=self.batch,
            seed=self.seed,
        )

    @property
    def begins_at(self) -> Start:
        """Where training begins: by default at the closed form, where there is one in the same place."""
        if self.start is not None:
            return self.start
        guided = all(concept.towards for concept in self.concepts)
        return "linear" if guided and self.where == "cross_attention" else "unedited"

    @property
    def preserved(self) -> tuple[str, ...]:
        """What is kept: the prompts named and every guide, each once."""
        guides = (concept.towards for concept in self.concepts if concept.towards)
        return tuple(dict.fromkeys([*self.preserve, *guides]))

    def _guides(self, concept: TrainedConcept) -> list[str]:
        """Return what each of a concept's prompts is led to; the empty prompt has no template."""
        if not concept.towards:
            return [""] * len(self._filled(concept.names))
        return self._filled([concept.towards] * len(concept.names))

    def _filled(self, texts: Iterable[str]) -> list[str]:
        return [fill(template, text) for text in texts for template in self.templates]

    def _unnamed(self, pipeline: Pipeline) -> list[str]:
        """Return what is kept though nobody named it, each in one template in turn.

        Siblings of the concepts, and words of the vocabulary that no concept's name holds.
        """
        from ._neighbors import neighbor_prompts
        from ._preserving import vocabulary_prompts

        concepts = [concept.name for concept in self.concepts]
        names = [name for concept in self.concepts for name in concept.names]
        siblings = neighbor_prompts(pipeline, concepts, self.neighbors, names)
        texts = [*siblings, *vocabulary_prompts(pipeline, self.vocabulary, names)]
        return [fill(self.templates[i % len(self.templates)], text) for i, text in enumerate(texts)]

    def _targets(self, pipeline: Pipeline) -> dict[str, tuple[int, ...]]:
        """Return the matrices that change and their shapes, sorted by name.

        Raises:
            InputError: one of them is no matrix.
        """
        if self.where == "text_encoder":
            chosen = [("text", pattern) for pattern in FIRST_LAYER]
        else:
            inputs = pipeline.family.text_inputs
            chosen = [("denoiser", each.pattern) for each in inputs if each.reads == "sequence"]
        found = {name: t.shape for role, pattern in chosen for name, t in pipeline.select(role, pattern)}
        raise_all(
            InputError,
            [
                Fault("E_SHAPE", f"shape {shape}, expected two axes", n)
                for n, shape in found.items()
                if len(shape) != 2
            ],
        )
        return dict(sorted(found.items()))

    def _factors(self, pipeline: Pipeline) -> Array:
        """Train, or go on training, and return all factors as one vector: for each matrix down, then up."""
        from ._training import trained

        return trained(self, pipeline, self._checkpoint(pipeline))

    def _checkpoint(self, pipeline: Pipeline) -> Path:
        from ._training import checkpoint_of

        return checkpoint_of(self, pipeline)

    def _faults(self, pipeline: Pipeline) -> Iterator[Fault]:
        yield from template_faults(self.name, "E_ERASE_TEMPLATE", {"templates": self.templates})
        names = [name.casefold() for concept in self.concepts for name in concept.names]
        for i, concept in enumerate(self.concepts):
            place = f"{self.name}.concepts.{i}"
            if any(names.count(name.casefold()) > 1 for name in concept.names):
                yield Fault("E_ERASE_TWICE", f"{quoted(concept.name)} or a synonym is erased twice", place)
            if concept.towards.casefold() in names:
                message = f"{quoted(concept.name)} is led towards {quoted(concept.towards)}, which is erased"
                yield Fault("E_ERASE_GUIDE", message, f"{place}.towards", "name something that stays")
        for i, prompt in enumerate(self.preserve):
            if prompt.casefold() in names:
                yield Fault(
                    "E_ERASE_PRESERVED", f"{quoted(prompt)} is erased as well", f"{self.name}.preserve.{i}"
                )
        if self.start == "linear":
            yield from self._start_faults()
        yield from self._length_faults(pipeline)

    def _start_faults(self) -> Iterator[Fault]:
        place, hint = f"{self.name}.start", "use `start: unedited`"
        if self.where != "cross_attention":
            message = "the closed form changes keys and values, and `where` says that they stay"
            yield Fault("E_ERASE_START", message, place, hint)
        for concept in self.concepts:
            if not concept.towards:
                message = f"the closed form has nothing to lead {quoted(concept.name)} to"
                yield Fault("E_ERASE_START", message, place, f"give it `towards`, or {hint}")

    def _length_faults(self, pipeline: Pipeline) -> Iterator[Fault]:
        folders = {pipeline.components[share.tokenizer].folder for share in pipeline.family.text_encoders}
        texts = [*(name for concept in self.concepts for name in concept.names), *self.preserved]
        for folder in sorted(folders):
            tokenizer = load_tokenizer(folder)
            for prompt in self._filled(texts):
                if cut := tokenizer.spelling(prompt).cut:
                    message = (
                        f"{quoted(prompt)} is {cut} tokens longer than the {tokenizer.length} that are read"
                    )
                    hint = "shorten the concept or the template"
                    yield Fault("E_ERASE_TOKENS", message, self.name, hint)


@dataclass(frozen=True)
class _Add:
    """W + up down, the factors cut out of the vector that holds all of them."""

    start: int
    shape: tuple[int, ...]
    rank: int

    def __call__(self, weight: Floats, factors: Floats) -> Floats:
        outputs, inputs = self.shape
        middle = self.start + self.rank * inputs
        down = factors[self.start : middle].reshape(self.rank, inputs)
        up = factors[middle : middle + outputs * self.rank].reshape(outputs, self.rank)
        return weight + up @ down


class _Outcome:
    """Measures, with the matrices as written, what the objective asks for and what moved beside it.

    residual = ||eps' - wanted|| / ||eps - wanted|| on the concept's prompts, over noise levels and seeds
    that training did not see; drift = ||dW p|| / ||W p|| (or of the text states where the encoder changed).
    """

    def __init__(self, edit: EraseByTraining, before: Pipeline) -> None:
        self._edit, self._before = edit, before
        self._written: dict[str, Array] = {}
        self.names = frozenset(edit._targets(before))

    def see(self, name: str, before: Array, written: Array) -> tuple[str, Array]:
        del before
        return name, np.array(written)

    def add(self, told: tuple[str, Array]) -> None:
        name, written = told
        self._written[name] = written

    def evidence(self) -> list[Evidence]:
        from ._training import outcome

        return outcome(self._edit, self._before, self._written)
