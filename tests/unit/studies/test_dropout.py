"""Dropout whose masks are a function of seed, layer, call and position."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from studies.dropout import SeededDropout, mixed, seed_dropout

ONES = torch.ones(200, 50)


def masks(seed: int = 0, layer: int = 0, p: float = 0.3, calls: int = 1, input: Tensor = ONES) -> list[Tensor]:
    """Which entries the first calls keep."""
    dropout = SeededDropout(p, seed, layer)
    return [dropout(input) != 0 for _ in range(calls)]


def test_the_same_seed_layer_and_call_drop_the_same_entries_whatever_torch_s_generator_does():
    first = masks(calls=3)
    torch.rand(7)
    assert all(torch.equal(a, b) for a, b in zip(first, masks(calls=3), strict=True))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (masks(seed=0)[0], masks(seed=1)[0]),
        (masks(seed=0)[0], masks(seed=2**40)[0]),
        (masks(layer=0)[0], masks(layer=1)[0]),
        (masks(calls=2)[0], masks(calls=2)[1]),
        (masks()[0][:-1], masks()[0][1:]),
    ],
    ids=["seed", "large seed", "layer", "call", "position"],
)
def test_another_seed_layer_call_or_position_is_an_independent_draw(one: Tensor, other: Tensor):
    together = (one & other).double().mean()  # 0.7 x 0.7 were they independent; standard deviation 0.005
    assert together == pytest.approx(0.49, abs=0.025)


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_a_share_p_is_dropped_and_the_rest_scaled_so_that_the_mean_stays(p: float):
    out = SeededDropout(p, seed=3, layer=0)(ONES)
    kept = out[out != 0]
    torch.testing.assert_close(kept, torch.full_like(kept, 1 / (1 - p)))
    assert len(kept) / ONES.numel() == pytest.approx(1 - p, abs=5 * (p * (1 - p) / ONES.numel()) ** 0.5)
    assert out.mean(0).std() > 0, "whole columns were dropped together"
    assert out.mean(1).std() > 0, "whole rows were dropped together"


def test_what_is_dropped_has_no_gradient():
    x = torch.ones(100, requires_grad=True)
    out = SeededDropout(0.5, seed=0, layer=0)(x)
    out.sum().backward()
    assert torch.equal(x.grad, out.detach())


def test_all_or_nothing_is_dropped_at_the_ends():
    assert torch.equal(SeededDropout(0.0, seed=0, layer=0)(ONES), ONES)
    assert not SeededDropout(1.0, seed=0, layer=0)(ONES).any()


def test_nothing_is_dropped_or_counted_in_evaluation():
    dropout = SeededDropout(0.5, seed=0, layer=0).eval()
    assert torch.equal(dropout(ONES), ONES)
    assert dropout.calls == 0


def test_a_restored_model_goes_on_with_the_masks_that_come_next():
    dropout = SeededDropout(0.5, seed=0, layer=0)
    dropout(ONES)
    restored = SeededDropout(0.5, seed=9, layer=9)
    restored.load_state_dict(copy.deepcopy(dropout.state_dict()))
    assert torch.equal(restored(ONES), dropout(ONES))


def test_every_dropout_of_a_model_is_replaced_with_a_key_of_its_own():
    shared = nn.Dropout(0.25)
    model = nn.Sequential(nn.Linear(2, 2), shared, nn.ModuleDict({"a": nn.Dropout(0.5), "b": shared}))
    seed_dropout(model, seed=5)
    layers = [module for module in model.modules() if isinstance(module, nn.Dropout)]
    assert [(type(layer), layer.p) for layer in layers] == [(SeededDropout, p) for p in (0.25, 0.5, 0.25)]
    assert len({int(layer.key) for layer in layers}) == 3


def test_the_hash_is_a_bijection_that_wraps_around_the_same_everywhere():
    assert mixed(torch.tensor([0, 1, -1, 2**31 - 1], dtype=torch.int32)).tolist() == [
        0,
        reference(1),
        *map(reference, (-1, 2**31 - 1)),
    ]
    some = torch.arange(-(2**16), 2**16, dtype=torch.int32)
    assert len(mixed(some).unique()) == len(some)


def reference(x: int) -> int:
    """The same on Python's integers of any size."""
    x &= 0xFFFFFFFF
    for shift, factor in ((16, 0x21F0AAAD), (15, 0x735A2D97)):
        x = ((x ^ (x >> shift)) * factor) & 0xFFFFFFFF
    x ^= x >> 15
    return x - 2**32 if x >= 2**31 else x
