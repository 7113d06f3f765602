"""The chunked head against full logits and autograd."""

import pytest
import torch
from torch import nn

from midward.alignment._head import head_rows, plain_head


def full(head, hidden, reference, columns):
    policy, other = head(hidden).log_softmax(-1), head(reference).log_softmax(-1)
    return policy[:, columns], other[:, columns], (policy.exp() * (policy - other)).sum(-1)


def setting(dtype, bias=False):
    torch.manual_seed(0)
    layer = nn.Linear(12, 90, bias=bias, dtype=dtype).requires_grad_(False)
    hidden, reference = 2 * torch.randn(2, 23, 12, dtype=dtype)
    return layer, hidden, reference, torch.tensor([3, 88, 0, 41])


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-11), (torch.float32, 2e-5)])
@pytest.mark.parametrize("chunk", [1, 5, 23, 100])
@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_values_and_gradients_are_those_of_full_logits(dtype, tolerance, chunk, fused, bias):
    layer, hidden, reference, columns = setting(dtype, bias)
    scored = 9
    weights = torch.randn(scored, 4, dtype=dtype), torch.randn(23, dtype=dtype)

    def loss_of(log_probs, kl):
        return (log_probs[:scored] * weights[0]).sum() + (kl * weights[1]).sum()

    first = hidden.clone().requires_grad_()
    expected = full(layer, first, reference, columns)
    loss_of(expected[0], expected[2]).backward()

    second = hidden.clone().requires_grad_()
    out = head_rows(layer, second, reference, columns, scored, linear=layer if fused else None, chunk=chunk)
    loss_of(out.log_probs, out.kl).backward()
    for got, want in zip((out.log_probs, out.reference, out.kl), expected):
        assert torch.allclose(got, want, rtol=tolerance, atol=tolerance)
    assert torch.allclose(second.grad, first.grad, rtol=tolerance, atol=tolerance)


def test_gradient_is_the_finite_difference():
    layer, hidden, reference, columns = setting(torch.float64)

    def call(x):
        out = head_rows(layer, x, reference, columns, 23, linear=layer, chunk=7)
        return out.log_probs, out.kl

    assert torch.autograd.gradcheck(call, (hidden.requires_grad_(),))


@pytest.mark.parametrize("fused", [True, False])
def test_rows_past_the_scored_ones_and_an_unused_kl_carry_no_gradient(fused):
    layer, hidden, reference, columns = setting(torch.float64)
    hidden.requires_grad_()
    out = head_rows(layer, hidden, reference, columns, 9, linear=layer if fused else None, chunk=5)
    out.log_probs.sum().backward()
    assert (hidden.grad[:9] != 0).any() and (hidden.grad[9:] == 0).all()
    assert not out.reference.requires_grad


def test_half_precision_rows_are_summed_in_float32():
    layer, hidden, reference, columns = setting(torch.float32)
    half = nn.Linear(12, 90, bias=False, dtype=torch.bfloat16).requires_grad_(False)
    half.weight.copy_(layer.weight)
    rows = hidden.bfloat16().requires_grad_()
    out = head_rows(half, rows, reference.bfloat16(), columns, 23, linear=half)
    want = full(half, hidden.bfloat16(), reference.bfloat16(), columns)
    assert out.kl.dtype == torch.float32 and rows.dtype == torch.bfloat16
    assert torch.allclose(out.log_probs, want[0].float(), atol=0.05)
    out.kl.sum().backward()
    assert rows.grad.dtype == torch.bfloat16


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.out = nn.Linear(8, 20, bias=False).requires_grad_(False)

    def get_output_embeddings(self):
        return self.out


def test_only_a_head_that_is_one_frozen_linear_layer_is_fused():
    net = Net()
    assert plain_head(net, net.out) is net.out
    assert plain_head(net, lambda h: 5 * torch.tanh(net.out(h) / 5)) is None, "soft-capped"
    assert plain_head(net, lambda h: net.out(h) * 0.5) is None, "scaled"
    assert plain_head(nn.Identity(), net.out) is None
    net.out.requires_grad_(True)
    assert plain_head(net, net.out) is None, "trained"
