"""retouch schema: JSON Schemas for editors, with every pass, emitter and gate that is installed.

After a change of a spec block or a document: `retouch schema --into specs`.
"""

from pathlib import Path

import click

from ...specs.describe import DOCUMENTS, document_schema, edit_schema, schema_text
from ..plan import REGISTRIES

NAMES = ("edit", *DOCUMENTS)


@click.command("schema")
@click.argument("name", type=click.Choice(NAMES), default="edit")
@click.option(
    "--into",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Write all of them into this folder, as NAME.schema.json.",
)
def command(name: str, into: Path | None) -> None:
    """Print the JSON Schema of a document; edit.yaml's unless NAME says otherwise."""
    if into is None:
        click.echo(text_of(name), nl=False)
        return
    for each in NAMES:
        (into / f"{each}.schema.json").write_text(text_of(each), encoding="utf-8", newline="\n")


def text_of(name: str) -> str:
    """Return the text of NAME.schema.json."""
    return schema_text(edit_schema(REGISTRIES) if name == "edit" else document_schema(name))
