r"""Trap weights: a server that crafts the first dense layer reads single inputs out of one update.

Axes: N images behind the update (of all batches, epochs and summed sites), H units of the first layer, d
its inputs, m stand-ins.

A dense layer with ReLU, z = W·x + b, has ∇W_r = Σ_i δ_ir·x_i and ∇b_r = Σ_i δ_ir over the images that make
unit r fire (``analytic.py``). An honest layer fires for half of the images; the server may send one that
fires for one. Two ways, both without a second message:

**Trap units** (after Boenisch et al., "When the Curious Abandon Honesty", 2021; EuroS&P 2023). Row r is a
random direction, and its bias is set so that a share p = 1/N of the images makes it fire; then

    P(unit r fires for one image alone) = N·p·(1 − p)^(N−1) → 1/e        and x = ∇W_r/∇b_r               (1)

About H/e units hold one image each, whatever N is, so at most N·(1 − e^(−H/(e·N))) images come out of one
round. The published construction makes weights of a negative and a slightly larger positive half, for
inputs in [0, 1]; a bias from a quantile does the same for inputs of any range. Directions are drawn for
inputs whitened by the stand-ins' covariance, else a few images far from the mean would fire everything.

**Bins** (Fowl et al., "Robbing the Fed", ICLR 2022). All rows are one direction v, b_r = −c_r with
c_1 < … < c_H the quantiles of v·x, and all columns of the next layer are equal, so δ_ir is the same for every
unit that image i makes fire. The difference of neighbours ∇W_r − ∇W_{r+1} is Σ δ_i·x_i over the images with
c_r < v·x_i < c_{r+1}: those alone in their bin, N·(1 − 1/H)^(N−1) of them, come out.

**Local steps.** An update is a weighted sum of gradients (``local_update.py``), so a trap unit that only one
image fires in any step still holds that image alone; what counts is N over all steps. Bins need equal
columns, which the first step ends: they are for one step.

**Sums over sites.** Everything here is linear: a sum over sites is an update with N larger. Secure
aggregation hides which site an image is from, and not the image.

**What the layers behind must do**: pass a gradient to every unit for every image. Biases of hidden layers
are raised until all their units are on for the stand-ins, and the last layer is made small, so that no class
is certain.

**Limits.** The network must begin with a dense layer with ReLU. A convolution can be made to pass the image
on where nothing normalises it; the convolutional networks of this toolkit have GroupNorm behind each
convolution and no hidden dense layer, so they hold no such trap (which is not to say that they hold none: Wen
et al. 2022, "Fishing", and Garov et al. 2024, "SEER", need only a classifier). Thresholds come from stand-ins
of the same kind; on other images more or fewer than one fire. AdamW leaves signs only.

An image is *verified* without truth if two units show the same image, which mixtures of images hardly do, or
if its values are those of 8-bit pixels (images of few grey levels can pass as such a mixture by chance).
"""

from __future__ import annotations

import copy
import math

import torch
from torch import nn

from ...errors import InvalidInputError
from .analytic import (
    AGREEMENT,
    ROUNDING,
    FirstLayer,
    FirstLayerRecovery,
    first_dense_layer,
    recover_from_first_layer,
)
from .local_update import averaged_gradient
from .sparse_batch import on_lattice
from .view import LocalTraining, UpdateView

TRAP_KINDS = ("units", "bins")
FEWEST_STAND_INS = 20
FEWEST_BEYOND = 1  # stand-ins above a threshold from which its quantile is read off, else a normal tail
RIDGE = 1.0  # of the mean variance, added before whitening
SAME = 0.02  # relative distance of two readings of one image
OUT_OF_RANGE = 0.02  # how far a recovered pixel may lie outside [-1, 1]


def set_traps(
    model: nn.Module, stand_ins: torch.Tensor, *, num_images: int, kind: str = "units", seed: int = 0
) -> nn.Module:
    """A copy of ``model`` whose first dense layer is a trap for one image out of ``num_images``.

    Args:
        model: begins with a dense layer, followed by ReLU.
        stand_ins: (m, C, H, W) inputs like the site's: public images, or encodings of them.
        num_images: N, over all batches, epochs and summed sites.
        kind: ``"units"`` or ``"bins"``.
        seed: of the directions; the server's.

    Raises:
        InvalidInputError: another network, an unknown kind, or too few stand-ins.
    """
    if kind not in TRAP_KINDS:
        raise InvalidInputError(f"no traps of kind {kind!r}", hint=f"choose from {', '.join(TRAP_KINDS)}")
    if len(stand_ins) < FEWEST_STAND_INS or num_images < 1:
        raise InvalidInputError(
            f"{len(stand_ins)} stand-ins for {num_images} images",
            hint=f"give at least {FEWEST_STAND_INS} stand-ins",
        )
    trapped = copy.deepcopy(model).cpu()
    layer = _trappable(trapped, stand_ins)
    seen = (stand_ins.abs() if layer.absolute else stand_ins).flatten(1).double()
    seen, unseen = seen[::2], seen[1::2]  # thresholds by images that the directions were not fitted to
    linears = [module for module in trapped.modules() if isinstance(module, nn.Linear)]
    first, behind = linears[0], linears[1:]
    generator = torch.Generator().manual_seed(seed)
    if kind == "units":
        rows = _whitened_directions(seen, first.out_features, generator)
        bias = -_upper_quantiles(unseen @ rows.T, 1 / num_images)
    else:
        rows = _whitened_directions(seen, 1, generator).expand(first.out_features, -1)
        shares = (torch.arange(first.out_features, dtype=torch.float64) + 0.5) / first.out_features
        bias = -torch.quantile(unseen @ rows[0], shares)
    with torch.no_grad():
        first.weight.copy_(rows)
        first.bias.copy_(bias)
        if kind == "bins" and behind:
            behind[0].weight.copy_(behind[0].weight[:, :1].expand_as(behind[0].weight).clone())
        _keep_on(trapped, behind[:-1], stand_ins)
        _leave_undecided(trapped, linears[-1], stand_ins)
    return trapped


def read_traps(view: UpdateView) -> FirstLayerRecovery:
    """The images that traps in ``view.model`` hold, m ≤ N: the verified ones, then the most pixel-like.

    Raises:
        InvalidInputError: the network does not begin with a dense layer with bias.
    """
    layer = first_dense_layer(view)
    if layer is None:
        recover_from_first_layer(view)  # says what is missing
        raise AssertionError
    gradient = averaged_gradient(view)
    weight, bias = gradient[layer.weight].double(), gradient[layer.bias].double()
    sent = dict(view.model.named_parameters())
    if _are_bins(sent[layer.weight].detach()):
        order = sent[layer.bias].detach().argsort(descending=True)  # the first fires for nearly all
        weight, bias = weight[order].diff(dim=0), bias[order].diff()
    images, verified = _single_inputs(weight, bias)
    if view.kind == "update" and view.training.optimizer == "adamw":
        verified = torch.zeros_like(verified)
    images, verified = images[: view.num_images], verified[: view.num_images]
    return FirstLayerRecovery(
        images.clamp(-1, 1).reshape(len(images), *view.image_shape),
        verified,
        len(images),
        view.num_images,
        math.nan if len(images) else 1.0,
        "traps" if len(images) else "none",
        None,
        layer.absolute,
    )


def alone_in_theory(num_images: int, num_units: int, kind: str = "units") -> float:
    """Expected number of images that come out, for N images whose units or bins are independent.

    Bins: N·(1 − 1/H)^(N−1), exact. Units: N·(1 − (1 − p·(1 − p)^(N−1))^H) with p = 1/N.
    """
    N, H = num_images, num_units
    if kind == "bins":
        return float(N * (1 - 1 / H) ** (N - 1))
    alone = (1 / N) * (1 - 1 / N) ** (N - 1)
    return float(N * (1 - (1 - alone) ** H))


def _trappable(model: nn.Module, stand_ins: torch.Tensor) -> FirstLayer:
    nothing = {name: torch.zeros_like(value) for name, value in model.named_parameters()}
    shape = (int(stand_ins.shape[1]), int(stand_ins.shape[2]), int(stand_ins.shape[3]))
    blank = UpdateView(model, nothing, "gradient", LocalTraining(num_images=1), shape, 2)
    layer = first_dense_layer(blank)
    if layer is None or not any(isinstance(module, nn.ReLU) for module in model.modules()):
        raise InvalidInputError(
            "trap weights need a network that begins with a dense layer and ReLU", hint="mlp is one"
        )
    return layer


def _whitened_directions(seen: torch.Tensor, count: int, generator: torch.Generator) -> torch.Tensor:
    """(count, d) rows with W_r·x of variance one over the stand-ins ``seen`` (m, d), all x equally likely."""
    centred = seen - seen.mean(0)
    _, sizes, axes = torch.linalg.svd(centred, full_matrices=False)
    variances = sizes.square() / len(seen)
    ridge = RIDGE * float(variances.sum()) / seen.shape[1] + 1e-12
    normal = torch.randn(count, seen.shape[1], generator=generator, dtype=torch.float64)
    # Within the stand-ins' span only: of what lies outside they say nothing.
    rows = (normal @ axes.T * (variances + ridge).rsqrt()) @ axes
    spread = (centred @ rows.T).std(0).clamp_min(1e-12)
    scaled: torch.Tensor = rows / spread[:, None]
    return scaled


def _upper_quantiles(values: torch.Tensor, share: float) -> torch.Tensor:
    """(H,) thresholds that a ``share`` of each column of (m, H) exceeds."""
    if share >= 1:
        return values.amin(0) - 1.0
    if share * len(values) >= FEWEST_BEYOND:
        return torch.quantile(values, 1 - share, dim=0)
    tail = float(torch.special.ndtri(torch.tensor(1 - share, dtype=torch.float64)))
    return values.mean(0) + tail * values.std(0)


def _keep_on(model: nn.Module, layers: list[nn.Linear], stand_ins: torch.Tensor) -> None:
    """Raise the biases of hidden layers until every unit is on for all stand-ins, one layer after another."""
    training = model.training
    model.eval()
    for layer in layers:
        seen: list[torch.Tensor] = []
        handle = layer.register_forward_hook(_keep_output(seen))
        model(stand_ins.float())
        handle.remove()
        lowest = seen[0].amin(0)
        layer.bias.add_((1.0 - lowest).clamp_min(0.0))
    model.train(training)


def _leave_undecided(model: nn.Module, last: nn.Linear, stand_ins: torch.Tensor) -> None:
    """Shrink the last layer until no score of a stand-in is beyond ±1: a certain class has no gradient."""
    last.bias.zero_()
    largest = float(model(stand_ins.float()).abs().max())
    last.weight.div_(max(1.0, largest))


def _keep_output(seen: list[torch.Tensor]):  # type: ignore[no-untyped-def]
    def hook(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        seen.append(output.detach())

    return hook


def _are_bins(weight: torch.Tensor) -> bool:
    return len(weight) > 1 and torch.equal(weight, weight[:1].expand_as(weight))


def _single_inputs(weight: torch.Tensor, bias: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(images (m, d), verified (m,)): rows that could be an image, one for each group that agrees."""
    usable = bias.abs() > ROUNDING * float(bias.abs().max().clamp_min(1e-300))
    rows, sizes = weight[usable] / bias[usable, None], bias[usable].abs()
    possible = rows.abs().amax(1) < 1 + OUT_OF_RANGE if len(rows) else torch.zeros(0, dtype=torch.bool)
    rows, sizes = rows[possible], sizes[possible]
    distances = torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist")
    close = distances < AGREEMENT * rows.norm(dim=1, keepdim=True).clamp_min(1e-12)
    images, verified = [], []
    free = torch.ones(len(rows), dtype=torch.bool)
    for index in sizes.argsort(descending=True).tolist():
        if not free[index]:
            continue
        group = close[index] & free
        share = sizes[group] / sizes[group].sum()
        images.append(share @ rows[group])
        verified.append(int(group.sum()) > 1)
        free &= ~group
    if not images:
        return weight[:0], torch.zeros(0, dtype=torch.bool)
    found = torch.stack(images)
    sure = torch.tensor(verified) | on_lattice(found)
    order = (_grid_miss(found) - sure.double()).argsort(stable=True)
    kept = _without_repetitions(found[order])
    return found[order][kept], sure[order][kept]


def _without_repetitions(rows: torch.Tensor) -> torch.Tensor:
    """(k,) places of rows (m, d) that no row before them shows already, up to a trace of another image."""
    distances = torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist")
    same = distances < SAME * rows.norm(dim=1, keepdim=True).clamp_min(1e-12)
    kept: list[int] = []
    for place in range(len(rows)):
        if not bool(same[place, kept].any()):
            kept.append(place)
    return torch.tensor(kept)


def _grid_miss(images: torch.Tensor) -> torch.Tensor:
    """(m,) mean distance of the values of (m, d) from 8-bit pixels or encodings, in steps: 0.25 by chance."""
    inner = (images.abs() < 0.99) & (images.abs() > 0.01)
    misses = []
    for steps in (127.5 * (images + 1), 127 * images):
        distance = (steps - steps.round()).abs() * inner
        misses.append(distance.sum(1) / inner.sum(1).clamp_min(1))
    return torch.minimum(*misses)
