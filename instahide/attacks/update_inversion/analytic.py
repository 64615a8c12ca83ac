r"""The first dense layer gives its inputs away: exactly, in milliseconds, often for a whole batch.

Axes: n images, H units of the first layer, d = C·H·W inputs, r = rank.

A dense layer on the image itself computes z = W·x + b. With δ_i = ∂ℓ/∂z_i the gradients are

    ∇W = Σ_i δ_i·x_iᵀ      ∇b = Σ_i δ_i      so      M = [∇W | ∇b] = Δᵀ·[X | 1],    Δ = (δ_1 … δ_n)ᵀ      (1)

**One image** (Phong et al. 2018, section 3; Geiping et al. 2020, proposition 3.1): every row of ∇W with
∇b ≠ 0 is x times ∇b, so x = ∇W[r]/∇b[r]. M has rank one; its leading singular vector uses all rows at once,
which also averages noise.

**Which rows of a batch.** A unit that only one image activates (ReLU) gives that image alone. Two rows
that give the *same* image prove it: mixtures of several images differ from row to row. This needs no truth.

**A whole batch.** M has rank n and its row space holds every [x_i, 1] (Dimitrov et al. 2024, "SPEAR", who
found that this determines a ReLU batch). With M = U·S·V there are vectors q_i with U·q_i = δ_i up to scale,
and a ReLU makes δ_i zero at every unit that image i leaves inactive, about half of them; any other direction
has hardly more zeros than the n − 1 that can always be forced. So the q_i give the *sparsest vectors of a
subspace*: dictionary learning (Spielman, Wang & Wright 2012). SPEAR draws n − 1 rows at random and hopes that
all are inactive for one image, at odds of 2^−(n−1); we minimise Σ_r |u_r·q|^p over unit q by reweighted least
squares from many starts, n × n eigenproblems, all starts at once. The scales follow from ∇b = Σ δ_i, and X
from (1). It is checked without truth: W·x̂_i + b is positive exactly where δ̂_i is not zero; and pixels of
8-bit images lie on their grid, which mixtures of images miss.

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
from .view import UpdateView

ROUNDING = 1e-5  # relative; float32 differences of weights carry about this much
AGREEMENT = 1e-4  # relative distance of rows that show one image
STARTS = 192  # directions sharpened at a time
MAX_ROUNDS = 30
REWEIGHTINGS = 40
MIN_LATTICE_VALUES, LATTICE_MISS = 25, 0.06
POWERS = (1.0, 0.5)  # p; the second is less smooth and reaches larger batches
SPARSE_MARGIN = 2  # zeros beyond the n − 1 that can always be forced, and beyond what noise makes
SAME_DIRECTION = 0.9999  # cosine of two estimates of one q
INDEPENDENT = 0.02  # length of a new unit vector outside the span of the others
AGREEING_UNITS = 0.95  # share of units whose activation fits; chance gives about one half


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
    rank, n = signal_rank(values, matrix.shape), view.num_images
    rows, verified, residual, route = weight[:0], _flags(0, False), 1.0, "none"
    if rank == 1 and abs(float(right[0, -1])) > 1e-9:
        rows, route = right[:1, :-1] / right[:1, -1:], "rank one"
        # Several images can look like one only where noise hides the others.
        verified = _flags(1, n == 1 or float(values[1]) < ROUNDING * float(values[0]))
        residual = float(1 - values[0] ** 2 / values.square().sum())
    elif 1 < rank <= n:
        one_step = view.kind == "gradient" or view.training.num_steps == 1
        noise = float(values.median()) / math.sqrt(max(matrix.shape))  # Marchenko-Pastur, one entry
        found = _sparse_batch(
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


def _sparse_batch(
    left: torch.Tensor,
    noise: torch.Tensor,
    matrix: torch.Tensor,
    first: tuple[torch.Tensor, torch.Tensor],
    seed: int,
    max_rounds: int,
    one_step: bool,
) -> tuple[torch.Tensor, torch.Tensor, float] | None:
    """(images, verified, residual) of the best set of factors found; ``None`` if no full set was.

    Args:
        left: (H, n) orthonormal columns spanning those of Δᵀ: the axes in which the q_i are well apart.
        noise: (n,) standard deviation of a value in each column.
        one_step: whether an image's active units are the same all along.
    """
    size = left.norm(dim=1)
    alive = size > 1e-6 * float(size.max())
    search = _SparseSearch(left[alive], noise)
    generator = torch.Generator().manual_seed(seed)
    best: tuple[torch.Tensor, torch.Tensor, float] | None = None
    for round_number in range(max_rounds):
        if not search.sharpen(generator, POWERS[round_number % len(POWERS)]):
            continue
        chosen = search.chosen()
        images, residual = _unmix(left @ chosen.T, matrix)
        zero = search.zeros(chosen).T
        verified = _confirmed(images, zero, (first[0][alive], first[1][alive]), exact=one_step)
        verified |= on_lattice(images)
        if best is None or int(verified.sum()) > int(best[1].sum()):
            best = images, verified, residual
        if bool(verified.all()):
            break
    return best


class _SparseSearch:
    """Directions q for which rows @ q has many zeros, kept as a list from the sparsest on."""

    def __init__(self, rows: torch.Tensor, noise: torch.Tensor) -> None:
        self.size = rows.norm(dim=1)
        self.rows, self.noise, self.n = rows / self.size[:, None], noise, rows.shape[1]
        self.outer = (self.rows[:, :, None] * self.rows[:, None, :]).flatten(1)  # (R, n²)
        self.found: list[tuple[int, torch.Tensor]] = []

    def sharpen(self, generator: torch.Generator, power: float) -> bool:
        """One round of starts; whether new directions came and n independent ones are known."""
        n, before = self.n, len(self.found)
        if len(self.rows) <= n + SPARSE_MARGIN:
            return False
        q = self._starts(generator)
        floor = max(1e-7, float(self.noise.mean() / self.size.mean()))
        width = 0.1
        for _ in range(REWEIGHTINGS):
            weights = ((self.rows @ q.T).square() + width**2) ** (power / 2 - 1)  # (R, T)
            moments = (weights.T @ self.outer).reshape(-1, n, n)
            q = torch.linalg.eigh(moments).eigenvectors[:, :, 0]
            width = max(0.75 * width, floor)
        zeros, by_chance = self.zeros(q).sum(0), self._zeros_by_chance(q)
        good = (zeros >= n - 1 + SPARSE_MARGIN + 2 * by_chance).nonzero()[:, 0]
        for index in good[zeros[good].argsort(descending=True)].tolist():
            self._add(q[index])
        self.found = sorted(self.found, key=lambda pair: -pair[0])[:256]
        return len(self.found) > before and len(self._independent()) == n

    def _starts(self, generator: torch.Generator) -> torch.Tensor:
        """(T, n) random directions, half of them near a row, the later rounds' away from what is known."""
        q = torch.randn(STARTS, self.n, generator=generator, dtype=self.rows.dtype)
        chosen = self.rows[torch.randint(len(self.rows), (STARTS // 2,), generator=generator)]
        q[: STARTS // 2] = chosen + 0.3 * q[: STARTS // 2] / self.n**0.5
        if known := self._independent():
            frame = torch.linalg.qr(torch.stack(known[: self.n - 1]).T).Q
            q = q - 0.9 * (q @ frame) @ frame.T
        return q / q.norm(dim=1, keepdim=True)

    def chosen(self) -> torch.Tensor:
        """(n, n) directions, one a row."""
        return torch.stack(self._independent())

    def zeros(self, q: torch.Tensor) -> torch.Tensor:
        """(rows, T) whether row · q is zero up to rounding and noise."""
        spread = (q * self.noise).norm(dim=1)  # (T,)
        return (self.rows @ q.T).abs() < 1e-4 + 4 * spread / self.size[:, None]

    def _zeros_by_chance(self, q: torch.Tensor) -> torch.Tensor:
        """(T,) how many rows a random direction of n dimensions would leave below the tolerance."""
        spread = (q * self.noise).norm(dim=1)
        tolerance = 1e-4 + 4 * spread / self.size[:, None]
        return (2 * tolerance * math.sqrt(self.n / (2 * math.pi))).clamp(max=1).sum(0)

    def _add(self, q: torch.Tensor) -> None:
        """Keep the direction that all rows near zero agree on, not only those drawn, unless it is known."""
        for _ in range(2):
            near = self.rows[self.zeros(q[None])[:, 0]]
            q = torch.linalg.eigh(near.T @ near).eigenvectors[:, 0]
        if all(abs(float(q @ known)) < SAME_DIRECTION for _, known in self.found):
            self.found.append((int(self.zeros(q[None]).sum()), q))

    def _independent(self) -> list[torch.Tensor]:
        """Greedily the sparsest directions that are not in the span of those already taken."""
        taken: list[torch.Tensor] = []
        frame = torch.zeros(0, self.n, dtype=self.rows.dtype)
        for _, q in self.found:
            rest = q - frame.T @ (frame @ q)
            if float(rest.norm()) > INDEPENDENT:
                taken.append(q)
                frame = torch.cat([frame, rest[None] / rest.norm()])
            if len(taken) == self.n:
                break
        return taken


def _unmix(columns: torch.Tensor, matrix: torch.Tensor) -> tuple[torch.Tensor, float]:
    """(images, residual) from the columns (H, n) of Δᵀ, each up to its scale."""
    scales = torch.linalg.lstsq(columns, matrix[:, -1:]).solution[:, 0]
    delta = columns * scales
    images = torch.linalg.lstsq(delta, matrix[:, :-1]).solution
    rebuilt = delta @ torch.cat([images, torch.ones(len(images), 1, dtype=images.dtype)], dim=1)
    return images, float((matrix - rebuilt).square().sum() / matrix.square().sum())


def _confirmed(
    images: torch.Tensor, zero: torch.Tensor, first: tuple[torch.Tensor, torch.Tensor], *, exact: bool
) -> torch.Tensor:
    """(n,) whether the units that W·x̂ + b switches on are those where δ̂ is not zero.

    Over several steps a unit may come on later: then only "zero means it was off at the start" can be asked.

    Args:
        zero: (n, R) units, of those that any image activates, where δ̂ is zero up to noise.
        first: W and b of these units.
    """
    active = images @ first[0].T + first[1] > 0
    if exact:
        return (active != zero).double().mean(1) >= AGREEING_UNITS
    off = (zero & ~active).sum(1) / zero.sum(1).clamp_min(1)
    return (off >= AGREEING_UNITS) & (zero.sum(1) >= len(images) - 1 + SPARSE_MARGIN)


def on_lattice(images: torch.Tensor) -> torch.Tensor:
    """(n,) whether the values of each row (n, d) are those of 8-bit pixels or of 8-bit encodings.

    A pixel p is p/127.5 − 1, a quantised encoding j/127. A mixture of images with real weights misses the
    grid by 1/4 of a step on average; over 25 values that mean has a standard deviation of 0.03 steps.
    """
    found = []
    for image in images:
        inner = image[(image.abs() < 0.99) & (image.abs() > 0.01)]
        misses = [float((v - v.round()).abs().mean()) for v in (127.5 * (inner + 1), 127 * inner)]
        found.append(
            len(inner) >= MIN_LATTICE_VALUES and min(misses) < LATTICE_MISS and bool(inner.std() > 0)
        )
    return torch.tensor(found, dtype=torch.bool)


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
