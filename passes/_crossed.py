"""Concepts drawn from templates that the map they are drawn with was not solved on.

A map is right on the very prompts that it was solved on, and falls short on others: a loop that drew from
those prompts would stop before others are at parity. So the templates are parted, each part is drawn with a
map of the other parts, and the loop corrects what a template that nobody named will show, too.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from ..compiler.evidence.survey import Survey
from ..compiler.text.text_map import TextMap
from ._balance import Answers, Move, Subject
from ._templates import fill

PARTS = 5
Templates = tuple[str, ...]
# The map for subjects' moves, solved on some templates.
Solve = Callable[[Mapping[Subject, Move], Templates], TextMap]


def parted(templates: Sequence[str]) -> list[tuple[Templates, Templates]]:
    """Return runs of neighboring templates, each with all others; a single template stands on both sides."""
    names = tuple(dict.fromkeys(templates))
    bounds = [len(names) * i // PARTS for i in range(PARTS + 1)]
    parts = [(names[a:b], names[:a] + names[b:]) for a, b in pairwise(bounds) if a < b]
    return parts if len(parts) > 1 else [(names, names)]


@dataclass(frozen=True)
class Crossed:
    """Counts what is seen of concepts in templates, each left out of the map that it is drawn with."""

    survey: Survey
    solve: Solve
    templates: Sequence[str]
    questions: Sequence[str]
    advance: Callable[[int], None]

    def measure(
        self, concepts: Sequence[str], moves: Mapping[Subject, Move], seeds: Sequence[int]
    ) -> Answers:
        """Return the answers to what is seen of each concept, one image a seed, templates in turn."""
        found = {(concept, name): list[str]() for concept in concepts for name in self.questions}
        drawn = [(self.templates[i % len(self.templates)], seed) for i, seed in enumerate(seeds)]
        for part, others in parted(self.templates):
            asked = [(concept, *each) for concept in concepts for each in drawn if each[0] in part]
            if asked:
                for (concept, *_), answers in self._ask(asked, self.solve(moves, others)):
                    for name, answer in answers.items():
                        found[concept, name].append(answer)
        return found

    def _ask(
        self, asked: Sequence[tuple[str, str, int]], text_map: TextMap
    ) -> Iterator[tuple[tuple[str, str, int], dict[str, str]]]:
        """Yield each of the concepts, templates and seeds with the judge's answers."""
        prompts = [fill(template, concept) for concept, template, _ in asked]
        answers = self.survey.ask(text_map, prompts, [seed for *_, seed in asked], self.questions)
        self.advance(len(asked))
        for i, one in enumerate(asked):
            yield one, {name: given[i] for name, given in answers.items()}
