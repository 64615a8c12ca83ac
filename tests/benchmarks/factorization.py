"""Deep factorisation side by side with a plain autograd loop, one core; nuclear norm to its certificate.

    python tests/benchmarks/factorization.py [--seeds 6] [--count 2000] [--skip-autograd]

100 × 100, rank 5, depth 3, start 1e-3, to a loss of 1e-6; processor seconds, so that other work on
the machine disturbs little.

autograd        nn.Linear layers, loss.backward(), the published grouped RMSprop step (lr 1e-3)
ours, published the same rule with hand-derived gradients
ours            the default rule
ours, batch     all seeds side by side, seconds a seed
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch
from torch import nn

from theory_modules.deep_matrix_factorization import DeepMatrixFactorization
from theory_modules.deep_matrix_factorization_layers import initial_chain
from theory_modules.matrix_completion_problems import completion_problem
from theory_modules.nuclear_norm import complete_by_nuclear_norm


def autograd_loop(truth: np.ndarray, mask: np.ndarray, seed: int) -> tuple[np.ndarray, int]:
    """The published training loop as one would write it."""
    model = nn.Sequential(*[nn.Linear(100, 100, bias=False) for _ in range(3)])
    with torch.no_grad():
        for module, layer in zip(
            model, initial_chain((100, 100), depth=3, scale=1e-3, seeds=[seed]).layers, strict=True
        ):
            module.weight.copy_(layer[0])
    known, target = torch.as_tensor(mask), torch.as_tensor(truth, dtype=torch.float32)
    eye, square = torch.eye(100), 0.0
    values = target[known]
    for step in range(1, 200_000):
        W = model(eye).T
        loss = (W[known] - values).square().mean()
        if loss.item() <= 1e-6:
            break
        model.zero_grad()
        loss.backward()
        square = 0.99 * square + 0.01 * sum(p.grad.square().sum().item() for p in model.parameters())
        size = 1e-3 / ((square / (1 - 0.99**step)) ** 0.5 + 1e-4)
        with torch.no_grad():
            for p in model.parameters():
                p -= size * p.grad
    return W.detach().numpy(), step


def report(name: str, seconds: float, steps: object, matrix: np.ndarray, truth: np.ndarray) -> None:
    error = np.square(matrix - truth).mean((-2, -1)).max()
    print(f"  {name:16s} {seconds:6.2f} CPU s  {steps!s:>7} steps  test error {error:.1e}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=6)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--skip-autograd", action="store_true", help="leave out the slow contenders")
    options = parser.parse_args()
    torch.set_num_threads(1)
    problems = [completion_problem(100, 5, options.count, seed=seed) for seed in range(options.seeds)]
    DeepMatrixFactorization(3, random_state=0, max_steps=100_000).fit(*problems[0])  # warm up
    for seed, (truth, mask) in enumerate(problems):
        print(f"seed {seed}, {options.count} entries")
        start = time.process_time()
        model = DeepMatrixFactorization(3, random_state=seed).fit(truth, mask)
        report("ours", time.process_time() - start, model.n_iter_, model.matrix_, truth)
        if seed == 0 and not options.skip_autograd:
            start = time.process_time()
            model = DeepMatrixFactorization(3, random_state=seed, step_rule="grouped-rmsprop").fit(
                truth, mask
            )
            report("ours, published", time.process_time() - start, model.n_iter_, model.matrix_, truth)
            start = time.process_time()
            matrix, steps = autograd_loop(truth, mask, seed)
            report("autograd", time.process_time() - start, steps, matrix, truth)
        result = complete_by_nuclear_norm(truth, mask)
        report("nuclear norm", result.seconds, result.n_iter, result.matrix, truth)
        print(f"    norm {result.nuclear_norm:.6f}, certified gap {result.duality_gap:.1e}")
    truths, masks = (np.stack(part) for part in zip(*problems, strict=True))
    start = time.process_time()
    model = DeepMatrixFactorization(3, random_state=list(range(options.seeds))).fit(truths, masks)
    seconds = (time.process_time() - start) / options.seeds
    print(f"batch of {options.seeds}, a seed")
    report("ours, batch", seconds, int(model.n_iter_.max()), model.matrix_, truths)


if __name__ == "__main__":
    main()
