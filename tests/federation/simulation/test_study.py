"""A study is the federation: the same weights as the site worker's own road, whoever plays the hospitals."""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from federation.config import RunConfig
from federation.coordinator import rounds
from federation.demo.data import Hospital as HospitalData
from federation.demo.data import digits, save_part
from federation.frames import BUNDLE_KEY, Frame, encode_frame
from federation.messages import Arrays, SiteReply
from federation.simulation.arms import build_arms
from federation.simulation.grid import InThisProcess, Order, SimulatedClock, SimulatedGrid
from federation.simulation.population import Heterogeneity, Population, spread
from federation.simulation.processes import ProcessPlayers
from federation.simulation.run_folder import prepare_folder
from federation.simulation.sites import STUDY_POLICY, SimulatedSites
from federation.simulation.study import NOT_SIMULATED, StudySettings, run_study
from federation.site.worker import Site, _answering, open_site
from federation.site.worker_config import WorkerConfig
from instahide.errors import FederationError, InvalidInputError

# One batch holds all images of a site, so that their order, which nobody fixes, is nothing.
SETTINGS = {"model": "mlp", "encoding": "none", "num-server-rounds": 3, "batch-size": 256, "local-epochs": 2}
LAW = Heterogeneity(num_hospitals=3, images_per_hospital=40, alpha=1.0, size_skew=0.5)


@pytest.fixture(scope="module")
def population() -> Population:
    return spread(digits(), LAW)


def prepared(population: Population, folder: Path, lines: dict[int, str]) -> RunConfig:
    [arm] = build_arms(SETTINGS, [], [], num_hospitals=3)
    sizes = {number: len(population.data(number).training) for number in population.names}
    shape, classes = population.images.image_shape, population.images.class_names or ()
    return prepare_folder(arm.config, folder, population.names, lines, classes, shape, num_examples=sizes)


def simulated(population: Population, folder: Path) -> Arrays:
    sites = SimulatedSites(folder, population.names, population.data)
    lines = {number: sites.identity_line(number) for number in population.names}
    players = InThisProcess(
        lambda number, request: sites.answer(number, request.kind, request.to_mapping(), request.arrays)
    )
    config = prepared(population, folder / "coordinator", lines)
    return rounds.run(config, SimulatedGrid(players, list(lines)), clock=SimulatedClock()).weights


class OpenedWorkers:
    """Three hospitals as the site worker opens them from its files, asked by frames as its relay asks."""

    def __init__(self, population: Population, folder: Path) -> None:
        self._sites = {number: self._open(population, folder, number) for number in population.names}

    @staticmethod
    def _open(population: Population, folder: Path, number: int) -> Site:
        home = folder / f"node-{number}"
        data, name = population.data(number), population.names[number]
        save_part(HospitalData(name, data.training, data.test), home)
        (home / "policy.toml").write_text(STUDY_POLICY)
        config = WorkerConfig(
            site_name=name,
            data="images.npz",
            policy="policy.toml",
            socket="door/worker.sock",
            state_folder="state",
            class_names=data.class_names,
            device="cpu",
            threads=1,
            folder=home,
        )
        return open_site(config)

    def lines(self) -> dict[int, str]:
        from federation.site.audit import site_identity

        return {number: site_identity(site.config).public_line for number, site in self._sites.items()}

    def answer(self, orders: Sequence[Order]) -> Iterator[tuple[int, SiteReply]]:
        for order in orders:
            fields = {"config": order.request.to_mapping(), BUNDLE_KEY: ""}
            frame = Frame(order.request.kind, fields, order.request.arrays)
            assert encode_frame(frame)  # it is one the socket would take
            yield order.number, _answering(self._sites[order.number].tasks)(frame, lambda: False)


def test_three_simulated_hospitals_train_the_model_that_three_site_workers_train(
    population: Population, tmp_path: Path
) -> None:
    workers = OpenedWorkers(population, tmp_path)
    config = prepared(population, tmp_path / "coordinator", workers.lines())
    theirs = rounds.run(config, SimulatedGrid(workers, [1, 2, 3]), clock=SimulatedClock()).weights
    ours = simulated(population, tmp_path / "simulated")
    start = np.concatenate([array.ravel() for array in ours.values()])
    assert np.abs(start).max() > 0
    for name, array in theirs.items():
        assert np.abs(ours[name] - array).max() <= 1e-6, name


def test_players_in_other_processes_train_the_same_model(population: Population, tmp_path: Path) -> None:
    ours = simulated(population, tmp_path / "here")
    population.save(tmp_path / "shared")
    with ProcessPlayers(
        tmp_path / "shared", tmp_path / "there", num_processes=2, policy=STUDY_POLICY
    ) as players:
        config = prepared(population, tmp_path / "run", players.identity_lines([1, 2, 3]))
        grid = SimulatedGrid(players, [1, 2, 3])
        theirs = rounds.run(config, grid, clock=SimulatedClock()).weights
        for process in players._processes:
            process.kill()
            process.join()
        with pytest.raises(FederationError, match="ended on its own"):
            players.identity_lines([1, 2, 3])
    for name, array in theirs.items():
        assert np.abs(ours[name] - array).max() <= 1e-6, name


def test_only_so_many_hospitals_are_open_and_a_reopened_one_goes_on(
    population: Population, tmp_path: Path
) -> None:
    few = SimulatedSites(tmp_path, population.names, population.data, most_open=1)
    lines = {number: few.identity_line(number) for number in population.names}
    players = InThisProcess(
        lambda number, request: few.answer(number, request.kind, request.to_mapping(), request.arrays)
    )
    config = prepared(population, tmp_path / "coordinator", lines)
    result = rounds.run(config, SimulatedGrid(players, [1, 2, 3]), clock=SimulatedClock())
    assert [row["sites"] for row in result.rounds if row["round"]] == [3, 3, 3]
    assert len(few._open) == 1
    log = (tmp_path / "site-2" / "audit.jsonl").read_text()
    assert log.count('"event":"update-sent"') == 3


def test_arms_are_compared_on_the_same_hospitals_and_leave_no_file(
    population: Population, tmp_path: Path
) -> None:
    arms = build_arms(
        SETTINGS | {"local-epochs": 1},
        ["clear:encoding=none", "sum:secure-aggregation=true", "coded:encoding=instahide,batch-size=16"],
        [],
        {"private": {"differential-privacy": "client", "max-update-norm": 1.0, "over-norm": "clip"}},
        num_hospitals=3,
    )
    seen: list[int] = []
    results = run_study(
        population,
        arms,
        StudySettings(heterogeneity=LAW, scratch=tmp_path),
        lambda done, total, text: seen.append(done),
    )
    assert list(tmp_path.iterdir()) == []
    assert seen == sorted(seen)
    assert seen[-1] == 12
    by_name = {arm["name"]: arm for arm in results["arms"]}
    assert not [arm for arm in results["arms"] if "failed" in arm]
    clear, total = by_name["clear"]["rounds"], by_name["sum"]["rounds"]
    assert [row["sites"] for row in clear] == [None, 3, 3, 3]
    assert clear[0] == total[0]
    assert abs(clear[-1]["loss"] - total[-1]["loss"]) < 1e-3  # up to the rounding of masked updates
    assert clear[-1]["loss"] < clear[0]["loss"]
    assert by_name["clear"]["epsilon"] is None
    assert by_name["coded"]["epsilon"] is None  # encodings have none
    assert by_name["coded"]["exposures"]["most-own"] == 3  # one encoding of each image an epoch
    assert by_name["private"]["epsilon"]["protects"] == "one whole hospital"
    weights = 4 * sum(array.size for array in simulated(population, tmp_path / "size").values())
    assert by_name["clear"]["bytes-received"] == 9 * weights
    assert by_name["sum"]["bytes-received"] > 9 * weights
    assert results["not-simulated"] == list(NOT_SIMULATED)


def test_a_round_too_few_survive_fails_its_arm_with_the_reason(
    population: Population, tmp_path: Path
) -> None:
    arms = build_arms(SETTINGS | {"minimum-sites": 3}, ["a:max-failed-rounds=0"], [], num_hospitals=3)
    study = StudySettings(heterogeneity=LAW, dropout=0.95, scratch=tmp_path)
    [arm] = run_study(population, arms, study)["arms"]
    assert "round 1 failed" in arm["failed"]
    assert list(tmp_path.iterdir()) == []


def test_ray_is_refused_where_it_is_not_installed_or_a_sum_is_hidden(
    population: Population, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = StudySettings(heterogeneity=LAW, backend="ray")
    hidden = build_arms({"secure-aggregation": True}, [], [], num_hospitals=3)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    with pytest.raises(InvalidInputError, match="session keys"):
        run_study(population, hidden, study)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InvalidInputError, match="Ray is not installed"):
        run_study(population, build_arms(SETTINGS, [], [], num_hospitals=3), study)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs the extra simulation: Ray")
def test_flowers_simulation_runtime_trains_the_same_model(population: Population) -> None:
    arms = build_arms(SETTINGS, [], [], num_hospitals=3)
    with tempfile.TemporaryDirectory() as scratch:
        studies = [
            run_study(population, arms, StudySettings(heterogeneity=LAW, backend=name, scratch=Path(scratch)))
            for name in ("local", "ray")
        ]
    ours, theirs = ([row["loss"] for row in study["arms"][0]["rounds"]] for study in studies)
    assert np.allclose(ours, theirs, atol=1e-5)
