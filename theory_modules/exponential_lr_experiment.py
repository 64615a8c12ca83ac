"""The published experiment: a residual network under step decay, its exponential equivalent, plain growth.

Runs from the same weights over the same batches, for each seed (Li and Arora, ICLR 2020, train
PreResNet-32 on CIFAR-10 for 300 epochs at batch 128, rate 0.1, momentum 0.9, weight decay 5e-4):

step decay      weight decay λ, rate divided by 10 after a half and three quarters of the run
equivalent      no weight decay on the convolutions, the growing rate of ``exponential_lr_equivalent``; eps
                and running statistics of the normalisations follow. The same functions, so the curves lie
                on each other until rounding parts them
plain growth    no weight decay on the convolutions, torch's ExponentialLR at α*⁻² a step from first to last;
                nothing else follows. It is a constant rate with weight decay, nearly
one rounding    step decay once more, every weight moved by one rounding at random. Training is chaotic; what
                this run loses to the first one is what equality can be asked for in this precision

The linear layer keeps its rate and decay in all of them. Inputs are normalised by channel; no augmentation.

    python -m theory_modules.exponential_lr_experiment       # 8×8 digits of scikit-learn, float64
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from .exponential_lr_phases import growth_root
from .exponential_lr_schedule import EquivalentSchedule
from .exponential_lr_scheduler import ExponentialEquivalentLR, equivalent_parameter_groups
from .pre_activation_resnet import PreActivationResNet
from .scale_invariance import ScaleInvarianceReport, scale_invariance_report

ARMS = ("step decay", "equivalent", "plain growth", "one rounding")
Progress = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How each run trains; ``double`` computes in float64, where the equality is seen to the last epoch."""

    depth: int = 8
    width: int = 16
    epochs: int = 12
    batch_size: int = 64
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-3
    double: bool = False

    def __post_init__(self) -> None:
        if min(self.width, self.epochs, self.batch_size) < 1:
            raise ValueError(
                f"width {self.width}, epochs {self.epochs} and batch size {self.batch_size}: give 1 or more"
            )


@dataclass
class Curve:
    """One run: ``rates`` and ``losses`` a step, the rest an epoch; ``squared_norms`` of the convolutions."""

    rates: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    test_accuracies: list[float] = field(default_factory=list)
    squared_norms: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Images:
    """``inputs`` (N, C, H, W), 8-bit or in [0, 1], class numbers ``labels`` (N,); the same for testing."""

    inputs: NDArray[Any]
    labels: NDArray[np.int64]
    test_inputs: NDArray[Any]
    test_labels: NDArray[np.int64]


@dataclass(frozen=True)
class Comparison:
    """Curves by arm and seed, and what they say."""

    settings: Settings
    num_train: int
    num_test: int
    seeds: tuple[int, ...]
    curves: dict[str, list[Curve]]

    def accuracies(self, arm: str) -> NDArray[np.float64]:
        """(S,) final test accuracy, one a seed."""
        return np.array([curve.test_accuracies[-1] for curve in self.curves[arm]])

    def difference(self, arm: str) -> tuple[float, float, float]:
        """(mean, low, high): final accuracy over that of step decay, paired by seed; Student's 95 % interval.

        The interval is (−inf, inf) with one seed.
        """
        from scipy.stats import t

        paired = self.accuracies(arm) - self.accuracies(ARMS[0])
        mean, S = float(paired.mean()), len(paired)
        if S < 2:
            return mean, -math.inf, math.inf
        half = float(t.ppf(0.975, S - 1) * paired.std(ddof=1) / math.sqrt(S))
        return mean, mean - half, mean + half

    def loss_distance(self, arm: str, num_steps: int | None = None) -> float:
        """Largest |training loss − step decay's| over the first ``num_steps`` steps (all) and every seed."""
        return max(
            float(np.abs(np.subtract(mine.losses[:num_steps], theirs.losses[:num_steps])).max())
            for mine, theirs in zip(self.curves[arm], self.curves[ARMS[0]], strict=True)
        )

    def lines(self) -> list[str]:
        """The result in words."""
        s, steps = self.settings, len(self.curves[ARMS[0]][0].losses)
        lines = [
            f"PreResNet-{s.depth}, width {s.width}, {self.num_train} images, {self.num_test} to test, "
            f"{s.epochs} epochs = {steps} steps, {len(self.seeds)} seeds, "
            f"float{64 if s.double else 32}; rate {s.lr:g}, momentum {s.momentum:g}, decay {s.weight_decay:g}"
        ]
        for arm in ARMS:
            found, last = self.accuracies(arm), self.curves[arm][0].rates[-1]
            line = f"{arm:13s} test accuracy {found.mean():.4f} ({found.min():.4f} to {found.max():.4f}), "
            line += f"last rate {last:.3g}"
            if arm != ARMS[0]:
                mean, low, high = self.difference(arm)
                line += f"; minus step decay {mean:+.4f}"
                line += "" if math.isinf(low) else f" (95 % {low:+.4f} to {high:+.4f})"
                early, late = self.loss_distance(arm, 20), self.loss_distance(arm)
                line += f"; training losses apart by {early:.1e} in 20 steps, {late:.1e} in all"
            lines.append(line)
        return lines

    def to_dict(self) -> dict[str, Any]:
        arms = {}
        for arm in ARMS:
            mean, low, high = self.difference(arm)
            arms[arm] = {
                "accuracies": self.accuracies(arm).tolist(),
                "minus_step_decay": mean,
                "interval": None if math.isinf(low) else [low, high],
                "loss_distance_20_steps": self.loss_distance(arm, 20),
                "loss_distance": self.loss_distance(arm),
                "last_rate": self.curves[arm][0].rates[-1],
            }
        sizes = {"num_train": self.num_train, "num_test": self.num_test, "seeds": list(self.seeds)}
        return {"settings": asdict(self.settings), **sizes, "arms": arms}


def compare_schedules(
    images: Images,
    settings: Settings | None = None,
    *,
    seeds: Sequence[int] = (0, 1, 2),
    progress: Progress | None = None,
) -> Comparison:
    """Train every arm with every seed.

    Args:
        progress: told (epochs done, epochs in all).

    Raises:
        ValueError: no images or seeds, or settings that do not go together (NoEquivalentScheduleError where
            weight decay times rate is too large for the momentum).
    """
    settings = settings or Settings()
    if not seeds or len(images.labels) < 2 or len(images.test_labels) < 1:
        raise ValueError("nothing to compare: give at least one seed, two training images and one to test")
    data = _tensors(images, settings)
    report = scale_invariance_report(_network(data, settings, 0), data[0][:32])
    total, done = settings.epochs * len(seeds) * len(ARMS), 0

    def epoch_done() -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, total)

    curves: dict[str, list[Curve]] = {arm: [] for arm in ARMS}
    for seed in seeds:
        for arm in ARMS:
            curves[arm].append(_run(arm, data, settings, report, seed, epoch_done))
    return Comparison(settings, len(images.labels), len(images.test_labels), tuple(seeds), curves)


def _tensors(images: Images, settings: Settings) -> list[torch.Tensor]:
    dtype = torch.float64 if settings.double else torch.float32
    inputs, test_inputs = (
        torch.as_tensor(np.array(part)).to(dtype) for part in (images.inputs, images.test_inputs)
    )
    mean, std = inputs.mean((0, 2, 3), keepdim=True), inputs.std((0, 2, 3), keepdim=True).clamp_min(1e-6)
    labels, test_labels = (
        torch.as_tensor(np.array(part)).long() for part in (images.labels, images.test_labels)
    )
    return [(inputs - mean) / std, labels, (test_inputs - mean) / std, test_labels]


def _network(data: list[torch.Tensor], settings: Settings, seed: int) -> nn.Module:
    num_classes = int(max(data[1].max(), data[3].max())) + 1
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return PreActivationResNet(
            depth=settings.depth,
            width=settings.width,
            in_channels=data[0].shape[1],
            num_classes=max(2, num_classes),
        ).to(data[0].dtype)


def _run(
    arm: str,
    data: list[torch.Tensor],
    settings: Settings,
    report: ScaleInvarianceReport,
    seed: int,
    epoch_done: Callable[[], None],
) -> Curve:
    inputs, labels, test_inputs, test_labels = data
    model, curve, N = _network(data, settings, seed), Curve(), len(labels)
    if arm == ARMS[3]:
        _move_by_one_rounding(model, seed)
    # Batches of equal size; the rest of an epoch's order waits for the next epoch.
    batch_size = min(settings.batch_size, N)
    steps = N // batch_size
    total = settings.epochs * steps
    schedule = EquivalentSchedule(
        lr=settings.lr,
        momentum=settings.momentum,
        weight_decay=settings.weight_decay,
        drops=((total // 2, 0.1), (3 * total // 4, 0.1)),
    )
    drive = _Drive(arm, model, report, schedule, settings)
    for epoch in range(settings.epochs):
        order = torch.randperm(N, generator=torch.Generator().manual_seed(1000 * seed + epoch))
        model.train()
        for step in range(steps):
            rows = order[step * batch_size : (step + 1) * batch_size]
            loss = functional.cross_entropy(model(inputs[rows]), labels[rows])
            curve.rates.append(drive.step(loss, epoch * steps + step))
            curve.losses.append(float(loss.detach()))
        curve.test_accuracies.append(_accuracy(model, test_inputs, test_labels))
        curve.squared_norms.append(drive.squared_norm())
        epoch_done()
    return curve


@torch.no_grad()
def _move_by_one_rounding(model: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for weight in model.parameters():
        up = torch.rand(weight.shape, generator=generator) < 0.5
        infinity = torch.full_like(weight, math.inf)
        weight.copy_(torch.where(up, weight.nextafter(infinity), weight.nextafter(-infinity)))


class _Drive:
    """The optimiser of one arm, and what moves its rate."""

    def __init__(
        self,
        arm: str,
        model: nn.Module,
        report: ScaleInvarianceReport,
        schedule: EquivalentSchedule,
        settings: Settings,
    ) -> None:
        self.arm, self.schedule = arm, schedule
        self.groups = equivalent_parameter_groups(model, report)
        self.optimizer = torch.optim.SGD(
            self.groups, lr=settings.lr, momentum=settings.momentum, weight_decay=settings.weight_decay
        )
        self.scheduler: ExponentialEquivalentLR | None = None
        self.growth = growth_root(settings.lr, settings.momentum, settings.weight_decay) ** -2
        if arm == ARMS[1]:
            self.scheduler = ExponentialEquivalentLR(self.optimizer, schedule, model, report)
        elif arm == ARMS[2]:
            self.optimizer.param_groups[0]["weight_decay"] = 0.0

    def step(self, loss: torch.Tensor, index: int) -> float:
        """One step of descent on ``loss``; returns the rate of the convolutions."""
        if self.arm in (ARMS[0], ARMS[3]):
            for group in self.optimizer.param_groups:
                group["lr"] = self.schedule.original(index).learning_rate
        rate = float(self.optimizer.param_groups[0]["lr"])
        if self.scheduler is not None:  # in the units of the run that was never divided by a power of two
            rate = self.scheduler.current.learning_rate.value()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        if self.scheduler is not None:
            self.scheduler.step()
        elif self.arm == ARMS[2]:
            self.optimizer.param_groups[0]["lr"] *= self.growth
        return rate

    def squared_norm(self) -> float:
        """Of all convolutions' weights, powers of two put back."""
        total = math.fsum(float(p.detach().double().square().sum()) for p in self.groups[0]["params"])
        if self.scheduler is None:
            return total
        before = self.scheduler.current.before.scale
        return total * (before.value() / self.scheduler.scale) ** 2


@torch.no_grad()
def _accuracy(model: nn.Module, inputs: torch.Tensor, labels: torch.Tensor) -> float:
    model.eval()
    right = 0
    for start in range(0, len(labels), 256):
        rows = slice(start, start + 256)
        right += int((model(inputs[rows]).argmax(1) == labels[rows]).sum())
    return right / len(labels)


def draw(found: Comparison, path: Path) -> None:
    """Rate, training loss, test accuracy and weights' norm, the arms on each other; the first seed bold."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 3.6), layout="constrained")
    panels = figure.subplots(1, 4)
    kinds = ("rates", "losses", "test_accuracies", "squared_norms")
    titles = ("learning rate (step)", "training loss (step)", "test accuracy (epoch)", "‖w‖² (epoch)")
    styles = (
        ("#1f5c99", "-", 2.2),
        ("#d95f02", "--", 1.4),
        ("#5a8f29", ":", 1.4),
        ("#888888", "-.", 0.9),
    )
    for arm, (colour, line, width) in zip(ARMS, styles, strict=True):
        for number, curve in enumerate(found.curves[arm]):
            for axes, kind in zip(panels, kinds, strict=True):
                label = arm if number == 0 else None
                alpha = 1.0 if number == 0 else 0.25
                axes.plot(getattr(curve, kind), line, color=colour, linewidth=width, label=label, alpha=alpha)
    for axes, title in zip(panels, titles, strict=True):
        axes.set_title(title)
    panels[0].set_yscale("log")
    panels[3].set_yscale("log")
    panels[1].legend(fontsize=8)
    figure.savefig(path, format="png", dpi=130)


def digits() -> Images:
    """scikit-learn's 1,797 handwritten digits, 8 × 8 and grey; 1,200 to train on."""
    from sklearn.datasets import load_digits

    data = load_digits()
    order = np.random.default_rng(0).permutation(len(data.target))
    inputs, labels = data.images[order][:, None] / 16.0, data.target[order].astype(np.int64)
    return Images(inputs[:1200], labels[:1200], inputs[1200:], labels[1200:])


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m theory_modules.exponential_lr_experiment",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("exponential_lr_experiment.png"))
    options = parser.parse_args(arguments)
    found = compare_schedules(
        digits(), Settings(epochs=options.epochs, double=True), seeds=range(options.seeds)
    )
    print("\n".join(found.lines()))
    if find_spec("matplotlib") is not None:
        draw(found, options.out)
        print(f"figure: {options.out}")


if __name__ == "__main__":
    main()
