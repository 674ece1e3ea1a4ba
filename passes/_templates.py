"""Prompts that edits of the text path make: texts in templates, each with `{}` where the text goes."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated

from pydantic import Field

from ..specs.errors import Fault, quoted

Text = Annotated[str, Field(min_length=1, max_length=500)]

TEMPLATES = ("{}", "a photo of {}", "a picture of {}", "{} on a blue background")
HELD_OUT = ("a drawing of {}", "{} on a white background")


def fill(template: str, text: str) -> str:
    """Return a template with its `{}` filled."""
    return template.replace("{}", text)


def template_faults(name: str, code: str, fields: Mapping[str, Sequence[str]]) -> Iterator[Fault]:
    """Yield each template that does not hold `{}` once, of the fields of the block `name`."""
    for key, templates in fields.items():
        for i, template in enumerate(templates):
            if template.count("{}") != 1:
                yield Fault(code, f"{quoted(template)} must hold `{{}}` once", f"{name}.{key}.{i}")
