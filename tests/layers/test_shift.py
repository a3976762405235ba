import pytest
import torch
from torch import nn

from a3d_det2.layers import AlignShiftConv, SliceConv, TSMConv


def shifted(x, share, ends):
    """The definition as loops; x: (C, D, H, W), share: how much of each slice stays."""
    fold = len(x) // 8
    y = x.clone()
    for c in range(2 * fold):
        step = 1 if c < fold else -1
        for d in range(x.shape[1]):
            if 0 <= d + step < x.shape[1]:
                other = x[c, d + step]
            else:
                other = torch.zeros_like(x[c, d]) if ends == "zero" else x[c, d]
            y[c, d] = x[c, d] * share + other * (1 - share)
    return y


@pytest.mark.parametrize("channels", [4, 8, 17])
@pytest.mark.parametrize("depth", [1, 2, 5])
@pytest.mark.parametrize("ends", ["zero", "keep"])
def test_tsm_equals_its_definition(channels, depth, ends):
    op = TSMConv(channels, 6, 3, depth, padding=1, ends=ends).double()
    x = torch.randn(2, channels, depth, 5, 6, dtype=torch.double)
    expected = torch.stack([shifted(sample, 0, ends) for sample in x])
    assert torch.equal(op.mix(x), expected)
    torch.testing.assert_close(op(x), SliceConv.slice_conv(op, expected), rtol=0, atol=1e-12)


@pytest.mark.parametrize("ends", ["zero", "keep"])
def test_alignshift_equals_its_definition(ends):
    op = AlignShiftConv(17, 6, 3, 5, padding=1, ends=ends).double()
    thickness = torch.tensor([0.5, 2.0, 2.5, 5.0, 1000.0], dtype=torch.double)
    x = torch.randn(5, 17, 5, 5, 6, dtype=torch.double)
    shares = [0, 0, 0.2, 0.6, 0.998]
    expected = torch.stack([shifted(sample, share, ends) for sample, share in zip(x, shares, strict=True)])
    torch.testing.assert_close(op.mix(x, thickness), expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(op(x, thickness), op.slice_conv(expected), rtol=0, atol=1e-12)


def test_the_share_of_channels_that_is_shifted():
    x = torch.randn(1, 12, 3, 2, 2)
    for op in (TSMConv(12, 1, 1, 3, n_fold=4), AlignShiftConv(12, 1, 1, 3, n_fold=4, ends="zero")):
        y = op.mix(x, torch.tensor([1.0]))
        assert torch.equal(y[:, :3, :-1], x[:, :3, 1:])
        assert torch.equal(y[:, 3:6, 1:], x[:, 3:6, :-1])
        assert torch.equal(y[:, 6:], x[:, 6:])
        assert "fold=3" in repr(op)
    assert torch.equal(TSMConv(3, 1, 1, 3, n_fold=4).mix(x[:, :3]), x[:, :3])
    with pytest.raises(ValueError, match="Expected n_fold from 2 on, .* got 1"):
        TSMConv(8, 1, 1, 3, n_fold=1)


def test_by_hand():
    x = torch.tensor([1.0, 2.0, 4.0]).view(1, 1, 3, 1, 1).expand(1, 8, 3, 1, 1)
    y = TSMConv(8, 1, 1, 3).mix(x)[0, :, :, 0, 0]
    assert y[:3].tolist() == [[2, 4, 0], [0, 1, 2], [1, 2, 4]]
    y = AlignShiftConv(8, 1, 1, 3).mix(x, torch.tensor([4.0]))[0, :, :, 0, 0]  # a = 1/2
    assert y[:3].tolist() == [[1.5, 3, 4], [1, 1.5, 3], [1, 2, 4]]


@pytest.mark.parametrize("thickness", [0.25, 1.0, 2.0])
def test_alignshift_of_thin_slices_is_a_tsm_that_keeps_its_ends(thickness):
    align, tsm = AlignShiftConv(16, 6, 3, 5), TSMConv(16, 6, 3, 5, ends="keep")
    tsm.load_state_dict(align.state_dict())
    x = torch.randn(2, 16, 5, 6, 6)
    assert torch.equal(align(x, torch.full((2,), thickness)), tsm(x))


def test_alignshift_of_very_thick_slices_is_no_fusion():
    align, none = AlignShiftConv(16, 6, 3, 5).double(), SliceConv(16, 6, 3, 5).double()
    none.load_state_dict(align.state_dict())
    x = torch.randn(2, 16, 5, 6, 6, dtype=torch.double)
    torch.testing.assert_close(align(x, torch.full((2,), 1e9)), none(x), rtol=0, atol=1e-7)


def test_reference_thickness():
    a, b = AlignShiftConv(16, 6, 3, 5), AlignShiftConv(16, 6, 3, 5, reference_thickness=1.0)
    b.load_state_dict(a.state_dict())
    x = torch.randn(1, 16, 5, 6, 6)
    torch.testing.assert_close(a(x, torch.tensor([5.0])), b(x, torch.tensor([2.5])))


def test_unknown_ends():
    with pytest.raises(ValueError, match="Unknown ends 'wrap'. Choose one of zero, keep"):
        TSMConv(8, 6, 3, 5, ends="wrap")


def test_fewer_than_8_channels_do_not_shift():
    op = TSMConv(7, 2, 1, 3)
    x = torch.randn(1, 7, 3, 4, 4)
    torch.testing.assert_close(op(x)[:, :, 1], nn.Conv2d.forward(op, x[:, :, 1]))
