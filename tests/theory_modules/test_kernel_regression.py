"""Ridge regression and machines on a given kernel: closed forms, scikit-learn's rules, files, refusals."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.svm import SVC

from theory_modules import kernel_solvers
from theory_modules.kernel_checks import NotPositiveSemidefiniteError
from theory_modules.kernel_input import KernelInputError
from theory_modules.kernel_regression import KernelClassifier, main, one_against_all, select_on_folds
from theory_modules.kernel_solvers import solve_ridge, solve_ridge_through_file


def samples(count: int = 60, num_classes: int = 3, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    y = np.arange(count) % num_classes
    return rng.standard_normal((count, 5)) + 1.2 * np.eye(5)[y], y


def gaussian(x: np.ndarray, z: np.ndarray) -> np.ndarray:
    return np.exp(-0.2 * np.square(x[:, None] - z[None]).sum(-1))


@pytest.mark.parametrize("diag_reg", [0.0, 1e-3, 1.0])
def test_scores_are_the_closed_form(diag_reg):
    x, y = samples()
    z, _ = samples(seed=1)
    K = gaussian(x, x)
    model = KernelClassifier(diag_reg=diag_reg).fit(K, y)
    targets = np.where(y[:, None] == np.arange(3), 0.9, -0.1)
    ridge = diag_reg * np.trace(K) / 60 * np.eye(60)
    np.testing.assert_allclose(
        model.decision_function(gaussian(z, x)),
        gaussian(z, x) @ np.linalg.inv(K + ridge) @ targets,
        atol=1e-9,
    )
    assert (model.predict(gaussian(z, x)) == model.decision_function(gaussian(z, x)).argmax(1)).all()
    assert model.jitter_ == 0


def test_without_a_ridge_the_training_labels_come_back():
    x, y = samples()
    assert KernelClassifier().fit(gaussian(x, x), y).score(gaussian(x, x), y) == 1.0


def test_two_classes_have_one_score_positive_for_the_second():
    x, y = samples(num_classes=2)
    names = np.array(["no", "yes"])[y]
    for solver in ("ridge", "svm"):
        model = KernelClassifier(solver, diag_reg=0.1).fit(gaussian(x, x), names)
        scores = model.decision_function(gaussian(x, x))
        assert scores.shape == (60,)
        assert (model.predict(gaussian(x, x)) == np.where(scores > 0, "yes", "no")).all()


@pytest.mark.parametrize("num_classes", [2, 4])
def test_the_machine_answers_as_libsvm_and_its_scores_agree_with_its_answers(num_classes):
    x, y = samples(80, num_classes)
    z, _ = samples(80, num_classes, seed=5)
    model = KernelClassifier("svm", C=3.0).fit(gaussian(x, x), y)
    reference = SVC(C=3.0, kernel="precomputed").fit(gaussian(x, x), y)
    assert (model.predict(gaussian(z, x)) == reference.predict(gaussian(z, x))).all()
    if num_classes > 2:
        assert (model.decision_function(gaussian(z, x)).argmax(1) == model.predict(gaussian(z, x))).all()


def test_scikit_learn_clones_cuts_and_searches_it():
    x, y = samples(90)
    K = gaussian(x, x)
    model = KernelClassifier("ridge", diag_reg=0.3, max_memory=10**9)
    assert clone(model).get_params() == model.get_params()
    assert model.get_params()["diag_reg"] == 0.3
    folds = [(np.arange(30, 90), np.arange(30)), (np.arange(60), np.arange(60, 90))]
    by_hand = [
        KernelClassifier(diag_reg=0.3).fit(K[np.ix_(a, a)], y[a]).score(K[np.ix_(b, a)], y[b])
        for a, b in folds
    ]
    assert cross_val_score(KernelClassifier(diag_reg=0.3), K, y, cv=folds).tolist() == by_hand
    values = [1e-3, 1e-1, 10.0]
    search = GridSearchCV(KernelClassifier(), {"diag_reg": values}, cv=folds).fit(K, y)
    assert search.best_params_ == {"diag_reg": select_on_folds(K, y, folds, values).value}


@pytest.mark.parametrize(("solver", "name"), [("ridge", "diag_reg"), ("svm", "C")])
def test_selection_on_folds_is_that_of_refitting_for_every_value(solver, name):
    x, y = samples(90, seed=2)
    K, values = gaussian(x, x), [1e-4, 1e-2, 1.0, 30.0]
    folds = [(np.arange(45), np.arange(45, 90)), (np.arange(20, 90), np.arange(20))]
    found = select_on_folds(K, y, folds, values, solver=solver)
    for row, value in enumerate(values):
        for column, (a, b) in enumerate(folds):
            model = KernelClassifier(solver, **{name: value}).fit(K[np.ix_(a, a)], y[a])
            assert found.accuracies[row, column] == model.score(K[np.ix_(b, a)], y[b])
    means = found.accuracies.mean(1)
    assert found.value == values[int(np.flatnonzero(means == means.max())[0])]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_through_a_file_the_solution_is_the_same(tmp_path: Path, dtype):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((230, 40))
    path = tmp_path / "kernel.bin"
    K = np.memmap(path, dtype=dtype, mode="w+", shape=(230, 230))
    K[:] = x @ x.T + 3 * np.eye(230)
    K[:] = (K + K.T) / 2
    y = np.arange(230) % 3
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    inside = KernelClassifier(diag_reg=1e-2).fit(np.array(K), y)
    panel = 16 * 8 * 4 * 230
    outside = KernelClassifier(diag_reg=1e-2, max_memory=panel, scratch_folder=scratch).fit(K, y)
    np.testing.assert_allclose(outside.weights_, inside.weights_, atol=1e-12)
    assert outside.smallest_pivot_ == pytest.approx(inside.smallest_pivot_, rel=1e-9)
    assert list(scratch.iterdir()) == []
    np.testing.assert_allclose(outside.decision_function(K), inside.decision_function(np.array(K)), rtol=1e-6)


def test_progress_is_told_panel_by_panel(tmp_path: Path):
    told: list[tuple[int, int]] = []
    solution = solve_ridge_through_file(
        np.eye(100) * 2,
        np.ones((100, 1)),
        max_memory=30 * 8 * 4 * 100,
        scratch_folder=tmp_path,
        progress=lambda done, total: told.append((done, total)),
    )
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]
    np.testing.assert_allclose(solution.weights, 0.5)
    assert solution.smallest_pivot == pytest.approx(2.0)


def test_too_little_memory_or_disk_is_said_before_starting(tmp_path: Path, monkeypatch):
    class Little:
        available = free = 10_000

    K, y = np.eye(64), np.arange(64) % 2
    with pytest.raises(KernelInputError, match="64 samples need at least"):
        KernelClassifier(max_memory=1000).fit(K, y)
    monkeypatch.setattr(kernel_solvers, "_factor_panels", lambda *_: pytest.fail("started"))
    monkeypatch.setattr(kernel_solvers.shutil, "disk_usage", lambda _: Little)
    with pytest.raises(KernelInputError, match=r"(?s)takes 0.0 GB .*larger disk"):
        KernelClassifier(max_memory=33_000, scratch_folder=tmp_path).fit(K, y)
    monkeypatch.setattr(kernel_solvers.psutil, "virtual_memory", lambda: Little)
    with pytest.raises(KernelInputError, match="lower max_memory"):
        KernelClassifier(max_memory=33_000).fit(K, y)
    with pytest.raises(KernelInputError, match="give max_memory"):
        KernelClassifier().fit(K, y)


def test_equal_samples_take_the_least_jitter_that_works_and_it_is_reported():
    x, y = samples(20)
    x, y = np.concatenate([x, x]), np.concatenate([y, y])
    model = KernelClassifier().fit(gaussian(x, x), y)
    assert 0 < model.jitter_ <= 1e-10
    assert model.smallest_pivot_ > 0
    assert model.score(gaussian(x, x), y) == 1.0
    with_ridge = KernelClassifier(diag_reg=1e-3).fit(gaussian(x, x), y)
    assert with_ridge.jitter_ == 0
    assert with_ridge.smallest_pivot_ > 1e-4


def test_a_matrix_that_is_no_kernel_is_refused_with_its_smallest_eigenvalue():
    rng = np.random.default_rng(1)
    Q = np.linalg.qr(rng.standard_normal((30, 30)))[0]
    K = Q * np.r_[-0.37, np.linspace(1, 4, 29)] @ Q.T
    K = (K + K.T) / 2
    y = np.arange(30) % 2
    with pytest.raises(NotPositiveSemidefiniteError, match=r"smallest eigenvalue is -0\.37") as caught:
        KernelClassifier().fit(K, y)
    assert caught.value.smallest_eigenvalue == pytest.approx(-0.37)
    with pytest.raises(NotPositiveSemidefiniteError, match=r"-0\.37"):
        KernelClassifier("svm").fit(K, y)
    with pytest.raises(NotPositiveSemidefiniteError):
        select_on_folds(K, y, [(np.arange(30), np.arange(3))], [0.0])
    assert KernelClassifier(diag_reg=1.0).fit(K, y).jitter_ == 0  # positive definite with this ridge


def test_rounding_is_no_reason_to_refuse_a_float32_kernel():
    x, y = samples(100)
    K = (x @ x.T).astype(np.float32)  # rank 5, eigenvalues of ± 1e-6 beside it
    assert np.linalg.eigvalsh(K.astype(np.float64))[0] < 0
    assert KernelClassifier().fit((K + K.T) / 2, y).jitter_ > 0


def test_through_a_file_a_singular_kernel_names_the_rows(tmp_path: Path):
    K = np.eye(64)
    K[40, 40] = 0
    with pytest.raises(KernelInputError, match=r"(?s)rows 32 to 47 .*raise diag_reg"):
        solve_ridge_through_file(K, np.ones((64, 1)), max_memory=33_000, scratch_folder=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_targets_are_those_of_the_papers():
    assert one_against_all(np.array([1, 0]), 3).tolist() == [[-0.1, 0.9, -0.1], [0.9, -0.1, -0.1]]


def test_the_ladder_ends_with_an_error(monkeypatch):
    monkeypatch.setattr(kernel_solvers, "JITTERS", (0.0,))
    with pytest.raises(KernelInputError, match=r"(?s)singular.*raise diag_reg"):
        solve_ridge(np.ones((3, 3)), np.ones((3, 1)))


@pytest.mark.parametrize(
    ("settings", "K", "y", "text"),
    [
        ({"solver": "magic"}, np.eye(3), [0, 1, 1], "solver is 'magic'"),
        ({"diag_reg": -1.0}, np.eye(3), [0, 1, 1], "diag_reg is -1.0"),
        ({"solver": "svm", "C": 0.0}, np.eye(3), [0, 1, 1], "penalties"),
        ({}, np.ones((3, 2)), [0, 1, 1], "must be square"),
        ({}, np.eye(3) + np.triu(np.ones((3, 3))), [0, 1, 1], "not symmetric"),
        ({}, np.diag([1, np.nan, 1]), [0, 1, 1], "row 1 of a kernel"),
        ({}, np.eye(3), [1, 1, 1], "of one class, 1"),
    ],
)
def test_impossible_input_is_refused(settings, K, y, text):
    with pytest.raises(KernelInputError, match=text):
        KernelClassifier(**settings).fit(K, y)


def test_prediction_refuses_other_columns_and_missing_values():
    model = KernelClassifier().fit(np.eye(3), [0, 1, 1])
    with pytest.raises(ValueError, match="3 features"):
        model.predict(np.ones((2, 2)))
    with pytest.raises(KernelInputError, match="row 1 of a kernel"):
        model.predict(np.array([[1.0, 0, 0], [0, np.inf, 0]]))


def test_no_folds_or_values_are_refused():
    for folds, values in (([], [1.0]), ([([0, 1], [2])], [])):
        with pytest.raises(KernelInputError, match="at least one of each"):
            select_on_folds(np.eye(3), [0, 1, 1], folds, values)


def test_the_demonstration_reads_digits(capsys):
    main()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["ridge", "svm"]
    assert all(float(line.split()[-3].rstrip("%")) > 96 for line in lines)  # 98.0 and 98.2; chance is 10


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("solver", ["ridge", "svm"])
def test_scikit_learns_own_checks(solver):
    from sklearn.utils.estimator_checks import check_estimator

    indefinite = "the check hands over a matrix that is no kernel, and it is refused"
    expected = {"check_estimators_dtypes": indefinite, "check_positive_only_tag_during_fit": indefinite}
    check_estimator(KernelClassifier(solver, diag_reg=1e-6), expected_failed_checks=expected, on_skip=None)
