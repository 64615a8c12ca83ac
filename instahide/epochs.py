"""Fresh encodings while the budget lasts, then the same one again.

The published code encodes every image anew each epoch: 200 epochs, 200 encodings of each image,
and about 20 are enough to rebuild it. Training on one fixed encoding shows each image once,
however many epochs and updates use it. :class:`EncodedEpochs` hands out a fresh encoding as
long as the exposure budget allows and repeats the last one from then on; a repeated encoding
is the same exposure, so it is not charged again.

An encoding that was lost in a restart was perhaps already learnt from, so it counts. With
``folder`` the current encoding is kept there (mode 0600, site-local, never to be sent), and a
restarted worker goes on with it at no further charge. What is kept is the encoding, a random
job token and a keyed hash of the data; no key, coefficient, partner or sign.
"""

from __future__ import annotations

import json
import secrets
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .atomic import atomic_write_text
from .encoded_dataset import EncodedDataset
from .encoder import Encoder
from .errors import IntegrityError, InvalidInputError, RefusedError
from .exposure import THROUGH_UPDATES, ExposureLedger
from .images import ImageSet
from .storage import load_encoded, save_encoded

STATE_FILE = "epochs.json"


@dataclass
class _State:
    """What survives a restart: nothing that helps to undo an encoding."""

    token: str
    images: str
    law: dict[str, Any]
    num_fresh: int = 0


class EncodedEpochs:
    """One :class:`EncodedDataset` per epoch, fresh or repeated as the budget says.

    Args:
        encoder: encodes ``images``.
        images: the private images, as given to the encoder; the ledger counts them. A budget of
            one has no room for copies: take ``ledger.without_copies(images)`` for both.
        ledger: where exposure is charged; ``None`` only where nothing leaves the process.
        kind: which exposure: ``"through-updates"`` or ``"released"``.
        max_fresh: encodings of each image over the ledger's whole life (without a ledger: over
            this object's); ``None`` is no limit, as the published code has none.
        folder: keep the current encoding here across restarts; needs a ledger.

    Raises:
        InvalidInputError: ``max_fresh`` below 1, a folder without a ledger, a folder kept for
            other data or another law.
        IntegrityError: the kept encoding is damaged.
    """

    def __init__(
        self,
        encoder: Encoder,
        images: ImageSet,
        *,
        ledger: ExposureLedger | None = None,
        kind: str = THROUGH_UPDATES,
        max_fresh: int | None = 1,
        folder: Path | None = None,
    ) -> None:
        if max_fresh is not None and max_fresh < 1:
            raise InvalidInputError(f"max_fresh is {max_fresh}", hint="training needs at least one encoding")
        if folder is not None and ledger is None:
            raise InvalidInputError("an encoding is kept but not charged", hint="give a ledger as well")
        self._encoder = encoder
        self._ledger, self._kind, self._max_fresh = ledger, kind, max_fresh
        self._folder = folder
        self._current: EncodedDataset | None = None
        self._fingerprints = ledger.fingerprints(images) if ledger is not None else None
        commitment = self._fingerprints.commitment if self._fingerprints is not None else ""
        self._state = _State(secrets.token_hex(16), commitment, encoder.config.to_dict())
        if folder is not None:
            self._take_up(folder)

    @property
    def num_fresh(self) -> int:
        """How many different encodings were handed out so far, those before a restart included."""
        return self._state.num_fresh

    def next_epoch(self) -> EncodedDataset:
        """A fresh encoding if the budget allows one, else the one of the epoch before.

        Raises:
            RefusedError: the budget is used up and there is no encoding to repeat.
        """
        if self._may_be_fresh():
            self._current = self._encoder.encode_epoch()
            self._keep(self._current)
        if self._current is None:
            raise RefusedError(
                f"the budget of {self._max_fresh} encoding(s) is used up and none is left to use again",
                hint="raise the budget knowingly, or train on other images",
            )
        return self._current

    def _may_be_fresh(self) -> bool:
        """Charge the next fresh encoding; False when the budget has no room for it."""
        if self._ledger is None or self._fingerprints is None:
            return self._max_fresh is None or self._state.num_fresh < self._max_fresh
        used_up = self._max_fresh is not None and self._state.num_fresh >= self._max_fresh
        if used_up and self._current is not None:
            return False  # known without reading every image again
        try:
            self._ledger.reserve(
                self._fingerprints,
                kind=self._kind,
                own=1,
                partner=self._encoder.partner_uses_per_epoch,
                max_own_uses=self._max_fresh,
                # The token of a charge whose encoding was never handed out is used again.
                job=f"{self._state.token}/{self._state.num_fresh + 1}",
            )
        except RefusedError:
            if self._current is None:
                raise
            return False
        return True

    def _keep(self, encoded: EncodedDataset) -> None:
        """Store the encoding before anybody learns from it, then count it."""
        number = self._state.num_fresh + 1
        if self._folder is not None:
            save_encoded(encoded, self._folder / f"epoch-{number}", overwrite=True)
        self._state.num_fresh = number
        if self._folder is not None:
            self._save_state(self._folder)
            _forget(self._folder, keep=number)

    def _take_up(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        file = folder / STATE_FILE
        if not file.exists():
            self._save_state(folder)
            return
        try:
            kept = _State(**json.loads(file.read_text(encoding="utf-8")))
        except (ValueError, TypeError) as error:
            raise IntegrityError(f"{file.name} is damaged ({error})", hint=f"delete {folder}") from error
        if (kept.images, kept.law) != (self._state.images, self._state.law):
            raise InvalidInputError(
                f"{folder} keeps an encoding of other images or under another law",
                hint="give every data set and law its own folder",
            )
        self._state = kept
        if kept.num_fresh:
            self._current = load_encoded(folder / f"epoch-{kept.num_fresh}")

    def _save_state(self, folder: Path) -> None:
        atomic_write_text(folder / STATE_FILE, json.dumps(vars(self._state), indent=1), mode=0o600)


def _forget(folder: Path, *, keep: int) -> None:
    for entry in folder.glob("epoch-*"):
        if entry.name != f"epoch-{keep}":
            shutil.rmtree(entry, ignore_errors=True)
