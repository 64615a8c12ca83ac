"""Inverting gradients: cosine distance, total variation, Adam on signed gradients.

Axes: n images, K classes.

Geiping, Bauermeister, Dröge & Moeller 2020 (section 5): the direction of a gradient tells about the image,
its length mostly how well the image is already fitted. Minimise 1 − cos(g, g*) + α·TV(x) with Adam on the
*sign* of the objective's gradient, rate 0.1 divided by ten after 3/8, 5/8 and 7/8 of the steps, pixels kept
in the box after each step. Works for ReLU networks and updates of several steps, where L-BFGS stalls.
"""

from __future__ import annotations

import torch

from .attempt import Attempt, Budget, start_images
from .objective import Objective

DECAYS = (3 / 8, 5 / 8, 7 / 8)
BETA_1, BETA_2, EPSILON = 0.9, 0.999, 1e-8


def cosine_inversion(
    objective: Objective,
    *,
    labels: torch.Tensor | None,
    restarts: int = 2,
    steps: int = 1000,
    learning_rate: float = 0.1,
    seed: int = 0,
    budget: Budget | None = None,
) -> list[Attempt]:
    """Restarts from independent noise, the best objective first.

    Args:
        labels: (n, K) fixed labels, or ``None`` to search them beside the images.
        steps: of Adam in each restart; the published figures use 4,800 to 24,000.
        seed: of the starting noise.
    """
    budget = budget or Budget()
    generator = torch.Generator().manual_seed(seed)
    attempts = []
    for restart in range(restarts):
        attempts.append(
            _one_start(objective, labels, generator, steps, learning_rate, budget, restart, restarts)
        )
        if budget.spent():
            break
    return sorted(attempts, key=lambda attempt: attempt.objective)


def _one_start(
    objective: Objective,
    labels: torch.Tensor | None,
    generator: torch.Generator,
    steps: int,
    learning_rate: float,
    budget: Budget,
    restart: int,
    restarts: int,
) -> Attempt:
    view, dtype = objective.simulator.view, objective.simulator.dtype
    images = start_images(view, generator, dtype).requires_grad_(True)
    variables = [images]
    if labels is None:
        shape = (view.num_images, view.num_classes)
        variables.append(torch.randn(shape, generator=generator, dtype=dtype).requires_grad_(True))
    adam = _Adam(variables)
    done, loss = 0, float("inf")
    for done in range(1, steps + 1):
        used = labels.to(dtype) if labels is not None else variables[1].softmax(1)
        value = objective(images, used)
        loss = float(value.detach())
        gradients = torch.autograd.grad(value, variables)
        rate = learning_rate * 0.1 ** sum(done > share * steps for share in DECAYS)
        adam.step([gradients[0].sign(), *gradients[1:]], rate)
        with torch.no_grad():
            images.clamp_(-1, 1)
        if done % 20 == 0:
            budget.report(restart * steps + done, restarts * steps, "gradient matching steps")
            if budget.spent():
                break
    used = labels.to(dtype) if labels is not None else variables[1].detach().softmax(1)
    found = images.detach()
    return Attempt(found, used, loss, objective.unexplained(found, used), done)


class _Adam:
    """Kingma & Ba 2015, algorithm 1, in ten lines: torch's own would load a compiler."""

    def __init__(self, variables: list[torch.Tensor]) -> None:
        self.variables = variables
        self.first = [torch.zeros_like(variable) for variable in variables]
        self.second = [torch.zeros_like(variable) for variable in variables]
        self.t = 0

    def step(self, gradients: list[torch.Tensor], rate: float) -> None:
        self.t += 1
        with torch.no_grad():
            for variable, gradient, m, v in zip(
                self.variables, gradients, self.first, self.second, strict=True
            ):
                m.mul_(BETA_1).add_(gradient, alpha=1 - BETA_1)
                v.mul_(BETA_2).addcmul_(gradient, gradient, value=1 - BETA_2)
                size = (v / (1 - BETA_2**self.t)).sqrt_().add_(EPSILON)
                variable.sub_(rate / (1 - BETA_1**self.t) * m / size)
