"""Deep leakage from gradients: match the update in the least-squares sense with L-BFGS.

Axes: n images, K classes, d = C·H·W.

Zhu, Liu & Han 2019 ("DLG", algorithm 1) start from noise and minimise |∇ℓ(x, t) − g*|² over images *and*
labels; Zhao et al. 2020 ("iDLG") read the label first (``labels.py``) and keep it, which makes the search
both smaller and surer. Three choices differ from the published scripts: float64; pixels confined to [−1, 1]
(L-BFGS-B; Byrd et al. 1995), which an attacker knows; labels as softmax of free scores only where they cannot
be inferred.

With the affine plane of the first dense layer (``analytic.py``) the unknowns are n·(n − 1) coordinates
instead of n·d pixels, and a restart takes a second.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from .analytic import AffinePlane
from .attempt import Attempt, Budget, start_images
from .local_update import Simulator
from .objective import Objective

SOLVED = 1e-9  # relative squared residual: nothing is left to explain


def deep_leakage(
    simulator: Simulator,
    *,
    labels: torch.Tensor | None,
    plane: AffinePlane | None = None,
    restarts: int = 2,
    iterations: int = 300,
    seed: int = 0,
    budget: Budget | None = None,
) -> list[Attempt]:
    """Restarts, the best first; a restart that explains everything ends the search.

    Args:
        simulator: of the view, in float64.
        labels: (n, K) fixed labels (iDLG), or ``None`` to search them too (DLG).
        plane: the images' affine plane, if the first layer gave one.
        iterations: of L-BFGS in each restart.
        seed: of the starting noise.
    """
    budget = budget or Budget()
    objective = Objective(simulator, distance="euclidean")
    generator = torch.Generator().manual_seed(seed)
    attempts: list[Attempt] = []
    for restart in range(restarts):
        budget.report(restart, restarts, "L-BFGS restarts")
        search = _Search(objective, labels, plane, generator)
        attempts.append(search.run(iterations, budget))
        if attempts[-1].objective < SOLVED or budget.spent():
            break
    return sorted(attempts, key=lambda attempt: attempt.objective)


class _Search:
    """One restart: packs images and label scores into one vector."""

    def __init__(
        self,
        objective: Objective,
        labels: torch.Tensor | None,
        plane: AffinePlane | None,
        generator: torch.Generator,
    ) -> None:
        view = objective.simulator.view
        self.objective, self.labels, self.plane = objective, labels, plane
        self.n, self.shape, self.K = view.num_images, view.image_shape, view.num_classes
        if plane is None:
            start = start_images(view, generator, torch.float64).flatten(1)
            low_high = [(-1.0, 1.0)] * start.numel()
        else:
            self.axes = torch.linalg.qr(plane.directions.T).Q.T  # orthonormal (n − 1, d)
            spread = 0.5 * start_images(view, generator, torch.float64)[0].numel() ** 0.5
            free = torch.randn(self.n, len(self.axes), generator=generator, dtype=torch.float64)
            start = spread * free / max(1, len(self.axes)) ** 0.5
            low_high = [(-np.inf, np.inf)] * start.numel()
        self.num_image_values = start.numel()
        vector = start.flatten()
        if labels is None:
            scores = torch.randn(self.n * self.K, generator=generator, dtype=torch.float64)
            vector = torch.cat([vector, scores])
            low_high += [(-np.inf, np.inf)] * len(scores)
        self.start, self.bounds = vector.numpy(), low_high
        self.last = np.inf

    def unpack(self, vector: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(images, labels) of a vector."""
        values = vector[: self.num_image_values]
        if self.plane is None:
            images = values.reshape(self.n, *self.shape)
        else:
            coordinates = values.reshape(self.n, -1)
            images = (self.plane.offset + coordinates @ self.axes).reshape(self.n, *self.shape)
        if self.labels is not None:
            return images, self.labels.double()
        return images, vector[self.num_image_values :].reshape(self.n, self.K).softmax(1)

    def value_and_gradient(self, vector: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        """What scipy asks for."""
        variable = torch.from_numpy(vector.copy()).requires_grad_(True)
        loss = self.objective(*self.unpack(variable))
        (gradient,) = torch.autograd.grad(loss, [variable])
        self.last = float(loss.detach())
        return self.last, gradient.numpy()

    def run(self, iterations: int, budget: Budget) -> Attempt:
        from scipy.optimize import minimize

        done = minimize(
            self.value_and_gradient,
            self.start,
            jac=True,
            method="L-BFGS-B",
            bounds=self.bounds,
            callback=_stop_when(lambda: budget.spent() or self.last < SOLVED * 1e-4),
            options={"maxiter": iterations, "maxfun": 4 * iterations, "maxcor": 30, "ftol": 0.0, "gtol": 0.0},
        )
        images, labels = self.unpack(torch.from_numpy(done.x))
        images, labels = images.detach(), labels.detach()
        unexplained = self.objective.unexplained(images, labels)
        return Attempt(images.clamp(-1, 1), labels, float(done.fun), unexplained, int(done.nit))


def _stop_when(condition: Callable[[], bool]) -> Callable[[NDArray[np.float64]], None]:
    def callback(intermediate: NDArray[np.float64]) -> None:
        if condition():
            raise StopIteration

    return callback
