r"""The first dense layer gives its inputs away: exactly, in milliseconds, often for a whole batch.

Axes: n images, H units of the first layer, d = C·H·W inputs, r = rank.

A dense layer on the image itself computes z = W·x + b. With δ_i = ∂ℓ/∂z_i the gradients are

    ∇W = Σ_i δ_i·x_iᵀ      ∇b = Σ_i δ_i      so      M = [∇W | ∇b] = Δᵀ·[X | 1],    Δ = (δ_1 … δ_n)ᵀ      (1)

**One image** (Phong et al. 2018, section 3; Geiping et al. 2020, proposition 3.1): every row of ∇W with
∇b ≠ 0 is x times ∇b, so x = ∇W[r]/∇b[r]. M has rank one; its leading singular vector uses all rows at once,
which also averages noise.

**Which rows of a batch.** A unit that only one image activates (ReLU) gives that image alone. Two rows
that give the *same* image prove it: mixtures of several images differ from row to row. This needs no truth.

**A whole batch** of a ReLU layer comes out of the zeros of the δ_i: ``sparse_batch.py``.

**Any activation.** Without zeros the row space still confines each image to a known affine plane of n − 1
dimensions (:func:`affine_plane`): instead of n·d unknowns, n·(n − 1) remain, for L-BFGS to find.

**Local steps change nothing here**: by ``local_update.py`` an update is Σ_s b_s·(gradient of step s), the
images stay the same, and (1) holds with Δ summed over the steps; a unit that no step activates for image i
stays zero.

**Pruned gradients** (one image): a rank-one matrix of which the large entries are known is completed by
alternating least squares; entries far outnumber the H + d unknowns even at 99 % pruning.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn

from ...errors import InvalidInputError
from .local_update import averaged_gradient
from .sparse_batch import MAX_ROUNDS, unmix_sparse_batch
from .view import UpdateView

ROUNDING = 1e-5  # relative; float32 differences of weights carry about this much
AGREEMENT = 1e-4  # relative distance of rows that show one image


@dataclass(frozen=True)
class FirstLayer:
    """Names of the weight and bias of a dense layer on the flat image; ``absolute``: it sees |x|."""

    weight: str
    bias: str
    absolute: bool


@dataclass(frozen=True, eq=False)
class AffinePlane:
    """All x = offset + z·directions, z of n − 1 numbers: every image of the batch lies on it."""

    offset: torch.Tensor  # (d,)
    directions: torch.Tensor  # (n − 1, d)


@dataclass(frozen=True, eq=False)
class FirstLayerRecovery:
    """What the first dense layer gave.

    Args:
        images: (m, C, H, W) float64, m ≤ n.
        verified: (m,) whether the image was confirmed without truth: by agreeing rows, by activation pattern,
            or by the residual of a low-rank fit.
        rank: rank of M above rounding and noise; the number of distinct images, if the layer is wide enough.
        num_images: n.
        residual: |M − Δ̂ᵀ[X̂ | 1]|² / |M|² over the entries received.
        route: ``"rank one"``, ``"sparse batch"``, ``"single rows"``, ``"rank-one completion"`` or ``"none"``.
        plane: the affine plane of a batch, where there is one.
        absolute: whether the network takes |x| first, so that ``images`` are |x|.
    """

    images: torch.Tensor
    verified: torch.Tensor
    rank: int
    num_images: int
    residual: float
    route: str
    plane: AffinePlane | None
    absolute: bool


def first_dense_layer(view: UpdateView) -> FirstLayer | None:
    """The first layer with weights, if it is dense, has a bias and sees the flat image; else ``None``."""
    if not any(isinstance(module, nn.Linear) for module in view.model.modules()):
        return None
    seen: list[tuple[str, nn.Module, torch.Tensor]] = []
    handles = [
        module.register_forward_pre_hook(_remember(seen, name))
        for name, module in view.model.named_modules()
        if any(True for _ in module.parameters(recurse=False))
    ]
    probe = torch.rand(2, *view.image_shape) * 2 - 1
    training = view.model.training
    with torch.no_grad():
        view.model.eval()(probe)
    view.model.train(training)
    for handle in handles:
        handle.remove()
    if not seen:
        return None
    name, module, given = seen[0]
    if not isinstance(module, nn.Linear) or module.bias is None:
        return None
    prefix = f"{name}." if name else ""
    for absolute in (False, True):
        flat = (probe.abs() if absolute else probe).flatten(1)
        if given.shape == flat.shape and torch.equal(given, flat):
            return FirstLayer(f"{prefix}weight", f"{prefix}bias", absolute)
    return None


def _remember(seen: list[tuple[str, nn.Module, torch.Tensor]], name: str):  # type: ignore[no-untyped-def]
    def hook(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        seen.append((name, module, inputs[0].detach()))

    return hook


def recover_from_first_layer(
    view: UpdateView, *, seed: int = 0, max_rounds: int = MAX_ROUNDS
) -> FirstLayerRecovery:
    """Everything the first dense layer of ``view`` gives.

    Args:
        seed: of the attacker's starts.
        max_rounds: of restarts for a batch, each of a few hundred directions.

    Raises:
        InvalidInputError: the network does not begin with a dense layer with bias.
    """
    layer = first_dense_layer(view)
    if layer is None:
        raise InvalidInputError(
            "the network does not begin with a dense layer with bias",
            hint="use the L-BFGS or the cosine attack",
        )
    gradient = averaged_gradient(view)
    weight = gradient[layer.weight].double()
    bias = gradient[layer.bias].double()
    start = dict(view.model.named_parameters())
    first = (start[layer.weight].detach().double(), start[layer.bias].detach().double())
    if view.defence.prune > 0:
        return _from_pruned(view, layer, weight, bias)
    return _from_whole(view, layer, weight, bias, first, seed, max_rounds)


def _from_whole(
    view: UpdateView,
    layer: FirstLayer,
    weight: torch.Tensor,
    bias: torch.Tensor,
    first: tuple[torch.Tensor, torch.Tensor],
    seed: int,
    max_rounds: int,
) -> FirstLayerRecovery:
    matrix = torch.cat([weight, bias[:, None]], dim=1)
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    # By ∇W alone: noise on ∇b of another size would look like a signal of rank one.
    rank, n = signal_rank(torch.linalg.svdvals(weight), weight.shape), view.num_images
    rows, verified, residual, route = weight[:0], _flags(0, False), 1.0, "none"
    if rank == 1 and _one_source(weight, bias):
        rows, route = right[:1, :-1] / right[:1, -1:], "rank one"
        # Several images can look like one only where noise hides the others.
        verified = _flags(1, n == 1 or float(values[1]) < ROUNDING * float(values[0]))
        residual = float(1 - values[0] ** 2 / values.square().sum())
    elif 1 < rank <= n:
        one_step = view.kind == "gradient" or view.training.num_steps == 1
        noise = float(values.median()) / math.sqrt(max(matrix.shape))  # Marchenko-Pastur, one entry
        found = unmix_sparse_batch(
            left[:, :rank], noise / values[:rank], matrix, first, seed, max_rounds, one_step
        )
        if found is not None:
            rows, verified, residual, route = *found, "sparse batch"
    if rank > 1 and route == "none" and len(single := single_rows(weight, bias, dimensions=rank - 1)):
        rows, verified, residual, route = (
            single[:n],
            _flags(min(n, len(single)), True),
            math.nan,
            "single rows",
        )
    plane = _plane(right[:rank]) if 1 < rank <= n else None
    images = rows.clamp(-1, 1).reshape(len(rows), *view.image_shape)
    return FirstLayerRecovery(images, verified, rank, n, residual, route, plane, layer.absolute)


def _one_source(weight: torch.Tensor, bias: torch.Tensor) -> bool:
    """Whether ∇b points along the leading left singular vector of ∇W, as one image makes it.

    Independent directions of H values have a cosine of standard deviation 1/√H; five of them is no chance.
    """
    leading = torch.linalg.svd(weight, full_matrices=False).U[:, 0]
    size = float(bias.norm())
    return size > 0 and abs(float(leading @ bias)) > min(0.9, 5 / len(bias) ** 0.5) * size


def _flags(count: int, value: bool) -> torch.Tensor:
    return torch.full((count,), value)


def signal_rank(values: torch.Tensor, shape: torch.Size | tuple[int, int]) -> int:
    """Singular values above rounding and above what noise alone would give (Gavish & Donoho 2014).

    Their threshold for unknown noise is ω(β)·median with ω(β) ≈ 0.56β³ − 0.95β² + 1.82β + 1.43, β the aspect
    ratio. It presumes that most of the spectrum is noise: a rank beyond half of it is not resolved.
    """
    if float(values[0]) == 0.0:
        return 0
    beta = min(shape) / max(shape)
    omega = 0.56 * beta**3 - 0.95 * beta**2 + 1.82 * beta + 1.43
    threshold = max(omega * float(values.median()), ROUNDING * float(values[0]))
    return int((values > threshold).sum())


def single_rows(weight: torch.Tensor, bias: torch.Tensor, *, dimensions: int) -> torch.Tensor:
    """(m, d) images that several units of the layer agree on, the most supported first.

    Rows that mix images lie on the batch's affine plane. How many must agree before chance is ruled out
    depends on its dimensions: two in nine dimensions, eight on a line.

    Args:
        dimensions: of the plane, the rank of M less one.
    """
    usable = bias.abs() > 1e-7 * float(bias.abs().max().clamp_min(1e-300))
    needed = _rows_needed(int(usable.sum()), dimensions)
    if int(usable.sum()) < needed:
        return weight[:0]
    weights, rows = bias[usable], weight[usable] / bias[usable, None]
    size = rows.norm(dim=1)
    distances = torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist")
    close = distances < AGREEMENT * torch.maximum(size[:, None], size[None])
    images: list[torch.Tensor] = []
    free = torch.ones(len(rows), dtype=torch.bool)
    for index in close.sum(1).argsort(descending=True).tolist():
        group = close[index] & free
        if not free[index] or int(group.sum()) < needed:
            continue
        share = weights[group].square() / weights[group].square().sum()
        images.append((share[:, None] * rows[group]).sum(0))
        free &= ~group
    return torch.stack(images) if images else weight[:0]


def _rows_needed(num_rows: int, dimensions: int) -> int:
    """The smallest g with C(R, g)·(10·AGREEMENT)^((g − 1)·dimensions) below 1e-6: rows agreeing by chance.

    The factor 10 allows for rows that crowd together.
    """
    for g in range(2, 12):
        if math.comb(num_rows, g) * (10 * AGREEMENT) ** ((g - 1) * max(1, dimensions)) < 1e-6:
            return g
    return 12


def _plane(basis: torch.Tensor) -> AffinePlane:
    """The affine plane {x : [x, 1] in the row space} from an orthonormal basis (n, d + 1)."""
    last = basis[:, -1]
    offset = (last / last.square().sum()) @ basis[:, :-1]
    # Coefficients a with a·last = 0 move within the plane.
    others = torch.linalg.svd(last[None]).Vh[1:]
    return AffinePlane(offset, others @ basis[:, :-1])


def affine_plane(view: UpdateView) -> AffinePlane | None:
    """The plane all n images lie on, by the first dense layer; ``None`` without one or without rank n."""
    return None if first_dense_layer(view) is None else recover_from_first_layer(view, max_rounds=0).plane


def _from_pruned(
    view: UpdateView, layer: FirstLayer, weight: torch.Tensor, bias: torch.Tensor
) -> FirstLayerRecovery:
    """One image behind a gradient of which the small entries were set to zero."""
    if view.num_images == 1:
        image, residual, spare = complete_rank_one(weight, bias)
        fits = residual < 0.01 and spare > 1.5
        images = image.reshape(1, *view.image_shape)
        verified = torch.tensor([fits])
        route = "rank-one completion"
        return FirstLayerRecovery(images, verified, 1, 1, residual, route, None, layer.absolute)
    empty = torch.zeros(0, *view.image_shape, dtype=torch.float64)
    none = torch.zeros(0, dtype=torch.bool)
    return FirstLayerRecovery(empty, none, 0, view.num_images, 1.0, "none", None, layer.absolute)


def complete_rank_one(
    weight: torch.Tensor, bias: torch.Tensor, *, rounds: int = 100
) -> tuple[torch.Tensor, float, float]:
    """(d,) x with weight ≈ δ·xᵀ and bias ≈ δ on the entries that are not zero.

    Returns the image, the relative residual on the kept entries, and how often the kept entries outnumber
    the unknowns. A pixel without any kept entry is small in size and set to 0.
    """
    matrix = torch.cat([weight, bias[:, None]], dim=1)
    known = (matrix != 0).double()
    total = matrix.square().sum().clamp_min(1e-300)
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    delta, x = left[:, 0] * values[0], right[0]
    for _ in range(rounds):
        x = (matrix * delta[:, None]).sum(0) / (known * delta[:, None] ** 2).sum(0).clamp_min(1e-300)
        delta = (matrix * x).sum(1) / (known * x**2).sum(1).clamp_min(1e-300)
    residual = float((known * (matrix - delta[:, None] * x)).square().sum() / total)
    unknowns = int((known.sum(0) > 0).sum() + (known.sum(1) > 0).sum()) - 1
    spare = float(known.sum()) / max(1, unknowns)
    scale = float(x[-1])
    if abs(scale) < 1e-12:  # no bias entry was kept: only the direction is known; use the box
        scale = float(x[:-1].abs().max().clamp_min(1e-12))
    return (x[:-1] / scale).clamp(-1, 1), residual, spare
