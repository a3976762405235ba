import pytest
import torch
from torch.nn import functional as F

from a3d_det2.layers import A3DConv, SliceConv


def algorithm_1(x, fusion_weight, weight, bias, **conv):
    """Algorithm 1 of the paper for one sample, as loops."""
    c_in, depth = x.shape[:2]
    mixed = torch.zeros_like(x)
    for c in range(c_in):
        for k in range(depth):
            for d in range(depth):
                mixed[c, k] += fusion_weight[d, k, c] * x[c, d]
    return torch.stack([F.conv2d(mixed[None, :, k], weight, bias, **conv)[0] for k in range(depth)], dim=1)


@pytest.mark.parametrize("depth", [1, 3, 4, 7])
@pytest.mark.parametrize(
    "conv",
    [{}, {"stride": 2, "padding": 1}, {"padding": 2, "dilation": 2, "groups": 2}],
    ids=["plain", "stride", "groups"],
)
def test_equals_algorithm_1_in_double_precision(depth, conv):
    torch.manual_seed(depth)
    op = A3DConv(4, 6, 3, depth, **conv).double()
    torch.nn.init.normal_(op.fusion_weight)
    x = torch.randn(2, 4, depth, 8, 7, dtype=torch.double)
    expected = torch.stack([algorithm_1(sample, op.fusion_weight, op.weight, op.bias, **conv) for sample in x])
    torch.testing.assert_close(op(x), expected, rtol=0, atol=1e-12)


def test_mix_by_hand():
    op = A3DConv(1, 1, 1, 2)
    # Output slice 0 is 1 * slice 0 + 3 * slice 1; output slice 1 is 2 * slice 0 + 4 * slice 1.
    op.fusion_weight.data = torch.tensor([[[1.0], [2.0]], [[3.0], [4.0]]])
    x = torch.tensor([10.0, 1.0]).view(1, 1, 2, 1, 1)
    assert op.mix(x).flatten().tolist() == [13.0, 24.0]


def test_gradients():
    op = A3DConv(2, 3, 3, 3, padding=1).double()
    x = torch.randn(1, 2, 3, 4, 3, dtype=torch.double, requires_grad=True)

    def forward(x, fusion_weight, weight, bias):
        return torch.func.functional_call(op, {"fusion_weight": fusion_weight, "weight": weight, "bias": bias}, (x,))

    assert torch.autograd.gradcheck(forward, (x, op.fusion_weight, op.weight, op.bias))


def test_starts_close_to_no_fusion():
    op = A3DConv(64, 8, 1, 7)
    noise = op.fusion_weight.detach() - torch.eye(7).unsqueeze(2)
    assert noise.abs().max() <= 0.1
    assert noise.abs().mean() == pytest.approx(0.05, abs=0.005)
    assert abs(noise.mean()) < 0.005


def test_identity_is_no_fusion():
    a3d, none = A3DConv(4, 6, 3, 5, padding=1), SliceConv(4, 6, 3, 5, padding=1)
    none.load_state_dict({"weight": a3d.weight, "bias": a3d.bias})
    a3d.fusion_weight.data = torch.eye(5).unsqueeze(2).expand(5, 5, 4).clone()
    x = torch.randn(2, 4, 5, 6, 6)
    torch.testing.assert_close(a3d(x), none(x))


def test_is_asymmetric():
    """Moving the content by one slice does not move the output by one slice."""
    op = A3DConv(2, 2, 1, 5, bias=False)
    x = torch.zeros(1, 2, 5, 3, 3)
    x[:, :, 1] = 1
    moved = torch.roll(x, 1, dims=2)
    assert not torch.allclose(op(moved), torch.roll(op(x), 1, dims=2))


def test_autocast_and_channels_last():
    op = A3DConv(4, 6, 3, 3, padding=1)
    x = torch.randn(2, 4, 3, 8, 8)
    expected = op(x)
    torch.testing.assert_close(op(x.to(memory_format=torch.channels_last_3d)), expected, rtol=1e-4, atol=1e-5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = op(x)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), expected, rtol=0.05, atol=0.05)


def test_empty_batch():
    x = torch.zeros(0, 4, 3, 8, 8, requires_grad=True)
    y = A3DConv(4, 6, 3, 3, padding=1)(x)
    assert y.shape == (0, 6, 3, 8, 8)
    y.sum().backward()
