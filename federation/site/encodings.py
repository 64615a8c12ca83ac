"""The encodings a site trains on: one encoder and one budgeted sequence of epochs for each law.

An update computed on an encoding can give that encoding back (one gradient of a first dense
layer is enough), so each fresh encoding of an image is charged to the exposure ledger, as
*through-updates*, before it exists. :class:`instahide.epochs.EncodedEpochs` hands out fresh
ones while the policy's ``max-update-exposures`` lasts and the last one again from then on; the
last one is kept in the state folder, so that a restarted worker need not pay for another.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from pathlib import Path

from instahide.encoder import Encoder, FewPixelsWarning
from instahide.encoder_config import EncoderConfig
from instahide.epochs import EncodedEpochs
from instahide.exposure import THROUGH_UPDATES, ExposureLedger

from ..messages import RoundRequest
from .dataset import SiteData


class SiteEncodings:
    """Encoders and encodings of the site's images by law.

    Args:
        data: the site's images.
        ledger: is charged before each fresh encoding.
        folder: where the current encoding of each law is kept.
    """

    def __init__(self, data: SiteData, ledger: ExposureLedger, folder: Path) -> None:
        self._data, self._ledger, self._folder = data, ledger, folder
        self._encoders: dict[EncoderConfig, Encoder] = {}
        self._epochs: dict[tuple[EncoderConfig, int], EncodedEpochs] = {}

    def encoder(self, config: EncoderConfig) -> Encoder:
        """The encoder of ``config``; the public pool is used where the law has room for it.

        Raises:
            InvalidInputError: the law cannot be applied to this site's images.
        """
        if config not in self._encoders:
            self._encoders[config] = build_encoder(config, self._data)
        return self._encoders[config]

    def epochs(self, config: EncoderConfig, *, max_exposures: int) -> EncodedEpochs:
        """The epochs of ``config`` under a budget of ``max_exposures`` encodings of each image.

        Raises:
            InvalidInputError: the law cannot be applied to this site's images.
            IntegrityError: the kept encoding is damaged.
        """
        key = (config, max_exposures)
        if key not in self._epochs:
            encoder = self.encoder(config)
            self._epochs[key] = EncodedEpochs(
                encoder,
                self._data.training,
                ledger=self._ledger,
                kind=THROUGH_UPDATES,
                max_fresh=max_exposures,
                folder=self._folder / self._name(encoder),
            )
        return self._epochs[key]

    def _name(self, encoder: Encoder) -> str:
        """A folder name that changes with the law, the scheme and the images."""
        commitment = self._ledger.commitment(self._data.training)
        law = json.dumps([encoder.config.to_dict(), encoder.scheme, commitment], sort_keys=True)
        return hashlib.sha256(law.encode()).hexdigest()[:24]


def build_encoder(config: EncoderConfig, data: SiteData) -> Encoder:
    """The encoder of ``config`` over the site's images; the public pool is used where the law has room.

    Raises:
        InvalidInputError: the law cannot be applied to these images.
    """
    public = data.public if config.num_private < config.num_mixed else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FewPixelsWarning)  # logged once, at the worker's start
        return Encoder(config, private=data.training, public=public)


def law_of(request: RoundRequest) -> EncoderConfig:
    """The encoding that ``request`` names."""
    return EncoderConfig(
        num_mixed=request.num_mixed, num_private=request.num_private, mode=request.encoding_mode
    )
