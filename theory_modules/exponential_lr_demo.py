"""``python -m theory_modules.exponential_lr``: one schedule three ways on handwritten digits.

A batch-norm network is trained in float64 with momentum, weight decay and a step schedule; then without
weight decay at the equivalent growing rate; then again with the rate alone, eps and running statistics left
as they are. Printed: how far apart the functions are. Saved, if matplotlib is installed: the curves.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

from .exponential_lr_schedule import EquivalentSchedule
from .exponential_lr_scheduler import ExponentialEquivalentLR, equivalent_parameter_groups
from .normalization_scale import Normalization
from .scale_invariance import scale_invariance_report

LR, MOMENTUM, DECAY = 0.1, 0.9, 5e-3


@dataclass
class Run:
    """What one training run leaves behind, a value a step."""

    name: str
    rates: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    outputs: list[torch.Tensor] = field(default_factory=list)
    evaluated: list[torch.Tensor] = field(default_factory=list)
    accuracy: float = 0.0


def digits() -> tuple[torch.Tensor, torch.Tensor]:
    """scikit-learn's 1,797 digits: (1797, 64) in [0, 1], labels (1797,), in a fixed random order."""
    from sklearn.datasets import load_digits

    data = load_digits()
    order = torch.randperm(len(data.target), generator=torch.Generator().manual_seed(0))
    return torch.tensor(data.data / 16.0)[order], torch.tensor(data.target)[order]


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(64, 64, bias=False),
        nn.BatchNorm1d(64),
        nn.ReLU(),
        nn.Linear(64, 64, bias=False),
        nn.BatchNorm1d(64),
        nn.ReLU(),
        nn.Linear(64, 10),
    ).double()


class _LeftAlone(Normalization):
    """A normalisation nobody scales: what using the rate alone amounts to."""

    def set_scale(self, scale: float) -> None:
        pass

    def multiply_statistics(self, factor: float) -> None:
        pass


def train(
    name: str, schedule: EquivalentSchedule, num_steps: int, *, convert: bool, layers: bool = True
) -> Run:
    """One run on minibatches of 64; ``layers=False`` forgets the normalisations' eps and statistics."""
    inputs, labels = digits()
    model, run = network(), Run(name)
    report = scale_invariance_report(model, inputs[:64])
    groups = equivalent_parameter_groups(model, report) if convert else [{"params": list(model.parameters())}]
    optimizer = torch.optim.SGD(groups, lr=LR, momentum=MOMENTUM, weight_decay=DECAY)
    scheduler = (
        ExponentialEquivalentLR(optimizer, schedule, model, report, rescale_bits=None) if convert else None
    )
    if scheduler is not None and not layers:
        scheduler._layers = [_LeftAlone(x.module, x.degree, x.eps_name, x.eps) for x in scheduler._layers]
    for step in range(num_steps):
        if scheduler is None:
            optimizer.param_groups[0]["lr"] = schedule.original(step).learning_rate
        rows = torch.randint(0, 1500, (64,), generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        outputs = model(inputs[rows])
        loss = functional.cross_entropy(outputs, labels[rows])
        loss.backward()  # type: ignore[no-untyped-call]
        run.rates.append(float(optimizer.param_groups[0]["lr"]))
        optimizer.step()
        if scheduler is not None:
            scheduler.step()
        run.losses.append(float(loss.detach()))
        run.outputs.append(outputs.detach())
        model.eval()
        with torch.no_grad():
            run.evaluated.append(model(inputs[1500:]))
        model.train()
    run.accuracy = float((run.evaluated[-1].argmax(1) == labels[1500:]).double().mean())
    return run


def differences(run: Run, reference: Run, *, evaluated: bool) -> list[float]:
    """max |f − f_reference| / max |f_reference| at each step."""
    pairs = zip(
        run.evaluated if evaluated else run.outputs,
        reference.evaluated if evaluated else reference.outputs,
        strict=True,
    )
    return [float((a - b).abs().max() / b.abs().max()) for a, b in pairs]


def draw(reference: Run, exact: Run, alone: Run, path: Path) -> None:
    """Three panels: rates, training loss, distance from the reference run's functions."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, (rates, losses, distances) = plt.subplots(1, 3, figsize=(13, 3.8), layout="constrained")
    for run, style in ((reference, "-"), (exact, "--")):
        rates.semilogy(run.rates, style, label=run.name)
        losses.plot(run.losses, style, label=run.name)
    for run in (exact, alone):
        distances.semilogy(differences(run, reference, evaluated=False), label=f"{run.name}, training")
        distances.semilogy(differences(run, reference, evaluated=True), ":", label=f"{run.name}, evaluation")
    for axes, title in (
        (rates, "learning rate"),
        (losses, "training loss"),
        (distances, "relative distance in outputs"),
    ):
        axes.set(title=title, xlabel="step")
        axes.legend(fontsize=7)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m theory_modules.exponential_lr", description=__doc__)
    parser.add_argument("--steps", type=int, default=300, help="training steps (default 300)")
    parser.add_argument("--out", type=Path, default=Path("exponential_lr.png"), help="where the figure goes")
    options = parser.parse_args(arguments)
    drops = ((options.steps // 2, 0.1), (3 * options.steps // 4, 0.1))
    schedule = EquivalentSchedule(lr=LR, momentum=MOMENTUM, weight_decay=DECAY, drops=drops)
    reference = train("weight decay, step schedule", schedule, options.steps, convert=False)
    exact = train("no decay, growing rate", schedule, options.steps, convert=True)
    alone = train("growing rate alone", schedule, options.steps, convert=True, layers=False)
    print(
        f"lr {LR}, momentum {MOMENTUM}, weight decay {DECAY}, "
        f"drops by 10 at steps {drops[0][0]} and {drops[1][0]}"
    )
    print(f"rate: {reference.rates[0]:.3g} .. {reference.rates[-1]:.3g} with decay, ", end="")
    print(f"{exact.rates[0]:.3g} .. {exact.rates[-1]:.3g} without")
    for run in (exact, alone):
        training, evaluation = (max(differences(run, reference, evaluated=e)) for e in (False, True))
        print(f"{run.name}: largest difference {training:.1e} in training, {evaluation:.1e} in evaluation")
    print(
        "test accuracy: " + ", ".join(f"{run.name} {run.accuracy:.3f}" for run in (reference, exact, alone))
    )
    if find_spec("matplotlib") is None:
        print("no figure: matplotlib is not installed")
    else:
        draw(reference, exact, alone, options.out)
        print(f"figure: {options.out}")
