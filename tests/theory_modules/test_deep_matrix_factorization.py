"""Deep matrix factorisation: gradients against autograd, published rules, batches, resuming, recovery.

Seeds are fixed, so nothing here is a matter of luck; tolerances say what the arithmetic allows.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.base import clone

from theory_modules.deep_matrix_factorization import (
    DeepMatrixFactorization,
    FactorizationDivergedError,
    FactorizationInputError,
    effective_rank,
)
from theory_modules.deep_matrix_factorization_layers import LayerChain, balanced_layers, initial_chain
from theory_modules.deep_matrix_factorization_polish import gauss_newton_move
from theory_modules.deep_matrix_factorization_problem import completion, sensing


def hidden_matrix(n: int, p: int, rank: int, seed: int) -> np.ndarray:
    """Gaussian factors, entries of mean square one: the published law."""
    rng = np.random.default_rng(seed)
    W = rng.standard_normal((n, rank)) @ rng.standard_normal((rank, p))
    return W * np.sqrt(n * p) / np.linalg.norm(W)


def revealed(shape: tuple[int, int], count: int, seed: int) -> np.ndarray:
    mask = np.zeros(shape, dtype=bool)
    mask.flat[np.random.default_rng(seed).permutation(mask.size)[:count]] = True
    return mask


def autograd_loss(problem, layers: list[torch.Tensor]) -> torch.Tensor:
    """The loss written plainly, for torch to differentiate."""
    W = layers[0]
    for layer in layers[1:]:
        W = layer @ W
    return problem.loss(problem.measure(W) - problem.measure(W).detach() + problem.residual(W.detach()))


@settings(max_examples=25, deadline=None)
@given(
    depth=st.integers(1, 5),
    n=st.integers(1, 7),
    p=st.integers(1, 7),
    hidden=st.integers(1, 8),
    seed=st.integers(0, 10**6),
    measured=st.booleans(),
)
def test_hand_derived_gradients_are_autograds(depth, n, p, hidden, seed, measured):
    generator = torch.Generator().manual_seed(seed)
    widths = [p, *[hidden] * (depth - 1), n]
    layers = [
        torch.randn(2, rows, columns, generator=generator, dtype=torch.float64, requires_grad=True)
        for rows, columns in zip(widths[1:], widths[:-1], strict=True)
    ]
    target = torch.randn(2, n, p, generator=generator, dtype=torch.float64)
    if measured:
        matrices = torch.randn(4, n, p, generator=generator, dtype=torch.float64)
        problem = sensing(
            matrices, torch.randn(2, 4, generator=generator, dtype=torch.float64), 2, torch.float64
        )
    else:
        mask = torch.rand(2, n, p, generator=generator) < 0.6
        mask[:, 0, 0] = True
        problem = completion(target, mask, 2, torch.float64)
    expected = torch.autograd.grad(autograd_loss(problem, layers).sum(), layers)
    with torch.no_grad():
        chain = LayerChain([layer.detach().clone() for layer in layers])
        found = chain.backward(problem.loss_gradient(problem.residual(chain.forward())))
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("depth", [2, 3])
def test_the_published_rule_takes_the_published_steps(depth):
    """Forty steps of grouped RMSprop, written once more with autograd; float64 agrees to rounding."""
    truth, mask = hidden_matrix(12, 9, 2, 0), revealed((12, 9), 60, 0)
    model = DeepMatrixFactorization(
        depth, random_state=5, step_rule="grouped-rmsprop", dtype="float64", max_steps=40
    )
    with pytest.warns(RuntimeWarning, match="max_steps=40"):
        model.fit(truth, mask)
    layers = [
        w[0].requires_grad_()
        for w in initial_chain((12, 9), depth=depth, scale=1e-3, seeds=[5], dtype=torch.float64).layers
    ]
    known, values = torch.as_tensor(mask), torch.as_tensor(truth)
    square = 0.0
    for t in range(1, 41):
        W = torch.linalg.multi_dot(layers[::-1])
        gradients = torch.autograd.grad((W - values)[known].square().mean(), layers)
        square = 0.99 * square + 0.01 * float(sum(g.square().sum() for g in gradients))
        step = 1e-3 / (np.sqrt(square / (1 - 0.99**t)) + 1e-4)
        with torch.no_grad():
            for layer, gradient in zip(layers, gradients, strict=True):
                layer -= step * gradient
    expected = torch.linalg.multi_dot(layers[::-1]).detach().numpy()
    np.testing.assert_allclose(model.matrix_, expected, rtol=1e-9, atol=1e-15)


def test_one_step_of_plain_descent_is_learning_rate_times_gradient():
    truth = np.array([[3.0, 1.0], [0.0, 2.0]])
    model = DeepMatrixFactorization(
        1,
        1.0,
        0,
        start="identity",
        step_rule="gradient-descent",
        learning_rate=0.1,
        max_steps=1,
        dtype="float64",
    )
    with pytest.warns(RuntimeWarning):
        model.fit(truth, np.ones((2, 2)))
    # loss = Σ(W − Y)²/4, so W ← I − 0.1·(I − Y)/2
    np.testing.assert_allclose(model.matrix_, np.eye(2) - 0.05 * (np.eye(2) - truth), rtol=1e-14)


def test_gauss_newton_is_the_least_change_that_cancels_the_linearised_residual():
    """Against the dense pseudo-inverse of the Jacobian that autograd writes out."""
    truth, mask = hidden_matrix(6, 5, 2, 1), revealed((6, 5), 14, 1)
    problem = completion(truth, mask, 1, torch.float64)
    chain = initial_chain((6, 5), depth=3, scale=0.5, seeds=[2], dtype=torch.float64)
    residual = problem.residual(chain.forward())
    found = gauss_newton_move(chain, problem, residual)
    # conjugate gradients stop at a hundredth of the squared residual: refine by linearity
    known = torch.as_tensor(mask)
    shapes = [layer[0].shape for layer in chain.layers]

    def observed(flat: torch.Tensor) -> torch.Tensor:
        pieces = flat.split([s.numel() for s in shapes])
        W1, W2, W3 = (piece.reshape(shape) for piece, shape in zip(pieces, shapes, strict=True))
        return (W3 @ W2 @ W1)[known]

    start = torch.cat([layer[0].flatten() for layer in chain.layers])
    jacobian = torch.autograd.functional.jacobian(observed, start)
    move = torch.cat([m[0].flatten() for m in found])
    r = residual[0][known]
    left = r - jacobian @ move
    assert float(left.square().sum()) <= 0.0101 * float(r.square().sum())
    # in the range of Jᵀ, so the smallest change with its image
    projected = torch.linalg.pinv(jacobian) @ (jacobian @ move)
    torch.testing.assert_close(move, projected, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("seed", range(3))
def test_depth_three_recovers_a_hundred_by_a_hundred_from_a_fifth(seed):
    truth, mask = hidden_matrix(100, 100, 5, seed), revealed((100, 100), 2000, seed)
    model = DeepMatrixFactorization(random_state=seed).fit(truth, mask, target=truth)
    assert model.loss_ <= 1e-6
    assert np.square(model.matrix_ - truth).mean() <= 6e-5
    assert model.history_.effective_rank[-1] < 5.1
    assert model.history_.error[-1] == pytest.approx(np.square(model.matrix_ - truth).mean(), rel=1e-3)


def test_depth_one_fills_in_nothing():
    truth, mask = hidden_matrix(20, 20, 2, 0), revealed((20, 20), 200, 0)
    model = DeepMatrixFactorization(1, 1e-6, random_state=0, tolerance=1e-10).fit(truth, mask)
    np.testing.assert_allclose(model.matrix_[~mask], 0, atol=1e-4)
    np.testing.assert_allclose(model.matrix_[mask], truth[mask], atol=1e-3)


@pytest.mark.parametrize("step_rule", ["capped-movement", "grouped-rmsprop", "gradient-descent"])
def test_every_rule_completes_a_rectangular_matrix(step_rule):
    truth, mask = hidden_matrix(24, 40, 1, 3), revealed((24, 40), 420, 3)
    model = DeepMatrixFactorization(
        2,
        1e-2,
        random_state=1,
        step_rule=step_rule,
        learning_rate={"grouped-rmsprop": 3e-3, "gradient-descent": 0.2}.get(step_rule),
        tolerance=1e-5,
        max_steps=20_000,
    ).fit(truth, mask)
    assert model.converged_
    assert np.square(model.matrix_ - truth).mean() < 1e-2  # a row with two entries is the last to come
    assert [layer.shape for layer in model.layers_] == [(24, 40), (24, 24)]


@pytest.mark.parametrize("depth", [2, 3, 4])
def test_sensing_recovers_from_gaussian_measurements(depth):
    truth = hidden_matrix(16, 12, 1, 0)
    matrices = np.random.default_rng(1).standard_normal((110, 16, 12)) / np.sqrt(16 * 12)
    values = np.einsum("mij,ij->m", matrices, truth)
    model = DeepMatrixFactorization(depth, random_state=0, tolerance=1e-7).fit_sensing(matrices, values)
    assert np.square(model.matrix_ - truth).mean() < 1e-3


@pytest.mark.parametrize("polish_below", [0.0, None])
def test_a_batch_of_seeds_is_the_seeds_one_by_one(polish_below):
    """Float64 and few steps: batched products sum in another order, so equality is to rounding."""
    truth, mask = hidden_matrix(15, 15, 1, 0), revealed((15, 15), 140, 0)
    arguments = {"tolerance": 1e-5, "dtype": "float64", "polish_below": polish_below}
    batch = DeepMatrixFactorization(3, random_state=[4, 5, 6], **arguments).fit(truth, mask)
    assert batch.matrix_.shape == (3, 15, 15)
    for row, seed in enumerate([4, 5, 6]):
        single = DeepMatrixFactorization(3, random_state=seed, **arguments).fit(truth, mask)
        assert batch.n_iter_[row] == single.n_iter_
        np.testing.assert_allclose(batch.matrix_[row], single.matrix_, rtol=1e-6, atol=1e-9)


def test_stacked_problems_run_side_by_side():
    truths = np.stack([hidden_matrix(14, 14, 1, seed) for seed in range(3)])
    masks = np.stack([revealed((14, 14), 120 + 10 * seed, seed) for seed in range(3)])
    model = DeepMatrixFactorization(3, random_state=0, tolerance=1e-8).fit(truths, masks)
    assert np.square(model.matrix_ - truths).mean((1, 2)).max() < 1e-3


@pytest.mark.parametrize("step_rule", ["capped-movement", "grouped-rmsprop", "gradient-descent"])
def test_an_interrupted_run_continues_to_the_same_bits(tmp_path: Path, step_rule):
    truth, mask = hidden_matrix(12, 12, 1, 0), revealed((12, 12), 100, 0)
    arguments = {"random_state": [0, 1], "step_rule": step_rule, "record_every": 50, "checkpoint_every": 70}
    with pytest.warns(RuntimeWarning):
        whole = DeepMatrixFactorization(3, max_steps=400, tolerance=1e-12, **arguments).fit(truth, mask)

    def interrupt(step: int, losses: list[float]) -> None:
        if step == 200:
            raise KeyboardInterrupt

    path = tmp_path / "run.checkpoint"
    broken = DeepMatrixFactorization(
        3, max_steps=400, tolerance=1e-12, checkpoint=path, progress=interrupt, **arguments
    )
    with pytest.raises(KeyboardInterrupt):
        broken.fit(truth, mask)
    with pytest.warns(RuntimeWarning):
        resumed = broken.set_params(progress=None).fit(truth, mask)
    assert np.array_equal(resumed.matrix_, whole.matrix_)
    assert resumed.history_[0].loss == whole.history_[0].loss
    assert np.array_equal(resumed.history_[1].singular_values, whole.history_[1].singular_values)
    assert [p.name for p in tmp_path.iterdir()] == ["run.checkpoint"]


def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path):
    truth, mask = hidden_matrix(8, 8, 1, 0), revealed((8, 8), 50, 0)
    path = tmp_path / "run.checkpoint"
    DeepMatrixFactorization(3, random_state=0, checkpoint=path).fit(truth, mask)
    with pytest.raises(FactorizationInputError, match="other data or settings"):
        DeepMatrixFactorization(3, random_state=1, checkpoint=path).fit(truth, mask)
    path.write_bytes(b"no checkpoint")
    with pytest.raises(FactorizationInputError, match="not a checkpoint"):
        DeepMatrixFactorization(3, random_state=0, checkpoint=path).fit(truth, mask)


def test_history_holds_the_singular_values_and_vectors_of_the_path():
    truth, mask = hidden_matrix(10, 8, 1, 0), revealed((10, 8), 60, 0)
    model = DeepMatrixFactorization(3, random_state=0, record_every=25, record_vectors=True).fit(truth, mask)
    history = model.history_
    assert history.steps[:3] == [0, 25, 50]
    assert history.steps[-1] == model.n_iter_
    U, s, V = history.left_vectors[-1], history.singular_values[-1], history.right_vectors[-1]
    np.testing.assert_allclose(U * s @ V.T, model.matrix_, atol=1e-5)
    assert history.nuclear_norm[-1] == pytest.approx(s.sum())
    assert history.loss[-1] <= 1e-6 < history.loss[0]


def test_effective_rank_counts_equal_singular_values_and_ignores_zeros():
    assert effective_rank([2.0, 2.0, 2.0, 0.0]) == pytest.approx(3.0)
    assert effective_rank([0.0]) == 0.0


@pytest.mark.parametrize(("depth", "hidden"), [(1, None), (2, None), (3, 7), (4, None)])
def test_balanced_layers_are_balanced_and_multiply_to_the_matrix(depth, hidden):
    W = torch.as_tensor(hidden_matrix(6, 5, 3, 0))
    layers = balanced_layers(W, depth, hidden)
    product = layers[0]
    for below, above in pairwise(layers):
        torch.testing.assert_close(above.T @ above, below @ below.T, rtol=0, atol=1e-12)
        product = above @ product
    torch.testing.assert_close(product, W, rtol=0, atol=1e-12)


def test_it_clones_like_an_estimator():
    model = DeepMatrixFactorization(4, 1e-4, random_state=[1, 2])
    assert clone(model).get_params() == model.get_params()


def test_entries_off_the_mask_are_never_read():
    truth, mask = hidden_matrix(10, 10, 1, 0), revealed((10, 10), 70, 0)
    holes = np.where(mask, truth, np.nan)
    first, second = (
        DeepMatrixFactorization(3, random_state=0, max_steps=10_000).fit(x, mask).matrix_
        for x in (truth, holes)
    )
    assert np.array_equal(first, second)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"depth": 0}, "depth is 0"),
        ({"dtype": "float16"}, "dtype is 'float16'"),
        ({"step_rule": "adam"}, "step_rule is 'adam'"),
        ({"start": "ones"}, "start is 'ones'"),
        ({"initialization_scale": -1.0}, "initialization_scale is -1.0"),
        ({"random_state": []}, "random_state is an empty list"),
        ({"hidden_width": 2, "start": "balanced"}, "too narrow to balance"),
    ],
)
def test_wrong_settings_are_named(arguments, message):
    with pytest.raises(FactorizationInputError, match=message):
        DeepMatrixFactorization(**arguments).fit(np.ones((4, 4)), np.ones((4, 4)))


@pytest.mark.parametrize(
    ("observed", "mask", "message"),
    [
        (np.ones((3, 4)), np.ones((4, 3)), "shape"),
        (np.ones((3, 3)), np.zeros((3, 3)), "marks no entry"),
        (np.full((2, 2), np.nan), np.ones((2, 2)), "not finite"),
        (np.ones((2, 2)), np.full((2, 2), 0.5), "other than 0 and 1"),
    ],
)
def test_wrong_data_are_named(observed, mask, message):
    with pytest.raises(FactorizationInputError, match=message):
        DeepMatrixFactorization(random_state=0).fit(observed, mask)


def test_too_large_a_rate_is_an_error_and_not_a_matrix_of_nan():
    truth = hidden_matrix(10, 10, 1, 0)
    model = DeepMatrixFactorization(3, 1.0, 0, step_rule="gradient-descent", learning_rate=100.0)
    with pytest.raises(FactorizationDivergedError, match="smaller learning_rate"):
        model.fit(truth, np.ones((10, 10)))
