from __future__ import annotations

import numpy as np
import pytest

from instahide.attacks.implementation_audits.decoded_signs import bits_from_decoding
from instahide.attacks.implementation_audits.mask_recovery import audit_mask_generator, recover_mask_stream
from instahide.attacks.implementation_audits.planted import Faults, Planted, plant, smooth_pictures
from instahide.attacks.implementation_audits.planted_checks import sound_release
from instahide.encoder_config import EncoderConfig

# Secrets are fresh in every run: a test here may be repeated, and fails if it fails three times.
pytestmark = pytest.mark.statistical

LEVELS = np.tile((np.arange(256) / 255 - 0.47) / 0.25, (3, 1))
LAW = EncoderConfig(num_mixed=2, mode="compat")


def weak(faults: Faults) -> Planted:
    return plant(smooth_pictures(60, seed=1, channels=3, side=32), LAW, faults)


def test_unsound_precision_opens_an_unsound_generator() -> None:
    planted = weak(Faults(mask_seed=2024, pixel_values=LEVELS, double_precision=True))
    known = bits_from_decoding(planted.release)
    np.testing.assert_array_equal(known.bits, planted.mask_bits.ravel()[known.places])
    stream, _, _ = recover_mask_stream(known)
    assert stream is not None
    np.testing.assert_array_equal(stream.bits(0, planted.mask_bits.size), planted.mask_bits.ravel())


def test_decoded_signs_of_fresh_masks_are_right_but_lead_nowhere() -> None:
    planted = weak(Faults(pixel_values=LEVELS))
    known = bits_from_decoding(planted.release)
    assert len(known.bits) > 30_000
    np.testing.assert_array_equal(known.bits, planted.mask_bits.ravel()[known.places])
    assert audit_mask_generator(planted.release, known=known).leaked is False


def test_a_symmetric_range_and_rounded_values_give_no_sign() -> None:
    assert len(bits_from_decoding(weak(Faults(mask_seed=1)).release).places) == 0
    assert len(bits_from_decoding(sound_release(num_mixed=2, public=False)).places) == 0
