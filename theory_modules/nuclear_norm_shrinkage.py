"""Shrinkage of singular values, the proximal map of the nuclear norm, and its derivative.

For Z = U S Vᵀ:  D_τ(Z) = U (S − τ)₊ Vᵀ minimises τ|X|_* + |X − Z|²/2. In the coordinates W = UᵀHV its
derivative acts on the symmetric and skew parts of H separately (f(s) = (s − τ)₊):

    symmetric:  (f_i − f_j)/(s_i − s_j)        skew:  (f_i + f_j)/(s_i + s_j)        beyond V:  f_i/s_i
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]


class ShrunkMatrix:
    """D_τ(Z) for Z (n, p), with what its derivative needs."""

    def __init__(self, Z: FloatArray, tau: float) -> None:
        self._wide = Z.shape[0] <= Z.shape[1]
        self._U, s, self._Vt = np.linalg.svd(Z if self._wide else Z.T, full_matrices=False)
        self._s, self._tau = s, tau
        self.values: FloatArray = np.maximum(s - tau, 0.0)
        matrix = (self._U * self.values) @ self._Vt
        self.matrix: FloatArray = matrix if self._wide else matrix.T
        self._symmetric: FloatArray | None = None

    def derivative(self, H: FloatArray) -> FloatArray:
        """D'_τ(Z)[H], (n, p); at a singular value equal to τ, the limit from below."""
        if self._symmetric is None:
            self._weights()
        assert self._symmetric is not None
        H = H if self._wide else H.T
        across = self._U.T @ H
        W = across @ self._Vt.T
        weighted = self._symmetric * (W + W.T) + self._skew * (W - W.T)
        if H.shape[0] == H.shape[1]:
            image = self._U @ (weighted @ self._Vt)
        else:
            beyond = self._beyond[:, None] * (across - W @ self._Vt)
            image = self._U @ (weighted @ self._Vt + beyond)
        return np.asarray(image if self._wide else image.T)

    def _weights(self) -> None:
        s, f = self._s, self.values
        difference = s[:, None] - s
        equal = np.abs(difference) <= 1e-12 * s[0]
        slope = (s > self._tau).astype(np.float64)
        quotient = (f[:, None] - f) / np.where(equal, 1.0, difference)
        self._symmetric = np.where(equal, slope[:, None] * slope, quotient) / 2
        total = s[:, None] + s
        self._skew = (f[:, None] + f) / np.where(total > 0, total, 1.0) / 2
        self._beyond = f / np.where(s > 0, s, 1.0)
