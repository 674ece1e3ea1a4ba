"""Types that the spec blocks of passes, emitters and gates share."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, ClassVar

from pydantic import GetCoreSchemaHandler, ValidationInfo
from pydantic_core import CoreSchema, core_schema

from .manifest import InputRole

DEMO = Path(__file__).parent / "demo"
DEMO_SPEC = Path(__file__).parent / "examples" / "demo.yaml"
BUILT_IN = "demo:"


@dataclass(frozen=True)
class InputFile:
    """A file that the spec names: `text` as written, `path` resolved against the spec's folder.

    `demo:NAME` names a file of the built-in demo model's folder. Validation needs the context
    `{"folder": Path}`; whether the file exists is asked by whoever opens it. `role` is what locks and
    manifests call such a file.
    """

    role: ClassVar[InputRole] = "other"
    text: str
    path: Path

    @classmethod
    def resolve(cls, text: str, folder: Path) -> "InputFile":
        """Return the file that `text` names in a spec that lies in `folder`."""
        if text.startswith(BUILT_IN):
            return cls(text, DEMO / text.removeprefix(BUILT_IN))
        return cls(text, (folder / text).resolve())

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        del source, handler

        def validate(text: str, info: ValidationInfo) -> "InputFile":
            context: Mapping[str, Any] = info.context or {}
            try:
                return cls.resolve(text, Path(context.get("folder", ".")))
            except RuntimeError as error:
                # Before Python 3.13, links that go round in a circle.
                raise ValueError(f"`{text}` leads nowhere: {error}") from error

        return core_schema.with_info_after_validator_function(
            validate,
            core_schema.str_schema(min_length=1, max_length=4096),
            serialization=core_schema.plain_serializer_function_ser_schema(lambda file: file.text),
        )


@dataclass(frozen=True)
class AdapterFile(InputFile):
    """An adapter, or the config beside it."""

    role: ClassVar[InputRole] = "adapter"


@dataclass(frozen=True)
class CaptionsFile(InputFile):
    """A text file of prompts, one a line."""

    role: ClassVar[InputRole] = "captions"


def input_files(value: Any) -> Iterator[InputFile]:
    """Yield every file that a spec block names, at any depth, in the order of the fields."""
    if isinstance(value, InputFile):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from input_files(item)
    elif is_dataclass(value):
        for field in fields(value):
            yield from input_files(getattr(value, field.name))
