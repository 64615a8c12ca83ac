"""The public part of an encoding of Gaussian features, from second moments.

Axes: m encodings, P public vectors, d features, k vectors in an encoding.

With isotropic features and y = |⟨w, x⟩| over the d features, for any public vector p_j::

    E[(y² − |w|²)·(p_j² − 1)] = 2·w_j²                                                    (1)

and the left side has standard deviation 2/√d where w_j = 0 (Chen et al., ICLR 2021, learn the public
part this way). Equal weights w_j = 1/√k are found with (1/k)·√d/2 standard deviations to spare on either
side. With the public part p known, signs of y come out in part: for the unknown part u ~ N(0, s²)::

    E[u | y, p] = y·tanh(y·p/s²) − p                                                      (2)

so inner products of (2) between encodings take the place of folded covariances.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def learn_public_rows(
    magnitudes: Array, public: Array, *, num_public: int, num_mixed: int
) -> NDArray[np.int64]:
    """(m, num_public) rows of ``public`` (P, d) inside each encoding, by equation (1); equal weights 1/√k.

    Args:
        magnitudes: (m, d) y; |w| = 1.
        num_mixed: k; a candidate must reach half of what a source has, else −1.
    """
    d = magnitudes.shape[1]
    moments = (magnitudes**2 - 1) @ (public**2 - 1).T / d
    top = np.argsort(-moments, axis=1)[:, :num_public]
    enough = np.take_along_axis(moments, top, axis=1) > 1 / num_mixed
    return np.asarray(np.where(enough, top, -1), dtype=np.int64)


def public_part(rows: NDArray[np.int64], public: Array, *, num_mixed: int) -> Array:
    """(m, d) Σ p_j/√k over the rows found."""
    total = np.zeros((len(rows), public.shape[1]))
    for column in rows.T:
        total[column >= 0] += public[column[column >= 0]]
    return np.asarray(total / np.sqrt(num_mixed))


def expected_private_part(magnitudes: Array, known: Array, variance: float) -> Array:
    """Equation (2), (m, d)."""
    return np.asarray(magnitudes * np.tanh(magnitudes * known / variance) - known)
