"""The benchmark of malicious sites, small: real training on digits, our own validation and rules."""

from __future__ import annotations

import functools
import importlib.util
import sys
from pathlib import Path

import pytest

from federation.demo.data import digits

BENCHMARK = Path(__file__).parents[2] / "benchmarks/malicious_sites.py"
ROUNDS = 4


@pytest.fixture(scope="module")
def benchmark():
    spec = importlib.util.spec_from_file_location("malicious_sites_benchmark", BENCHMARK)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def accuracy(benchmark):
    sites = benchmark.split(digits(), 5, 100.0, 0)

    @functools.cache
    def of(rule, attack):
        return benchmark.accuracy_after(sites, rule, attack, 1, rounds=ROUNDS, seed=0)

    return of


@pytest.mark.parametrize("rule", ["clip", "trimmed-mean", "median", "krum", "multi-krum"])
def test_one_boosted_site_of_five_ruins_the_mean_and_not_the_robust_rule(accuracy, rule):
    assert accuracy(rule, "x 10") > accuracy("fedavg", "x 10") + 0.1


@pytest.mark.parametrize("rule", ["median", "multi-krum"])
def test_a_robust_rule_costs_little_where_everybody_is_honest(accuracy, rule):
    assert accuracy(rule, "none") > accuracy("fedavg", "none") - 0.1


def test_flipped_labels_are_an_ordinary_update_that_validation_lets_pass(benchmark):
    sites = benchmark.split(digits(), 5, 100.0, 0)
    flipped = benchmark._flipped(sites.parts[0], 10)
    assert (flipped.labels + sites.parts[0].labels == 9).all()
    assert (flipped.images == sites.parts[0].images).all()
