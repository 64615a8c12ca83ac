"""InstaHide FL: encode images before training, and measure what the encodings still leak.

InstaHide (Huang, Song, Li, Arora, ICML 2020) was broken in public (Carlini et al. 2020). This
package encodes because people ask for it, and attacks because they must know what it is worth.

The public names load on first use, so that importing the package stays cheap.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from .encoded_dataset import EncodedDataset as EncodedDataset
    from .encoder import Encoder as Encoder
    from .encoder_config import EncoderConfig as EncoderConfig
    from .errors import InstaHideError as InstaHideError
    from .exposure import ExposureLedger as ExposureLedger
    from .images import ImageSet as ImageSet
    from .readers import load_images as load_images
    from .storage import load_encoded as load_encoded
    from .storage import save_encoded as save_encoded

_HOMES = {
    "EncodedDataset": "encoded_dataset",
    "Encoder": "encoder",
    "EncoderConfig": "encoder_config",
    "ExposureLedger": "exposure",
    "ImageSet": "images",
    "InstaHideError": "errors",
    "load_encoded": "storage",
    "load_images": "readers",
    "save_encoded": "storage",
}

__all__ = [*_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
