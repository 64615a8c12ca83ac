"""What the trained model and one update of it give away, under each defence.

Axes: S shadow models, m sites, K classes.

**Membership in the model**: LiRA with shadow models trained under the same defence (the attacker knows
it). The networks are the toolkit's small fully connected ones, which a processor trains by the dozen. Shadow
models of DP-SGD, of pruned training and of noise for whole sites would have to be trained one by one; for
those defences the loss threshold (Yeom et al. 2018), which needs no shadow model, is used on the very model
whose accuracy is shown. It is the weaker attack, and the row says so.

**One update**: the first gradient of a fully connected network on one image (batch 1, one step), the most
an honest-but-curious coordinator can be given. A site's own noise is added (in client-level privacy its
share; a coordinator that adds the noise itself sees the update as it is), pruning sets its zeros; under
secure aggregation the coordinator gets the mean over the sites.
"""

from __future__ import annotations

import numpy as np
import torch
from torch.nn import functional

from ...images import ImageSet
from ...mixing import to_unit_range
from ...models import build_model
from ..cost import Cost
from ..image_metrics import bootstrap_interval, ssim
from ..metrics import roc_auc, roc_auc_interval, true_positive_rate
from ..model_membership import model_membership, train_shadow_models
from ..update_inversion import (
    Defence as UpdateDefence,
)
from ..update_inversion import (
    InversionSettings,
    LocalTraining,
    UpdateView,
    defend,
    invert,
    observe,
    securely_aggregated,
)
from .data import FrontierData
from .defences import Defence
from .leaks import Leak
from .training import TrainedDefence

NUM_SHADOWS = 16
NUM_UPDATES = 8
CLIP = 1.0


def membership_of_model(defence: Defence, trained: TrainedDefence, data: FrontierData) -> Leak:
    """AUC of telling a training image from another by the model's answers to plain queries."""
    if defence.noise in ("examples", "coordinator", "sites") or defence.pruned:
        return _loss_threshold(trained, data)
    candidates = _joined(data.members, data.others)
    run = train_shadow_models(
        candidates,
        num_shadows=NUM_SHADOWS,
        law=defence.encoding,
        public=data.pool if defence.uses_pool else None,
        num_views=1,
    )
    result = model_membership(run.view(), run.truth(), check=False)
    cost = result.cpu_seconds + run.cpu_seconds
    name = "auc" if "auc" in result.metrics else next(key for key in result.metrics if key.endswith("auc"))
    return Leak("AUC", result.metrics[name], result.intervals.get(name), 0.5, result.name, cost)


def update_inversion(defence: Defence, trained: TrainedDefence, data: FrontierData) -> Leak:
    """Mean SSIM, to the private image, of what one update on one image gives back."""
    sites = defence.num_sites(len(data.members)) if defence.summed else 1
    rows = min(NUM_UPDATES, len(data.members) // sites)
    private = to_unit_range(data.members.images[: rows * sites])
    inputs, labels = _inputs(defence, trained, data, len(private))
    masked = defence.encoding is not None and defence.encoding.has_sign_mask
    found, cost_seconds = [], 0.0
    for first in range(0, len(private), sites):
        part = slice(first, first + sites)
        view = _view(defence, trained.site_noise, data, inputs[part], labels[part], masked)
        with Cost() as cost:
            inversion = invert(view, InversionSettings(restarts=1, sparse_rounds=50), max_seconds=2.0)
        cost_seconds += cost.cpu_seconds
        found.append(_best(inversion.images, private[part]))
    values = np.array(found)
    chance = float(
        ssim(np.repeat(data.similar.images[:1] / 127.5 - 1, len(private), axis=0) * 0, private.numpy()).mean()
    )
    return Leak(
        "SSIM", float(values.mean()), bootstrap_interval(values), chance, "update inversion", cost_seconds
    )


def _view(
    defence: Defence,
    site_noise: float,
    data: FrontierData,
    inputs: torch.Tensor,
    labels: torch.Tensor,
    masked: bool,
) -> UpdateView:
    model = build_model(
        "mlp",
        image_shape=data.members.image_shape,
        num_classes=data.members.num_classes,
        absolute_input=masked,
        initialization_seed=1,
    )
    seen = [
        observe(
            model,
            inputs[index : index + 1],
            labels[index : index + 1],
            LocalTraining(num_images=1),
            kind="gradient",
            sign_masked=masked,
        )
        for index in range(len(inputs))
    ]
    if site_noise:
        seen = [defend(view, UpdateDefence(clip=CLIP, noise_multiplier=site_noise)) for view in seen]
    elif defence.pruned:
        seen = [defend(view, UpdateDefence(prune=defence.pruned)) for view in seen]
    return securely_aggregated(seen) if len(seen) > 1 else seen[0]


def _inputs(
    defence: Defence, trained: TrainedDefence, data: FrontierData, count: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """What the network sees of the first ``count`` members: the image, or an encoding of it."""
    members = data.members
    assert members.labels is not None
    if trained.replica is None:
        classes = torch.from_numpy(members.labels[:count])
        return to_unit_range(members.images[:count]), functional.one_hot(classes, members.num_classes).float()
    own = trained.replica.truth.private_rows[:, 0]
    rows = torch.from_numpy(np.array([int(np.flatnonzero(own == image)[0]) for image in range(count)]))
    encoded = trained.replica.encoded
    return encoded.images[rows], encoded.labels[rows]


def _best(images: torch.Tensor, private: torch.Tensor) -> float:
    """SSIM of the recovered image nearest to the first private one; nothing recovered is 0."""
    if len(images) == 0:
        return 0.0
    target = np.repeat(private[:1].numpy(), len(images), axis=0)
    return float(np.clip(ssim(images.clamp(-1, 1).numpy(), target).max(), 0.0, 1.0))


def _loss_threshold(trained: TrainedDefence, data: FrontierData) -> Leak:
    with Cost() as cost:
        inside, outside = (_scores(trained, part) for part in (data.members, data.others))
    return Leak(
        "AUC",
        roc_auc(inside, outside),
        roc_auc_interval(inside, outside),
        0.5,
        "loss threshold on the model shown",
        cost.cpu_seconds,
        {"tpr_at_1_percent_fpr": true_positive_rate(inside, outside)},
    )


def _scores(trained: TrainedDefence, images: ImageSet) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    assert images.labels is not None
    with torch.inference_mode():
        answers = trained.model(to_unit_range(images.images)).double()
        loss = functional.cross_entropy(answers, torch.from_numpy(images.labels), reduction="none")
    return np.asarray(-loss)


def _joined(first: ImageSet, second: ImageSet) -> ImageSet:
    assert first.labels is not None
    assert second.labels is not None
    return ImageSet(
        np.concatenate([first.images, second.images]),
        np.concatenate([first.labels, second.labels]),
        first.class_names,
    )
