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
stays zero. AdamW is not linear: its first step is η·sign(∇), a matrix of rank one from which the *sign* of
every pixel can be read, but no grey value; such images are never called verified.

**Pruned gradients**: M has rank n, its large entries are known and outnumber the n·(H + d) unknowns many
times over; it is completed (``completion.py``) and read as above.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from ...errors import InvalidInputError
from .completion import ENOUGH_ENTRIES, FITTING, complete_low_rank, spare_entries
from .local_update import averaged_gradient
from .sparse_batch import MAX_ROUNDS, SearchEffort, unmix_sparse_batch
from .view import UpdateView

MAX_UNITS, MAX_VALUES = 4096, 40_000_000  # of the first layer: 320 MB in float64
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
        route: ``"rank one"``, ``"sparse batch"``, ``"single rows"`` or ``"none"``, after ``"completion, "``
            if the gradient was pruned.
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
    view: UpdateView,
    *,
    seed: int = 0,
    max_rounds: int = MAX_ROUNDS,
    should_stop: Callable[[], bool] = lambda: False,
) -> FirstLayerRecovery:
    """Everything the first dense layer of ``view`` gives.

    Args:
        seed: of the attacker's starts.
        max_rounds: of restarts for a batch, each of a few hundred directions.
        should_stop: asked before each of them.

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
    rows = _strongest(gradient[layer.weight], gradient[layer.bias])
    weight, bias = gradient[layer.weight][rows].double(), gradient[layer.bias][rows].double()
    start = dict(view.model.named_parameters())
    first = (start[layer.weight].detach()[rows].double(), start[layer.bias].detach()[rows].double())
    effort = SearchEffort(seed, max_rounds, should_stop)
    solve = _from_pruned if view.defence.prune > 0 else _from_whole
    found, verified, rank, residual, route, plane = solve(view, weight, bias, first, effort)
    if view.kind == "update" and view.training.optimizer == "adamw":
        # Adam divides every weight's step by its own size: what is left of x is little more than its sign.
        verified = _flags(len(found), False)
    images = found.clamp(-1, 1).reshape(len(found), *view.image_shape)
    return FirstLayerRecovery(images, verified, rank, view.num_images, residual, route, plane, layer.absolute)


def _strongest(weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """Units to look at: all, or of a very wide layer those with the largest ∇b, to bound the memory."""
    most = min(MAX_UNITS, MAX_VALUES // weight.shape[1])
    return bias.abs().argsort(descending=True)[:most].sort().values


_Answer = tuple[torch.Tensor, torch.Tensor, int, float, str, AffinePlane | None]


def _from_whole(
    view: UpdateView,
    weight: torch.Tensor,
    bias: torch.Tensor,
    first: tuple[torch.Tensor, torch.Tensor],
    effort: SearchEffort,
) -> _Answer:
    matrix = torch.cat([weight, bias[:, None]], dim=1)
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    # By ∇W alone: noise on ∇b of another size would look like a signal of rank one.
    of_weight = torch.linalg.svdvals(weight)
    rank, n = signal_rank(of_weight, weight.shape), view.num_images
    plane = _plane(right[:rank]) if 1 < rank <= n else None
    if rank == 1:
        # Several images can look like one only where noise hides the others.
        sure = n == 1 or float(of_weight[1]) < ROUNDING * float(of_weight[0])
        residual = float(1 - of_weight[0] ** 2 / of_weight.square().sum())
        return _only_image(weight, bias), _flags(1, sure), rank, residual, "rank one", None
    if 1 < rank <= n:
        noise = float(values.median()) / math.sqrt(max(matrix.shape))  # Marchenko-Pastur, one entry
        spread = noise / values[:rank]
        found = unmix_sparse_batch(left[:, :rank], spread, matrix, first, effort, _one_step(view))
        if found is not None:
            return found[0], found[1], rank, found[2], "sparse batch", plane
    single = single_rows(weight, bias, dimensions=rank - 1)[:n] if rank > 1 else weight[:0]
    route = "single rows" if len(single) else "none"
    return single, _flags(len(single), True), rank, math.nan if len(single) else 1.0, route, plane


def _from_pruned(
    view: UpdateView,
    weight: torch.Tensor,
    bias: torch.Tensor,
    first: tuple[torch.Tensor, torch.Tensor],
    effort: SearchEffort,
) -> _Answer:
    """The matrix of rank n is completed from its large entries, then read as a whole one."""
    n = view.num_images
    matrix = torch.cat([weight, bias[:, None]], dim=1)
    nothing = weight[:0], _flags(0, False), 0, 1.0, "none", None
    if spare_entries(matrix, n) < ENOUGH_ENTRIES:
        return nothing
    completed, residual = complete_low_rank(matrix, n)
    if not residual <= FITTING:
        return nothing
    if n == 1:
        rows = _only_image(completed[:, :-1], completed[:, -1])
        return rows, _flags(1, True), 1, residual, "completion, rank one", None
    left, values, _ = torch.linalg.svd(completed, full_matrices=False)
    noise = math.sqrt(residual / completed.numel()) * float(completed.norm())
    spread = noise / values[:n]
    found = unmix_sparse_batch(left[:, :n], spread, completed, first, effort, _one_step(view))
    if found is None:
        return nothing
    return found[0], found[1], n, residual, "completion, sparse batch", None


def _one_step(view: UpdateView) -> bool:
    return view.kind == "gradient" or view.site_plan.num_steps == 1


def _only_image(weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """(1, d) x of weight ≈ δ·xᵀ, bias ≈ δ. Where noise drowns ∇b, the box [−1, 1] sets the scale instead."""
    left, values, right = torch.linalg.svd(weight, full_matrices=False)
    direction = values[0] * right[0]
    along = float(left[:, 0] @ bias)
    if _one_source(left[:, 0], bias):
        scaled: torch.Tensor = (direction / along)[None]
        return scaled
    size = float(direction.abs().quantile(0.98).clamp_min(1e-300))
    boxed: torch.Tensor = math.copysign(1.0, along) * direction[None] / size
    return boxed


def _one_source(leading: torch.Tensor, bias: torch.Tensor) -> bool:
    """Whether ∇b points along the leading left singular vector of ∇W clearly enough to set the scale.

    Independent directions of H values have a cosine of standard deviation 1/√H; six of them is no chance.
    """
    size = float(bias.norm())
    return size > 0 and abs(float(leading @ bias)) > min(0.9, 6 / len(bias) ** 0.5) * size


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
