"""What revival probes found in a finished artefact: a document of its own, since artefacts are sealed.

It stands in `attestations/`, in canonical form, carries its own digest, and names the manifest that it
speaks of; `retouch verify` checks all three.
"""

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

from .canonical import sealed
from .manifest import Evidence, Sha256
from .sampling import Document, Name

SCHEMA = 1


class ProbeReport(Document):
    """The whole of attestations/probes-*.json, apart from its digest."""

    schema_version: Annotated[Literal[1], Field(alias="schema")] = SCHEMA
    retouch: Name
    manifest_sha256: Annotated[Sha256, Field(description="of the artefact's manifest.json")]
    judge: Name
    judge_sha256: Sha256
    probes: Annotated[
        dict[str, dict[str, Any]], Field(description="effort of each probe, defaults filled in")
    ]
    evidence: list[Evidence]
    environment: dict[str, str]
    limits: list[str]

    model_config = ConfigDict(**{**Document.model_config, "populate_by_name": True})

    def text(self) -> bytes:
        """Return the report as it is attached: canonical, with its own digest."""
        return sealed(self.model_dump(mode="json", by_alias=True))
