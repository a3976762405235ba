"""i3d, p3d and acs: what extends over D with a kernel, against loops over D, H and W."""

import pytest
import torch
from torch import nn

from a3d_det2.layers import ACSConv, I3DConv, P3DConv, SliceConv

CONVS = [
    {"kernel_size": 1},
    {"kernel_size": 3, "padding": 1},
    {"kernel_size": 3, "padding": (2, 0), "stride": 2},
    {"kernel_size": 3, "padding": 2, "dilation": (2, 1), "bias": False},
    {"kernel_size": 5, "padding": "same"},
    {"kernel_size": 2, "padding": (0, 1)},
    {"kernel_size": 4, "padding": "valid", "stride": 4},
]


def correlate(x, kernel, conv, dilation=1):
    """Loops over all positions and taps. x: (C_in, D, H, W), kernel: (C_out, C_in, KD, KH, KW).

    KD, KH or KW may be 1, which stands for the middle one of K rows. dilation: along D.
    """
    (k, _), (sh, sw), (dh, dw) = conv.kernel_size, conv.stride, conv.dilation
    if conv.padding == "same":
        top, left = dh * (k - 1) // 2, dw * (k - 1) // 2
    else:
        top, left = (0, 0) if conv.padding == "valid" else conv.padding
    reference = nn.functional.conv2d(
        x[None, :, 0], torch.zeros(1, len(x), k, k, dtype=x.dtype), None, conv.stride, conv.padding, conv.dilation
    )
    c_out, _, kd, kh, kw = kernel.shape
    y = torch.zeros(c_out, x.shape[1], *reference.shape[2:], dtype=x.dtype)
    for d in range(y.shape[1]):
        for i in range(y.shape[2]):
            for j in range(y.shape[3]):
                for a in range(kd):
                    for b in range(kh):
                        for c in range(kw):
                            z = d + (a * dilation - dilation * (k - 1) // 2 if kd == k else 0)
                            v = i * sh - top + (b * dh if kh == k else dh * (k - 1) // 2)
                            w = j * sw - left + (c * dw if kw == k else dw * (k - 1) // 2)
                            if 0 <= z < x.shape[1] and 0 <= v < x.shape[2] and 0 <= w < x.shape[3]:
                                y[:, d, i, j] += kernel[:, :, a, b, c] @ x[:, z, v, w]
    return y


def check(op, expected, x):
    with torch.no_grad():
        expected = torch.stack([expected(sample) for sample in x])
        if op.bias is not None:
            expected = expected + op.bias.view(-1, 1, 1, 1)
        torch.testing.assert_close(op(x), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("depth", [1, 2, 4])
@pytest.mark.parametrize("conv", CONVS, ids=str)
def test_i3d_equals_its_definition(conv, depth):
    op = I3DConv(2, 5, num_slices=depth, **conv).double()
    nn.init.normal_(op.weight)
    k = op.kernel_size[0]
    assert op.weight.shape == (5, 2, k, k, k)
    check(op, lambda x: correlate(x, op.weight, op), torch.randn(2, 2, depth, 9, 8, dtype=torch.double))


@pytest.mark.parametrize("depth", [1, 2, 4])
@pytest.mark.parametrize("conv", CONVS, ids=str)
def test_acs_equals_its_definition(conv, depth):
    op = ACSConv(2, 5, num_slices=depth, **conv).double()

    def expected(x):
        axial, coronal, sagittal = op.weight[:2], op.weight[2:4], op.weight[4:]
        views = (axial.unsqueeze(2), coronal.unsqueeze(3), sagittal.unsqueeze(4))
        if op.kernel_size == (1, 1):
            views = (op.weight.unsqueeze(2),)
        return torch.cat([correlate(x, view, op, op.dilation[0]) for view in views])

    check(op, expected, torch.randn(2, 2, depth, 9, 8, dtype=torch.double))


@pytest.mark.parametrize("depth", [1, 2, 4])
@pytest.mark.parametrize("conv", CONVS, ids=str)
def test_p3d_equals_its_definition(conv, depth):
    op = P3DConv(2, 3, num_slices=depth, **conv).double()
    nn.init.normal_(op.fusion_weight)
    k = {1: 3}.get(op.kernel_size[0], op.kernel_size[0])
    assert op.fusion_weight.shape == (3, 3, k, 1, 1)
    x = torch.randn(2, 2, depth, 9, 8, dtype=torch.double)
    with torch.no_grad():
        plane = torch.stack([nn.Conv2d.forward(op, x[:, :, d]) for d in range(depth)], dim=2)
        expected = torch.zeros_like(plane)
        for d in range(depth):
            for tap in range(k):
                z = d + tap - (k - 1) // 2
                if 0 <= z < depth:
                    expected[:, :, d] += torch.einsum(
                        "oc,nchw->nohw", op.fusion_weight[:, :, tap, 0, 0], plane[:, :, z]
                    )
        torch.testing.assert_close(op(x), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("conv", CONVS, ids=str)
def test_p3d_starts_as_exactly_no_fusion(conv):
    op, none = P3DConv(4, 6, num_slices=5, **conv), SliceConv(4, 6, num_slices=5, **conv)
    none.load_state_dict({name: value for name, value in op.state_dict().items() if name != "fusion_weight"})
    x = torch.randn(2, 4, 5, 9, 9)
    torch.testing.assert_close(op(x), none(x), rtol=0, atol=1e-6)


def test_i3d_starts_as_k_repeats_of_the_2d_kernel_over_k():
    conv2d = nn.Conv2d(4, 6, 3)
    op = I3DConv(4, 6, 3, 5)
    op.load_state_dict(conv2d.state_dict())
    for k in range(3):
        assert torch.equal(op.weight[:, :, k], conv2d.weight / 3)
    op.load_state_dict(op.state_dict())  # its own state dict has three dimensions already
    assert torch.equal(op.weight[:, :, 0], conv2d.weight / 3)
    assert conv2d.state_dict()["weight"].shape == (6, 4, 3, 3)


def test_i3d_on_a_constant_stack_is_its_2d_conv_away_from_the_ends():
    conv2d, op = nn.Conv2d(4, 6, 5, padding=2).double(), I3DConv(4, 6, 5, 7, padding=2).double()
    op.load_state_dict(conv2d.state_dict())
    image = torch.randn(2, 4, 8, 8, dtype=torch.double)
    y = op(image.unsqueeze(2).expand(-1, -1, 7, -1, -1))
    for d in (2, 3, 4):
        torch.testing.assert_close(y[:, :, d], conv2d(image))
    for d in (0, 1, 5, 6):
        assert not torch.allclose(y[:, :, d], conv2d(image))


@pytest.mark.parametrize(
    ("channels", "views"), [(32, (11, 11, 10)), (128, (43, 43, 42)), (9, (3, 3, 3)), (2, (1, 1, 0)), (1, (1, 0, 0))]
)
def test_acs_views(channels, views):
    op = ACSConv(3, channels, 3, 4, padding=1)
    assert op.view_channels == views
    assert op(torch.randn(1, 3, 4, 6, 6)).shape == (1, channels, 4, 6, 6)


def test_acs_needs_one_group():
    with pytest.raises(ValueError, match="ACSConv .* needs groups = 1. Got 2"):
        ACSConv(4, 6, 3, 5, groups=2)


@pytest.mark.parametrize("op", [I3DConv, P3DConv, ACSConv])
def test_square_kernels_alone(op):
    with pytest.raises(ValueError, match=f"{op.__name__} needs a square kernel.* Got 3 x 5"):
        op(4, 6, (3, 5), 5)


@pytest.mark.parametrize("op", [I3DConv, P3DConv])
def test_groups(op):
    conv = op(4, 6, 3, 5, padding=1, groups=2)
    x = torch.randn(1, 4, 5, 6, 6)
    changed = x.clone()
    changed[:, 2:] += 1
    plane = conv.slice_conv if op is P3DConv else conv
    assert torch.equal(plane(x)[:, :3], plane(changed)[:, :3])  # the first group does not see the second
    assert not torch.allclose(plane(x)[:, 3:], plane(changed)[:, 3:])
