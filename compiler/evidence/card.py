"""README.md of an artefact: the model card that people read, derived from what the manifest says."""

import html
import unicodedata
from collections.abc import Sequence
from pathlib import Path

import yaml

from ...specs.manifest import Evidence, TargetRecord
from ..plan import Plan
from .claims import limits, not_claimed
from .manifest import DRAWN_FROM, parameters, target_names

_HEAD = """# {name} {version}

Made by `retouch` from `{model}` ({family}). This card is derived
from `manifest.json`, which holds the same facts and the digest of every file.

```console
$ retouch verify .
$ retouch run . --prompt "..." --seed 0 --output image.png
```
"""


def write_card(plan: Plan, targets: Sequence[TargetRecord], gates: Sequence[Evidence], folder: Path) -> None:
    """Write README.md; texts of the spec and of inputs are escaped, whatever they hold."""
    spec = plan.spec
    emitted = [target.emitter for target in targets]
    front = {
        "library_name": "retouch",
        "pipeline_tag": "text-to-image",
        "tags": sorted({"retouch", *emitted}),
    }
    sections = [
        f"---\n{yaml.safe_dump(front, sort_keys=True)}---\n",
        _HEAD.format(
            name=plain(spec.name),
            version=plain(spec.version),
            model=plain(spec.source.model),
            family=plan.source.family.title,
        ),
        "## What was edited\n\n"
        + _bullets(
            [f"`{step.edit.name}`: {plain(_sentence(step.edit))}" for step in plan.carried] or ["nothing"]
        ),
        "## Evidence\n\n"
        + _table([*gates, *(evidence for target in targets for evidence in target.evidence)]),
        "## Limits\n\n" + _bullets(limits(plan.pipeline)),
        "## Not claimed\n\n" + _bullets(not_claimed(DRAWN_FROM, target_names(targets), bool(spec.gates))),
        f"Provider: {plain(spec.provider.name) or 'not stated'}\n",
        f"Contact: {plain(spec.provider.contact) or 'not stated'}\n",
    ]
    (folder / "README.md").write_text("\n".join(sections), encoding="utf-8")


def plain(text: str) -> str:
    """Return text that no Markdown or HTML reader takes for anything but text."""
    visible = "".join(char for char in text if unicodedata.category(char)[0] != "C")
    escaped = html.escape(visible, quote=False)
    return "".join(f"\\{char}" if char in "\\`*_[]#|~$" else char for char in escaped)


def _sentence(edit: object) -> str:
    return ", ".join(
        f"{key} = {value}" for key, value in parameters(edit).items() if value not in (None, [], "")
    )


def _bullets(lines: Sequence[str]) -> str:
    return "".join(f"- {line}\n" for line in lines)


def _table(measured: Sequence[Evidence]) -> str:
    return "| claim | of | value | limit | verdict |\n| --- | --- | --- | --- | --- |\n" + "".join(
        map(_row, measured)
    )


def _row(evidence: Evidence) -> str:
    cells = (evidence.claim, plain(evidence.subject), evidence.value, _limit(evidence), _verdict(evidence))
    return f"| {' | '.join(cells)} |\n"


def _limit(evidence: Evidence) -> str:
    return (
        f"{(evidence.comparator or '').replace('_', ' ')} {evidence.limit}" if evidence.limit else "none set"
    )


def _verdict(evidence: Evidence) -> str:
    return {True: "passed", False: "failed", None: "measured"}[evidence.passed]
