"""retouch prebuild: capture a model's graphs ahead, so that the first build needs no torch for them."""

import click

from ...runtime.console import json_option, print_result, reporter
from ..cache import default_cache
from ..graphs.prebuild import prebuild


@click.command("prebuild")
@click.argument("models", nargs=-1, required=True, metavar="MODEL...")
@json_option
def command(models: tuple[str, ...], as_json: bool) -> None:
    """Capture the graphs of each MODEL into the cache: demo, sd15, sd21, sdxl, or a folder with configs.

    No weight is read. Graphs that the cache holds already cost nothing.
    """
    cache = default_cache()
    with reporter(quiet=as_json) as report:
        advance = report.task("capture", len(models))
        counts = {}
        for model in models:
            counts[model] = prebuild(model, cache)
            advance(1)
    lines = [f"{model}: {count} graphs in {cache}" for model, count in counts.items()]
    print_result({"cache": str(cache), "graphs": counts}, "\n".join(lines), as_json)
