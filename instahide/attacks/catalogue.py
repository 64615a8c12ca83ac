"""Which attacks there are, what each is given, what it asks. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class CatalogueEntry:
    """One attack, in a line for each question a reader has.

    Args:
        name: the word after ``instahide attack run``.
        question: what it answers.
        sees: what the attacker is given, nothing else.
        source: the paper or the program that showed it first.
        threat: which leak it stands for in the report: ``recovery``, ``membership``, ``update``,
            ``implementation``, ``privacy-budget``.
    """

    name: str
    question: str
    sees: str
    source: str
    threat: str


CATALOGUE: tuple[CatalogueEntry, ...] = (
    CatalogueEntry(
        "recovery",
        "Can the private images be rebuilt from the encodings?",
        "encodings; by tier also soft labels, or the pairing and coefficients; public images",
        "Carlini et al., S&P 2021, arXiv 2011.05315; decoding and pairing are ours",
        "recovery",
    ),
    CatalogueEntry(
        "published-2020",
        "What does the pipeline published in 2020 rebuild?",
        "as recovery, label-only",
        "Carlini et al., S&P 2021, re-written from the description",
        "recovery",
    ),
    CatalogueEntry(
        "gram",
        "Does the Gram matrix of the encodings give away who was mixed with whom?",
        "encodings; features or images that can be whitened",
        "Chen et al., ICLR 2021; Huang et al., arXiv 2011.11877",
        "recovery",
    ),
    CatalogueEntry(
        "public-sources",
        "Which images of the public pool are inside each encoding?",
        "encodings and the pool",
        "k-vector subset sum of the InstaHide paper (ICML 2020), solved in practice",
        "recovery",
    ),
    CatalogueEntry(
        "membership",
        "Is this known image inside one of the encodings?",
        "encodings, a candidate image, images of the same kind; labels if published",
        "ours: a likelihood ratio on e², and a joint search with the known pool",
        "membership",
    ),
    CatalogueEntry(
        "model-membership",
        "Was this known image in the training data of the model?",
        "the model's answers, and shadow models trained by the attacker",
        "LiRA (Carlini et al., S&P 2022); RMIA (Zarifzadeh et al., ICML 2024)",
        "membership",
    ),
    CatalogueEntry(
        "update-inversion",
        "Which inputs does one model update give back?",
        "the weights before, and a gradient or update, as a coordinator sees them",
        "DLG (2019), iDLG (2020), Geiping et al. (2020); Phong et al. (2018), Dimitrov et al. (2024)",
        "update",
    ),
    CatalogueEntry(
        "audits",
        "Does the implementation give its secrets away: generators, precision, labels, reuse?",
        "encodings, labels, and any file that left the site",
        "Carlini 2020 (generator), GradAttack and InstaHide issue trackers; lattice decoding is ours",
        "implementation",
    ),
    CatalogueEntry(
        "dp-audit",
        "Is the claimed epsilon contradicted by what planted canaries show?",
        "a mechanism that claims differential privacy",
        "Jagielski et al. 2020; Steinke, Nasr and Jagielski 2023",
        "privacy-budget",
    ),
)


def entry(name: str) -> CatalogueEntry:
    """The entry of that name; KeyError otherwise."""
    return {item.name: item for item in CATALOGUE}[name]
