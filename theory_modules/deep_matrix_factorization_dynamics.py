"""Theorem 3, checked: how singular values and vectors of a product move under gradient flow.

Let W = W_N···W_1 be balanced, G = dℓ/dW, W = U S Vᵀ analytic in time, K = UᵀGV and a_r = (σ_r²)^(1/N). Then

    (1) dW/dt  = −Σ_j (WWᵀ)^((j−1)/N) G (WᵀW)^((N−j)/N)
    (2) dσ_r/dt = −N (σ_r²)^(1−1/N) ⟨G, u_r v_rᵀ⟩                              (Theorem 3, the diagonal of
    (1)) (3) UᵀdU/dt = −F ∘ (K S + S Kᵀ),  F_rs = 1/(a_s − a_r) off the diagonal     (square matrices)

(Arora, Cohen, Hu, Luo, NeurIPS 2019; ∘ is the entrywise product.) What is compared with what:

* the *layers* follow their own gradients by a fourth-order Runge-Kutta method; nothing of (1) to (3) enters;
* the product's exact velocity Σ_j W_N··Ẇ_j··W_1 against (1), its u_rᵀ Ẇ v_r against (2), the vectors'
  velocity solved from it against (3);
* central differences of the *tracked* singular values against (2): the error falls with the square of the
step;
* (1) integrated on W alone, without layers, against the layers' product: it falls with the fourth power;
* gradient descent of rate η against the flow: it falls with η.

Loss here: half the sum of squares on the observed entries. Starts are balanced, with distinct singular
values; equal ones would leave U and V undefined.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .deep_matrix_factorization_layers import LayerChain, balanced_layers
from .deep_matrix_factorization_tracking import AnalyticSVD, track_singular_values

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class FactorFlow:
    """Gradient flow of the layers, sampled: ``times`` (T,), ``path`` (T, n, p), ``layers`` at each sample."""

    times: FloatArray
    path: FloatArray
    layers: list[list[Tensor]]
    target: Tensor
    mask: Tensor

    @property
    def depth(self) -> int:
        return len(self.layers[0])

    def gradient(self, sample: int) -> FloatArray:
        """G (n, p) at one sample."""
        return ((torch.as_tensor(self.path[sample]) - self.target) * self.mask).numpy()

    def velocity(self, sample: int) -> FloatArray:
        """dW/dt (n, p) by the product rule on the layers' own velocities."""
        chain = LayerChain([w[None].clone() for w in self.layers[sample]])
        G = (chain.forward() - self.target) * self.mask
        total = torch.zeros_like(G)
        for gradient, left, right in zip(
            chain.backward(G), chain.left_products(), chain.right_products(), strict=True
        ):
            term = gradient if left is None else left @ gradient
            total -= term if right is None else term @ right
        return total[0].numpy()


def factor_flow(
    target: Any, mask: Any, start: Any, *, depth: int, step: float, num_steps: int, record_every: int = 1
) -> FactorFlow:
    """Integrate gradient flow from the balanced layers of ``start`` (n, p), recording every so many steps."""
    Y, known = (torch.as_tensor(np.array(a, dtype=np.float64)) for a in (target, mask))
    chain = LayerChain([w[None] for w in balanced_layers(torch.as_tensor(start), depth)])

    def velocity(layers: list[Tensor]) -> list[Tensor]:
        point = LayerChain(layers)
        return [-g for g in point.backward((point.forward() - Y) * known)]

    layers, times, path, kept = chain.layers, [], [], []
    for now in range(num_steps + 1):
        if now % record_every == 0:
            times.append(now * step)
            path.append(LayerChain(layers).forward()[0].clone().numpy())
            kept.append([w[0].clone() for w in layers])
        if now < num_steps:
            layers = runge_kutta(velocity, layers, step)
    return FactorFlow(np.array(times), np.stack(path), kept, Y, known)


def runge_kutta(velocity: Any, state: list[Tensor], step: float) -> list[Tensor]:
    """One classical fourth-order step of d state/dt = velocity(state)."""

    def moved(slope: list[Tensor], by: float) -> list[Tensor]:
        return [x + by * k for x, k in zip(state, slope, strict=True)]

    k1 = velocity(state)
    k2 = velocity(moved(k1, step / 2))
    k3 = velocity(moved(k2, step / 2))
    k4 = velocity(moved(k3, step))
    slopes = [(a + 2 * b + 2 * c + d) / 6 for a, b, c, d in zip(k1, k2, k3, k4, strict=True)]
    return moved(slopes, step)


def end_to_end_velocity(W: FloatArray, G: FloatArray, depth: int) -> FloatArray:
    """Formula (1): −Σ_j (WWᵀ)^((j−1)/N) G (WᵀW)^((N−j)/N), rectangular W too."""
    U, s, Vt = np.linalg.svd(W)  # full U and V: the powers are of n × n and p × p matrices
    n, p = W.shape
    rows, columns = np.zeros(n), np.zeros(p)
    rows[: len(s)] = columns[: len(s)] = s ** (2 / depth)
    weights = sum(rows[:, None] ** j * columns[None, :] ** (depth - 1 - j) for j in range(depth))
    return np.asarray(-U @ (weights * (U.T @ G @ Vt.T)) @ Vt)


def end_to_end_flow(
    target: FloatArray, mask: FloatArray, start: FloatArray, *, depth: int, step: float, num_steps: int
) -> FloatArray:
    """Formula (1) integrated on W alone; the last W (n, p)."""

    def velocity(state: list[Tensor]) -> list[Tensor]:
        W = state[0].numpy()
        return [torch.from_numpy(end_to_end_velocity(W, (W - target) * mask, depth))]

    state = [torch.as_tensor(np.array(start))]
    for _ in range(num_steps):
        state = runge_kutta(velocity, state, step)
    return state[0].numpy()


def theorem_3_rates(svd: AnalyticSVD, sample: int, G: FloatArray, depth: int) -> FloatArray:
    """Formula (2): dσ_r/dt (k,), with signed singular values."""
    inner = np.einsum("nk,np,pk->k", svd.U[sample], G, svd.V[sample])
    return np.asarray(-depth * np.square(svd.values[sample]) ** (1 - 1 / depth) * inner)


def vector_rates(svd: AnalyticSVD, sample: int, G: FloatArray, depth: int) -> FloatArray:
    """Formula (3): UᵀdU/dt (k, k) for square W."""
    s = svd.values[sample]
    K = svd.U[sample].T @ G @ svd.V[sample]
    a = np.square(s) ** (1 / depth)
    gaps = a[None, :] - a[:, None]
    np.fill_diagonal(gaps, np.inf)
    return np.asarray(-(K * s + s[:, None] * K.T) / gaps)


def vector_rates_from_velocity(svd: AnalyticSVD, sample: int, velocity: FloatArray) -> FloatArray:
    """UᵀdU/dt (k, k) from dW/dt by first-order perturbation of an SVD; no theory of factorisations in it."""
    s = svd.values[sample]
    M = svd.U[sample].T @ velocity @ svd.V[sample]
    gaps = np.square(s)[None, :] - np.square(s)[:, None]
    np.fill_diagonal(gaps, np.inf)
    return np.asarray((M * s + s[:, None] * M.T) / gaps)


@dataclass(frozen=True)
class DynamicsReport:
    """Largest errors over the samples, each relative to the largest quantity compared."""

    depth: int
    balancedness: float
    end_to_end: float
    singular_values: float
    singular_vectors: float
    finite_differences: float

    def __str__(self) -> str:
        return (
            f"depth {self.depth}: balanced to {self.balancedness:.0e}; (1) {self.end_to_end:.0e}, "
            f"(2) {self.singular_values:.0e}, (3) {self.singular_vectors:.0e}, "
            f"differences of tracked singular values {self.finite_differences:.0e}"
        )


def verify_dynamics(flow: FactorFlow) -> DynamicsReport:
    """Compare every inner sample of a flow with (1), (2), (3) and with central differences.

    ``singular_vectors`` is nan for rectangular matrices, where (3) lacks the part outside U.
    """
    svd = track_singular_values(flow.path)
    pairs: dict[str, list[tuple[FloatArray, FloatArray]]] = {"1": [], "2": [], "3": [], "fd": []}
    for now in range(1, len(flow.times) - 1):
        G, velocity = flow.gradient(now), flow.velocity(now)
        rates = theorem_3_rates(svd, now, G, flow.depth)
        pairs["1"].append((end_to_end_velocity(flow.path[now], G, flow.depth), velocity))
        pairs["2"].append((rates, np.einsum("nk,np,pk->k", svd.U[now], velocity, svd.V[now])))
        differences = (svd.values[now + 1] - svd.values[now - 1]) / (
            flow.times[now + 1] - flow.times[now - 1]
        )
        pairs["fd"].append((rates, differences))
        if velocity.shape[0] == velocity.shape[1]:
            pairs["3"].append(
                (vector_rates(svd, now, G, flow.depth), vector_rates_from_velocity(svd, now, velocity))
            )
    return DynamicsReport(
        flow.depth,
        max(_imbalance(layers) for layers in flow.layers),
        _relative(pairs["1"]),
        _relative(pairs["2"]),
        _relative(pairs["3"]) if pairs["3"] else float("nan"),
        _relative(pairs["fd"]),
    )


def _relative(pairs: list[tuple[FloatArray, FloatArray]]) -> float:
    error = max(float(np.abs(a - b).max()) for a, b in pairs)
    return error / max(float(np.abs(b).max()) for _, b in pairs)


def _imbalance(layers: list[Tensor]) -> float:
    """max_j |W_{j+1}ᵀW_{j+1} − W_jW_jᵀ| over the largest entry of the W_jW_jᵀ; 0 for one layer."""
    errors = [0.0]
    for below, above in pairwise(layers):
        gram = below @ below.T
        errors.append(float((above.T @ above - gram).abs().max() / gram.abs().max()))
    return max(errors)


if __name__ == "__main__":
    import sys

    from .matrix_completion_experiments import main

    main(["--experiment", "dynamics", *sys.argv[1:]])
