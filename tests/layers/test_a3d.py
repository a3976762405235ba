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


def test_thickness_aware_mixes_with_the_identity():
    """P(t) = a I + (1 - a) P, per sample."""
    op = A3DConv(4, 6, 3, 5, thickness_aware=True).double()
    x = torch.randn(4, 4, 5, 6, 6, dtype=torch.double)
    thickness = torch.tensor([1.0, 2.0, 2.5, 8.0], dtype=torch.double)
    for sample, a, mixed in zip(x, (0, 0, 0.2, 0.75), op.mix(x, thickness), strict=True):
        plain = A3DConv(4, 6, 3, 5).double()
        plain.fusion_weight.data = a * torch.eye(5, dtype=torch.double).unsqueeze(2) + (1 - a) * op.fusion_weight
        torch.testing.assert_close(mixed, plain.mix(sample[None])[0], rtol=0, atol=1e-12)


@pytest.mark.parametrize("thickness", [0.25, 1.0, 2.0])
def test_thickness_aware_is_a3d_for_thin_slices(thickness):
    aware, plain = A3DConv(4, 6, 3, 5, thickness_aware=True), A3DConv(4, 6, 3, 5)
    plain.load_state_dict(aware.state_dict())
    x = torch.randn(2, 4, 5, 6, 6)
    torch.testing.assert_close(aware(x, torch.full((2,), thickness)), plain(x), rtol=1e-6, atol=1e-6)


def test_thickness_aware_gradients():
    op = A3DConv(2, 3, 1, 3, thickness_aware=True).double()
    x = torch.randn(2, 2, 3, 2, 2, dtype=torch.double, requires_grad=True)
    thickness = torch.tensor([1.0, 5.0], dtype=torch.double)

    def forward(x, fusion_weight):
        return torch.func.functional_call(op, {"fusion_weight": fusion_weight}, (x, thickness))

    assert torch.autograd.gradcheck(forward, (x, op.fusion_weight))
