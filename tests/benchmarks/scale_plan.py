"""The computed figures of ``federation/SCALE.md``: how large neighbourhoods, and what sampling buys.

    python -m tests.benchmarks.scale_plan

**Neighbourhoods** (Bell, Bonawitz, Gascon, Lepoint, Raykova 2020, "Secure single-server aggregation with
(poly)logarithmic overhead"). Each of n clients masks with, and gives shares to, k others: a ring in secret
random order, k/2 on either side. A share γ of the clients colludes with the server, a share δ drops out. For
threshold t of k,

    secrecy       n P[Hyp(n - 1, γ n, k) >= t]            <= 2^-40     colluders open nobody's seed
    connected     n (γ + δ)^(k / 2)                       <= 2^-40     honest survivors are one component
    correctness   n P[Hyp(n - 1, (1 - δ) n, k) < t]       <= 2^-30     survivors open everybody's seeds

by union bounds over the clients; the least even k for which some t satisfies all three. These bounds are
ours and simpler than the paper's, which are tighter in places.

**Sampling.** Epsilon of one client over T rounds when each takes a Poisson sample of share q, Gaussian noise
z times the clipping norm, by privacy loss distributions (dp-accounting). The product samples a fixed number,
without replacement, and charges q = 1: it claims none of this.
"""

from __future__ import annotations

import math

from scipy.stats import hypergeom

SECRECY, CORRECTNESS = 2.0**-40, 2.0**-30


def neighbourhood(n: int, colluding: float, dropping: float) -> tuple[int, int]:
    """Least even k and a threshold t for it."""
    for k in range(4, n, 2):
        if n * (colluding + dropping) ** (k / 2) > SECRECY:
            continue
        enemies = hypergeom(n - 1, round(colluding * n), k)
        there = hypergeom(n - 1, round((1 - dropping) * n), k)
        for t in range(k // 2 + 1, k + 1):
            if n * enemies.sf(t - 1) <= SECRECY:
                if n * there.cdf(t - 1) <= CORRECTNESS:
                    return k, t
                break
    raise ValueError(f"no neighbourhood below {n} clients")


def client_epsilon(noise: float, share: float, rounds: int, delta: float) -> float:
    """Of one client, add or remove, over Poisson samples."""
    from dp_accounting import dp_event, pld

    gaussian = dp_event.GaussianDpEvent(noise)
    event = gaussian if share == 1.0 else dp_event.PoissonSampledDpEvent(share, gaussian)
    accountant = pld.PLDAccountant(value_discretization_interval=1e-3)
    accountant.compose(event, rounds)
    return float(accountant.get_epsilon(delta))


def main() -> None:
    print("clients | colluding = dropping | neighbours k | threshold t")
    for share in (0.05, 0.1, 0.2):
        for n in (1_000, 10_000, 100_000):
            k, t = neighbourhood(n, share, share)
            print(f"{n:,} | {share:g} | {k} | {t}", flush=True)
    print("noise | share a round | rounds | epsilon at delta 1e-6 | noise over clip, D = 85,002; 11,173,962")
    for share, count in ((1.0, 500), (0.01, 1_000), (0.1, 10_000)):
        for noise in (0.6, 1.0, 2.0):
            rounds = 1000 if share < 1 else 10
            epsilon = client_epsilon(noise, share, rounds, 1e-6)
            lengths = "; ".join(f"{noise * math.sqrt(d) / count:.3f}" for d in (85_002, 11_173_962))
            print(f"{noise:g} | {share:g} of {count / share:,.0f} | {rounds} | {epsilon:.2f} | {lengths}")


if __name__ == "__main__":
    main()
