"""Flow and ensemble against matrix exponentials, an integrated equation, trained parameters, and GPs."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.integrate import solve_ivp
from scipy.linalg import expm
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF

from theory_modules.kernel_checks import NotPositiveSemidefiniteError
from theory_modules.kernel_gradient_flow import GradientFlow, gaussian_process_posterior, main
from theory_modules.kernel_input import KernelInputError
from theory_modules.kernel_regression import KernelClassifier, one_against_all

TIMES = [0.0, 0.1, 3.0, 200.0]


class LinearNetwork:
    """f(x) = φ(x)·w with w ~ N(0, S) at the start: tangent kernel φφᵀ and NNGP kernel φSφᵀ, exactly."""

    def __init__(
        self, num_train: int = 7, num_test: int = 4, num_parameters: int = 12, seed: int = 0
    ) -> None:
        rng = np.random.default_rng(seed)
        self.train = rng.standard_normal((num_train, num_parameters)) / np.sqrt(num_parameters)
        self.test = rng.standard_normal((num_test, num_parameters)) / np.sqrt(num_parameters)
        root = rng.standard_normal((num_parameters, num_parameters))
        self.S = root @ root.T / num_parameters
        self.y = rng.standard_normal((num_train, 2))

    def ntk(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return a @ b.T

    def nngp(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return a @ self.S @ b.T

    def nngp_kernels(self) -> dict[str, np.ndarray]:
        symmetric = [self.nngp(part, part) for part in (self.train, self.test)]
        train, test = ((K + K.T) / 2 for K in symmetric)
        return {
            "nngp_train_train": train,
            "nngp_test_train": self.nngp(self.test, self.train),
            "nngp_test_test": test,
        }

    def flow(self, rate: float = 1.0, **options: float) -> GradientFlow:
        K = self.ntk(self.train, self.train)
        return GradientFlow((K + K.T) / 2, self.y, learning_rate=rate, **options)


@pytest.mark.parametrize("time", TIMES)
def test_outputs_are_those_of_the_matrix_exponential(time):
    net = LinearNetwork()
    K, across = net.ntk(net.train, net.train), net.ntk(net.test, net.train)
    learned = np.eye(7) - expm(-0.7 * time * K)
    flow = net.flow(0.7)
    np.testing.assert_allclose(flow.train_outputs(time), learned @ net.y, atol=1e-10)
    expected = across @ np.linalg.solve(K, learned @ net.y)
    np.testing.assert_allclose(flow.test_outputs(across, time), expected, atol=1e-9)


def test_outputs_are_those_of_the_integrated_equation():
    net = LinearNetwork(seed=1)
    K, across = net.ntk(net.train, net.train), net.ntk(net.test, net.train)
    y = net.y[:, 0]

    def velocity(_: float, state: np.ndarray) -> np.ndarray:
        rest = state[:7] - y
        return np.concatenate([-K @ rest, -across @ rest])

    path = solve_ivp(velocity, (0, 2.5), np.zeros(11), rtol=1e-10, atol=1e-12, method="DOP853")
    flow = GradientFlow((K + K.T) / 2, y)
    np.testing.assert_allclose(flow.train_outputs(2.5)[:, 0], path.y[:7, -1], atol=1e-8)
    np.testing.assert_allclose(flow.test_outputs(across, 2.5)[:, 0], path.y[7:, -1], atol=1e-8)


@pytest.mark.parametrize("time", TIMES)
def test_the_ensemble_is_that_of_training_the_parameters_themselves(time):
    """w_t = M w_0 + m with M = exp(−η t φᵀφ), so f_t(T) has covariance φ_T M S Mᵀ φ_Tᵀ."""
    net = LinearNetwork(seed=2)
    M = expm(-0.5 * time * net.train.T @ net.train)
    found = net.flow(0.5).ensemble(net.ntk(net.test, net.train), time=time, **net.nngp_kernels())
    np.testing.assert_allclose(found.covariance, net.test @ M @ net.S @ M.T @ net.test.T, atol=1e-9)
    reached = np.linalg.pinv(net.train) @ net.y
    np.testing.assert_allclose(found.mean, net.test @ (np.eye(12) - M) @ reached, atol=1e-9)


def test_at_infinity_the_mean_is_ridgeless_regression_and_training_data_have_no_spread():
    net = LinearNetwork(seed=3)
    K = net.ntk(net.train, net.train)
    K = (K + K.T) / 2
    labels = np.arange(7) % 3
    flow = GradientFlow(K, one_against_all(labels, 3))
    classifier = KernelClassifier().fit(K, labels)
    across = net.ntk(net.test, net.train)
    np.testing.assert_allclose(flow.test_outputs(across), classifier.decision_function(across), atol=1e-9)
    np.testing.assert_allclose(flow.test_outputs(K), one_against_all(labels, 3), atol=1e-9)
    nngp = net.nngp_kernels()["nngp_train_train"]
    found = flow.ensemble(K, nngp_train_train=nngp, nngp_test_train=nngp, nngp_test_test=nngp)
    np.testing.assert_allclose(found.covariance, 0, atol=1e-9)


def test_late_times_come_to_infinity_and_rate_times_time_is_what_counts():
    net = LinearNetwork(seed=4)
    across = net.ntk(net.test, net.train)
    np.testing.assert_allclose(
        net.flow().test_outputs(across, 1e7), net.flow().test_outputs(across), atol=1e-9
    )
    np.testing.assert_allclose(
        net.flow(0.25).test_outputs(across, 4.0), net.flow(1.0).test_outputs(across, 1.0), atol=1e-12
    )


def test_training_the_last_layer_alone_samples_the_posterior():
    net = LinearNetwork(seed=5)
    nngp = net.nngp_kernels()
    flow = GradientFlow(nngp["nngp_train_train"], net.y)
    ensemble = flow.ensemble(nngp["nngp_test_train"], **nngp)
    posterior = gaussian_process_posterior(*nngp.values(), net.y)
    np.testing.assert_allclose(ensemble.covariance, posterior.covariance, atol=1e-8)
    np.testing.assert_allclose(ensemble.mean, posterior.mean, atol=1e-8)
    # with the whole network trained it does not
    other = net.flow().ensemble(net.ntk(net.test, net.train), **nngp)
    assert np.abs(other.covariance - posterior.covariance).max() > 1e-2


def test_the_posterior_is_scikit_learns():
    rng = np.random.default_rng(0)
    x, z, y = rng.standard_normal((9, 2)), rng.standard_normal((5, 2)), rng.standard_normal(9)
    kernel = RBF(1.3)
    reference = GaussianProcessRegressor(kernel, alpha=1e-3, optimizer=None).fit(x, y)
    mean, covariance = reference.predict(z, return_cov=True)
    found = gaussian_process_posterior(kernel(x), kernel(z, x), kernel(z), y, diag_reg=1e-3)
    np.testing.assert_allclose(found.mean[:, 0], mean, atol=1e-9)
    np.testing.assert_allclose(found.covariance, covariance, atol=1e-9)


def test_a_ridge_shortens_what_is_learned_in_the_end():
    net = LinearNetwork(seed=6)
    K = net.ntk(net.train, net.train)
    across = net.ntk(net.test, net.train)
    ridge = 0.1 * np.trace(K) / 7 * np.eye(7)
    expected = across @ np.linalg.solve(K + ridge, net.y)
    np.testing.assert_allclose(net.flow(diag_reg=0.1).test_outputs(across), expected, atol=1e-10)


@pytest.mark.parametrize("time", [1.0, np.inf])
def test_directions_the_kernel_does_not_reach_stay_where_they_are(time):
    """Rank 3 in 8 samples: nothing blows up, and the fit is the projection's."""
    rng = np.random.default_rng(0)
    features = rng.standard_normal((8, 3))
    K, y = features @ features.T, rng.standard_normal(8)
    flow = GradientFlow((K + K.T) / 2, y)
    learned = np.eye(8) - expm(-1e6 * K if time == np.inf else -time * K)
    np.testing.assert_allclose(flow.train_outputs(time)[:, 0], learned @ y, atol=1e-6)
    np.testing.assert_allclose(flow.test_outputs(K, time), flow.train_outputs(time), atol=1e-9)


@pytest.mark.statistical
def test_an_ensemble_of_wide_networks_spreads_as_the_kernels_say():
    """One hidden layer of 1,024 units, NTK scales, gradient descent from 300 initializations.

    The ensemble's variance has relative deviation √(2/300) = 8.2 %; that one of 5 test points is off by
    five of these (41 %) has probability 3e-6. Finite width and step add O(1/1024) and O(lr), together
    below 5 %.
    """
    import torch

    torch_rng = torch.Generator().manual_seed(int(np.random.default_rng().integers(2**31)))
    width, members, lr, steps = 1024, 300, 0.2, 60
    x = torch.linspace(-2, 2, 4, dtype=torch.float64)
    x = torch.stack([x.cos(), x.sin()], 1)
    angles = torch.tensor([-2.6, -1.3, 0.2, 1.0, 2.4], dtype=torch.float64)
    z = torch.stack([angles.cos(), angles.sin()], 1)
    y = torch.tensor([0.5, -0.4, 0.3, 0.8], dtype=torch.float64)
    W = torch.randn(members, 2, width, generator=torch_rng, dtype=torch.float64)
    v = torch.randn(members, width, 1, generator=torch_rng, dtype=torch.float64)

    def forward(points: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        before = points @ W  # S_1 = <x, z> as in theory_modules.ntk, no factor before the first layer
        after = before.relu()
        return before, after, (after @ v)[..., 0] / width**0.5

    for _ in range(steps):
        before, after, out = forward(x)
        pull = (out - y)[..., None] / width**0.5
        gradient_v = after.mT @ pull
        gradient_W = x.T @ (pull * v.mT * (before > 0))
        v, W = v - lr * gradient_v, W - lr * gradient_W
    outputs = forward(z)[2].numpy()

    from theory_modules.ntk import fully_connected_ntk

    def kernels(a: torch.Tensor, b: torch.Tensor, fixed: int) -> np.ndarray:
        return np.asarray(fully_connected_ntk(a.numpy(), b.numpy(), depth=2, num_fixed_layers=fixed))

    flow = GradientFlow(fully_connected_ntk(x.numpy(), depth=2), y.numpy())
    found = flow.ensemble(
        kernels(z, x, 0),
        nngp_train_train=fully_connected_ntk(x.numpy(), depth=2, num_fixed_layers=1),
        nngp_test_train=kernels(z, x, 1),
        nngp_test_test=fully_connected_ntk(z.numpy(), depth=2, num_fixed_layers=1),
        time=lr * steps,
    )
    variance = np.diag(found.covariance)
    np.testing.assert_allclose(outputs.var(axis=0, ddof=1), variance, rtol=0.41 + 0.05)
    # 300 members: the mean is off by √(variance / 300); five of these
    off = np.abs(outputs.mean(axis=0) - found.mean[:, 0])
    assert (off < 5 * np.sqrt(variance / members) + 0.02).all()


def test_the_demonstration_ends_with_less_spread_than_it_starts_with(capsys):
    main()
    lines = capsys.readouterr().out.splitlines()
    spreads = [
        float(line.split("(")[1].split(")")[0]) for line in lines if line.split()[0] in ("0", "10", "inf")
    ]
    assert spreads[0] > spreads[1] > spreads[2] > 0
    assert len(lines) == 8


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: GradientFlow(np.eye(3), [1.0, 2.0]), "targets have shape"),
        (lambda: GradientFlow(np.eye(3), [1.0, 2.0, np.nan]), "finite"),
        (lambda: GradientFlow(np.eye(3), np.ones(3), learning_rate=0), "learning_rate"),
        (lambda: GradientFlow(np.eye(3), np.ones(3), diag_reg=-1), "diag_reg"),
        (lambda: GradientFlow(np.eye(3), np.ones(3)).train_outputs(-1), "time is -1"),
        (lambda: GradientFlow(np.eye(3), np.ones(3)).test_outputs(np.ones((2, 4))), "4 columns"),
        (lambda: gaussian_process_posterior(np.eye(3), np.ones((2, 3)), np.eye(4), np.ones(3)), "shapes"),
        (
            lambda: gaussian_process_posterior(np.ones((3, 3)), np.ones((1, 3)), np.eye(1), np.ones(3)),
            "singular",
        ),
    ],
)
def test_impossible_input_is_refused(call, text):
    with pytest.raises(KernelInputError, match=text):
        call()


def test_a_matrix_that_is_no_kernel_is_refused():
    K = np.diag([1.0, -0.5, 2.0])
    with pytest.raises(NotPositiveSemidefiniteError, match=r"-0\.5"):
        GradientFlow(K, np.ones(3))
    with pytest.raises(NotPositiveSemidefiniteError, match=r"-0\.5"):
        gaussian_process_posterior(K, np.ones((1, 3)), np.eye(1), np.ones(3))
