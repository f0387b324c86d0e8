"""The loss through a linear head, against torch's own cross entropy over whole logits."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from components.training.head_loss import is_plain, weighted_loss_sum

N, H, V = 13, 8, 32


@pytest.fixture
def case():
    """(hidden states, head, labels, weights), some of them 0."""
    generator = torch.Generator().manual_seed(0)
    head = nn.Linear(H, V, bias=False)
    nn.init.normal_(head.weight, generator=generator)
    hidden_NH = torch.randn(N, H, generator=generator, requires_grad=True)
    labels_N = torch.randint(0, V, (N,), generator=generator)
    weights_N = torch.rand(N, generator=generator).round(decimals=1)
    weights_N[::5] = 0.0
    return hidden_NH, head, labels_N, weights_N


def whole(hidden_NH, head, labels_N, weights_N):
    return (F.cross_entropy(head(hidden_NH).float(), labels_N, reduction="none") * weights_N).sum()


@pytest.mark.parametrize("positions", [1, 4, N, 100])
def test_loss_and_gradients_are_those_of_whole_logits(case, positions):
    hidden_NH, head, _, _ = case
    loss = weighted_loss_sum(*case, positions)
    torch.testing.assert_close(loss, whole(*case))
    parts = [hidden_NH, head.weight]
    expected = torch.autograd.grad(3 * whole(*case), parts)
    torch.testing.assert_close(torch.autograd.grad(3 * loss, parts), expected)


def test_in_bf16_the_gradients_are_autocasts_to_the_last_bit(case):
    hidden_NH, head, _, _ = case
    parts = [hidden_NH, head.weight]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, expected = weighted_loss_sum(*case, N), whole(*case)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, expected)
    for ours, theirs in zip(torch.autograd.grad(loss, parts), torch.autograd.grad(expected, parts), strict=True):
        assert ours.dtype == torch.float32
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize(("trained", "products"), [(False, 2), (True, 3)])
def test_no_logits_are_made_twice(case, trained, products):
    case[1].weight.requires_grad_(trained)
    with FlopCounterMode(display=False) as counter:
        weighted_loss_sum(*case, 4).backward()
    assert counter.get_total_flops() == products * 2 * N * H * V


def test_without_gradients_only_the_loss_is_computed(case):
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        weighted_loss_sum(*case, 4)
    assert counter.get_total_flops() == 2 * N * H * V


def test_a_head_that_does_more_is_not_plain():
    class Scaled(nn.Linear):
        pass

    hooked = nn.Linear(H, V, bias=False)
    hooked.register_forward_hook(lambda *_: None)
    assert is_plain(nn.Linear(H, V, bias=False))
    assert not any(map(is_plain, (nn.Linear(H, V), Scaled(H, V, bias=False), hooked)))
