"""How many multiplications did text encoders do, and how many did the prompts' own tokens need?"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np


def noted(run: Callable[..., Any], runs: list[tuple[Any, ...]]) -> Callable[..., Any]:
    """Return a function that also notes what it was called with: weights, tree, layer, ends."""

    def noting(*arguments: Any) -> Any:
        runs.append(arguments)
        return run(*arguments)

    return noting


def by_encoder(runs: Sequence[tuple[Any, ...]]) -> list[list[tuple[Any, ...]]]:
    """Return the runs of each encoder, in the order in which the encoders came first."""
    widths = dict.fromkeys(run[0].width for run in runs)
    return [[run for run in runs if run[0].width == width] for width in widths]


def arithmetic(runs: Sequence[tuple[Any, ...]]) -> dict[str, Any]:
    """Return the multiplications that one encoder did in all its runs, and those that were needed.

    Needed are the tokens of each different prompt from its start token to its end token, each prompt by
    itself; `beginnings` counts those that prompts share once.
    """
    weights, _, layer, ends = runs[0]
    layers = weights.layers if layer is None or ends is not None else range(weights.layers + 1)[layer]
    width, wide = weights.width, int(weights.config["intermediate_size"])

    def products(tokens: int) -> int:
        return layers * tokens * (4 * width * width + 2 * width * wide)

    def attention(pairs: int) -> int:
        return layers * pairs * 2 * width

    prompts = {prompt for _, tree, *_ in runs for prompt in own_tokens(tree)}
    beginnings = {prompt[: end + 1] for prompt in prompts for end in range(len(prompt))}
    computed = sum(len(tree.tokens) for _, tree, *_ in runs)
    attended = sum(group.size * group.shape[1] for _, tree, *_ in runs for group in tree.groups())
    # The last layer of a pooled encoder goes on with end tokens alone.
    spared = sum(
        (len(tree.tokens) - len(pooled)) * (width * width + 2 * width * wide)
        for _, tree, _, pooled in runs
        if pooled is not None
    )
    tokens = sum(map(len, prompts))
    return {
        "width": width,
        "prompts": len(prompts),
        "tokens": tokens,
        "computed": computed,
        "multiplications": products(computed) + attention(attended) - spared,
        "needed": products(tokens) + attention(sum(len(one) * (len(one) + 1) // 2 for one in prompts)),
        "beginnings": products(len(beginnings)) + attention(sum(map(len, beginnings))),
    }


def own_tokens(tree: Any) -> Iterator[tuple[int, ...]]:
    """Yield the tokens of each prompt of a tree up to its end token, which has the highest number."""
    for path in tree.paths:
        tokens = tree.tokens[path]
        yield tuple(tokens[: int(np.argmax(tokens)) + 1].tolist())
