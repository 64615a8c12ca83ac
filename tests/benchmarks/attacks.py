"""What leaks, on replicas of the InstaHide challenge: n = 100 private images, T releases of each.

    python tests/benchmarks/attacks.py decode --data cifar10_5k.npz
    python tests/benchmarks/attacks.py label-only --data cifar10_5k.npz --instances 5
    python tests/benchmarks/attacks.py no-labels --data cifar10_5k.npz
    python tests/benchmarks/attacks.py published --data cifar10_5k.npz --instances 1
    python tests/benchmarks/attacks.py digits

``--data`` is an .npz with x_train, y_train (and x_test, y_test). Half of the images are the attacker's, for
statistics and training. Of the other half every instance draws its own private images, with secrets from
the operating system, and the rest is the public pool. Two figures of each setting: the pool unknown to
the attacker, and known. The sign network is trained once for a law, on the attacker's half; its cost is
printed apart and belongs to every attack that uses it.

Rows: mean over instances (range). ``digits`` runs 8×8 digits in seconds and is part of the default tests.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from instahide.attacks.image_metrics import score_recovery
from instahide.attacks.recovery.recover import RecoveryView, recover_images
from instahide.attacks.recovery.sign_recovery import SignNetwork, train_sign_network
from instahide.attacks.replica import Replica, make_replica
from instahide.attacks.settings import choose_evenly
from instahide.attacks.view import AttackerView
from instahide.encoder_config import EncoderConfig
from instahide.images import ImageSet
from instahide.mixing import to_unit_range


@dataclass
class Line:
    """One setting over instances."""

    name: str
    ssim: list[float] = field(default_factory=list)
    signed: list[float] = field(default_factory=list)
    psnr: list[float] = field(default_factory=list)
    above: list[float] = field(default_factory=list)
    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    found: list[bool] = field(default_factory=list)

    def __str__(self) -> str:
        return (
            f"{self.name:34s} SSIM {_spread(self.ssim)}  on signed values {np.mean(self.signed):.3f}  "
            f"PSNR {np.mean(self.psnr):5.1f} dB  above 0.7: {np.mean(self.above):4.0%}  "
            f"verdict leaks {sum(self.found)}/{len(self.found)}  "
            f"wall {np.median(self.wall):6.1f} s  processor {np.median(self.cpu):6.1f} s"
        )


def _spread(values: list[float]) -> str:
    return f"{np.mean(values):.3f} ({min(values):.3f}-{max(values):.3f})"


@dataclass(frozen=True)
class Instance:
    """A replica, and other images of the same kind that are in no encoding."""

    replica: Replica
    similar: ImageSet


def halves(images: ImageSet) -> tuple[ImageSet, ImageSet]:
    """The hospital's half (private images and pool) and the attacker's."""
    order = np.random.default_rng(0).permutation(len(images))
    own, attackers = np.array_split(order, 2)
    return images.subset(own), ImageSet(images.images[attackers])


def instances(
    images: ImageSet,
    config: EncoderConfig,
    *,
    count: int,
    num_images: int,
    releases: int,
    first_seed: int,
    scheme: str = "cross",
) -> Iterable[Instance]:
    """``count`` replicas from the hospital's half; what is not private there is the pool (scheme cross)."""
    own, similar = halves(images)
    assert own.labels is not None
    for seed in range(first_seed, first_seed + count):
        private = choose_evenly(own.labels, num_images, seed)
        others = np.setdiff1d(np.arange(len(own)), private)
        pool = ImageSet(own.images[others]) if scheme == "cross" else None
        replica = make_replica(own.subset(private), public=pool, config=config, releases=releases)
        yield Instance(replica, similar)


def attack(
    instance: Instance,
    tier: str,
    network: SignNetwork | None,
    *,
    pool_known: bool,
    line: Line,
    checks: bool = False,
    seed: int = 0,
) -> None:
    """Run one tier on one instance and add its figures to ``line``."""
    replica = instance.replica
    truth = replica.truth
    pool = replica.public if pool_known else None
    release = AttackerView.of(replica.encoded, instance.similar, public_pool=pool)
    view = RecoveryView(
        release,
        len(truth.images),
        tier,
        truth.private_rows if tier == "decode" else None,
        truth.private_coefficients if tier == "decode" else None,
    )
    wall, cpu = time.perf_counter(), time.process_time()
    recovery = recover_images(view, network=network, checks=checks, seed=seed)
    line.wall.append(time.perf_counter() - wall)
    line.cpu.append(time.process_time() - cpu)
    line.found.append(recovery.leaked)
    score = score_recovery(recovery.images.numpy(), to_unit_range(truth.images.images).numpy())
    line.ssim.append(score.mean_ssim)
    line.signed.append(score.mean_signed_ssim)
    line.psnr.append(score.mean_psnr)
    line.above.append(score.share_above_0_7)


def tier_table(options: argparse.Namespace, images: ImageSet) -> None:
    """One tier: every number of releases, pool unknown and known."""
    num_private = 2 if options.scheme == "cross" else options.num_mixed
    config = EncoderConfig(num_mixed=options.num_mixed, num_private=num_private, mode=options.mode)
    network = _network(options, images, config)
    for releases in options.releases:
        lines = {known: Line(f"k={options.num_mixed} T={releases:<3d} pool {'known' if known else 'unknown'}")
                 for known in options.pool}  # fmt: skip
        made = instances(
            images,
            config,
            count=options.instances,
            num_images=options.num_images,
            releases=releases,
            first_seed=options.first_seed,
            scheme=options.scheme,
        )
        for instance in made:
            for known, line in lines.items():
                attack(instance, options.what, network, pool_known=known, line=line, checks=options.checks)
        for line in lines.values():
            print(line, flush=True)


def _network(options: argparse.Namespace, images: ImageSet, config: EncoderConfig) -> SignNetwork:
    """Trained on the attacker's half."""
    wall, cpu = time.perf_counter(), time.process_time()
    network = train_sign_network(
        halves(images)[1], config, scheme=options.scheme, cpu_seconds=options.training_seconds
    )
    print(
        f"sign network for this law, trained once: wall {time.perf_counter() - wall:.1f} s, "
        f"processor {time.process_time() - cpu:.1f} s",
        flush=True,
    )
    return network


def published_table(options: argparse.Namespace, images: ImageSet) -> None:
    """Decoding as published in 2020 (objective and colours), given the true pairing, beside ours."""
    from instahide.attacks.published_2020.pipeline import published_decode

    config = EncoderConfig(num_mixed=options.num_mixed, num_private=2, mode="compat")
    network = _network(options, images, config)
    for releases in options.releases:
        theirs, ours = Line(f"published decoding, T={releases}"), Line(f"our decoder, T={releases}")
        for instance in instances(
            images,
            config,
            count=options.instances,
            num_images=options.num_images,
            releases=releases,
            first_seed=options.first_seed,
        ):
            truth = instance.replica.truth
            wall, cpu = time.perf_counter(), time.process_time()
            found = published_decode(
                instance.replica.view(instance.similar, show_pool=False),
                truth.private_rows,
                truth.private_coefficients,
                num_images=len(truth.images),
            )
            theirs.wall.append(time.perf_counter() - wall)
            theirs.cpu.append(time.process_time() - cpu)
            theirs.found.append(False)
            score = score_recovery(
                np.clip(np.asarray(found), -1, 1), to_unit_range(truth.images.images).numpy()
            )
            theirs.ssim.append(score.mean_ssim)
            theirs.signed.append(score.mean_signed_ssim)
            theirs.psnr.append(score.mean_psnr)
            theirs.above.append(score.share_above_0_7)
            attack(instance, "decode", network, pool_known=False, line=ours)
        print(theirs, ours, sep="\n", flush=True)


def digits_table(num_images: int = 60, releases: int = 10, training_seconds: float = 8.0) -> dict[str, Line]:
    """8×8 digits, k = 4 with two public digits: seconds; a smoke test of the whole road, not evidence."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = ImageSet(np.round(bunch.images * (255 / 16)).astype(np.uint8), bunch.target)
    config = EncoderConfig(num_mixed=4, num_private=2, mode="compat")
    lines = {tier: Line(f"digits, {tier}, T={releases}") for tier in ("decode", "label-only")}
    [instance] = instances(images, config, count=1, num_images=num_images, releases=releases, first_seed=1)
    network = train_sign_network(instance.similar, config, scheme="cross", cpu_seconds=training_seconds)
    for tier, line in lines.items():
        attack(instance, tier, network, pool_known=False, line=line)
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("decode", "label-only", "no-labels", "published", "digits"))
    parser.add_argument("--data", type=Path, help="an .npz with x_train and y_train")
    parser.add_argument("--instances", type=int, default=5)
    parser.add_argument("--num-images", type=int, default=100, help="n")
    parser.add_argument("--num-mixed", type=int, default=6, help="k; in scheme cross two of them private")
    parser.add_argument("--mode", default="compat")
    parser.add_argument(
        "--scheme", choices=("cross", "inside"), default="cross", help="inside: all k images are private"
    )
    parser.add_argument("--releases", type=int, nargs="+", default=[50, 20, 10, 5, 2, 1], help="T")
    parser.add_argument("--pool", choices=("unknown", "known"), nargs="+", default=["unknown", "known"])
    parser.add_argument(
        "--training-seconds", type=float, default=90.0, help="of the sign network, processor time"
    )
    parser.add_argument(
        "--checks", action="store_true", help="verdict against a null and canaries, as by command; dearer"
    )
    parser.add_argument(
        "--first-seed", type=int, default=100, help="which images are private; others are fresh"
    )
    options = parser.parse_args()
    options.pool = [word == "known" for word in options.pool if options.scheme == "cross" or word != "known"]
    print(f"{torch.get_num_threads()} threads; n={options.num_images}")
    if options.what == "digits":
        for line in digits_table().values():
            print(line)
        return
    if options.data is None:
        parser.error("--data is needed")
    with np.load(options.data) as file:
        parts = [part for part in ("train", "test") if f"x_{part}" in file]
        images = ImageSet(
            np.concatenate([file[f"x_{part}"] for part in parts]),
            np.concatenate([file[f"y_{part}"] for part in parts]),
        )
    (published_table if options.what == "published" else tier_table)(options, images)


if __name__ == "__main__":
    main()
