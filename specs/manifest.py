"""manifest.json: what was built, from what, by which passes, and the evidence for every claim.

The manifest is the single source of truth of an artefact: it lists every other file with its
SHA-256, carries its own digest, and says what was not measured. Times, energy, dates and host facts
stand in attestations/, never here, so that the same inputs give the same bytes.
"""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

from .canonical import digest_of
from .sampling import Document, Name

SCHEMA = 1
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
# Numbers that a verdict rests on are decimal strings: no float round trip between tools.
Decimal = Annotated[str, Field(pattern=r"^-?[0-9]+(\.[0-9]+)?(e-?[0-9]+)?$")]


class Evidence(Document):
    """One measured claim. `limit` and `comparator` are absent where the spec sets no threshold.

    `kind` is static (from the written tensors), parity (emitted graph against torch) or behavioral
    (images drawn from the shipped bytes).
    """

    kind: Literal["static", "parity", "behavioral"]
    claim: Name
    subject: Name
    value: Decimal
    unit: str = ""
    comparator: Literal["at_most", "at_least", "equals"] | None = None
    limit: Decimal | None = None
    interval: tuple[Decimal, Decimal] | None = None
    count: Annotated[int | None, Field(description="images, prompts or tensors behind the value")] = None
    passed: bool | None = None
    produced_by: Name
    details: dict[str, Any] = Field(default_factory=dict)


class FileRecord(Document):
    """One file, its path relative to the folder that lists it, `/`-separated."""

    path: Name
    size: Annotated[int, Field(ge=0)]
    sha256: Sha256


InputRole = Literal["source", "adapter", "captions", "judge", "spec", "other"]


class InputRecord(FileRecord):
    """One file that the build read."""

    role: InputRole


class PassRecord(Document):
    """One pass as it ran: parameters after defaults were filled in, and the tensors it exchanged."""

    name: Name
    stage: Name
    parameters: dict[str, Any]
    changed: list[Name]


class ComponentRecord(Document):
    """The weights of one component in one target: what proves that nothing else moved."""

    name: Name
    weights: Name
    tensors: int
    merkle_root: Sha256
    changed: Annotated[list[Name], Field(description="tensors whose bytes differ from the source's")]


class TargetRecord(Document):
    """What one emitter wrote, and the evidence measured on just those bytes."""

    emitter: Name
    parameters: dict[str, Any]
    components: list[ComponentRecord]
    evidence: list[Evidence]


class Provider(Document):
    """Who answers for the artefact: nobody can measure it, so the spec must say it."""

    name: str = ""
    contact: str = ""


class Manifest(Document):
    """The whole of manifest.json."""

    schema_version: Annotated[Literal[1], Field(alias="schema")] = SCHEMA
    retouch: Name
    name: Name
    version: Name
    provider: Provider
    source: dict[str, Any]
    spec: FileRecord
    lock: FileRecord
    inputs: list[InputRecord]
    passes: list[PassRecord]
    statements: list[Evidence]
    targets: list[TargetRecord]
    gates: list[Evidence]
    environment: dict[str, str]
    limits: list[str]
    not_claimed: list[str]
    files: list[FileRecord]
    merkle_root: Annotated[Sha256, Field(description="over `files`, in order")]
    digest: Annotated[str, Field(description="SHA-256 of the canonical manifest without this key")] = ""

    model_config = ConfigDict(**{**Document.model_config, "populate_by_name": True})

    def sealed(self) -> "Manifest":
        """Return this manifest with its own digest filled in."""
        return self.model_copy(update={"digest": self.own_digest()})

    def own_digest(self) -> str:
        """Return the SHA-256 of the canonical text without the key `digest`."""
        value = self.model_dump(mode="json", by_alias=True)
        del value["digest"]
        return digest_of(value)

    @property
    def measured(self) -> list[Evidence]:
        """All evidence: of the passes, of the gates, of each target."""
        return [*self.statements, *self.gates, *(e for target in self.targets for e in target.evidence)]

    @property
    def passed(self) -> bool:
        """Whether no evidence failed its limit."""
        return all(evidence.passed is not False for evidence in self.measured)

    @classmethod
    def load(cls, file: Path) -> "Manifest":
        """Read and check a manifest.json. Raises pydantic's ValidationError."""
        return cls.model_validate_json(file.read_bytes())
