"""The hospital's request file: its keys, how many images it has, and by which keys it is signed.

Written at ``node init``, anew by ``node request`` (the images grew, the file is lost), and with new
keys by ``node rotate``. While new keys wait for the coordinator's answer, every request is for them
and signed by the ones in use as well.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from .identity import load_identity
from .join_signatures import RequestKeys
from .joining import JoinRequest, write_request
from .provisioning import load_node_key, public_line_of

if TYPE_CHECKING:  # reading images loads numpy, which a help text does not need
    from .node_folder import NodeFolder
    from .site.dataset import SiteData


def write_node_request(folder: NodeFolder, data: SiteData, name: str) -> tuple[JoinRequest, Path]:
    """Write ``NAME.request.json`` about these images; the request, and its file.

    Raises as ``load_node_key`` and ``load_identity`` where a key of the folder cannot be used.
    """
    node, identity = load_node_key(folder.key), load_identity(folder.identity_key)
    keys = RequestKeys(node=node, identity=identity)
    if folder.next_key.exists():
        next_identity = folder.next_identity_key
        keys = RequestKeys(
            node=load_node_key(folder.next_key),
            identity=load_identity(next_identity) if next_identity.exists() else identity,
            replaced_node=node,
            replaced_identity=identity if next_identity.exists() else None,
        )
    request = JoinRequest(
        name=name,
        public_key=public_line_of(keys.node),
        identity_key=keys.identity.public_line,
        num_examples=len(data.training),
        evaluate_num_examples=len(data.test),
        class_names=data.class_names,
        image_shape=data.training.image_shape,
        replaced_public_key="" if keys.replaced_node is None else public_line_of(keys.replaced_node),
        replaced_identity_key="" if keys.replaced_identity is None else keys.replaced_identity.public_line,
    )
    return request, write_request(request, folder.path / f"{name}.request.json", keys=keys)


def request_again(folder: NodeFolder) -> tuple[JoinRequest, Path]:
    """Read the images as they are now and write the request anew, under the same keys.

    Raises InvalidInputError if the folder holds no node or the images cannot be used.
    """
    from .site.dataset import load_site_data
    from .site.worker_config import load_worker_config

    folder.check()
    config = load_worker_config(folder.worker_config)
    return write_node_request(folder, load_site_data(config), config.site_name)
