"""The console script. A verb is a file in a commands folder, and is loaded when it is asked for.

`runtime/commands/` is looked in first, then `compiler/commands/`, by path: so `retouch run` and
`retouch verify` import nothing of the compiler. Each module exposes `command`; the first line of
its docstring, `retouch VERB: what it does`, is what the list of verbs shows.
"""

import ast
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from importlib import import_module
from importlib.metadata import version
from pathlib import Path

import click

from ..specs.errors import Fault, RetouchError, UndecidedError, quoted
from .console import print_faults

HERE = Path(__file__).parent
PACKAGE = __name__.rpartition(".runtime.")[0]
# Folders of verbs and their packages; the first to have a verb gives it.
HOMES = (
    (HERE / "commands", f"{PACKAGE}.runtime.commands"),
    (HERE.parent / "compiler" / "commands", f"{PACKAGE}.compiler.commands"),
)
# What `pip install 'retouch[build]'` adds.
BUILD_MODULES = frozenset(
    {"diffusers", "huggingface_hub", "onnx", "onnx_ir", "onnxscript", "safetensors", "torch", "transformers"}
)
CANCELED, BROKEN_PIPE, USAGE, INTERNAL = 130, 141, 2, 70
TRACEBACK = "RETOUCH_TRACEBACK"


class Verbs(click.Group):
    """A group whose commands are files."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        del ctx
        return sorted(_files())

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        del ctx
        if cmd_name not in _files():
            return None
        package = _files()[cmd_name][1]
        return import_module(f"{package}.{cmd_name.replace('-', '_')}").command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        known = self.list_commands(ctx)
        if args and not args[0].startswith("-") and args[0] not in known:
            near = get_close_matches(args[0], known, n=1)
            ctx.fail(f"no verb {quoted(args[0])}" + (f", did you mean `{near[0]}`?" if near else ""))
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Verbs"):
            formatter.write_dl([(verb, _summary(_files()[verb][0])) for verb in self.list_commands(ctx)])


@click.group(
    cls=Verbs,
    context_settings={"help_option_names": ["-h", "--help"]},
    subcommand_metavar="VERB [ARGUMENTS]...",
)
@click.version_option(version("retouch"), "--version", prog_name="retouch")
def retouch() -> None:
    """Compile edits into text-to-image diffusion models, with measured evidence.

    Exit codes: 0 good, 1 evidence below its threshold, 2 usage or spec error, 3 an artefact is not
    intact, 4 cannot be decided here, 70 a bug of retouch; 130, 141 and 143 where it was canceled.
    """


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the verb that the arguments name and return the exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    as_json = "--json" in given
    try:
        # Without standalone mode click returns what `ctx.exit` was given, and raises the rest.
        with _ending_in_order():
            outcome = retouch.main(given, "retouch", standalone_mode=False)
        if sys.stdout:  # None where the shell closed it
            sys.stdout.flush()
    except (KeyboardInterrupt, click.Abort):
        return CANCELED
    except BrokenPipeError:
        return _leave_quietly()
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.message, err=True)
        return USAGE
    except Exception as error:
        if os.environ.get(TRACEBACK) == "1":
            traceback.print_exc()
        code, faults = _explain(error)
        print_faults(faults, as_json)
        return code
    return outcome if isinstance(outcome, int) else 0


@contextmanager
def _ending_in_order() -> Iterator[None]:
    """Let a request to end, such as a canceled job's, unwind the program: what is half-written goes."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _explain(error: Exception) -> tuple[int, tuple[Fault, ...]]:
    """Return the exit code of an error, and the faults to show."""
    if isinstance(error, RetouchError):
        return error.exit_code, error.faults
    if isinstance(error, MemoryError):
        hint = "end other programs, or ask for less: smaller images, fewer at once"
        return UndecidedError.exit_code, (Fault("E_MEMORY", "there is not enough memory", hint=hint),)
    if isinstance(error, click.ClickException):
        return USAGE, (Fault("E_USAGE", error.format_message(), hint=_help_hint(error)),)
    if isinstance(error, ModuleNotFoundError) and (error.name or "").partition(".")[0] in BUILD_MODULES:
        message = f"this verb needs `{error.name}`, which is not installed"
        return UndecidedError.exit_code, (
            Fault("E_BUILD_EXTRA", message, hint="pip install 'retouch[build]'"),
        )
    if isinstance(error, OSError) and error.strerror:
        return UndecidedError.exit_code, (Fault("E_SYSTEM", error.strerror, str(error.filename or "")),)
    message = f"a bug in retouch {version('retouch')}: {type(error).__name__}: {error}"
    hint = f"run it again with {TRACEBACK}=1, and report what that prints to the project's issues"
    return INTERNAL, (Fault("E_INTERNAL", message, hint=hint),)


def _help_hint(error: click.ClickException) -> str:
    context = error.ctx if isinstance(error, click.UsageError) else None
    return f"{context.command_path if context else 'retouch'} --help"


def _leave_quietly() -> int:
    """Nobody reads stdout any more: keep the interpreter from complaining at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return BROKEN_PIPE


def _files() -> dict[str, tuple[Path, str]]:
    """Return the file and the package of every verb; no file is loaded."""
    found: dict[str, tuple[Path, str]] = {}
    for folder, package in HOMES:
        for file in sorted(folder.glob("[!_]*.py")):
            found.setdefault(file.stem.replace("_", "-"), (file, package))
    return found


def _summary(file: Path) -> str:
    """Return what a verb's module says it does, without loading it."""
    text = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    return text.split("\n")[0].partition(": ")[2]


if __name__ == "__main__":
    sys.exit(main())
