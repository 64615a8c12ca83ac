"""EncoderConfig: the public law of an encoding. Everything in it may be printed and published.

====================  =============================================================================
mode                  what it does
====================  =============================================================================
``hardened``          coefficients and labels on a grid of 1/64, values quantised (8 bits) with a
                      keyed dither, public pool filtered for texture. Removes the known
                      implementation leaks; **no proof of privacy**.
``compat``            the published law (Huang et al., ICML 2020): float32, coefficients as drawn,
                      labels not renormalised. Broken (Carlini et al. 2020); for research.
``mixup``             the same mixing without a sign mask: the baseline without any hiding.
``dp``                mixing, then noise on images and labels (DP-InstaHide, Borgnia et al. 2021).
                      No sign mask. The one mode with a guarantee, whose size
                      :mod:`instahide.encoding_guarantee` computes from this law.
====================  =============================================================================

In every mode all draws come from :mod:`instahide.randomness`; a configuration holds no secret
and there is no seed to put in it.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from typing import Any

from .errors import InvalidInputError

MODES = ("hardened", "compat", "mixup", "dp")
COEFFICIENT_LAWS = ("folded-normal", "dirichlet", "equal")
NOISE_LAWS = ("gaussian", "laplace")
_NOISE_DEFAULTS: dict[str, Any] = {
    "noise_law": "none",
    "noise_scale": 0.0,
    "label_noise_scale": 0.0,
    "max_norm": None,
    "output_range": 1.0,
}
"""The names of the noise and their values in every mode but ``dp``, whose dictionary alone holds them."""
MAX_NUM_MIXED = 16
DEFAULT_QUANTIZATION_BITS = 8
COEFFICIENT_GRID = 64
"""Hardened coefficients and labels are multiples of 1/64 (few values, hence little in each)."""


@dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """The law of an encoding; keyword-only, frozen, checked.

    Args:
        num_mixed: k, images in one encoding, 1..16 (1 is a sign mask on the bare image).
        num_private: private images among them, the own image included. Without a public pool
            all k are private and the encoder sets this to ``num_mixed``.
        mode: ``"hardened"``, ``"compat"``, ``"mixup"`` or ``"dp"``.
        coefficient_law: ``"folded-normal"`` (|N(0,1)| divided by their sum, the published code),
            ``"dirichlet"`` (uniform on the simplex), or ``"equal"`` (1/k each; ``dp`` and ``mixup`` only,
            as it needs no secret coefficients), which has the smallest sensitivity of all.
        max_coefficient: c1 of the paper; a draw with a larger coefficient is drawn again.
            Of no effect at ``num_mixed=1``, whose only coefficient is 1.
        min_private_sum: c2 of the paper; with a public pool the private coefficients sum to at
            least this.
        quantization_bits: output values lie on ``j / (2**(bits - 1) - 1)``; 2..16. ``None`` is
            the mode's default: 8 for ``hardened`` and ``dp``, no quantisation for the others.
        noise_law: of ``dp`` only, and required there: ``"gaussian"`` or ``"laplace"``.
        noise_scale: added to every value of a mixed image, whose range is [-1, 1]: the standard
            deviation, or Laplace's b (standard deviation √2·b).
        label_noise_scale: the same for every entry of a mixed label.
        max_norm: private images longer than this are shortened to it before they are mixed; the L2
            norm of the values in [-1, 1] under Gaussian noise, the L1 norm under Laplace noise.
            ``None``: the range of pixels alone bounds them.
        output_range: noisy values are clipped to ± this and divided by it.

    Raises:
        InvalidInputError: a value outside its range, or bounds that no draw can meet.
    """

    num_mixed: int = 4
    num_private: int = 2
    mode: str = "hardened"
    coefficient_law: str = "folded-normal"
    max_coefficient: float = 0.65
    min_private_sum: float = 0.3
    quantization_bits: int | None = None
    noise_law: str = "none"
    noise_scale: float = 0.0
    label_noise_scale: float = 0.0
    max_norm: float | None = None
    output_range: float = 1.0

    def __post_init__(self) -> None:
        _check_choice("mode", self.mode, MODES)
        _check_choice("coefficient_law", self.coefficient_law, COEFFICIENT_LAWS)
        _check_integer("num_mixed", self.num_mixed, 1, MAX_NUM_MIXED)
        _check_integer("num_private", self.num_private, 1, MAX_NUM_MIXED)
        if self.num_private > self.num_mixed:
            raise InvalidInputError(
                f"num_private is {self.num_private} but only num_mixed = {self.num_mixed} images are mixed",
                hint="num_private counts the private images among the num_mixed",
            )
        _check_fraction("max_coefficient", self.max_coefficient)
        _check_fraction("min_private_sum", self.min_private_sum)
        self._check_bounds_can_be_met()
        self._check_noise()
        if self.quantization_bits is not None:
            _check_integer("quantization_bits", self.quantization_bits, 2, 16)
        elif self.mode in ("hardened", "dp"):
            object.__setattr__(self, "quantization_bits", DEFAULT_QUANTIZATION_BITS)

    def _check_bounds_can_be_met(self) -> None:
        if self.num_mixed == 1:
            return
        if self.max_coefficient * self.num_mixed < 1.0:
            raise InvalidInputError(
                f"max_coefficient {self.max_coefficient} cannot hold: {self.num_mixed} coefficients sum to 1",
                hint=f"use at least {1 / self.num_mixed:.3f}; the published value is 0.65",
            )
        if self.max_coefficient * self.num_private < self.min_private_sum:
            raise InvalidInputError(
                f"min_private_sum {self.min_private_sum} cannot be reached by {self.num_private} "
                f"coefficients of at most {self.max_coefficient}",
                hint="lower min_private_sum; the published value is 0.3",
            )

    def _check_noise(self) -> None:
        if self.coefficient_law == "equal" and self.mode not in ("dp", "mixup"):
            raise InvalidInputError(
                f"coefficient_law 'equal' in mode {self.mode!r} makes every coefficient known",
                hint="use it in mode dp or mixup, or another law",
            )
        if self.mode != "dp":
            for name, default in _NOISE_DEFAULTS.items():
                if getattr(self, name) != default:
                    raise InvalidInputError(
                        f"{name} is {getattr(self, name)!r} in mode {self.mode!r}",
                        hint="noise is of mode dp only",
                    )
            return
        _check_choice("noise_law", self.noise_law, NOISE_LAWS)
        _check_range("noise_scale", self.noise_scale, 1e-3, 1e6)
        _check_range("label_noise_scale", self.label_noise_scale, 1e-3, 1e6)
        _check_range("output_range", self.output_range, 1e-3, 1e6)
        if self.max_norm is not None:
            _check_range("max_norm", self.max_norm, 1e-3, 1e9)

    @property
    def has_sign_mask(self) -> bool:
        """False for ``mixup`` and ``dp``."""
        return self.mode not in ("mixup", "dp")

    @property
    def has_noise(self) -> bool:
        """Whether this law can have a privacy guarantee at all: ``dp`` only."""
        return self.mode == "dp"

    @property
    def largest_coefficient(self) -> float:
        """No source of any row ever has more than this."""
        if self.num_mixed == 1:
            return 1.0
        return 1.0 / self.num_mixed if self.coefficient_law == "equal" else self.max_coefficient

    @property
    def mixing_levels(self) -> int | None:
        """Levels of the rounding inside the mixing pass; under noise, rounding comes after the noise."""
        return None if self.has_noise else self.quantization_levels

    @property
    def quantization_levels(self) -> int | None:
        """L = 2**(bits - 1) - 1: values lie on j/L, j = -L..L; ``None`` without quantisation."""
        return None if self.quantization_bits is None else 2 ** (self.quantization_bits - 1) - 1

    @property
    def coefficient_grid(self) -> int | None:
        """Coefficients and labels are multiples of one over this; ``None``: not on a grid."""
        return COEFFICIENT_GRID if self.mode == "hardened" else None

    @property
    def renormalizes_labels(self) -> bool:
        """True: rows of labels sum to 1. False (``compat``): to the sum of private coefficients."""
        return self.mode != "compat"

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a manifest; :meth:`from_dict` reads them back."""
        values = asdict(self)
        if not self.has_noise:  # as before there was such a mode
            for name in _NOISE_DEFAULTS:
                del values[name]
        return values

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> EncoderConfig:
        """The configuration a manifest describes; an unknown or missing name is refused."""
        known = {field.name for field in fields(cls)}
        if not isinstance(values, dict) or values.get("mode") != "dp":
            known -= set(_NOISE_DEFAULTS)
        if not isinstance(values, dict) or set(values) != known:
            given = sorted(map(str, values)) if isinstance(values, dict) else type(values).__name__
            raise InvalidInputError(
                f"not an encoder configuration: it has {given}",
                hint=f"exactly these names are expected: {', '.join(sorted(known))}",
            )
        return cls(**values)


def _check_choice(name: str, value: object, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise InvalidInputError(f"{name} is {value!r}", hint=f"use one of {', '.join(allowed)}")


def _check_integer(name: str, value: object, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise InvalidInputError(f"{name} is {value!r}", hint=f"use an integer from {low} to {high}")


def _check_range(name: str, value: object, low: float, high: float) -> None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not low <= float(value) <= high:  # type: ignore[arg-type]
        raise InvalidInputError(f"{name} is {value!r}", hint=f"use a number from {low:g} to {high:g}")


def _check_fraction(name: str, value: object) -> None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not math.isfinite(float(value)) or not 0.0 <= float(value) <= 1.0:  # type: ignore[arg-type]
        raise InvalidInputError(f"{name} is {value!r}", hint="use a number from 0 to 1")
