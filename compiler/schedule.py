"""The only loop over passes: in stage order, in the order of the spec within a stage."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from .contract import Pass
from .ir import Pipeline, changed_tensors, verify


@dataclass(frozen=True)
class Carried:
    """One pass that ran: the pipeline it was given, and the one it returned."""

    edit: Pass
    before: Pipeline
    after: Pipeline

    @property
    def changed(self) -> tuple[str, ...]:
        """Names of the tensors that the pass exchanged or added, sorted."""
        return changed_tensors(self.before, self.after)


def in_order(edits: Iterable[Pass]) -> list[Pass]:
    """Return passes in the order in which they run (a stable sort by stage)."""
    return sorted(edits, key=lambda edit: edit.stage)


def carry_out(
    pipeline: Pipeline, edits: Iterable[Pass], on_pass: Callable[[Carried], None] = lambda _: None
) -> list[Carried]:
    """Run passes on a pipeline and return what each was given and returned; nothing is computed yet.

    Raises:
        InputError: a pass left the pipeline in a state that no emitter could write.
    """
    carried: list[Carried] = []
    for edit in in_order(edits):
        after = edit.run(pipeline)
        verify(after, edit.name)
        carried.append(Carried(edit, pipeline, after))
        on_pass(carried[-1])
        pipeline = after
    return carried
