"""retouch schema: JSON Schemas for editors, with every pass, emitter and gate that is installed.

After a change of a spec block or a document: `retouch schema --into specs`.
"""

import json
from pathlib import Path

import click

from ...runtime.console import json_option, print_result
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
@json_option
def command(name: str, into: Path | None, as_json: bool) -> None:
    """Print the JSON Schema of a document; edit.yaml's unless NAME says otherwise."""
    if into is None:
        text = text_of(name)
        print_result({"name": name, "schema": json.loads(text)}, text.rstrip("\n"), as_json)
        return
    files = {each: into / f"{each}.schema.json" for each in NAMES}
    for each, file in files.items():
        file.write_text(text_of(each), encoding="utf-8", newline="\n")
    written = [str(file) for file in files.values()]
    print_result({"written": written}, "\n".join(written), as_json)


def text_of(name: str) -> str:
    """Return the text of NAME.schema.json."""
    return schema_text(edit_schema(REGISTRIES) if name == "edit" else document_schema(name))
