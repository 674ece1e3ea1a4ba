"""What gates share: which judge, which label a prompt asks for, and evidence from a count."""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import Field

from ...runtime.judges import Judge
from ...runtime.sessions import Placement
from ...specs.errors import Fault, UndecidedError, quoted
from ...specs.fields import DEMO, InputFile
from ...specs.manifest import InputRole

# A share between 0 and 1 as a decimal string: thresholds make no float round trip.
Share = Annotated[str, Field(pattern=r"^(0(\.[0-9]+)?|1(\.0+)?)$")]
BUILT_IN_JUDGES = {"demo": "classifier.onnx", "demo-clip": "clip.onnx"}
_ARTICLE = re.compile(r"^(the|an|a)\s+")


@dataclass(frozen=True)
class JudgeFile(InputFile):
    """The judge that a gate names: `demo`, `demo-clip`, or an ONNX file with its labels beside it."""

    role: ClassVar[InputRole] = "judge"

    @classmethod
    def resolve(cls, text: str, folder: Path) -> "JudgeFile":
        """Return the judge that `text` names in a spec that lies in `folder`."""
        if text in BUILT_IN_JUDGES:
            return cls(text, DEMO / "judges" / BUILT_IN_JUDGES[text])
        return cls(text, (folder / text).resolve())


DEMO_JUDGE = JudgeFile.resolve("demo", Path())
# Editors see the default as the spec writes it, not where this installation keeps the file.
JudgeName = Annotated[JudgeFile, Field(json_schema_extra={"default": DEMO_JUDGE.text})]


def open_judge(file: JudgeFile) -> Judge:
    """Open a judge, single-threaded so that its verdicts repeat."""
    return Judge.open(file.path.parent, file.path.stem, Placement(threads=1))


def bare(prompt: str) -> str:
    """Return the words of a prompt without a leading article.

    >>> bare("The nike logo")
    'nike logo'
    """
    return _ARTICLE.sub("", prompt.casefold().strip())


def label_of(prompt: str, judge: Judge) -> str:
    """Return the judge's label for what a prompt asks for: its words without the article.

    Raises:
        UndecidedError: the judge knows no such thing, so it cannot say whether it is there.
    """
    wanted = bare(prompt)
    if wanted in judge.labels:
        return wanted
    hint = f"it knows {len(judge.labels)} labels, such as {', '.join(judge.labels[:4])}; name another judge"
    raise UndecidedError(Fault("E_JUDGE_LABEL", f"the judge knows no {quoted(wanted)}", judge.name, hint))


def answer_faults(judge: Judge, question: str, answers: Iterable[str]) -> Iterator[Fault]:
    """Yield each answer that a judge cannot give to a question."""
    known = judge.answers.get(question, ())
    hint = f"it tells apart {', '.join(known)}" if known else "name a judge that does"
    for answer in answers:
        if answer not in known:
            message = f"the judge has no answer {quoted(answer)} to {quoted(question)}"
            yield Fault("E_JUDGE_LABEL", message, judge.name, hint)


def seeds(count: int) -> Sequence[int]:
    """Return the seeds of a gate: the same for base and edited, for every concept and build."""
    return range(count)
