r"""Labels from the last dense layer.

Axes: n images, K classes, F features of the last layer, p_i = softmax(z_i), t_i the soft label.

The gradient of the soft cross-entropy with respect to the scores is (Σ_k t_ik)·p_i − t_i. With features h_i

    ∇b_k = mean_i (p_ik·|t_i| − t_ik)      ∇W_k = mean_i (p_ik·|t_i| − t_ik)·h_i.                (1)

* **One image, hard label** (Zhao et al. 2020, "iDLG", section 3): p_k − 1 < 0 at the true class only. The
  most negative entry of ∇b is it; always right.
* **A batch**: E ∇b_k = p̄_k − n_k/n with n_k images of class k, and p̄ the mean prediction, estimated from
  images of the same kind or from noise. The counts are rounded so that they sum to n (largest remainder).
* **With the images known** (from the first layer), h_i and p_i are known and (1) is *linear* in the t_i: soft
  labels of encodings, weights of the mixed classes included, come out of a least-squares solve if n ≤ F.
  A label that sums to less than one gives its sum away too, at any class it does not hold.
"""

from __future__ import annotations

import copy

import torch
from torch import nn

from .local_update import averaged_gradient
from .view import UpdateView


def last_dense_layer(view: UpdateView) -> tuple[str, str] | None:
    """Names of weight and bias of the last dense layer, if its outputs are the K scores."""
    found = None
    for name, module in view.model.named_modules():
        if isinstance(module, nn.Linear) and module.out_features == view.num_classes:
            prefix = f"{name}." if name else ""
            found = (f"{prefix}weight", f"{prefix}bias" if module.bias is not None else "")
    return found


def score_gradient(view: UpdateView) -> torch.Tensor | None:
    """(K,) mean gradient of the scores: ∇b, or the row sums of ∇W up to scale without a bias."""
    layer = last_dense_layer(view)
    if layer is None:
        return None
    gradient = averaged_gradient(view)
    return gradient[layer[1]].double() if layer[1] else gradient[layer[0]].double().sum(1)


def label_of_one(score_gradient: torch.Tensor) -> int:
    """iDLG's rule: the class whose score gradient is the most negative."""
    return int(score_gradient.argmin())


def count_labels(
    score_gradient: torch.Tensor, mean_prediction: torch.Tensor, num_images: int
) -> torch.Tensor:
    """(K,) whole counts summing to n that explain ∇b = p̄ − counts/n best."""
    shares = (mean_prediction - score_gradient).clamp_min(0)
    expected = num_images * shares / shares.sum().clamp_min(1e-12)
    counts = expected.floor()
    missing = num_images - int(counts.sum())
    counts[(expected - counts).argsort(descending=True)[:missing]] += 1
    return counts.long()


def infer_hard_labels(view: UpdateView, images: torch.Tensor) -> torch.Tensor | None:
    """(n, K) one-hot rows in class order, or ``None`` without a last dense layer.

    Args:
        images: (m, C, H, W) whatever stands for the private images: public ones, or noise.
    """
    gradient = score_gradient(view)
    if gradient is None:
        return None
    eye = torch.eye(view.num_classes)
    if view.num_images == 1:
        return eye[label_of_one(gradient)][None]
    with torch.no_grad():
        prediction = view.model.eval()(images.float()).double().softmax(1).mean(0)
    counts = count_labels(gradient, prediction, view.num_images)
    return eye.repeat_interleave(counts, dim=0)


def labels_from_images(view: UpdateView, images: torch.Tensor) -> torch.Tensor | None:
    """(n, K) soft labels by equation (1), given the n inputs as the network takes them.

    Exact for one gradient; for an update of several steps the average is over moving weights, and small
    steps keep it close. ``None`` if the last layer is not dense or has fewer features than images.
    """
    layer = last_dense_layer(view)
    if layer is None or not layer[1] or len(images) != view.num_images:
        return None
    seen: list[torch.Tensor] = []
    model = copy.deepcopy(view.model).double().eval()
    module = model.get_submodule(layer[0].rpartition(".")[0])
    module.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    with torch.no_grad():
        scores = model(images.double())
    features = torch.cat([seen[0], torch.ones(len(images), 1, dtype=torch.float64)], dim=1)  # (n, F + 1)
    if len(images) > features.shape[1]:
        return None
    gradient = averaged_gradient(view)
    target = torch.cat([gradient[layer[0]], gradient[layer[1]][:, None]], dim=1).double()  # (K, F + 1)
    # ∇ = (1/n)·Rᵀ·features with residuals R = |t|·p − t, one row an image.
    residual = len(images) * torch.linalg.lstsq(features.T, target.T).solution  # (n, K)
    # R = |t|·p − t: at a class the label does not hold, R_k = |t|·p_k, and nowhere is it more.
    prediction = scores.softmax(1)
    weight = (residual / prediction.clamp_min(1e-12)).amax(1, keepdim=True).clamp(0, 1)
    labels: torch.Tensor = (weight * prediction - residual).clamp_min(0)
    return labels
