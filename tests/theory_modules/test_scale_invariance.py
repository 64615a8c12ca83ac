"""Which tensors convert: networks whose answer is known by thought, and controls for the procedure."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from theory_modules.exponential_lr import NotScaleInvariantError, scale_invariance_report


class PreActivation(nn.Module):
    """Two pre-activation blocks, the second with a shortcut convolution, bare or behind its own norm."""

    def __init__(self, *, normed_shortcut: bool, width: int = 6) -> None:
        super().__init__()

        def conv(size: int = 3) -> nn.Conv2d:
            return nn.Conv2d(width, width, size, padding=size // 2, bias=False)

        self.stem = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.inner = nn.ModuleList([conv(), conv()])
        self.outer = nn.ModuleList([conv(), conv()])
        self.norms = nn.ModuleList(nn.BatchNorm2d(width, affine=False) for _ in range(5))
        self.shortcut = conv(1)
        self.shortcut_norm = nn.BatchNorm2d(width, affine=False) if normed_shortcut else nn.Identity()
        self.head = nn.Linear(width, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for block in range(2):
            inner = self.inner[block](functional.relu(self.norms[2 * block](x)))
            update = self.outer[block](functional.relu(self.norms[2 * block + 1](inner)))
            x = (self.shortcut(self.shortcut_norm(x)) if block else x) + update
        return self.head(functional.relu(self.norms[4](x)).mean((2, 3)))


class Transformer(nn.Module):
    """One pre-LN block over tokens, with or without a norm on queries and keys."""

    def __init__(self, *, qk_norm: bool = False, width: int = 8) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, width)
        self.first, self.second, self.last = (nn.LayerNorm(width, elementwise_affine=False) for _ in range(3))
        self.query, self.key, self.value, self.out = (nn.Linear(width, width, bias=False) for _ in range(4))
        norms = [nn.RMSNorm(width, elementwise_affine=False) if qk_norm else nn.Identity() for _ in range(2)]
        self.query_norm, self.key_norm = norms
        self.up, self.down = nn.Linear(width, 16, bias=False), nn.Linear(16, width, bias=False)
        self.head = nn.Linear(width, 5)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embedding(tokens)
        h = self.first(x)
        scores = self.query_norm(self.query(h)) @ self.key_norm(self.key(h)).transpose(1, 2)
        x = x + self.out(functional.softmax(scores / 3, -1) @ self.value(h))
        return self.head(self.last(x + self.down(functional.relu(self.up(self.second(x))))))


class Concatenated(nn.Module):
    """Two branches into one batch norm; one branch is not trained, so the input has no common degree."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(6, 5, bias=False), nn.Linear(6, 5, bias=False)
        self.right.weight.requires_grad_(False)
        self.norm, self.head = nn.BatchNorm1d(10, affine=False), nn.Linear(10, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(functional.relu(self.norm(torch.cat([self.left(x), self.right(x)], 1))))


class HiddenEps(nn.Module):
    """A normalisation whose eps is out of reach."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.head = nn.Linear(6, 8, bias=False), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.inner(x)
        return self.head(functional.relu(h / (h.square().mean(1, keepdim=True) + 1e-14).sqrt()))


VECTORS, IMAGES = torch.randn(20, 6), torch.randn(4, 3, 6, 6)
TOKENS = torch.randint(0, 11, (4, 7))


def mlp(norm: Any, activation: nn.Module | None = None, *, bias: bool = False) -> nn.Sequential:
    act = activation or nn.ReLU()
    return nn.Sequential(
        nn.Linear(6, 16, bias=bias),
        norm(16),
        act,
        nn.Linear(16, 16, bias=bias),
        norm(16),
        act,
        nn.Linear(16, 3),
    )


def plain_norm(width: int) -> nn.Module:
    return nn.BatchNorm1d(width, affine=False)


def test_behind_batch_norm_each_weight_and_its_useless_bias_converts_alone() -> None:
    report = scale_invariance_report(mlp(plain_norm, bias=True), VECTORS)
    assert report.alone == ("0.weight", "0.bias", "3.weight", "3.bias")
    assert report.never == ("6.weight", "6.bias")
    assert set(report.convertible) == set(report.alone)
    assert report.degrees == {"1": 1, "4": 1}


def test_scale_and_shift_convert_jointly_when_relu_and_another_norm_follow() -> None:
    report = scale_invariance_report(mlp(nn.BatchNorm1d), VECTORS)
    assert report.jointly == ("1.weight", "1.bias")
    assert set(report.convertible) == {"0.weight", "1.weight", "1.bias", "3.weight"}
    assert report.degrees == {"1": 1, "4": 2}  # behind two converted factors eps has to grow by P^4
    assert "4.weight -1, 4.bias -1, 6.weight +1" in report.identities()


def test_a_curved_activation_takes_the_joint_conversion_away() -> None:
    report = scale_invariance_report(mlp(nn.BatchNorm1d, nn.GELU()), VECTORS)
    assert report.jointly == ()
    assert set(report.convertible) == {"0.weight", "3.weight"}


def test_a_bias_beside_a_product_keeps_the_lighter_tensors_out_of_the_set() -> None:
    """3.weight·(1.weight …) would have degree two, 3.bias one: no eps, no running mean fits their sum."""
    report = scale_invariance_report(mlp(nn.BatchNorm1d, bias=True), VECTORS)
    assert report.jointly == ("1.weight", "1.bias")
    assert set(report.convertible) == {"0.weight", "0.bias", "3.weight", "3.bias"}
    assert "lighter set" in next(tensor.hint for tensor in report.tensors if tensor.name == "1.weight")


@pytest.mark.parametrize("norm", [nn.LayerNorm, lambda width: nn.GroupNorm(4, width), nn.RMSNorm])
def test_other_norms_convert_weight_and_bias_only_together(norm: Any) -> None:
    report = scale_invariance_report(mlp(norm, bias=True), VECTORS)
    assert {"0.weight", "0.bias"} <= set(report.jointly)
    assert {"0.weight", "0.bias"} <= set(report.convertible)
    assert not report.alone


def test_a_plain_network_converts_nothing_and_says_why() -> None:
    report = scale_invariance_report(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)), VECTORS)
    assert report.convertible == ()
    assert report.identities() == ["0.weight -1, 0.bias -1, 2.weight +1"]
    with pytest.raises(NotScaleInvariantError, match="put a normalisation between them"):
        report.require()


def test_residual_stream_converts_jointly_and_a_bare_shortcut_stays_out() -> None:
    bare = scale_invariance_report(PreActivation(normed_shortcut=False), IMAGES)
    assert set(bare.alone) == {"inner.0.weight", "inner.1.weight"}
    stream = {"stem.weight", "outer.0.weight", "outer.1.weight"}
    assert set(bare.convertible) == set(bare.alone) | stream
    assert "shortcut.weight" not in bare.convertible

    normed = scale_invariance_report(PreActivation(normed_shortcut=True), IMAGES)
    assert set(normed.convertible) == set(normed.alone) | stream | {"shortcut.weight"}


def test_attention_trades_query_against_key_unless_both_are_normalised() -> None:
    report = scale_invariance_report(Transformer(), TOKENS)
    assert {"query.weight", "key.weight"} <= set(report.never)
    assert "query.weight -1, key.weight +1" in report.identities()
    assert "trades against" in next(t.hint for t in report.tensors if t.name == "query.weight")
    chosen = set(report.convertible)
    assert "embedding.weight" in chosen
    assert len(chosen & {"value.weight", "out.weight"}) == len(chosen & {"up.weight", "down.weight"}) == 1

    normed = scale_invariance_report(Transformer(qk_norm=True), TOKENS)
    assert normed.alone == ("query.weight", "key.weight")
    assert len(normed.convertible) == 5


def test_dropout_inside_attention_does_not_hide_an_invariance() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.2, norm_first=True, batch_first=True)
    model = nn.Sequential(nn.Linear(5, 8), layer, nn.LayerNorm(8), nn.Linear(8, 3))
    report = scale_invariance_report(model, torch.randn(4, 6, 5))
    assert {"0.weight", "0.bias", "1.self_attn.out_proj.weight"} <= set(report.convertible)
    assert "1.self_attn.in_proj_weight" in report.never  # query, key and value in one tensor


def test_a_sum_of_converted_and_fixed_parts_is_left_out() -> None:
    """The norm is per channel: at eps -> 0 the trained branch converts, with one eps for all it does not."""
    report = scale_invariance_report(Concatenated(), VECTORS)
    assert report.alone == ("left.weight",)
    assert report.convertible == ()


def test_an_eps_out_of_reach_is_found_by_the_bitwise_confirmation() -> None:
    with pytest.raises(NotScaleInvariantError, match="bit for bit"):
        scale_invariance_report(HiddenEps(), VECTORS)


def test_only_restricts_the_set_and_adjusts_the_degrees() -> None:
    model = mlp(nn.BatchNorm1d)
    report = scale_invariance_report(model, VECTORS, only=["0.weight", "3.weight", "6.weight"])
    assert set(report.convertible) == {"0.weight", "3.weight"}
    assert report.degrees == {"1": 1, "4": 1}
    with pytest.raises(NotScaleInvariantError, match="no trained tensor"):
        scale_invariance_report(model, VECTORS, only=["seven.weight"])


def test_frozen_tensors_are_not_asked_about() -> None:
    model = mlp(nn.BatchNorm1d)
    for module in (model[1], model[4], model[6]):
        module.requires_grad_(False)
    report = scale_invariance_report(model, VECTORS)
    assert report.alone == report.convertible == ("0.weight", "3.weight")
    assert scale_invariance_report(model.requires_grad_(False), VECTORS).tensors == ()


def test_zeros_of_an_initialisation_do_not_pass_for_invariance() -> None:
    """A head that starts at zero sends no gradient and has no size; neither makes anything convertible."""
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    nn.init.zeros_(model[2].weight)
    nn.init.zeros_(model[2].bias)
    assert scale_invariance_report(model, VECTORS).convertible == ()


def test_two_rows_of_sample_are_enough_though_batch_norm_of_two_is_a_sign() -> None:
    report = scale_invariance_report(mlp(nn.BatchNorm1d), VECTORS[:2])
    assert report.never == ("4.weight", "4.bias", "6.weight", "6.bias")
    assert report.jointly == ("1.weight", "1.bias")


def test_neither_model_nor_random_state_is_touched() -> None:
    model = mlp(nn.BatchNorm1d).eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.random.get_rng_state()
    scale_invariance_report(model, VECTORS)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert not model.training
    assert model[1].eps == 1e-5
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_the_rank_decision_has_a_gap_of_many_orders() -> None:
    for model, sample in ((mlp(nn.BatchNorm1d), VECTORS), (Transformer(), TOKENS)):
        zero, kept = scale_invariance_report(model, sample).spectral_gap
        assert zero < 1e-13
        assert kept > 1e-4


def test_the_basis_really_keeps_the_function() -> None:
    """Scale tensors by e^(0.7 x_i) for each basis vector x: outputs stay, at an eps lost in the sum."""
    torch.manual_seed(0)
    model = mlp(nn.BatchNorm1d).double()
    model[1].eps = model[4].eps = 1e-300
    report = scale_invariance_report(model, VECTORS)
    parameters = dict(model.named_parameters())
    expected = model(VECTORS.double()).detach()
    assert len(report.basis) == 4
    for vector in report.basis:
        with torch.no_grad():
            for tensor, exponent in zip(report.tensors, vector, strict=True):
                parameters[tensor.name].mul_(float(np.exp(0.7 * exponent)))
        torch.testing.assert_close(model(VECTORS.double()).detach(), expected, rtol=1e-9, atol=1e-11)


def test_samples_may_be_tuples_and_dicts() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.norm = nn.Linear(6, 8, bias=False), nn.LayerNorm(8, elementwise_affine=False)

        def forward(self, x: torch.Tensor, offset: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"logits": self.norm(self.inner(x)) + offset}

    offset = torch.randn(20, 8)
    assert scale_invariance_report(Two(), (VECTORS, offset)).convertible == ("inner.weight",)
    assert scale_invariance_report(Two(), {"x": VECTORS, "offset": offset}).convertible == ("inner.weight",)


def test_the_report_prints_as_a_table() -> None:
    text = str(scale_invariance_report(mlp(nn.BatchNorm1d), VECTORS))
    assert "converts" in text.splitlines()[0]
    assert "4 of 8 tensors (384 of 467 entries) share one rate" in text
