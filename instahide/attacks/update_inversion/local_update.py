r"""What images would have done to the weights: one gradient, or S steps of SGD, differentiable.

Axes: n images, S steps, K classes, C H W.

Inversion compares what the server received with what candidate images would have produced. For a gradient
that is ∇_w ℓ(w₀; x, t) with ℓ the mean soft-label cross-entropy. For an update the local steps are unrolled,

    g_s = ∇ℓ(w_s; batch s) + μ·(w_s − w₀),   g_s ← g_s·min(1, c/|g_s|),
    v ← m·v + g_s + λ·w_s,                   w_{s+1} = w_s − η·v,

which is the toolkit's own training loop written without in-place operations, and can be differentiated with
respect to the images. The order of the images at the site is unknown: image i is put into batch ⌊i/B⌋ of
*every* epoch (Geiping et al. 2020, section 6, do the same), exact for one step or one epoch.

**An update is an averaged gradient.** Without clipping and FedProx, SGD with momentum and weight decay is
linear in w₀ and the g_s: w_S = A·w₀ − Σ_s b_s·g_s with scalars A and b_s. So

    Ḡ = (A·w₀ − w_S) / Σ_s b_s

is exactly a weighted mean of the S gradients, and all that is linear in them (the first dense layer, see
``analytic.py``) reads through any number of local steps. Clipping only changes the weights of that mean.
"""

from __future__ import annotations

import copy
from typing import Any, cast

import torch
from torch import nn
from torch.func import functional_call

from ...errors import InvalidInputError
from ...training import soft_cross_entropy
from .view import LocalTraining, Tensors, UpdateView


class Simulator:
    """Computes what candidate images would have sent; keeps the model in training mode.

    Args:
        view: the attacker's view.
        dtype: float64 for L-BFGS, float32 elsewhere.
        averaged: compare with Ḡ as if it were one gradient, instead of unrolling the steps.
    """

    def __init__(
        self, view: UpdateView, dtype: torch.dtype = torch.float32, *, averaged: bool = False
    ) -> None:
        self.view = view
        self.model = copy.deepcopy(view.model).to(dtype).train()
        self.parameters: Tensors = {
            name: parameter.detach().clone().requires_grad_(True)
            for name, parameter in self.model.named_parameters()
        }
        self.unrolls = view.kind == "update" and not averaged
        if self.unrolls and view.training.optimizer != "sgd":
            raise InvalidInputError("only SGD can be unrolled", hint="use averaged=True")
        seen = view.observed if self.unrolls or view.kind == "gradient" else averaged_gradient(view)
        self.observed = [seen[name].to(dtype) for name in self.parameters]
        self.dtype = dtype

    def simulate(self, images: torch.Tensor, labels: torch.Tensor) -> list[torch.Tensor]:
        """One tensor per parameter, differentiable in ``images`` (n, C, H, W) and ``labels`` (n, K)."""
        if self.unrolls:
            sites = self.view.defence.num_sites
            share = self.view.site_plan.num_images
            sent = [
                self._unroll(images[i * share : (i + 1) * share], labels[i * share : (i + 1) * share])
                for i in range(sites)
            ]
            return [torch.stack([one[name] for one in sent]).mean(0) for name in self.parameters]
        loss = soft_cross_entropy(self._scores(self.parameters, images), labels)
        return list(torch.autograd.grad(loss, list(self.parameters.values()), create_graph=True))

    def _scores(self, parameters: Tensors, images: torch.Tensor) -> torch.Tensor:
        buffers = {name: buffer.clone() for name, buffer in self.model.named_buffers()}
        return cast(torch.Tensor, functional_call(self.model, {**parameters, **buffers}, (images,)))

    def _unroll(self, images: torch.Tensor, labels: torch.Tensor) -> Tensors:
        plan, start = self.view.site_plan, self.parameters
        weights = dict(start)
        velocity: Tensors = {}
        for _ in range(plan.epochs):
            for first, last in plan.batches():
                scores = self._scores(weights, images[first:last])
                loss = soft_cross_entropy(scores, labels[first:last])
                gradients = list(torch.autograd.grad(loss, list(weights.values()), create_graph=True))
                gradients = _pulled_and_clipped(plan, gradients, weights, start)
                moved = {}
                for (name, weight), gradient in zip(weights.items(), gradients, strict=True):
                    step = gradient + plan.weight_decay * weight
                    velocity[name] = step if name not in velocity else plan.momentum * velocity[name] + step
                    moved[name] = weight - plan.learning_rate * velocity[name]
                weights = moved
        return {name: weights[name] - start[name] for name in start}


def _pulled_and_clipped(
    plan: LocalTraining, gradients: list[torch.Tensor], weights: Tensors, start: Tensors
) -> list[torch.Tensor]:
    if plan.proximal_mu:
        pulls = [weights[name] - start[name] for name in weights]
        gradients = [g + plan.proximal_mu * pull for g, pull in zip(gradients, pulls, strict=True)]
    if plan.max_gradient_norm is not None:
        norm = torch.sqrt(sum((g.square().sum() for g in gradients), torch.zeros(())) + 1e-30)
        shrink = torch.clamp(plan.max_gradient_norm / (norm + 1e-6), max=1.0)
        gradients = [g * shrink for g in gradients]
    return gradients


def averaged_gradient(view: UpdateView) -> Tensors:
    """Ḡ: the gradient itself, or the weighted mean of the local steps' gradients read from the update."""
    if view.kind == "gradient":
        return dict(view.observed)
    decay, response = sgd_response(view.site_plan)
    start = dict(view.model.named_parameters())
    averaged = {}
    for name, change in view.observed.items():
        # In float64: the update is a small difference of large weights.
        drift = (decay - 1) * start[name].detach().double()
        averaged[name] = ((drift - change.double()) / response).float()
    return averaged


def sgd_response(plan: LocalTraining) -> tuple[float, float]:
    """(A, Σ_s b_s) of w_S = A·w₀ − Σ_s b_s·g_s, by running the recursion on scalars.

    For AdamW the scale of the mean gradient is lost; (1 − ηλ)^S and S·η are returned.
    """
    steps, eta = plan.num_steps, plan.learning_rate
    if plan.optimizer == "adamw":
        return (1 - eta * plan.weight_decay) ** steps, steps * eta
    return _run(plan, 1.0, 0.0), -_run(plan, 0.0, 1.0)


def _run(plan: LocalTraining, start: float, gradient: float) -> float:
    weight, velocity = start, 0.0
    for _ in range(plan.num_steps):
        pull = plan.proximal_mu * (weight - start)
        velocity = plan.momentum * velocity + gradient + pull + plan.weight_decay * weight
        weight -= plan.learning_rate * velocity
    return weight


def observe(
    model: nn.Module,
    images: torch.Tensor,
    labels: torch.Tensor,
    training: LocalTraining,
    *,
    kind: str = "gradient",
    **beside: Any,
) -> UpdateView:
    """The view of a server that received what ``images`` do to ``model``: for rehearsals and benches.

    ``beside`` are further fields of the view (labels, public_images, ...).
    """
    shape = (int(images.shape[1]), int(images.shape[2]), int(images.shape[3]))
    nothing = {name: torch.zeros_like(value) for name, value in model.named_parameters()}
    empty = UpdateView(model, nothing, kind, training, shape, int(labels.shape[1]))
    with torch.enable_grad():
        sent = Simulator(empty).simulate(images.float(), labels.float())
    observed = {name: value.detach() for name, value in zip(nothing, sent, strict=True)}
    return UpdateView(model, observed, kind, training, shape, int(labels.shape[1]), **beside)
