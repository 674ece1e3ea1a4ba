"""What every manifest says besides what was measured: fixed limits, and what is not claimed."""

from collections.abc import Iterable

from ..ir import Pipeline

# "Avoidance, not removal": When Are Concepts Erased From Diffusion Models? (NeurIPS 2025) recovers
# closed-form erasures by textual inversion, inpainting and added sampler noise.
_LIMITS = (
    "Erasure and debiasing act where text enters the denoiser: they are avoidance, not removal.",
    "An adapter merged or loaded after this build voids its evidence.",
)

_NOT_CLAIMED = (
    "Legal conformity of any kind: this is evidence, and a person decides what it is evidence for.",
    "That an erased concept cannot be brought back by training, inversion, images or adversarial prompts.",
    "Prompts, languages, samplers, step counts, guidance scales and sizes other than those measured.",
    "Who built this artefact: it is intact, not signed, unless a model.sig stands beside the manifest.",
)


def limits(pipeline: Pipeline) -> list[str]:
    """Return what is known to be limited about an edit, and what of the source is left behind."""
    return [*_LIMITS, *pipeline.family.limits, *(f"The source's {note}." for note in pipeline.notes)]


def not_claimed(drawn: Iterable[str], emitted: Iterable[str], gates: bool) -> list[str]:
    """Return what the manifest does not claim; targets that no gate drew from are named.

    `drawn` are the emitters whose bytes the gates drew from, `emitted` all emitters.
    """
    unseen = sorted(set(emitted) - set(drawn))
    behavior = [f"Behavior of the target `{name}`: no image was drawn from it." for name in unseen]
    if not gates:
        behavior = ["Behavior of any kind: the spec has no gates, so no image was judged."]
    return [*_NOT_CLAIMED, *behavior]
