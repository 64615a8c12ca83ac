"""What secure aggregation costs, on one core, beside its floor and beside Flower's mask generation.

    python -m tests.benchmarks.secure_aggregation [--length 11173962] [--sites 5] [--repeats 5]

The length is ResNet-18's number of parameters (torchvision's layers, ten classes), the ring has 32 bits.
Processor seconds, median of the repeats; the contenders of a comparison take turns in the same process.

report        SiteSession.report: all masks of one site added, packages sealed
floor         the same number of ChaCha20 key streams of the vector's length, written to one cache-sized
              buffer and not used: no masking with this cipher can be faster
server        add_report for every site, close_reports, add_answer, finish
encode        clip, weight and round the update at the site; decode: the mean at the server
wire          bytes of a site's report and answer over those of its quantised vector
Flower        its SecAgg+ mask generator (32-bit seed, Mersenne Twister), one mask of the same length,
              imported from the installed release; ours: one mask, generated and added
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms

from federation.secure_aggregation import (
    AggregateSum,
    AggregationParameters,
    QuantisationPlan,
    Report,
    Roster,
    ServerSession,
    SiteIdentity,
    SiteSession,
    decode_sum,
    encode_update,
)
from federation.secure_aggregation.pairwise_masks import CHUNK_BYTES, VECTOR_STREAM, add_masks

RESNET_18 = 11_173_962


class Run:
    """Sites, a server, and one vector each in the clear."""

    def __init__(self, num_sites: int, length: int) -> None:
        identities = [SiteIdentity.generate(f"site-{place:03d}") for place in range(num_sites)]
        parameters = AggregationParameters.for_sites(num_sites, vector_length=length, num_channels=8)
        keys = {each.name: each.public_key for each in identities}
        self.roster = Roster(
            run_name="benchmark", parameters=parameters, identities=keys, settings_sha256=bytes(32)
        )
        self.server = ServerSession(self.roster, bytes(32))
        self.sites = {each.name: SiteSession(self.roster, each, self.server.request()) for each in identities}
        self.round = 0
        rng = np.random.default_rng()
        self.vectors = {name: rng.integers(0, 2**32, length, dtype=np.uint32) for name in self.sites}
        self.channels = np.arange(8, dtype=np.uint64)

    def join(self) -> None:
        for site in self.sites.values():
            self.server.add_advert(site.advert())

    def play(self, missing: int = 0) -> tuple[AggregateSum, dict[str, float], dict[str, Report], int]:
        """One round; processor seconds of one site's report, of its answer, and of the server."""
        self.round += 1
        request = self.server.start_round(self.round)
        names = list(self.sites)[missing:]
        reports, masking = {}, []
        for name in names:
            seconds, reports[name] = timed(
                lambda name=name: self.sites[name].report(request, self.vectors[name], self.channels)  # type: ignore[misc]
            )
            masking.append(seconds)
        adding, _ = timed(lambda: [self.server.add_report(report) for report in reports.values()])
        closing, requests = timed(lambda: (self.server.close_reports(), self.server.unmask_requests())[1])
        answering, answers = timed(lambda: [self.sites[name].unmask(requests[name]) for name in names])
        taking, _ = timed(lambda: [self.server.add_answer(answer) for answer in answers])
        finishing, result = timed(self.server.finish)
        spent = {
            "report": statistics.median(masking),
            "answer": answering / len(names),
            "server sum": adding,
            "server unmask": closing + taking + finishing,
        }
        return result, spent, reports, len(answers[0].to_bytes())


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    start = time.process_time()
    result = call()
    return time.process_time() - start, result


def floor(num_streams: int, num_bytes: int) -> None:
    """Key streams and nothing else."""
    buffer, zeros = np.empty(CHUNK_BYTES, dtype=np.uint8), memoryview(bytes(CHUNK_BYTES))
    for _ in range(num_streams):
        cipher = Cipher(algorithms.ChaCha20(os.urandom(32), bytes(16)), mode=None).encryptor()
        for start in range(0, num_bytes, CHUNK_BYTES):
            size = min(CHUNK_BYTES, num_bytes - start)
            cipher.update_into(zeros[:size], buffer.data[:size])


def one_round(num_sites: int, length: int, repeats: int) -> None:
    run = Run(num_sites, length)
    run.join()
    rows: dict[str, list[float]] = {}
    for _ in range(repeats):
        rows.setdefault("floor of a report", []).append(timed(lambda: floor(num_sites, 4 * length))[0])
        for missing in (0, 1):
            result, spent, reports, answer_bytes = run.play(missing)
            check_exact(run, result)
            suffix = "" if missing == 0 else ", one site missing"
            for name, seconds in spent.items():
                rows.setdefault(name + suffix, []).append(seconds)
    masked_bytes = 4 * length
    streams = num_sites - 1 + num_sites - 1  # one missing: self masks and one pairwise mask of each survivor
    rows["floor of unmasking, one site missing"] = [timed(lambda: floor(streams, masked_bytes))[0]]
    print(f"\n{num_sites} sites, {length:,} entries of 32 bits, median of {repeats}, processor seconds")
    for name, seconds in rows.items():
        print(f"  {name:40s} {statistics.median(seconds):8.3f}   (least {min(seconds):.3f})")
    least = statistics.median(rows["floor of a report"])
    print(f"  report over its floor                    {statistics.median(rows['report']) / least:8.2f}")
    report = len(next(iter(reports.values())).to_bytes())
    print(
        f"  wire: report {report:,} + answer {answer_bytes:,} over {masked_bytes:,} bytes: "
        f"{(report + answer_bytes) / masked_bytes:.5f}"
    )


def check_exact(run: Run, result: AggregateSum) -> None:
    expected = np.zeros_like(result.vector)
    for name in result.survivors:
        expected += run.vectors[name]
    if not np.array_equal(expected, result.vector):
        raise SystemExit("the sum is wrong")


def quantisation(num_sites: int, length: int, repeats: int) -> None:
    plan = QuantisationPlan(
        vector_length=length, num_sites=num_sites, coordinate_bound=1.0, max_examples=10_000, norm_bound=10.0
    )
    update = np.random.default_rng().normal(0, 0.01, length).astype(np.float32)
    encoding, decoding = [], []
    for _ in range(repeats):
        seconds, encoded = timed(lambda: encode_update(plan, update, {"num-examples": 5000}))
        encoding.append(seconds)
        decoding.append(
            timed(lambda: decode_sum(plan, encoded.vector, encoded.channels, num_survivors=1))[0]  # noqa: B023
        )
    print(f"  encode {statistics.median(encoding):.3f}, decode {statistics.median(decoding):.3f}")


def beside_flower(length: int, repeats: int) -> None:
    from flwr.common.secure_aggregation.secaggplus_utils import pseudo_rand_gen

    vector = np.zeros(length, dtype=np.uint32)
    ours, theirs = [], []
    for _ in range(repeats):
        ours.append(timed(lambda: add_masks(vector, [(os.urandom(32), 1)], stream=VECTOR_STREAM))[0])
        theirs.append(timed(lambda: pseudo_rand_gen(os.urandom(32), 1 << 32, [(length,)]))[0])
    a, b = statistics.median(ours), statistics.median(theirs)
    print(f"\none mask: ours {a:.4f} (256-bit key), Flower's {b:.4f} (32-bit seed): {b / a:.1f} times ours")


def scaling(counts: list[int]) -> None:
    print("\nset-up and shares by number of sites, a quarter missing, no vector, processor milliseconds")
    print("  sites  advert  open  report  packages (bytes)  answer  answer (bytes)  server")
    for count in counts:
        run = Run(count, 1)
        adverts, _ = timed(run.join)
        request = run.server.start_round(1)
        opening, _ = timed(lambda: [site.accept(request) for site in run.sites.values()])  # noqa: B023
        run.round = 1  # sites were only asked whether they would take part in round 1
        _, spent, reports, answer_bytes = run.play(missing=count // 4)
        packages = sum(map(len, next(iter(reports.values())).packages))
        server = spent["server sum"] + spent["server unmask"]
        print(
            f"  {count:5d} {1000 * adverts / count:7.2f} {1000 * opening / count:5.1f} "
            f"{1000 * spent['report']:7.1f} {packages:17,} {1000 * spent['answer']:7.2f} "
            f"{answer_bytes:15,} {1000 * server:7.0f}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description="cost of secure aggregation")
    parser.add_argument("--length", type=int, default=RESNET_18)
    parser.add_argument("--sites", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--scaling", type=int, nargs="*", default=[5, 10, 20, 50])
    options = parser.parse_args()
    print(f"load {os.getloadavg()[0]:.1f}")
    one_round(options.sites, options.length, options.repeats)
    quantisation(options.sites, options.length, options.repeats)
    beside_flower(options.length, options.repeats)
    scaling(options.scaling)


if __name__ == "__main__":
    main()
