"""Seconds of processor time for the noise of one site under secure aggregation.

    python -m tests.benchmarks.distributed_noise [--weights 11173962] [--sites 5] [--bits 32]

Encodes an update of ResNet-18's size with and without its share of discrete Gaussian noise, and draws noise
of several scales.
"""

from __future__ import annotations

import argparse
import time

import numpy as np

from federation.secure_aggregation.distributed_noise import (
    DistributedNoise,
    encode_private_update,
    reserve_noise,
)
from federation.secure_aggregation.quantisation import QuantisationPlan, encode_update
from instahide.discrete_gaussian import DiscreteGaussian
from instahide.randomness import Randomness

CHUNK = 1 << 16


def main() -> None:
    """Print a table, one line a measurement; the median of three."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", type=int, default=11_173_962)
    parser.add_argument("--sites", type=int, default=5)
    parser.add_argument("--bits", type=int, default=32, choices=(16, 32, 64))
    options = parser.parse_args()
    stream = Randomness().stream("noise")
    for scale in (10.0, 1e3, 1e5, 1e7):
        distribution = DiscreteGaussian(scale)

        def draw(distribution: DiscreteGaussian = distribution) -> None:
            for start in range(0, options.weights, CHUNK):
                distribution.draw(stream, min(CHUNK, options.weights - start))

        print(f"{options.weights:,} draws of scale {scale:g}: {seconds(draw):.2f} s")
    plan = QuantisationPlan(
        vector_length=options.weights,
        num_sites=options.sites,
        coordinate_bound=1.0,
        max_examples=1000,
        norm_bound=1.0,
        ring_bits=options.bits,
    )
    noise = DistributedNoise(noise_multiplier=1.0, fewest_honest_sites=max(1, options.sites - 2))
    reserved = reserve_noise(plan, noise)
    update = np.random.default_rng(0).standard_normal(options.weights).astype(np.float32)
    values = {"num-examples": 1000}
    clear = seconds(lambda: encode_update(reserved, update, values))
    private = seconds(lambda: encode_private_update(reserved, noise, update, values))
    print(f"noise of scale {noise.scale(reserved):.3g} in {reserved.levels:,} levels of {options.bits} bits")
    print(f"encode an update: {clear:.2f} s without, {private:.2f} s with noise")


def seconds(work: object) -> float:
    """Median processor seconds of three calls."""
    assert callable(work)
    taken = []
    for _ in range(3):
        started = time.process_time()
        work()
        taken.append(time.process_time() - started)
    return sorted(taken)[1]


if __name__ == "__main__":
    main()
