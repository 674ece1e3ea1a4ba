"""Noise schedules, samplers and guidance weights, reduced to the one table of sampling.json.

A scheduler's config gives alphas-bar over the training timesteps; a sampler chooses timesteps and
writes one linear row a step (the formulas stand in specs/sampling.py). All arithmetic is float64.

Notation: abar the cumulative product, sigma = sqrt((1 - abar) / abar), alpha = 1 / sqrt(1 + sigma^2)
= sqrt(abar), so a variance-preserving sample is alpha * (x0 + sigma * noise).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from math import log, sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..specs.errors import Fault, InputError, SpecError, quoted, raise_all
from ..specs.sampling import Latent, Negative, SamplingTable, Step, Task, TextSource, TimeId

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Schedule:
    """A trained noise schedule and the conventions of its scheduler's config."""

    alphas_bar: tuple[float, ...] = field(repr=False)
    prediction: str
    spacing: str
    steps_offset: int
    set_alpha_to_one: bool
    zero_terminal_snr: bool = False

    @classmethod
    def from_config(cls, config: Mapping[str, Any], where: str) -> "Schedule":
        """Read a diffusers scheduler config.

        Raises:
            InputError: the config asks for something that no table here reproduces.
        """
        faults = [
            Fault(
                "E_SCHEDULE",
                f"`{key}: {config[key]}` is not supported",
                where,
                f"supported: {', '.join(map(str, known))}",
            )
            for key, known in _SUPPORTED.items()
            if key in config and config[key] not in known
        ]
        zero_terminal_snr = bool(config.get("rescale_betas_zero_snr"))
        if zero_terminal_snr and config.get("prediction_type", "epsilon") == "epsilon":
            message = "the last timestep is pure noise, from which predicted noise tells no image"
            hint = "expected prediction_type v_prediction with rescale_betas_zero_snr"
            faults.append(Fault("E_SCHEDULE", message, where, hint))
        raise_all(InputError, faults)
        alphas_bar: Floats = np.cumprod(1.0 - _betas(config), dtype=np.float64)
        if zero_terminal_snr:
            alphas_bar = _with_zero_terminal_snr(alphas_bar)
        return cls(
            alphas_bar=tuple(alphas_bar.tolist()),
            prediction=config.get("prediction_type", "epsilon"),
            spacing=config.get("timestep_spacing", "leading"),
            steps_offset=int(config.get("steps_offset", 0)),
            set_alpha_to_one=bool(config.get("set_alpha_to_one", True)),
            zero_terminal_snr=zero_terminal_snr,
        )

    @property
    def sigmas(self) -> Floats:
        """Noise level of each training timestep, rising; that of pure noise is 4096 in place of infinite."""
        abar = np.maximum(self.alphas_bar, PURE_NOISE)
        return np.sqrt((1 - abar) / abar)

    def sigma_at(self, timesteps: Floats) -> Floats:
        """Noise levels at timesteps, interpolated linearly as diffusers does."""
        return np.interp(timesteps, np.arange(len(self.alphas_bar)), self.sigmas)


# What diffusers configs may say beyond the schedule itself; anything else would change the images.
_SUPPORTED: Mapping[str, tuple[Any, ...]] = {
    "beta_schedule": ("scaled_linear", "linear"),
    "prediction_type": ("epsilon", "v_prediction", "sample"),
    "timestep_spacing": ("leading", "trailing", "linspace"),
    "rescale_betas_zero_snr": (True, False, None),
    "interpolation_type": ("linear", None),
    "final_sigmas_type": ("zero", None),
    "timestep_type": ("discrete", None),
    "thresholding": (False, None),
    "clip_sample": (False, None),
    "trained_betas": (None,),
    "use_karras_sigmas": (False, None),
    "use_exponential_sigmas": (False, None),
    "use_beta_sigmas": (False, None),
    "use_flow_sigmas": (False, None),
}
# Signal that stands for none where a noise level has to be finite. Source: diffusers'
# EulerDiscreteScheduler and DPMSolverMultistepScheduler, the smallest subnormal float16.
PURE_NOISE = 2.0**-24


def _betas(config: Mapping[str, Any]) -> Floats:
    """Return the training betas. Source: diffusers' schedulers, which share these two formulas."""
    count = int(config.get("num_train_timesteps", 1000))
    start, end = float(config.get("beta_start", 0.0001)), float(config.get("beta_end", 0.02))
    if config.get("beta_schedule", "linear") == "linear":
        return np.linspace(start, end, count)
    return np.linspace(sqrt(start), sqrt(end), count) ** 2


def _with_zero_terminal_snr(alphas_bar: Floats) -> Floats:
    """Shift and scale sqrt(abar): the last becomes 0, the first stays. Source: 2305.08891, algorithm 1."""
    root = np.sqrt(alphas_bar)
    return ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2


@dataclass(frozen=True)
class Conditioning:
    """What the denoiser is told beside the sample and the timestep; see specs/sampling.py.

    `zero_negative`: text states of zeros stand for a negative prompt that nobody gave.
    """

    task: Task = "text_to_image"
    text: tuple[TextSource, ...] = (TextSource(),)
    time_ids: tuple[TimeId, ...] = ()
    zero_negative: bool = False


@dataclass(frozen=True)
class Guidance:
    """Classifier-free guidance: one weight a step, and the negative prompt of the other half."""

    weights: tuple[float, ...]
    negative_prompt: str = ""
    baked_weights: bool = False
    baked_negative: bool = False


@dataclass(frozen=True)
class Sampling:
    """How a pipeline draws: its schedule, a sampler, a number of steps and the guidance."""

    schedule: Schedule
    latent: Latent
    sampler: str
    steps: int
    guidance: Guidance = field(default_factory=lambda: Guidance(()))
    conditioning: Conditioning = field(default_factory=Conditioning)

    @property
    def zero_negative(self) -> bool:
        """Whether the unconditional half reads zeros: the model was trained so, and no prompt is given."""
        return self.conditioning.zero_negative and not self.guidance.negative_prompt

    def sigmas(self) -> tuple[float, ...]:
        """Noise level of each step, falling: what guidance intervals are measured in."""
        return tuple(row.sigma for row in self._rows())

    def with_guidance(self, guidance: Guidance) -> "Sampling":
        """Return this sampling with other guidance."""
        return replace(self, guidance=guidance)

    def table(self) -> SamplingTable:
        """Return sampling.json."""
        rows = self._rows()
        weights = self.guidance.weights
        steps = [
            row.model_copy(update={"guidance_weight": float(w)}) for row, w in zip(rows, weights, strict=True)
        ]
        return SamplingTable(
            sampler=self.sampler,
            prediction=self.schedule.prediction,  # type: ignore[arg-type] # checked by Schedule
            initial_scale=_initial_scale(self.schedule, self.sampler, rows[0].sigma),
            guidance_baked=self.guidance.baked_weights,
            negative=Negative(
                prompt=self.guidance.negative_prompt,
                baked=self.guidance.baked_negative,
                zeros=self.zero_negative,
            ),
            task=self.conditioning.task,
            text=list(self.conditioning.text),
            time_ids=list(self.conditioning.time_ids),
            latent=self.latent,
            steps=steps,
        )

    def _rows(self) -> list[Step]:
        return SAMPLERS[self.sampler](self.schedule, self.steps)


def constant(scale: float, steps: int) -> Guidance:
    """Return plain classifier-free guidance: the same scale at each step, exchangeable by the host."""
    return Guidance(weights=(float(scale),) * steps)


def check_sampler(sampler: str, steps: int, schedule: Schedule) -> None:
    """Refuse an unknown sampler or more steps than the schedule has timesteps.

    Raises:
        SpecError: with the nearest name.
    """
    if sampler not in SAMPLERS:
        near = get_close_matches(sampler, SAMPLERS, n=1)
        hint = f"did you mean `{near[0]}`?" if near else f"there are: {', '.join(sorted(SAMPLERS))}"
        raise SpecError(Fault("E_SAMPLER", f"no sampler {quoted(sampler)}", "sampling.sampler", hint))
    most = len(schedule.alphas_bar) - 1
    if not 1 <= steps <= most:
        raise SpecError(Fault("E_STEPS", f"{steps} steps, expected 1 to {most}", "sampling.steps"))


def _alpha(sigma: float) -> float:
    return 1.0 / sqrt(1.0 + sigma * sigma)


def _x0(abar: float, prediction: str) -> tuple[float, float]:
    """Return (from sample, from output) of x0 for a variance-preserving sample."""
    alpha, noise = sqrt(abar), sqrt(1 - abar)
    match prediction:
        case "epsilon":
            return 1.0 / alpha, -noise / alpha
        case "v_prediction":
            return alpha, -noise
    return 0.0, 1.0


def _ddim(schedule: Schedule, steps: int) -> list[Step]:
    """Deterministic DDIM. Source: Song et al., 2010.02502, eq. (12) with eta = 0."""
    count = len(schedule.alphas_bar)
    timesteps = _timesteps(schedule, steps)
    final = 1.0 if schedule.set_alpha_to_one else schedule.alphas_bar[0]
    rows = []
    for timestep in timesteps:
        before = int(timestep) - count // steps
        abar, abar_next = (
            schedule.alphas_bar[int(timestep)],
            schedule.alphas_bar[before] if before >= 0 else final,
        )
        (sigma,) = schedule.sigma_at(np.array([timestep]))
        ratio = sqrt(1 - abar_next) / sqrt(1 - abar)
        x0 = _x0(abar, schedule.prediction)
        rows.append(_row(timestep, sigma, 1.0, x0, ratio, sqrt(abar_next) - ratio * sqrt(abar)))
    return rows


def _euler(schedule: Schedule, steps: int) -> list[Step]:
    """Euler in sigma space. Source: Karras et al., 2206.00364, algorithm 2 without churn."""
    timesteps = _timesteps(schedule, steps, whole=False)
    sigmas = [*schedule.sigma_at(timesteps), 0.0]
    rows = []
    for timestep, sigma, following in zip(timesteps, sigmas, sigmas[1:], strict=False):
        # The sample here is x / alpha, and so is scaled by alpha before the denoiser sees it.
        alpha = _alpha(sigma)
        sample, output = _x0(alpha * alpha, schedule.prediction)
        x0 = (sample * alpha, output)
        rows.append(_row(timestep, sigma, alpha, x0, following / sigma, 1 - following / sigma))
    return rows


def _dpmpp_2m(schedule: Schedule, steps: int) -> list[Step]:
    """DPM-Solver++(2M), midpoint, last step of first order. Source: Lu et al., 2211.01095, algorithm 2."""
    timesteps = _timesteps(schedule, steps, extra=1)
    sigmas = [*schedule.sigma_at(timesteps), 0.0]
    rows = []
    for i, (timestep, sigma, following) in enumerate(zip(timesteps, sigmas, sigmas[1:], strict=False)):
        alpha, alpha_next = _alpha(sigma), _alpha(following)
        # exp(-h) with h = lambda_next - lambda and lambda = -log(sigma); the last step ends at sigma 0.
        decay = following / sigma
        first = alpha_next * (1 - decay)
        second = 0.0
        if i > 0 and following > 0:
            step, step_before = log(sigma / following), log(sigmas[i - 1] / sigma)
            second = 0.5 * first * step / step_before
        x0 = _x0(alpha * alpha, schedule.prediction)
        sample = (following * alpha_next) / (sigma * alpha)
        rows.append(_row(timestep, sigma, 1.0, x0, sample, first + second, -second or 0.0))
    return rows


SAMPLERS: Mapping[str, Callable[[Schedule, int], list[Step]]] = {
    "ddim": _ddim,
    "dpmpp_2m": _dpmpp_2m,
    "euler": _euler,
}


def _row(
    timestep: float,
    sigma: float,
    input_scale: float,
    x0: tuple[float, float],
    next_from_sample: float,
    next_from_x0: float,
    next_from_previous_x0: float = 0.0,
) -> Step:
    return Step(
        timestep=float(timestep),
        sigma=float(sigma),
        input_scale=float(input_scale),
        x0_from_sample=float(x0[0]),
        x0_from_output=float(x0[1]),
        next_from_sample=float(next_from_sample),
        next_from_x0=float(next_from_x0),
        next_from_previous_x0=float(next_from_previous_x0),
        guidance_weight=1.0,
    )


def _initial_scale(schedule: Schedule, sampler: str, sigma: float) -> float:
    """Scale of the first sample: Euler's sigma space starts at the first sigma, others at 1.

    Source: `init_noise_sigma` of diffusers' EulerDiscreteScheduler.
    """
    if sampler != "euler":
        return 1.0
    return sigma if schedule.spacing in ("linspace", "trailing") else sqrt(sigma**2 + 1)


def _timesteps(schedule: Schedule, steps: int, extra: int = 0, whole: bool = True) -> Floats:
    """Return falling timesteps by the config's spacing, as diffusers spaces them.

    DPM++ divides the range into one interval more (`extra`); Euler keeps fractions.
    Source: Lin et al., 2305.08891, table 2, and diffusers' schedulers for the rounding.
    """
    count = len(schedule.alphas_bar)
    match schedule.spacing:
        case "linspace":
            spaced = np.linspace(0, count - 1, steps + extra)
            rising = np.round(spaced) if whole else spaced
            return rising[::-1][:steps].astype(np.float64)
        case "leading":
            rising = np.arange(steps + extra) * (count // (steps + extra)) + schedule.steps_offset
            return rising[::-1][:steps].astype(np.float64)
    return np.round(np.arange(count, 0, -count / steps))[:steps] - 1.0
