"""The provable attack as a bench: how many encodings of Gaussian features give all images away?

Axes: m encodings, n private images, d features.

The published sample complexity for two private images is m = O(n log n) (Huang et al., arXiv 2011.11877);
below (n/2)·ln n encodings some image is in none of them with constant probability, so no attack can do
better. :func:`success_curve` measures the chance that *all* images come out exactly.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from ...errors import InvalidInputError
from ..cost import Cost
from ..metrics import clopper_pearson
from ..view import AttackResult
from .gaussian_features import GaussianView, gaussian_release, recover_gaussian_features, recovered_share


def success_curve(
    sizes: Sequence[int],
    factors: Sequence[float],
    *,
    num_features: int = 3072,
    trials: int = 10,
    num_public: int = 0,
    pool_size: int = 0,
    seed: int = 0,
    progress: Callable[..., None] | None = None,
) -> dict[str, list[tuple[float, float]]]:
    """Chance of exact recovery of all n images against c, m = c·n·ln n; one line per n.

    Raises:
        InvalidInputError: fewer than four images, a factor that is not positive, or no trials.
    """
    if min(sizes) < 4 or min(factors) <= 0 or trials < 1:
        raise InvalidInputError(
            f"sizes {list(sizes)}, factors {list(factors)}, {trials} trials",
            hint="use n of 4 or more, positive factors, 1 or more trials",
        )
    curves: dict[str, list[tuple[float, float]]] = {}
    total, done = len(sizes) * len(factors) * trials, 0
    for n in sizes:
        line = []
        for c in factors:
            m, successes = math.ceil(c * n * math.log(n)), 0
            for trial in range(trials):
                view, truth = gaussian_release(
                    n, m, num_features, num_public=num_public, pool_size=pool_size, seed=seed + trial
                )
                successes += recovered_share(recover_gaussian_features(view), truth) == 1.0
                done += 1
                if progress is not None:
                    progress(done, total=total, text="trials")
            line.append((float(c), successes / trials))
        curves[f"{n} images"] = line
    return curves


def gram_feature_attack(
    *,
    num_images: int = 50,
    num_features: int = 3072,
    num_public: int = 0,
    pool_size: int = 0,
    factors: Sequence[float] = (0.5, 0.75, 1.0, 1.5),
    trials: int = 5,
    seed: int = 0,
    progress: Callable[..., None] | None = None,
) -> AttackResult:
    """The theorem on data of its own model, with the success curve, a power and a null check."""
    with Cost() as cost:
        curves = success_curve(
            (num_images,),
            factors,
            num_features=num_features,
            trials=trials,
            num_public=num_public,
            pool_size=pool_size,
            seed=seed,
            progress=progress,
        )
        best = max(chance for _, chance in curves[f"{num_images} images"])
        null = null_check(num_images, num_features, seed=seed)
    leaked = best > 0
    return AttackResult(
        name="gram, Gaussian features",
        verdict=(
            "A few encodings per image determine all private features exactly, as proved."
            if leaked
            else "Not all private features were recovered."
        ),
        leaked=leaked,
        metrics={"chance_of_exact_recovery": best},
        intervals={"chance_of_exact_recovery": clopper_pearson(round(best * trials), trials)},
        **cost.figures(),
        seed=seed,
        checks={"power": f"the release is the attacker's own; best chance {best:.0%}", "null": null},
        curves=curves,
        curve_axes=("encodings over n·ln n", "chance that all images come out exactly"),
        assumptions=(
            "features are independent standard normal values (the theorem's model, not photographs)",
            "two private vectors with equal weights in every encoding",
            "public vectors and their number are known" if num_public else "all sources are private",
            "without a public part each feature is recovered up to one sign common to all images",
        ),
        settings={
            "num_images": num_images,
            "num_features": num_features,
            "num_public": num_public,
            "pool_size": pool_size,
            "trials": trials,
        },
    )


def null_check(num_images: int, num_features: int, *, seed: int = 0) -> str:
    """What the same steps make of independent noise: encodings that share nothing."""
    noise = np.abs(np.random.default_rng(seed).normal(size=(4 * num_images, num_features)))
    recovery = recover_gaussian_features(GaussianView(noise, num_images))
    images = int(np.isfinite(recovery.images).all(axis=1).sum())
    return (
        f"in {len(noise)} encodings of pure noise {len(recovery.images)} groups seemed to share an image, "
        f"and {images} images came out"
    )
