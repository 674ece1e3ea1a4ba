"""Which diffusers scheduler draws as a sampler of ours does: hosts that know no sampling.json read this."""

from collections.abc import Mapping
from typing import Any

from .ir import Pipeline

# sampler -> class, and what its config needs beside the schedule. The second-order solver is written
# out in full: its class has had other defaults.
SCHEDULERS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "ddim": ("DDIMScheduler", {"clip_sample": False, "thresholding": False}),
    "euler": ("EulerDiscreteScheduler", {"interpolation_type": "linear", "final_sigmas_type": "zero"}),
    "dpmpp_2m": (
        "DPMSolverMultistepScheduler",
        {
            "algorithm_type": "dpmsolver++",
            "final_sigmas_type": "zero",
            "lower_order_final": True,
            "solver_order": 2,
            "solver_type": "midpoint",
            "thresholding": False,
        },
    ),
}
# What a source's config says about the noise that the model was trained with.
SCHEDULE_KEYS = ("beta_end", "beta_schedule", "beta_start", "num_train_timesteps", "trained_betas")


def scheduler_class(pipeline: Pipeline) -> str:
    """Return the class of the scheduler that matches the pipeline's sampler."""
    return SCHEDULERS[pipeline.sampling.sampler][0]


def scheduler_config(pipeline: Pipeline) -> dict[str, Any]:
    """Return scheduler_config.json: the schedule of the source, and the sampler's own settings."""
    (source,) = pipeline.of_role("scheduler")
    schedule = pipeline.sampling.schedule
    class_name, settings = SCHEDULERS[pipeline.sampling.sampler]
    config = {key: source.config[key] for key in SCHEDULE_KEYS if key in source.config}
    config |= {"_class_name": class_name, **settings}
    config["prediction_type"] = schedule.prediction
    config["timestep_spacing"] = schedule.spacing
    config["steps_offset"] = schedule.steps_offset
    if schedule.zero_terminal_snr:
        config["rescale_betas_zero_snr"] = True
    if class_name == "DDIMScheduler":
        config["set_alpha_to_one"] = schedule.set_alpha_to_one
    return config
