"""What mode ``dp`` guarantees: (ε, δ) of one image over every release and every role it plays.

Axes: N images, T releases, k sources, k_priv private ones, K classes, d = C·H·W values of an image.

**Neighbours.** ``"replace-one"``: two data sets of N labelled images that differ in one image and its label.
``"zero-out"``: the image and its label are replaced by nothing (a zero image, a zero label), which
is what add-or-remove-one comes to here: the number of rows is published and not protected.

**Roles.** In T releases an image is the own source of T rows and partner in (k_priv − 1)·T others
(permutations, :mod:`instahide.partners`), hence in U = k_priv·T rows, never twice in one. Who was mixed with
whom and the coefficients λ do not depend on the pixels; for *every* outcome of them

    image part of a row:  ‖m − m'‖ ≤ c·D + a√d (L2),  c·D + a·d (L1)      c ≥ λ ``largest_coefficient``
    label part of a row:  ‖ℓ − ℓ'‖ ≤ s·√2 (L2), 2·s (L1); zero-out s      s the largest label share

with D the largest distance of two images: 2·max_norm, and at most that of the whole pixel cube, 2√d or
2d; half of it for zero-out. a is the step of the noise's grid plus the float32 error of mixing. A
mixture over outcomes is no worse than the worst outcome, so nothing is assumed secret: partners and
coefficients may be known to the attacker, and **no amplification by mixing is claimed** beyond λ ≤ c.
``coefficient_law="equal"`` has c = 1/k, and U rows then cost k·T/k² = T/k of one plain release.

**Composition** over the U rows, images and labels together. Gaussian: μ² = U·[(Δ_image/s_image)² +
(Δ_label/s_label)²], then the exact curve of :mod:`instahide.privacy_curves`. Laplace: the smallest of basic
composition (δ = 0), Rényi and privacy-loss-distribution bounds on U·d coordinates moved by at most 2c + a.
The samplers' own error (:func:`instahide.integer_noise.sampling_error`) is inside the figures. One
person with g images: Gaussian g·μ, Laplace g·ε at δ = 0.

**Not covered.** The number of images, their shape and the class names; times; a refused input; exact copies
that ``instahide encode`` leaves out, which shows in the number of rows; anything else made from the images; a
resumed epoch (give ``partner_uses``). The guarantee is computational in one
respect: ChaCha20 stands for true randomness. No other mode has any guarantee, and
:func:`guarantee_of_encodings` refuses to give one.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import Any

from .encoder_config import EncoderConfig
from .errors import InvalidInputError, RefusedError
from .integer_noise import MOST_EPSILON, grid_step, ideal_delta
from .privacy_curves import bisect, check_delta, gaussian_epsilon, laplace_epsilons

ADJACENCIES = ("replace-one", "zero-out")
MIXING_ERROR = 5e-6
"""Two float32 mixing passes of up to 16 sources are together off by less, in any value."""


@dataclass(frozen=True, kw_only=True)
class Sensitivity:
    """How far one row can move when one image and its label change, in the norm of the noise's law."""

    image: float
    label: float
    image_coordinate: float
    label_coordinate: float
    label_coordinates: int


@dataclass(frozen=True, kw_only=True)
class Guarantee:
    """(epsilon, delta)-differential privacy of one image, or of the ``images_per_person`` of one person.

    Args:
        bounds: every upper bound that was computed, by method; ``epsilon`` is the smallest.
        noise_multiplier: 1/μ: the whole release is as revealing as one Gaussian release with this
            standard deviation at sensitivity 1; ``None`` under Laplace noise.
        epsilon: infinite beyond 30, where it promises nothing.
    """

    epsilon: float
    delta: float
    adjacency: str
    own_uses: int
    partner_uses: int
    images_per_person: int
    noise_law: str
    noise_multiplier: float | None
    bounds: dict[str, float]
    method: str

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; an infinite number is ``None``."""
        values = asdict(self)
        values["epsilon"] = self.epsilon if math.isfinite(self.epsilon) else None
        values["bounds"] = {name: eps if math.isfinite(eps) else None for name, eps in self.bounds.items()}
        return values

    def in_words(self) -> str:
        """One sentence with everything the numbers depend on."""
        who = "one image" if self.images_per_person == 1 else f"a person's {self.images_per_person} images"
        rows = f"{self.own_uses} own and {self.partner_uses} partner use(s)"
        if not math.isfinite(self.epsilon):
            return f"no useful guarantee for {who} over {rows}: epsilon is above {MOST_EPSILON:g}"
        return (
            f"epsilon {self.epsilon:.3g} at delta {self.delta:.1g} for {who} ({self.adjacency}) over {rows}, "
            f"{self.noise_law} noise, bound by {self.method}"
        )


def guarantee_of_encodings(
    config: EncoderConfig,
    *,
    image_shape: tuple[int, int, int],
    num_classes: int,
    scheme: str,
    releases: int = 1,
    partner_uses: int | None = None,
    images_per_person: int = 1,
    adjacency: str = "replace-one",
    target_delta: float = 1e-5,
) -> Guarantee:
    """The guarantee of ``releases`` epochs of encodings under one law of mode ``dp``.

    Args:
        scheme: ``"inside"`` (no public pool: all k sources are private) or ``"cross"``.
        releases: T, epochs released; for queries (``encode_views``), the number of views.
        partner_uses: rows of other images one image is mixed into, over all releases;
            ``None``: (k_priv − 1)·T, as whole epochs have it.
        images_per_person: g, for a guarantee to persons who have several images.

    Raises:
        RefusedError: a mode without noise. InstaHide's own modes have no epsilon.
        InvalidInputError: an argument outside its range; Laplace noise without ``dp-accounting``.
    """
    _check(config, scheme, releases, partner_uses, images_per_person, adjacency, target_delta)
    config = replace(config, num_private=config.num_mixed) if scheme == "inside" else config
    partners = (config.num_private - 1) * releases if partner_uses is None else partner_uses
    uses = releases + partners
    d = math.prod(image_shape)
    moves = row_sensitivity(config, d, adjacency)
    num_draws = uses * images_per_person * (d + num_classes)
    delta, extra = ideal_delta(num_draws, target_delta)
    if config.noise_law == "gaussian":
        mu = _gaussian_mu(config, moves, uses) * images_per_person
        bounds, multiplier = {"gaussian": gaussian_epsilon(delta, mu)}, 1 / mu
    else:
        bounds, multiplier = _laplace_bounds(config, moves, uses, d, images_per_person, delta), None
    bounds = {name: eps + extra if eps <= MOST_EPSILON else math.inf for name, eps in bounds.items()}
    method = min(bounds, key=lambda name: bounds[name])
    return Guarantee(
        epsilon=bounds[method],
        delta=target_delta,
        adjacency=adjacency,
        own_uses=releases,
        partner_uses=partners,
        images_per_person=images_per_person,
        noise_law=config.noise_law,
        noise_multiplier=multiplier,
        bounds=bounds,
        method=method,
    )


def epsilon_of(config: EncoderConfig, **arguments: Any) -> float:
    """The epsilon of :func:`guarantee_of_encodings`, with its arguments; refused for modes without noise."""
    return guarantee_of_encodings(config, **arguments).epsilon


def row_sensitivity(config: EncoderConfig, d: int, adjacency: str = "replace-one") -> Sensitivity:
    """How far one row's image (d values) and label can move; ``config`` as the encoder applies it."""
    laplace = config.noise_law == "laplace"
    cube = float(d) if laplace else math.sqrt(d)
    sides = 2 if adjacency == "replace-one" else 1
    slack = grid_step(config.noise_law, config.noise_scale) + MIXING_ERROR
    label_slack = grid_step(config.noise_law, config.label_noise_scale) + MIXING_ERROR
    distance = sides * min(cube, math.inf if config.max_norm is None else config.max_norm)
    share = largest_label_share(config)
    return Sensitivity(
        image=config.largest_coefficient * distance + slack * cube,
        label=share * (sides if laplace else math.sqrt(sides))
        + label_slack * (sides if laplace else math.sqrt(sides)),
        image_coordinate=config.largest_coefficient * sides + slack,
        label_coordinate=share + label_slack,
        label_coordinates=sides,
    )


def largest_label_share(config: EncoderConfig) -> float:
    """The most one source can have of a label row: its coefficient over that of all private sources."""
    if config.num_private == 1:
        return 1.0
    if config.coefficient_law == "equal":
        return 1.0 / config.num_private
    if config.num_private == config.num_mixed:
        return config.largest_coefficient
    return 1.0 if config.min_private_sum == 0 else min(1.0, config.max_coefficient / config.min_private_sum)


def dp_config_for(
    *,
    target_epsilon: float,
    target_delta: float,
    image_shape: tuple[int, int, int],
    num_classes: int,
    scheme: str,
    noise_law: str = "gaussian",
    label_share: float = 0.5,
    releases: int = 1,
    partner_uses: int | None = None,
    images_per_person: int = 1,
    adjacency: str = "replace-one",
    **law: Any,
) -> EncoderConfig:
    """The law with the least noise that keeps ``target_epsilon``; ``law`` are other fields of the config.

    Args:
        label_share: how much of the budget (of μ² under Gaussian, of ε under Laplace noise) labels get.

    Raises:
        InvalidInputError: no noise within the config's limits is enough.
    """
    if not 0 < label_share < 1 or not 0 < target_epsilon <= MOST_EPSILON:
        raise InvalidInputError(
            f"target_epsilon {target_epsilon}, label_share {label_share}",
            hint=f"use an epsilon up to {MOST_EPSILON:g} and a share between 0 and 1",
        )
    start = EncoderConfig(
        **{"mode": "dp", "coefficient_law": "equal", **law, "noise_law": noise_law},
        noise_scale=1.0,
        label_noise_scale=1.0,
    )
    applied = replace(start, num_private=start.num_mixed) if scheme == "inside" else start
    moves = row_sensitivity(applied, math.prod(image_shape), adjacency)
    power = 1.0 if noise_law == "laplace" else 0.5

    def config_at(multiplier: float) -> EncoderConfig:
        return replace(
            start,
            noise_scale=min(1e6, max(1e-3, multiplier * moves.image / (1 - label_share) ** power)),
            label_noise_scale=min(1e6, max(1e-3, multiplier * moves.label / label_share**power)),
        )

    def holds(multiplier: float) -> bool:
        return target_epsilon >= epsilon_of(
            config_at(multiplier),
            image_shape=image_shape,
            num_classes=num_classes,
            scheme=scheme,
            releases=releases,
            partner_uses=partner_uses,
            images_per_person=images_per_person,
            adjacency=adjacency,
            target_delta=target_delta,
        )

    best = bisect(holds, relative=1e-4)
    if not math.isfinite(best):
        raise InvalidInputError(
            f"no noise keeps epsilon {target_epsilon}", hint="ask for a larger epsilon or fewer releases"
        )
    return config_at(best)


def _gaussian_mu(config: EncoderConfig, moves: Sensitivity, uses: int) -> float:
    return math.sqrt(uses) * math.hypot(
        moves.image / config.noise_scale, moves.label / config.label_noise_scale
    )


def _laplace_bounds(
    config: EncoderConfig, moves: Sensitivity, uses: int, d: int, group: int, delta: float
) -> dict[str, float]:
    basic = uses * (moves.image / config.noise_scale + moves.label / config.label_noise_scale)
    bounds = {"composition": group * basic}
    if group == 1:
        parts = [
            (moves.image_coordinate / config.noise_scale, uses * d),
            (moves.label_coordinate / config.label_noise_scale, uses * moves.label_coordinates),
        ]
        others = laplace_epsilons(parts, delta)
        bounds |= {name: others[name] for name in ("rdp", "pld")}
    return bounds


def _check(
    config: EncoderConfig,
    scheme: str,
    releases: int,
    partner_uses: int | None,
    images_per_person: int,
    adjacency: str,
    target_delta: float,
) -> None:
    if not config.has_noise:
        raise RefusedError(
            f"mode {config.mode!r} has no privacy guarantee: there is no epsilon to give",
            hint='only mode "dp" has one; measure the others with `instahide attack`',
        )
    check_delta(target_delta)
    for name, value, allowed in (
        ("scheme", scheme, ("inside", "cross")),
        ("adjacency", adjacency, ADJACENCIES),
    ):
        if value not in allowed:
            raise InvalidInputError(f"{name} is {value!r}", hint=f"use one of {', '.join(allowed)}")
    counts = {"releases": releases, "images_per_person": images_per_person}
    for name, count in counts.items():
        if count < 1:
            raise InvalidInputError(f"{name} is {count}", hint="use 1 or more")
    if partner_uses is not None and partner_uses < 0:
        raise InvalidInputError(f"partner_uses is {partner_uses}", hint="use 0 or more")
    if scheme == "cross" and config.num_private == config.num_mixed:
        raise InvalidInputError(
            "all sources are private, so the scheme is 'inside'", hint="give scheme='inside'"
        )
