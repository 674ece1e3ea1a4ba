"""Which tensors make one change of a weight, and by what formula?

    LoRA, LoCon   B A                 Hu et al., 2106.09685, eq. (3); a kernel is a longer row of A
    Tucker        B (M A)             Yeh et al., LyCORIS, 2309.14859: a core M of the kernel's size between
    LoHa          (B1 A1) o (B2 A2)   Hyeon-Woo et al., FedPara, 2108.06098, prop. 1
    LoKr          kron(C1, C2)        LyCORIS, 2309.14859: each factor whole, of low rank or with a core

Everything else that shares the file format is refused by its name: another formula's tensors read by
one of these would be a wrong model and no error.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from math import prod

import numpy as np
from numpy.typing import NDArray

from ..tensors import Array

Floats = NDArray[np.float64]
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Form:
    """One set of tensors that makes a change.

    `fit` takes the shapes of the weight and of the parts and returns the rank, or raises ValueError; 0 is
    the rank of what has none.
    `change` takes the parts in float64 and returns the change, before scaling, `[out, in, ...]` or
    `[out, in * height * width]`. `by_rows` are the parts [out, ...] whose rows alone make the same rows of
    the change, with the other parts whole; empty where rows do not stand apart.
    """

    name: str
    parts: tuple[str, ...]
    fit: Callable[..., int]
    change: Callable[..., Floats]
    by_rows: tuple[str, ...] = ()

    def rank(self, shape: Shape, parts: Collection[Shape]) -> int:
        """Return what alpha is divided by, 0 for nothing, from the shapes of the weight and of the parts.

        Raises:
            ValueError: they do not fit each other.
        """
        try:
            return self.fit(shape, *parts)
        except ValueError as problem:
            listed = ", ".join(f"{title(p)} {list(s)}" for p, s in zip(self.parts, parts, strict=True))
            raise ValueError(f"{listed} do not fit a weight {list(shape)}") from problem

    def delta(self, shape: Shape, parts: Collection[Array], scale: float) -> Floats:
        """Return scale times the change, in the weight's shape."""
        return scale * self.change(*(part.astype(np.float64) for part in parts)).reshape(shape)

    def delta_rows(self, shape: Shape, parts: Collection[Array], scale: float) -> Callable[[slice], Floats]:
        """Return what gives some rows of `delta`, without the others where the form allows that."""
        if not self.by_rows:
            return self.delta(shape, parts, scale).__getitem__
        wide = {name: part.astype(np.float64) for name, part in zip(self.parts, parts, strict=True)}

        def delta(rows: slice) -> Floats:
            taken = (part[rows] if name in self.by_rows else part for name, part in wide.items())
            found = self.change(*taken)
            found *= scale
            return found.reshape(-1, *shape[1:])

        return delta


def form_of(parts: Collection[str]) -> Form:
    """Return the form that a set of parts makes.

    Raises:
        ValueError: they make none, with what the nearest form lacks or cannot use.
    """
    given = set(parts)
    nearest = min(FORMS, key=lambda form: (len(given - set(form.parts)), len(set(form.parts) - given)))
    missing = [title(part) for part in nearest.parts if part not in given]
    odd = [title(part) for part in sorted(given - set(nearest.parts))]
    if odd:
        raise ValueError(f"{', '.join(odd)} cannot stand beside {', '.join(map(title, nearest.parts))}")
    if missing:
        raise ValueError(f"{' and '.join(missing)} is missing")
    return nearest


def title(part: str) -> str:
    """Return a part as files call it.

    >>> title("down"), title("hada_w1_a")
    ('lora_down (lora_A)', 'hada_w1_a')
    """
    return TITLES.get(part, part)


TITLES: Mapping[str, str] = {"down": "lora_down (lora_A)", "up": "lora_up (lora_B)", "mid": "lora_mid"}


def _low_rank(shape: Shape, down: Shape, up: Shape) -> int:
    """A [r, in, ...], B [out, r]."""
    rank = _rank(down)
    _expect(_plain(down) == _plain((rank, *shape[1:])) and _plain(up) == (shape[0], rank))
    return rank


def _low_rank_change(down: Floats, up: Floats) -> Floats:
    return _matrix(up) @ _matrix(down)


def _tucker(shape: Shape, down: Shape, mid: Shape, up: Shape) -> int:
    """A [r, in], M [r, r, height, width], B [out, r]."""
    rank = _rank(down)
    _expect(_plain(down) == (rank, shape[1]) and _plain(up) == (shape[0], rank))
    _expect(len(shape) == 4 and mid == (rank, rank, *shape[2:]))
    return rank


def _tucker_change(down: Floats, mid: Floats, up: Floats) -> Floats:
    return np.einsum("om,mnhw,ni->oihw", _matrix(up), mid, _matrix(down), optimize=True)


def _hadamard(shape: Shape, *parts: Shape) -> int:
    """Twice B [out, r], A [r, in * height * width]."""
    rank = _rank(parts[1])
    _expect(parts == ((shape[0], rank), (rank, prod(shape[1:]))) * 2)
    return rank


def _hadamard_change(b1: Floats, a1: Floats, b2: Floats, a2: Floats) -> Floats:
    return (b1 @ a1) * (b2 @ a2)


Factor = tuple[str, ...]
WHOLE_OR_FACTORED: tuple[tuple[Factor, ...], tuple[Factor, ...]] = (
    (("lokr_w1",), ("lokr_w1_a", "lokr_w1_b")),
    (("lokr_w2",), ("lokr_w2_a", "lokr_w2_b"), ("lokr_t2", "lokr_w2_a", "lokr_w2_b")),
)


def _kronecker(first: Factor, second: Factor) -> Form:
    """C1 [a, b] and C2 [c, d, height, width], with a c = out and b d = in."""
    count = len(first)

    def fit(shape: Shape, *parts: Shape) -> int:
        one, other = _factor_shape(parts[:count]), _factor_shape(parts[count:])
        _expect(len(one) == 2 and one[0] * other[0] == shape[0])
        _expect(one[1] * prod(other[1:]) == prod(shape[1:]) and shape[1] % one[1] == 0)
        _expect(len(other) == 2 or other[2:] == shape[2:])
        # Where both factors are low, tools divide by the rank of the second.
        return parts[-1][0] if len(second) > 1 else parts[count - 1][0] if count > 1 else 0

    def change(*parts: Floats) -> Floats:
        return np.asarray(np.kron(_factor(parts[:count]), _factor(parts[count:])), np.float64)

    return Form("LoKr", (*first, *second), fit, change)


def _factor_shape(parts: tuple[Shape, ...]) -> Shape:
    """Return the shape of a factor that is whole, B A, or a core between them, as _factor makes it."""
    _expect(all(len(shape) > 1 and min(shape) > 0 for shape in parts))
    match parts:
        case [whole]:
            return whole
        case [b, a]:
            _expect(len(b) == 2 and b[1] == a[0])
            return (b[0], *a[1:])
        case [core, b, a]:
            _expect(len(core) == 4 and core[:2] == (b[0], a[0]) and len(b) == len(a) == 2)
            return (b[1], a[1], *core[2:])
    raise ValueError("shapes do not fit")


def _factor(parts: tuple[Floats, ...]) -> Floats:
    """Return a factor as a matrix; a kernel is a longer row."""
    match parts:
        case [core, b, a]:
            return _matrix(np.einsum("mnhw,mo,ni->oihw", core, b, a, optimize=True))
        case [b, a]:
            return b @ _matrix(a)
    return _matrix(parts[0])


FORMS = (
    Form("LoRA", ("down", "up"), _low_rank, _low_rank_change, ("up",)),
    Form("LoRA with a Tucker core", ("down", "mid", "up"), _tucker, _tucker_change, ("up",)),
    Form(
        "LoHa",
        ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"),
        _hadamard,
        _hadamard_change,
        ("hada_w1_a", "hada_w2_a"),
    ),
    *(_kronecker(first, second) for first in WHOLE_OR_FACTORED[0] for second in WHOLE_OR_FACTORED[1]),
)

# What a key says that belongs to something else, and why that is refused.
NEEDS_THE_WEIGHT = "its formula needs the weight itself, and tools disagree on what its strength means"
REFUSED: Mapping[str, tuple[str, str]] = {
    "model.diffusion_model.": ("a whole checkpoint", "name it as `source.model`"),
    "lora_magnitude_vector": ("DoRA", NEEDS_THE_WEIGHT),
    "dora_scale": ("DoRA", NEEDS_THE_WEIGHT),
    "hada_t": ("LoHa with Tucker cores", "files by LyCORIS up to 1.9 hold another formula and do not say so"),
    "boft_": ("BOFT", NEEDS_THE_WEIGHT),
    "oft_": ("OFT", NEEDS_THE_WEIGHT),
    "lora_embedding_": ("LoRA of an embedding", ""),
    "lora_A.bias": ("LoRA with a bias", ""),
    "lora_B.bias": ("LoRA with a bias", ""),
    "lora_bias": ("LoRA with a bias", ""),
    "modules_to_save": ("modules saved whole", ""),
    ".on_input": ("IA3", NEEDS_THE_WEIGHT),
    "ia3_": ("IA3", NEEDS_THE_WEIGHT),
    ".a1.weight": ("GLoRA", NEEDS_THE_WEIGHT),
    ".b1.weight": ("GLoRA", NEEDS_THE_WEIGHT),
    ".diff": ("whole differences of weights", ""),
    ".w_norm": ("differences of norms", ""),
    ".b_norm": ("differences of norms", ""),
    "lora_controlnet": ("Control-LoRA", "it adds an input to the denoiser"),
    "ip_adapter.": ("IP-Adapter", "it adds an input to the denoiser"),
    "image_proj.": ("IP-Adapter", "it adds an input to the denoiser"),
    "emb_params": ("textual inversion", "it adds words, not weights"),
    "bundle_emb.": ("textual inversion inside a LoRA", "it adds words, not weights"),
    "lora_te3_": ("an adapter of another family (Stable Diffusion 3, Flux)", ""),
    "joint_blocks": ("an adapter of another family (Stable Diffusion 3)", ""),
    "double_blocks": ("an adapter of another family (Flux)", ""),
    "single_blocks": ("an adapter of another family (Flux)", ""),
    "single_transformer_blocks": ("an adapter of another family (Flux)", ""),
    "lora_prior_": ("an adapter of another family (Stable Cascade)", ""),
    "lora_transformer_": ("an adapter of another family (a transformer)", ""),
}


def refusal(key: str) -> str:
    """Return why a key's kind is not supported, by its name; "" where nothing is known against it.

    >>> refusal("lora_unet_double_blocks_0_img_mod_lin.alpha")
    'an adapter of another family (Flux) is not supported'
    """
    for mark, (name, reason) in REFUSED.items():
        if mark in key:
            return f"{name} is not supported" + (f": {reason}" if reason else "")
    return ""


def _matrix(array: Floats) -> Floats:
    return array.reshape(len(array), -1)


def _rank(shape: Shape) -> int:
    rank = shape[0] if shape else 0
    _expect(rank > 0)
    return rank


def _plain(shape: Shape) -> Shape:
    """Return a shape without a kernel of one element: linear maps are written as 1x1 convolutions too."""
    return shape if any(size != 1 for size in shape[2:]) else shape[:2]


def _expect(fits: bool) -> None:
    if not fits:
        raise ValueError("shapes do not fit")
