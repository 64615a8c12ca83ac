"""A volume in any orientation to pictures as a radiologist sees them.

Axes of a volume: I, J, K as stored; R, A, S towards the patient's right, front and head, as NIfTI
counts. ``affine`` (4×4) maps voxel indices to millimetres in that frame; DICOM's frame (left, back,
head) differs in the first two signs.

The voxel axes are permuted and flipped to the nearest of R, A, S and never resampled: an oblique volume
keeps its own planes, and voxels that are not cubes give pictures that look stretched across their
slices. Pictures are drawn as DICOM viewers draw them: the patient's right on the left, front (axial)
or head (coronal, sagittal) at the top, sagittal slices with the front on the left. So one volume gives
the same pictures from NIfTI and from DICOM files.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .limits import UnreadableError
from .slicing import AXES, Axis

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0])


def nearest_axes(affine: NDArray[np.float64]) -> tuple[tuple[int, int], ...]:
    """For R, A and S: the voxel axis that runs closest to it, and its sense (+1 or −1).

    Args:
        affine: (3, 3) or larger; columns are the steps of I, J, K.

    Raises:
        UnreadableError: a step without length or direction.
    """
    steps = np.array(affine[:3, :3], dtype=np.float64)
    lengths = np.linalg.norm(steps, axis=0)
    if not np.isfinite(steps).all() or not np.isfinite(lengths).all() or (lengths == 0).any():
        raise UnreadableError("the header states no orientation in space")
    cosines = steps / lengths
    left = np.abs(cosines)
    found: dict[int, tuple[int, int]] = {}
    for _ in range(3):  # the clearest pair first
        world, voxel = (int(i) for i in np.unravel_index(np.argmax(left), left.shape))
        found[world] = (voxel, 1 if cosines[world, voxel] >= 0 else -1)
        left[world, :] = left[:, voxel] = -1
    return tuple(found[world] for world in range(3))


def to_canonical(voxels: NDArray[Any], affine: NDArray[np.float64]) -> NDArray[Any]:
    """A view of (I, J, K) voxels as (R, A, S); raises as :func:`nearest_axes` does."""
    axes = nearest_axes(affine)
    turned = voxels.transpose([voxel for voxel, _ in axes])
    return turned[tuple(slice(None, None, sense) for _, sense in axes)]


def planes(canonical: NDArray[Any], axis: Axis) -> NDArray[Any]:
    """(N, H, W) view of (R, A, S) voxels: the slices from left, back or feet on, drawn as above."""
    if axis == "axial":
        return canonical.transpose(2, 1, 0)[:, ::-1, ::-1]
    if axis == "coronal":
        return canonical.transpose(1, 2, 0)[:, ::-1, ::-1]
    return canonical.transpose(0, 2, 1)[:, ::-1, ::-1]


def axis_of_slices(affine: NDArray[np.float64]) -> Axis:
    """The plane whose slices follow one another along K."""
    axes = nearest_axes(affine)
    names: dict[int, Axis] = {0: "sagittal", 1: "coronal", 2: "axial"}
    assert {name: number for number, name in names.items()} == AXES
    return next(names[world] for world, (voxel, _) in enumerate(axes) if voxel == 2)
