"""retouch completion: print the script that completes verbs and options in a shell."""

import click
from click.shell_completion import get_completion_class

from ..console import json_option, print_result

SHELLS = ("bash", "fish", "zsh")
VARIABLE = "_RETOUCH_COMPLETE"


@click.command("completion")
@click.argument("shell", type=click.Choice(SHELLS))
@json_option
@click.pass_context
def command(context: click.Context, shell: str, as_json: bool) -> None:
    """Print the completion script of SHELL; for bash: eval "$(retouch completion bash)"."""
    kind = get_completion_class(shell)
    if kind is None:
        raise click.UsageError(f"click completes nothing in {shell}")
    script = kind(context.find_root().command, {}, "retouch", VARIABLE).source()
    print_result({"shell": shell, "script": script}, script, as_json)
