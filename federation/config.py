"""The settings of a federated run: every key, its range, its default and what it means.

A run's settings travel as a flat mapping with kebab-case keys (``learning-rate``): that is what
a TOML file holds and what Flower's run configuration carries. Inside the program they are the
frozen dataclass :class:`RunConfig` with snake_case names. Nothing is repaired in silence: an
unknown key is refused with the nearest known one, a wrong type or range with the range.

``TrainingSettings`` are the part a hospital is told each round (see ``federation/messages.py``);
the rest of ``RunConfig`` stays at the coordinator. :func:`describe_settings` yields the same
table for ``--help`` and for the documentation, so that neither can drift from the checks.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any, Self

from instahide.errors import InvalidInputError

from .setting_rules import check_value, rule_of, setting, to_kebab

STRATEGIES = ("fedavg", "fedprox", "fedadam", "median", "trimmed-mean", "krum", "multi-krum")
ONE_BY_ONE = ("median", "trimmed-mean", "krum", "multi-krum")  # rules that must see each update in the clear
PRIVACY_UNITS = ("none", "example", "client")
ORIGINAL_SCHEDULES = ("constant", "cosine", "step", "exponential")
EXPONENTIAL_EQUIVALENT = "exponential-equivalent"
PER_EXAMPLE_MODELS = ("small-cnn", "mlp", "resnet32")  # each image's own gradient can be taken
RUN_NAME_PATTERN = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"
LARGEST_SEED = 2**63 - 1


@dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """What every site of a run is told: the model, how to train it, how to encode."""

    run_name: str = setting(
        "run", str, "name of the run in logs, ledgers and files", pattern=RUN_NAME_PATTERN
    )
    num_server_rounds: int = setting(3, int, "rounds to train", minimum=1, maximum=100_000)
    model: str = setting("small-cnn", str, "model to build at every site", pattern=RUN_NAME_PATTERN)
    initialization_seed: int = setting(
        0, int, "seed of the initial weights (public, not a secret)", minimum=0, maximum=LARGEST_SEED
    )
    absolute_input: bool = setting(False, bool, "let the model take |x| first, which undoes the sign mask")
    class_names: tuple[str, ...] = setting((), (str,), "names of the classes, in label order")
    image_shape: tuple[int, ...] = setting((), (int,), "channels, height, width of an image")
    local_epochs: int = setting(
        1, int, "passes over its data a site makes each round", minimum=1, maximum=1000
    )
    batch_size: int = setting(64, int, "images a step", minimum=1, maximum=65_536)
    learning_rate: float = setting(0.05, float, "step size at the sites", minimum=1e-8, maximum=100.0)
    momentum: float = setting(0.9, float, "momentum of SGD at the sites", minimum=0.0, below=1.0)
    weight_decay: float = setting(5e-4, float, "weight decay at the sites", minimum=0.0, maximum=1.0)
    optimizer: str = setting("sgd", str, "optimiser at the sites", choices=("sgd", "adamw"))
    lr_schedule: str = setting(
        "constant",
        str,
        "learning rate over the rounds",
        choices=(*ORIGINAL_SCHEDULES, EXPONENTIAL_EQUIVALENT),
    )
    equivalent_to: str = setting(
        "step",
        str,
        "schedule with weight decay whose functions exponential-equivalent computes",
        choices=ORIGINAL_SCHEDULES,
    )
    proximal_mu: float = setting(
        0.0, float, "weight of FedProx's pull to the global model (Li et al. 2020)", minimum=0.0, maximum=1e4
    )
    encoding: str = setting("instahide", str, "what the sites train on", choices=("instahide", "none"))
    encoding_mode: str = setting(
        "hardened",
        str,
        "variant of the encoding (dp is for files: `instahide encode`; here differential-privacy example)",
        choices=("hardened", "compat", "mixup"),
    )
    num_mixed: int = setting(4, int, "images mixed into one encoding (k)", minimum=1, maximum=16)
    num_private: int = setting(
        2, int, "private images among them, the own one included", minimum=1, maximum=16
    )
    differential_privacy: str = setting(
        "none",
        str,
        "what differential privacy protects: an image (noise at the sites) or a whole site",
        choices=PRIVACY_UNITS,
    )
    noise_multiplier: float = setting(
        1.0, float, "standard deviation of the noise over the clipping norm", minimum=0.01, maximum=1000.0
    )
    max_grad_norm: float = setting(
        1.0, float, "longest gradient of one image (example-level privacy)", minimum=1e-6, maximum=1e6
    )
    target_delta: float = setting(
        1e-5,
        float,
        "delta at which epsilon is stated, well below one over the units",
        minimum=1e-15,
        below=1.0,
    )
    target_epsilon: float = setting(
        0.0,
        float,
        "epsilon of the whole run at each site, which finds the noise for it; 0: noise-multiplier says",
        minimum=0.0,
        maximum=30.0,
    )
    minimum_sites: int = setting(
        2, int, "quorum: fewer valid updates than this and the round has failed", minimum=1, maximum=10_000
    )
    max_update_norm: float = setting(
        0.0, float, "largest L2 distance of an update from the global model; 0 is no bound", minimum=0.0
    )
    max_site_examples: int = setting(
        10_000_000,
        int,
        "largest data set a site may claim (without secure aggregation: one that registered no size)",
        minimum=1,
        maximum=10**12,
    )
    secure_aggregation: bool = setting(
        False, bool, "let the coordinator see the sum of the updates only, not each one"
    )
    roster: tuple[str, ...] = setting(
        (), (str,), "who may be in that sum: NAME and identity key of each site (from the admitted sites)"
    )
    reconstruction_threshold: int = setting(
        0, int, "sites whose answers open a sum; 0: two thirds of them and one", minimum=0, maximum=255
    )
    confirm_survivors: bool = setting(
        False, bool, "let the sites sign whose updates are in a sum before it is opened (a third message)"
    )
    ring_bits: int = setting(
        32, int, "bits of an entry of a masked update: 16, 32 or 64", minimum=16, maximum=64
    )
    clipping_range: float = setting(
        8.0, float, "largest change of one weight in a masked update", minimum=1e-6, maximum=1e6
    )
    evaluate: bool = setting(True, bool, "measure every global model on the sites' test images")
    num_views: int = setting(
        10, int, "encodings averaged by the several-views inference", minimum=1, maximum=100
    )

    def __post_init__(self) -> None:
        for item in fields(self):
            if "rule" in item.metadata:
                value = check_value(to_kebab(item.name), rule_of(item), getattr(self, item.name))
                object.__setattr__(self, item.name, value)
        self._check_together()

    def _check_together(self) -> None:
        if self.num_private > self.num_mixed:
            raise InvalidInputError(
                f"num-private is {self.num_private}, but only num-mixed = {self.num_mixed} images are mixed",
                hint="choose num-private between 1 and num-mixed",
            )
        if self.image_shape and (len(self.image_shape) != 3 or min(self.image_shape) < 1):
            raise InvalidInputError(
                f"image-shape is {list(self.image_shape)}, not channels, height and width",
                hint="for example [3, 32, 32]",
            )
        if len(set(self.class_names)) != len(self.class_names):
            raise InvalidInputError("class-names holds a name twice", hint="every class needs its own name")
        if self.ring_bits not in (16, 32, 64):
            raise InvalidInputError(f"ring-bits is {self.ring_bits}", hint="16, 32 or 64")
        if self.lr_schedule == EXPONENTIAL_EQUIVALENT:
            self._check_equivalent()
        if self.differential_privacy == "example":
            self._check_example_privacy()
        elif self.target_epsilon:
            raise InvalidInputError(
                "target-epsilon is what each site keeps for its images, which differential-privacy "
                f"{self.differential_privacy} does not ask for",
                hint="set differential-privacy to example, or set noise-multiplier instead",
            )

    def _check_equivalent(self) -> None:
        """What any site would refuse is refused before a run begins."""
        from theory_modules.exponential_lr_recursion import largest_decay

        if self.model == "mlp":
            raise InvalidInputError(
                "lr-schedule exponential-equivalent cannot train mlp: nothing in it undoes a change of scale",
                hint="choose a model with normalization: small-cnn, resnet18, resnet32",
            )
        if self.weight_decay == 0.0:
            raise InvalidInputError(
                "lr-schedule exponential-equivalent trades weight decay for a growing rate, and "
                "weight-decay is 0",
                hint=f"set weight-decay, or lr-schedule to {self.equivalent_to}: it would be the same run",
            )
        if self.proximal_mu:
            raise InvalidInputError(
                "lr-schedule exponential-equivalent with proximal-mu: FedProx's term in the loss feels the "
                "weights' scale",
                hint="use strategy fedavg, or another lr-schedule",
            )
        bound, product = largest_decay(self.optimizer, self.momentum), self.weight_decay * self.learning_rate
        if product > bound:
            raise InvalidInputError(
                f"weight-decay x learning-rate is {product:g}, and no growing rate is equivalent "
                f"above {bound:.4g}",
                hint="lower weight-decay, learning-rate or momentum: SGD ends at (1 - sqrt(momentum))^2",
            )

    def _check_example_privacy(self) -> None:
        if self.encoding != "none":
            raise InvalidInputError(
                "differential-privacy example with encoding instahide: one image is in several encodings, "
                "so clipping one encoding's gradient does not bound what one image does",
                hint="set encoding to none: the noise of DP-SGD protects the images, and by a proof",
            )
        if self.model not in PER_EXAMPLE_MODELS:
            raise InvalidInputError(
                f"differential-privacy example cannot train {self.model}: no gradient of a single image",
                hint=f"choose a model with GroupNorm and no in-place layers: {', '.join(PER_EXAMPLE_MODELS)}",
            )
        if self.proximal_mu:
            raise InvalidInputError(
                "differential-privacy example has no FedProx term", hint="set proximal-mu to 0"
            )

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any], **beside: Any) -> Self:
        """Parse kebab-case settings; ``beside`` are fields that are not settings (arrays).

        Raises InvalidInputError for an unknown or missing key, a wrong type or range.
        """
        names = {to_kebab(item.name): item for item in fields(cls) if "rule" in item.metadata}
        for key in mapping:
            if key not in names:
                raise InvalidInputError(f"unknown setting {key!r}", hint=_nearest(str(key), list(names)))
        for key, item in names.items():
            if item.default is MISSING and key not in mapping:
                raise InvalidInputError(
                    f"the setting {key!r} is missing", hint=f"{key}: {rule_of(item).meaning}"
                )
        return cls(**{names[key].name: value for key, value in mapping.items()}, **beside)

    def to_mapping(self) -> dict[str, Any]:
        """The settings under kebab-case keys; tuples become lists. Inverse of ``from_mapping``."""
        return {
            to_kebab(item.name): list(value) if isinstance(value, tuple) else value
            for item in fields(self)
            if "rule" in item.metadata
            for value in [getattr(self, item.name)]
        }


@dataclass(frozen=True, kw_only=True)
class RunConfig(TrainingSettings):
    """All settings of a run, as the coordinator holds them.

    ``RunConfig.from_mapping(toml_table)`` and ``config.to_run_config()`` are the two ends of the
    road through Flower, whose run configuration knows no lists (they travel as JSON text).
    """

    start_deadline: float = setting(
        300.0, float, "seconds to wait for minimum-sites before the run fails", minimum=0.0, maximum=604_800.0
    )
    round_deadline: float = setting(
        3600.0,
        float,
        "seconds a round may take; sites that miss it are left out",
        minimum=0.1,
        maximum=604_800.0,
    )
    settle_time: float = setting(
        10.0,
        float,
        "seconds the first round waits for registered sites beyond the quorum",
        minimum=0.0,
        maximum=86_400.0,
    )
    max_failed_rounds: int = setting(
        1, int, "times a round below the quorum is tried again before the run fails", minimum=0, maximum=1000
    )
    retry_pause: float = setting(
        5.0, float, "seconds before a failed round is tried again", minimum=0.0, maximum=86_400.0
    )
    poll_interval: float = setting(
        0.1, float, "seconds between two looks for replies", minimum=0.01, maximum=10.0
    )
    fraction_train: float = setting(
        1.0,
        float,
        "share of the sites that are there that trains in a round, drawn anew each round",
        minimum=1e-4,
        maximum=1.0,
    )
    strategy: str = setting("fedavg", str, "rule that combines the sites' updates", choices=STRATEGIES)
    server_learning_rate: float = setting(
        0.1, float, "FedAdam's step size (eta; Reddi et al. 2021)", minimum=1e-8, maximum=100.0
    )
    server_beta_1: float = setting(0.9, float, "FedAdam's first-moment decay", minimum=0.0, below=1.0)
    server_beta_2: float = setting(0.99, float, "FedAdam's second-moment decay", minimum=0.0, below=1.0)
    server_tau: float = setting(1e-3, float, "FedAdam's degree of adaptivity", minimum=1e-12, maximum=10.0)
    trim_fraction: float = setting(
        0.2, float, "share of the sites trimmed-mean drops at either end, per weight", minimum=0.0, below=0.5
    )
    num_malicious_nodes: int = setting(
        1, int, "malicious sites that krum and multi-krum withstand (f)", minimum=0, maximum=10_000
    )
    num_nodes_to_select: int = setting(
        0, int, "updates multi-krum averages; 0: all but num-malicious-nodes", minimum=0, maximum=10_000
    )
    max_weight: float = setting(
        1e6, float, "largest absolute value a single weight may have", minimum=1e-6, maximum=1e30
    )
    over_norm: str = setting("reject", str, "what becomes of a larger update", choices=("reject", "clip"))
    checkpoint_every: int = setting(1, int, "rounds between two checkpoints", minimum=1, maximum=100_000)
    keep_checkpoints: int = setting(
        3, int, "checkpoints kept; older ones are deleted", minimum=1, maximum=100_000
    )
    resume: bool = setting(False, bool, "continue after the last checkpoint of run-directory")
    run_directory: str = setting("", str, "folder for events, checkpoints and the model (absolute)")
    audit_folder: str = setting(
        "",
        str,
        "folder with the coordinator's identity key and audit log (absolute); empty keeps none",
    )

    def _check_together(self) -> None:
        super()._check_together()
        if self.strategy == "fedprox" and self.proximal_mu == 0.0:
            raise InvalidInputError(
                "strategy fedprox with proximal-mu 0 is fedavg", hint="set proximal-mu, for example to 0.01"
            )
        if self.strategy != "fedprox" and self.proximal_mu != 0.0:
            raise InvalidInputError(
                f"proximal-mu is {self.proximal_mu:g}, which strategy {self.strategy} does not use",
                hint="set strategy to fedprox, or leave proximal-mu out",
            )
        if self.strategy == "trimmed-mean" and self.minimum_sites < 3:
            raise InvalidInputError(
                f"strategy trimmed-mean with minimum-sites {self.minimum_sites} has nothing to trim",
                hint="set minimum-sites to 3 or more",
            )
        fewest = 2 * self.num_malicious_nodes + 3
        if self.strategy in ("krum", "multi-krum") and self.minimum_sites < fewest:
            raise InvalidInputError(
                f"strategy {self.strategy} withstands {self.num_malicious_nodes} malicious sites among "
                f"{fewest} or more, but minimum-sites is {self.minimum_sites}",
                hint=f"set minimum-sites to {fewest} or more, or lower num-malicious-nodes",
            )
        if self.differential_privacy == "client":
            self._check_client_privacy()
        if self.secure_aggregation and self.strategy in ONE_BY_ONE:
            raise InvalidInputError(
                f"secure-aggregation hides single updates, and strategy {self.strategy} must see each one",
                hint="choose: strategy fedavg, fedprox or fedadam hides the sites' updates from the "
                f"coordinator; secure-aggregation false lets {self.strategy} bound what a bad site can do",
            )
        if self.secure_aggregation and self.fraction_train < 1.0:
            raise InvalidInputError(
                f"fraction-train is {self.fraction_train:g}, but a hidden sum takes most of the roster",
                hint="set fraction-train to 1, or secure-aggregation to false",
            )
        if self.secure_aggregation and self.max_update_norm and self.over_norm != "clip":
            raise InvalidInputError(
                "secure-aggregation hides single updates: one over max-update-norm cannot be rejected",
                hint="set over-norm to clip: each site then clips its own update",
            )
        for key, path in (("run-directory", self.run_directory), ("audit-folder", self.audit_folder)):
            if path and not Path(path).is_absolute():
                raise InvalidInputError(
                    f"{key} {path!r} is not absolute",
                    hint="give the full path: the coordinator's processes have other working folders",
                )

    def _check_client_privacy(self) -> None:
        if self.max_update_norm == 0.0 or self.over_norm != "clip":
            raise InvalidInputError(
                "differential-privacy client needs every update clipped to a norm",
                hint="set max-update-norm above 0 and over-norm to clip",
            )
        if self.strategy not in ("fedavg", "fedprox", "fedadam"):
            raise InvalidInputError(
                f"differential-privacy client adds noise to a mean, and strategy {self.strategy} takes none",
                hint="set strategy to fedavg, fedprox or fedadam",
            )

    @classmethod
    def from_run_config(cls, flat: Mapping[str, Any]) -> Self:
        """Parse Flower's run configuration, where a list is JSON text."""
        return cls.from_mapping(flat)

    def to_run_config(self) -> dict[str, str | int | float | bool]:
        """The settings as Flower's run configuration: lists become JSON text."""
        return {
            key: json.dumps(value) if isinstance(value, list) else value
            for key, value in self.to_mapping().items()
        }

    def config_hash(self) -> str:
        """SHA-256 over what decides the weights: a checkpoint resumes only under the same hash.

        Left out: settings of patience, storage and length, which an operator may change between
        two starts of the same run (deadlines, folders, more rounds under a constant rate).
        """
        values = self.to_mapping()
        for key in _MAY_CHANGE:
            values.pop(key)
        if self.lr_schedule != "constant":
            values["num-server-rounds"] = self.num_server_rounds
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


_MAY_CHANGE = (
    "num-server-rounds",
    "minimum-sites",
    "start-deadline",
    "round-deadline",
    "settle-time",
    "max-failed-rounds",
    "retry-pause",
    "poll-interval",
    "evaluate",
    "num-views",
    "checkpoint-every",
    "keep-checkpoints",
    "resume",
    "run-directory",
    "audit-folder",
)


def describe_settings(settings: type[TrainingSettings] = RunConfig) -> Iterator[tuple[str, str, str, str]]:
    """Rows (key, default, allowed values, meaning) of every setting, for help and documents."""
    for item in fields(settings):
        if "rule" in item.metadata:
            default = "required" if item.default is MISSING else json.dumps(item.default)
            yield to_kebab(item.name), default, rule_of(item).allowed, rule_of(item).meaning


def _nearest(key: str, known: list[str]) -> str:
    close = difflib.get_close_matches(key.replace("_", "-"), known, n=1, cutoff=0.6)
    return (
        f"did you mean {close[0]!r}?" if close else "`instahide coordinator run --help` lists every setting"
    )
