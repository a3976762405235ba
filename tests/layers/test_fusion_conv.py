import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from a3d_det2.layers import FUSION_CONVS, SliceConv, build_fusion_conv

ALL = sorted(FUSION_CONVS)


@settings(max_examples=30, deadline=None)
@given(
    st.integers(0, 2),
    st.integers(1, 5),
    st.integers(4, 9),
    st.sampled_from([1, 3, (3, 5)]),
    st.integers(1, 2),
    st.integers(0, 2),
    st.integers(1, 2),
    st.sampled_from([1, 2]),
    st.booleans(),
)
def test_slice_conv_is_conv2d_on_every_slice(n, d, size, kernel, stride, padding, dilation, groups, bias):
    size += 2 * 4  # room for the dilated kernel
    options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups, "bias": bias}
    conv2d = nn.Conv2d(4, 6, kernel, **options).double()
    conv = SliceConv(4, 6, kernel, d, **options).double()
    conv.load_state_dict(conv2d.state_dict())
    x = torch.randn(n, 4, d, size, size + 1, dtype=torch.double)
    expected = torch.stack([conv2d(x[:, :, k]) for k in range(d)], dim=2)
    torch.testing.assert_close(conv(x), expected)


def test_same_padding():
    conv2d, conv = nn.Conv2d(4, 6, 3, padding="same"), SliceConv(4, 6, 3, 2, padding="same")
    conv.load_state_dict(conv2d.state_dict())
    x = torch.randn(1, 4, 2, 7, 8)
    torch.testing.assert_close(conv(x)[:, :, 1], conv2d(x[:, :, 1]))


@pytest.mark.parametrize("op", ALL)
def test_every_operator_keeps_the_contract(op):
    conv = build_fusion_conv(op, 4, 6, 3, 5, stride=2, padding=1, dilation=1, groups=2, bias=True)
    assert conv.weight.shape == (6, 2, 3, 3)
    assert conv.bias.shape == (6,)
    x = torch.randn(2, 4, 5, 9, 8)
    assert conv(x).shape == (2, 6, 5, 5, 4)
    assert conv(x, thickness=torch.tensor([1.0, 5.0])).shape == (2, 6, 5, 5, 4)
    assert build_fusion_conv(op, 4, 6, 1, 5, bias=False).bias is None


@pytest.mark.parametrize("op", ALL)
@pytest.mark.parametrize("shape", [(2, 4, 9, 9), (2, 3, 5, 9, 9), (2, 4, 3, 9, 9)])
def test_wrong_shape_is_named(op, shape):
    with pytest.raises(ValueError, match=r"C = 4 and D = 5. Got \(2, "):
        build_fusion_conv(op, 4, 6, 3, 5)(torch.randn(shape))


@pytest.mark.parametrize("op", ALL)
def test_2d_weights_load_unchanged(op):
    conv2d = nn.Conv2d(4, 6, 3)
    conv = build_fusion_conv(op, 4, 6, 3, 5)
    own_alone = set(conv.state_dict()) - set(conv2d.state_dict())
    missing, unexpected = conv.load_state_dict(conv2d.state_dict(), strict=False)
    assert (set(missing), unexpected) == (own_alone, [])
    assert torch.equal(conv.weight, conv2d.weight)


def test_unknown_operator_lists_the_choices():
    with pytest.raises(ValueError, match="Unknown fusion operator 'c3d'. Choose one of none, a3d"):
        build_fusion_conv("c3d", 4, 6, 3, 5)


def test_no_slices_is_an_error():
    with pytest.raises(ValueError, match="num_slices >= 1. Got 0"):
        SliceConv(4, 6, 3, 0)
