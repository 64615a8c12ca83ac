"""Audits of an encoder's implementation: what leaks although the scheme was followed.

==================  =================================================================================
audit               the weakness it looks for
==================  =================================================================================
small seeds         coefficients or masks drawn after seeding with a small number
mask generator      sign masks that are bits of an MT19937: all others follow from some
mask reuse          masks used twice, shared by channels, constant over pixels, or missing
lattice decoding    values with more digits than 8-bit pixels can fill: pixels by arithmetic
label leakage       labels that show coefficients, public weight, same-class events
coefficient reuse   rows or batches that share their coefficients
self-mixing         encodings that hold fewer images than the law says
fixed pairs         the same partners in every epoch
public coverage     public sources from a part of the pool
artefacts           generator states, seeds or keys in files that are shared
==================  =================================================================================

:func:`audit` runs them all on a :class:`Release`; :func:`audit_release` takes arrays.
"""

from __future__ import annotations

from .artefacts import audit_artefacts, scan_artefacts
from .coefficient_reuse import audit_coefficients
from .decoded_signs import bits_from_decoding
from .fixed_pairs import audit_fixed_pairs
from .label_leakage import audit_labels
from .lattice import audit_lattice
from .mask_recovery import KnownBits, audit_mask_generator, bits_from_sure_signs
from .mask_reuse import audit_masks
from .public_coverage import audit_public_coverage
from .release import Release
from .runner import audit, audit_release, summary
from .seed_search import audit_seeds
from .self_mixing import audit_self_mixing

__all__ = [
    "KnownBits",
    "Release",
    "audit",
    "audit_artefacts",
    "audit_coefficients",
    "audit_fixed_pairs",
    "audit_labels",
    "audit_lattice",
    "audit_mask_generator",
    "audit_masks",
    "audit_public_coverage",
    "audit_release",
    "audit_seeds",
    "audit_self_mixing",
    "bits_from_decoding",
    "bits_from_sure_signs",
    "scan_artefacts",
    "summary",
]
