import pytest
import torch

from a3d_det2.modeling import FusedNeck


def identity_neck(levels: int) -> FusedNeck:
    neck = FusedNeck([1] * levels, 1)
    for lateral in neck.laterals:
        lateral.weight.data.fill_(1)
    return neck


def test_adds_levels_doubled_in_size():
    fine = torch.arange(16.0).view(1, 1, 4, 4)
    coarse = torch.tensor([[100.0, 200.0], [300.0, 400.0]]).view(1, 1, 2, 2)
    expected = torch.tensor(
        [[100.0, 101, 202, 203], [104, 105, 206, 207], [308, 309, 410, 411], [312, 313, 414, 415]]
    ).view(1, 1, 4, 4)
    assert torch.equal(identity_neck(2)([fine, coarse]), expected)


def test_three_levels():
    features = [torch.full((1, 1, 2 * s, s), float(v)) for s, v in ((8, 1), (4, 10), (2, 100))]
    assert torch.equal(identity_neck(3)(features), torch.full((1, 1, 16, 8), 111.0))


def test_lateral_per_level():
    neck = FusedNeck([256, 512, 1024], 512)
    assert [tuple(lateral.weight.shape) for lateral in neck.laterals] == [
        (512, 256, 1, 1),
        (512, 512, 1, 1),
        (512, 1024, 1, 1),
    ]


def test_levels_that_do_not_fit():
    with pytest.raises(ValueError, match="2 levels. Got 1 features"):
        identity_neck(2)([torch.zeros(1, 1, 4, 4)])
    with pytest.raises(ValueError, match=r"Got \(5, 4\) above \(2, 2\)"):
        identity_neck(2)([torch.zeros(1, 1, 5, 4), torch.zeros(1, 1, 2, 2)])
