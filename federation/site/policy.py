"""The site's own rules: what a hospital lets a coordinator ask of it.

The coordinator is not trusted to ask only for what was agreed. Each request is held against
``policy.toml``, a file of the hospital that no message can change; the worker reads it anew
for every request. Where the file is missing or cannot be read in full, everything is refused.

A rule is one function ``(policy, request, facts)`` in :data:`RULES` that raises
:class:`~instahide.errors.RefusedError`; a new rule is a new key, a new function and its test.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from instahide.atomic import atomic_write_text
from instahide.errors import InvalidInputError, RefusedError
from instahide.integer_noise import MOST_EPSILON

from ..messages import ALLOWED_METRICS, EVALUATE, TRAIN, RoundRequest
from ..setting_rules import setting
from .settings import commented, parse, read_toml

ENCODING_MODES = ("hardened", "compat", "mixup")
_Number = TypeVar("_Number", int, float)


@dataclass(frozen=True, kw_only=True)
class SiteFacts:
    """What a rule may need to know beside the request. All of it stays at the site.

    ``rounds_served``, ``last_round``, ``repeats`` and ``evaluations_served`` are of the
    request's run; ``other_runs`` counts the runs of other names ever served.
    """

    num_examples: int
    rounds_served: int = 0
    last_round: int = 0
    repeats: int = 0
    evaluations_served: int = 0
    other_runs: int = 0


@dataclass(frozen=True, kw_only=True)
class Policy:
    """The rules of one site; every field is a key of ``policy.toml``. The defaults are strict."""

    encoding_required: bool = setting(True, bool, "refuse to train on images that are not encoded")
    allowed_encoding_modes: tuple[str, ...] = setting(
        ("hardened",),
        (str,),
        "encodings allowed: hardened, compat (the published law) or mixup (no sign mask)",
        choices=ENCODING_MODES,
    )
    minimum_num_mixed: int = setting(
        4, int, "fewest images mixed into one encoding (k)", minimum=1, maximum=16
    )
    minimum_num_private: int = setting(
        2, int, "fewest private images among them, the own one included", minimum=1, maximum=16
    )
    max_releases: int = setting(1, int, "encodings of one image that may leave the site as files", minimum=0)
    max_update_exposures: int = setting(
        1, int, "encodings of one image that updates leaving the site may be computed on", minimum=1
    )
    max_rounds: int = setting(
        100, int, "rounds trained in one run, and models evaluated in one run", minimum=0
    )
    max_repeated_rounds: int = setting(
        3,
        int,
        "rounds of one run asked for again, as by most resumes and each new try of a masked round",
        minimum=0,
    )
    max_runs: int = setting(20, int, "runs of different names this site will ever serve", minimum=0)
    minimum_examples: int = setting(50, int, "fewest training images an update may be computed on", minimum=1)
    allowed_metrics: tuple[str, ...] = setting(
        tuple(sorted(ALLOWED_METRICS - {"epsilon-spent"})),
        (str,),
        "figures that may leave the site",
        choices=tuple(sorted(ALLOWED_METRICS)),
    )
    dp_required: bool = setting(
        False, bool, "refuse runs without differential privacy for each image (differential-privacy example)"
    )
    max_epsilon: float | None = setting(
        None,
        float,
        "most epsilon that all runs together may spend, at max-delta; left out, it has no limit",
        minimum=1e-3,
        maximum=MOST_EPSILON,
    )
    minimum_noise_multiplier: float = setting(
        0.0, float, "least noise of a run with differential privacy, in clipping norms", minimum=0.0
    )
    max_delta: float = setting(
        1e-5,
        float,
        "largest target-delta of a run, and the delta of max-epsilon; well below one over the images",
        minimum=1e-15,
        below=1.0,
    )
    max_threads: int = setting(16, int, "processor threads the worker may use", minimum=1, maximum=1024)
    max_seconds: float = setting(
        21_600.0, float, "seconds one request may take; work that is not done by then stops", minimum=1.0
    )
    max_memory_gib: float = setting(
        32.0,
        float,
        "memory of the whole worker in GiB, looked at between steps; above it a request stops",
        minimum=0.25,
    )
    minimum_cohort_size: int = setting(
        2, int, "fewest sites whose updates a round must join (the run's minimum-sites)", minimum=1
    )
    secure_aggregation_required: bool = setting(
        False, bool, "refuse runs in which the coordinator sees this site's single updates"
    )
    check_initial_weights: bool = setting(
        True, bool, "refuse a first round from other weights than those of the plan's initialization-seed"
    )
    plan_approval: bool = setting(
        True, bool, "serve only plans (app bundle and settings of a run) that this site has approved"
    )

    def __post_init__(self) -> None:
        if "num-examples" not in self.allowed_metrics:
            raise InvalidInputError(
                "allowed-metrics lacks 'num-examples'",
                hint="the weighted mean cannot be formed without that count",
            )
        if self.encoding_required and not self.allowed_encoding_modes:
            raise InvalidInputError(
                "encoding-required is true and allowed-encoding-modes is empty", hint="allow at least one"
            )

    def check(self, request: RoundRequest, facts: SiteFacts) -> None:
        """Return quietly if every rule allows ``request``.

        Raises:
            RefusedError: the first rule that forbids it, with what would be allowed as its hint.
        """
        for rule in RULES:
            rule(self, request, facts)

    def allowed_part(self, metrics: Mapping[str, _Number]) -> dict[str, _Number]:
        """``metrics`` without the figures that may not leave."""
        return {name: value for name, value in metrics.items() if name in self.allowed_metrics}


def load_policy(path: Path) -> Policy:
    """The policy in the TOML file at ``path``.

    Raises:
        RefusedError: it is missing, unreadable, not TOML, has an unknown key or a wrong value.
            A site without a policy serves nobody.
    """
    try:
        return parse(Policy, read_toml(path, "policy file"), "policy file")
    except InvalidInputError as error:
        raise RefusedError(f"this site refuses everything: {error.message}", hint=error.hint) from error


def default_policy_text() -> str:
    """A commented ``policy.toml`` with every key at its strict default."""
    return commented(Policy, _INTRODUCTION)


def write_default_policy(path: Path) -> None:
    """Write :func:`default_policy_text` to ``path`` (mode 0600); an existing file is never touched.

    Raises:
        RefusedError: there is a file already.
    """
    if path.exists():
        raise RefusedError("there is a policy file already", hint="edit it, or move it away first")
    atomic_write_text(path, default_policy_text(), mode=0o600)


_INTRODUCTION = """
What this site lets a coordinator ask of it. Read anew for every request; without this
file, or with a key it does not know, the site refuses everything. Nothing that arrives
over the network can change it.
"""


def _encoding(policy: Policy, request: RoundRequest, facts: SiteFacts) -> None:
    if request.encoding == "none":
        if policy.encoding_required:
            raise RefusedError("this site trains on encoded images only", hint="set encoding to instahide")
        return
    if request.encoding_mode not in policy.allowed_encoding_modes:
        raise RefusedError(
            f"encoding-mode {request.encoding_mode} is not allowed here",
            hint=f"allowed: {', '.join(policy.allowed_encoding_modes) or 'none'}",
        )
    if request.num_mixed < policy.minimum_num_mixed:
        raise RefusedError(
            f"num-mixed {request.num_mixed} is below this site's minimum",
            hint=f"at least {policy.minimum_num_mixed}",
        )
    if request.num_private < policy.minimum_num_private:
        raise RefusedError(
            f"num-private {request.num_private} is below this site's minimum",
            hint=f"at least {policy.minimum_num_private}",
        )


def _cohort(policy: Policy, request: RoundRequest, facts: SiteFacts) -> None:
    if request.minimum_sites < policy.minimum_cohort_size:
        raise RefusedError(
            f"a round of {request.minimum_sites} sites is below this site's minimum cohort",
            hint=f"set minimum-sites to at least {policy.minimum_cohort_size}",
        )


def _secure_aggregation(policy: Policy, request: RoundRequest, facts: SiteFacts) -> None:
    if policy.secure_aggregation_required and not request.secure_aggregation:
        raise RefusedError(
            "this site takes part only where its update is hidden by secure aggregation",
            hint="set secure-aggregation to true",
        )


def _differential_privacy(policy: Policy, request: RoundRequest, facts: SiteFacts) -> None:
    if request.differential_privacy != "example":
        if policy.dp_required:
            raise RefusedError(
                "this site trains with differential privacy for each image only",
                hint="set differential-privacy to example, and encoding to none",
            )
        return
    # With a target-epsilon the site finds the noise itself, and holds it against the minimum then.
    if not request.target_epsilon and request.noise_multiplier < policy.minimum_noise_multiplier:
        raise RefusedError(
            f"noise-multiplier {request.noise_multiplier:g} is below this site's minimum",
            hint=f"at least {policy.minimum_noise_multiplier:g}",
        )
    if request.target_delta > policy.max_delta:
        raise RefusedError(
            f"target-delta {request.target_delta:g} is above this site's maximum",
            hint=f"at most {policy.max_delta:g}",
        )
    if request.target_delta * facts.num_examples >= 1:
        raise RefusedError(
            f"target-delta {request.target_delta:g} is not below one over this site's images: "
            "such a guarantee would let one of them be published",
            hint="a tenth of one over the images, or less",
        )


def _examples(policy: Policy, request: RoundRequest, facts: SiteFacts) -> None:
    if request.kind == TRAIN and facts.num_examples < policy.minimum_examples:
        raise RefusedError(
            "this site has too few training images for an update to leave",
            hint=f"its policy asks for at least {policy.minimum_examples}",
        )


def _runs(policy: Policy, request: RoundRequest, facts: SiteFacts) -> None:
    served_before = facts.rounds_served or facts.evaluations_served
    if not served_before and facts.other_runs >= policy.max_runs:
        raise RefusedError(
            f"this site has served its {policy.max_runs} runs",
            hint="the site decides whether to raise max-runs",
        )


def _rounds(policy: Policy, request: RoundRequest, facts: SiteFacts) -> None:
    served = facts.evaluations_served if request.kind == EVALUATE else facts.rounds_served
    if served >= policy.max_rounds or request.server_round > policy.max_rounds:
        word = "evaluations" if request.kind == EVALUATE else "rounds"
        raise RefusedError(
            f"this site serves at most {policy.max_rounds} {word} of one run",
            hint="plan a shorter run, or ask the site",
        )
    repeated = request.kind != EVALUATE and request.server_round <= facts.last_round
    if repeated and facts.repeats >= policy.max_repeated_rounds:
        raise RefusedError(
            f"round {request.server_round} after round {facts.last_round}: no more repeats in this run",
            hint="each resume of a run asks for a round again: ask the site to raise max-repeated-rounds, "
            "or start a run of a new name",
        )


Rule = Callable[[Policy, RoundRequest, SiteFacts], None]
RULES: tuple[Rule, ...] = (
    _encoding,
    _differential_privacy,
    _cohort,
    _secure_aggregation,
    _examples,
    _runs,
    _rounds,
)
