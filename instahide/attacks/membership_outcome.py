"""From scores of members and others to the figures, the curve and the sentence of a membership attack.

Axes: P members, Q non-members.

``leaked`` is decided by intervals, never by a point:

* true, if the lower limit of the AUC is above 1/2, or if the lower limit of the true-positive rate at
  1 % false positives is above the *upper* limit of the false-positive rate at that threshold (each at
  97.5 %, as two looks share the 5 %);
* false, if neither holds and the groups are large enough that an AUC of 0.7 would have been seen;
* ``None`` otherwise: too few images to tell.

An AUC below 1/2 counts as nothing: an attacker who does not know the truth cannot turn the score around.
"""

from __future__ import annotations

from dataclasses import dataclass

from .metrics import (
    Scores,
    false_positive_rate_limit,
    roc_auc,
    roc_auc_interval,
    roc_points,
    true_positive_rate,
    true_positive_rate_interval,
)

LOW_RATES = {"tpr_at_1_percent_fpr": 0.01, "tpr_at_0.1_percent_fpr": 0.001}
ROC_AXES = ("false-positive rate (log)", "true-positive rate (log)")
CHANCE = {"auc": 0.5, "tpr_at_1_percent_fpr": 0.01, "tpr_at_0.1_percent_fpr": 0.001}
_Z_TWO_LOOKS = 2.241402727604947  # the 98.75 % point of the normal law
_SEEN = 0.7


@dataclass(frozen=True)
class MembershipOutcome:
    """Figures of one score: metrics, 95 % intervals, ROC points, and what they mean."""

    metrics: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    curve: list[tuple[float, float]]
    leaked: bool | None
    num_members: int
    num_others: int

    def sentence(self, what: str, where: str) -> str:
        """The verdict: ``what`` was told apart ("a known image") and ``where`` ("in these encodings")."""
        auc, (low, high) = self.metrics["auc"], self.intervals["auc"]
        if self.leaked is None:
            return (
                f"Undecided: {self.num_members} members and {self.num_others} others are too few to tell "
                f"whether {what} can be recognised {where}."
            )
        if not self.leaked:
            return (
                f"Nothing found: {what} was not recognised {where} better than by guessing "
                f"(right in {auc:.0%} of pairs; at most {high:.0%} is compatible with the data)."
            )
        caught, (at_least, _) = self.metrics["tpr_at_1_percent_fpr"], self.intervals["tpr_at_1_percent_fpr"]
        return (
            f"{what[0].upper()}{what[1:]} is recognised {where}: of a member and a stranger the attack picks "
            f"the member in {auc:.0%} of pairs (at least {low:.0%}); accusing 1 % of strangers it finds "
            f"{caught:.0%} of the members (at least {at_least:.0%})."
        )


def membership_outcome(members: Scores, others: Scores) -> MembershipOutcome:
    """Judge scores of which higher means likelier a member.

    Args:
        members: (P,) scores of images that were inside.
        others: (Q,) scores of images that were not.

    Raises:
        InvalidInputError: an empty group or a score that is not a number.
    """
    metrics, intervals = {"auc": roc_auc(members, others)}, {"auc": roc_auc_interval(members, others)}
    for name, rate in LOW_RATES.items():
        metrics[name] = true_positive_rate(members, others, false_positive_rate=rate)
        intervals[name] = true_positive_rate_interval(members, others, false_positive_rate=rate)
    return MembershipOutcome(
        metrics,
        intervals,
        roc_points(members, others),
        _leaked(members, others),
        len(members),
        len(others),
    )


def _leaked(members: Scores, others: Scores) -> bool | None:
    low, high = roc_auc_interval(members, others, z=_Z_TWO_LOOKS)
    caught, _ = true_positive_rate_interval(members, others, level=0.975)
    if low > 0.5 or caught > false_positive_rate_limit(others, level=0.9875):
        return True
    return False if high < _SEEN else None
