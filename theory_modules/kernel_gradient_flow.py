"""What an infinitely wide network says after training for a time t, and how much an ensemble of them
varies.

Under gradient flow on ½ Σ (f(x_i) − y_i)² with learning rate η, the outputs of an infinitely wide network
move by its tangent kernel Θ alone, df/dt = −η Θ (f − y), so that from f = 0

    f_t(x) = Θ(x, X) Θ⁻¹ (1 − e^{−ηΘt}) y                                      (mean over the initialization)

At the start f is Gaussian with the NNGP kernel 𝒦, and flow is linear in it. With A_t = Θ(T, X) Θ⁻¹ (1 −
e^{−ηΘt}),

    cov f_t(T) = 𝒦(T, T) + A_t 𝒦(X, X) A_tᵀ − A_t 𝒦(X, T) − (A_t 𝒦(X, T))ᵀ     (an ensemble, trained)
    cov        = 𝒦(T, T) − 𝒦(T, X) 𝒦(X, X)⁻¹ 𝒦(X, T)                            (the Bayesian posterior)

The two agree when only the last layer is trained (Θ = 𝒦) and t = ∞; otherwise an ensemble is not a
posterior.

Directions that Θ does not reach (eigenvalue 0 to rounding) are never learned and never show in Θ(T, X)
either.

    python -m theory_modules.kernel_gradient_flow      mean and spread in time on a circle

Axes: N training samples X, M others T, K outputs. Lee, Xiao, Schoenholz, Bahri, Novak, Sohl-Dickstein and
Pennington, *Wide neural networks of any depth evolve as linear models under gradient descent*, NeurIPS
2019.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_solve, cholesky, eigh

from .kernel_checks import NotPositiveSemidefiniteError, checked_kernel
from .kernel_input import KernelInputError
from .kernel_solvers import refuse_indefinite, rounding_of_eigenvalues

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, repr=False)
class Gaussian:
    """``mean`` (M, K) and ``covariance`` (M, M), the same for every output."""

    mean: FloatArray
    covariance: FloatArray


class GradientFlow:
    """One training set's flow; times are numbers ≥ 0 or ``inf``.

    Args:
        ntk_train_train: Θ(X, X), (N, N).
        targets: y, (N, K) or (N,).
        learning_rate: η.
        diag_reg: ridge relative to the mean diagonal, added to Θ(X, X): an early stop of another kind.

    Raises:
        KernelInputError: shapes, values or settings that are none of these.
        NotPositiveSemidefiniteError: with the smallest eigenvalue.
    """

    def __init__(
        self,
        ntk_train_train: Any,
        targets: Any,
        *,
        learning_rate: float = 1.0,
        diag_reg: float = 0.0,
    ) -> None:
        kernel = checked_kernel(ntk_train_train)
        if not 0 < learning_rate < float("inf"):
            raise KernelInputError(f"learning_rate is {learning_rate!r}; give a positive number")
        if not 0 <= diag_reg < float("inf"):
            raise KernelInputError(f"diag_reg is {diag_reg!r}; give a number of at least 0")
        self._targets = _checked_targets(targets, len(kernel))
        self._rate = learning_rate
        matrix = np.asarray(kernel, dtype=np.float64)
        values, self._Q = eigh(matrix)
        self._rounding = rounding_of_eigenvalues(kernel) * float(np.abs(values).max())
        if values[0] < -self._rounding:
            raise NotPositiveSemidefiniteError(float(values[0]), float(values[-1]))
        self._values = np.maximum(values, 0.0) + diag_reg * float(np.trace(matrix)) / len(matrix)

    def train_outputs(self, time: float = np.inf) -> FloatArray:
        """f_t(X), (N, K): the mean over initializations."""
        _check_time(time)
        learned = -np.expm1(-self._rate * self._values * time) if np.isfinite(time) else self._reached()
        return np.asarray(self._Q @ (learned[:, None] * (self._Q.T @ self._targets)))

    def test_outputs(self, ntk_test_train: Any, time: float = np.inf) -> FloatArray:
        """f_t(T), (M, K), from Θ(T, X)."""
        return np.asarray(self._propagator(ntk_test_train, time) @ self._targets)

    def ensemble(
        self,
        ntk_test_train: Any,
        *,
        nngp_train_train: Any,
        nngp_test_train: Any,
        nngp_test_test: Any,
        time: float = np.inf,
    ) -> Gaussian:
        """Mean and covariance of f_t(T) over independent initializations."""
        A = self._propagator(ntk_test_train, time)
        train, across, test = _checked_nngp(nngp_train_train, nngp_test_train, nngp_test_test, *A.shape[::-1])
        cross = A @ across.T
        covariance = test + A @ train @ A.T - cross - cross.T
        return Gaussian(A @ self._targets, (covariance + covariance.T) / 2)

    def _propagator(self, ntk_test_train: Any, time: float) -> FloatArray:
        """A_t = Θ(T, X) Θ⁻¹ (1 − e^{−ηΘt}), (M, N)."""
        _check_time(time)
        across = np.asarray(checked_kernel(ntk_test_train, columns=len(self._Q)), dtype=np.float64)
        if np.isfinite(time):
            decay = self._rate * time * self._values
            # (1 − e^{−z}) / z → 1 at z = 0
            weights = (
                self._rate * time * np.where(decay > 0, -np.expm1(-decay) / np.maximum(decay, 1e-300), 1.0)
            )
        else:
            reached = self._reached()
            weights = np.divide(1.0, self._values, out=np.zeros_like(reached), where=reached > 0)
        return np.asarray((across @ self._Q * weights) @ self._Q.T)

    def _reached(self) -> FloatArray:
        """1 where the flow learns in the end, 0 where the kernel has nothing but rounding."""
        return np.asarray(self._values > self._rounding, dtype=np.float64)


def gaussian_process_posterior(
    k_train_train: Any, k_test_train: Any, k_test_test: Any, targets: Any, *, diag_reg: float = 0.0
) -> Gaussian:
    """The posterior of a Gaussian process with this kernel: noise of variance diag_reg · tr K / N.

    Raises:
        KernelInputError: shapes that do not fit; K + noise not positive definite.
        NotPositiveSemidefiniteError: with the smallest eigenvalue.
    """
    kernel = checked_kernel(k_train_train)
    y = _checked_targets(targets, len(kernel))
    rows = np.asarray(k_test_train).shape[0]
    train, across, test = _checked_nngp(kernel, k_test_train, k_test_test, len(kernel), rows)
    noisy = train + diag_reg * float(np.trace(train)) / len(train) * np.eye(len(train))
    try:
        factor = (cholesky(noisy, lower=True), True)
    except np.linalg.LinAlgError:
        refuse_indefinite(kernel)
        raise KernelInputError(
            "the kernel is singular to rounding\n"
            "hint: give diag_reg, such as 1e-10, or leave out equal samples"
        ) from None
    covariance = test - across @ cho_solve(factor, across.T)
    return Gaussian(across @ cho_solve(factor, y), (covariance + covariance.T) / 2)


def _checked_targets(targets: Any, count: int) -> FloatArray:
    y = np.asarray(targets, dtype=np.float64)
    y = y.reshape(-1, 1) if y.ndim == 1 else y
    if y.ndim != 2 or len(y) != count or not np.isfinite(y).all():
        raise KernelInputError(
            f"targets have shape {np.shape(targets)} for {count} training samples\n"
            "hint: give finite numbers, one row a sample"
        )
    return y


def _checked_nngp(
    train: Any, across: Any, test: Any, count: int, rows: int
) -> tuple[FloatArray, FloatArray, FloatArray]:
    checked = (checked_kernel(train), checked_kernel(across, columns=count), checked_kernel(test))
    if len(checked[0]) != count or len(checked[1]) != rows or len(checked[2]) != rows:
        raise KernelInputError(
            f"kernels have shapes {', '.join(str(kernel.shape) for kernel in checked)} for {count} training "
            f"samples and {rows} others\nhint: give (N, N), (M, N) and (M, M)"
        )
    first, second, third = (np.asarray(kernel, dtype=np.float64) for kernel in checked)
    return first, second, third


def _check_time(time: float) -> None:
    if not time >= 0:
        raise KernelInputError(f"time is {time!r}; give a number of at least 0, or inf")


def main() -> None:
    """Three layers on eight points of a circle: mean and spread in time, beside the posterior."""
    from .ntk import fully_connected_nngp, fully_connected_ntk

    angles = np.linspace(0, 1.75 * np.pi, 8)
    between = np.array([0.1, 0.9, 2.5])
    x, z = (np.stack([np.cos(a), np.sin(a)], axis=1) for a in (angles, between))
    flow = GradientFlow(fully_connected_ntk(x, depth=3), np.sin(2 * angles))
    nngp = {
        "nngp_train_train": fully_connected_nngp(x, depth=3),
        "nngp_test_train": fully_connected_nngp(z, x, depth=3),
        "nngp_test_test": fully_connected_nngp(z, depth=3),
    }
    print("time      training error   outputs at 0.1, 0.9, 2.5 (deviation over initializations)")
    for time in (0.0, 1.0, 10.0, 100.0, np.inf):
        found = flow.ensemble(fully_connected_ntk(z, x, depth=3), time=time, **nngp)
        error = np.abs(flow.train_outputs(time)[:, 0] - np.sin(2 * angles)).max()
        print(f"{time:6g} {error:17.4f}   {_in_words(found)}")
    train, across, test = nngp.values()
    posterior = gaussian_process_posterior(train, across, test, np.sin(2 * angles))
    print(f"Bayesian posterior of the same prior:   {_in_words(posterior)}")
    print(f"truth: {', '.join(f'{value:.3f}' for value in np.sin(2 * between))}")


def _in_words(found: Gaussian) -> str:
    deviations = np.sqrt(np.maximum(np.diag(found.covariance), 0))
    pairs = zip(found.mean[:, 0], deviations, strict=True)
    return ", ".join(f"{mean:.3f} ({deviation:.3f})" for mean, deviation in pairs)


if __name__ == "__main__":
    main()
