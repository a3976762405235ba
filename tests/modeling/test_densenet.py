import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from a3d_det2.layers import FUSION_CONVS, A3DConv, FusionConv, SliceConv
from a3d_det2.modeling import DenseNet3D, SliceSqueeze

SMALL = {"block_config": (2, 1, 2), "growth_rate": 4, "num_init_features": 8, "bn_size": 2}


def test_default_is_densenet121_cut_after_block_3():
    trunk = DenseNet3D("none", 3)
    assert trunk.out_channels == {"dense1": 256, "dense2": 512, "dense3": 1024}
    assert trunk.out_strides == {"dense1": 4, "dense2": 8, "dense3": 16}
    out = trunk.eval()(torch.randn(1, 1, 3, 64, 32))
    assert {name: tuple(y.shape) for name, y in out.items()} == {
        "dense1": (1, 256, 3, 16, 8),
        "dense2": (1, 512, 3, 8, 4),
        "dense3": (1, 1024, 3, 4, 2),
    }


def test_operator_stands_in_the_dense_layers_alone():
    trunk = DenseNet3D("a3d", 3)
    fusing = {name for name, m in trunk.named_modules() if isinstance(m, A3DConv)}
    assert len(fusing) == 2 * (6 + 12 + 24)
    assert all(name.startswith("denseblock") and name.endswith(("conv1", "conv2")) for name in fusing)
    plain = {name for name, m in trunk.named_modules() if isinstance(m, FusionConv)} - fusing
    assert plain == {"conv0", "transition1.conv", "transition2.conv"}
    assert all(isinstance(trunk.get_submodule(name), SliceConv) for name in plain)


def test_a3d_adds_d_squared_weights_per_input_channel():
    count = {op: sum(p.numel() for p in DenseNet3D(op, 7, **SMALL).parameters()) for op in ("none", "a3d")}
    inputs = (8 + 8 + 12 + 8) + (8 + 8) + (6 + 8 + 10 + 8)  # C of conv1 and conv2 per layer
    assert count["a3d"] - count["none"] == 7 * 7 * inputs


@pytest.mark.parametrize("op", FUSION_CONVS)
def test_gradients_reach_every_parameter(op):
    trunk = DenseNet3D(op, 3, **SMALL)
    thickness = torch.tensor([1.0, 5.0])
    sum(y.square().mean() for y in trunk(torch.randn(2, 1, 3, 32, 32), thickness).values()).backward()
    assert [name for name, p in trunk.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_thickness_reaches_every_fusion_conv():
    trunk = DenseNet3D("a3d", 3, **SMALL, thickness_aware=True).eval()
    x = torch.randn(1, 1, 3, 32, 32).expand(2, -1, -1, -1, -1)
    thin, thick = trunk(x, torch.tensor([2.0, 1e9]))["dense3"]
    for module in trunk.modules():
        if isinstance(module, A3DConv):
            assert (module.thickness_aware, module.reference_thickness) == (True, 2.0)
            module.fusion_weight.data = torch.eye(3).unsqueeze(2).expand_as(module.fusion_weight).clone()
    same, unchanged = trunk(x, torch.tensor([2.0, 1e9]))["dense3"]
    torch.testing.assert_close(same, unchanged)  # now the identity at any thickness
    torch.testing.assert_close(thick, unchanged)  # what very thick slices had before, in every layer
    assert not torch.allclose(thin, same, rtol=1e-2)
    with pytest.raises(ValueError, match="Expected the slice thickness"):
        trunk(x)


@pytest.mark.parametrize("op", ["none", "alignshift", "a3d"])
def test_compiled_checkpointed_and_autocast(op):
    trunk = DenseNet3D(op, 3, **SMALL).eval()
    x, thickness = torch.randn(2, 1, 3, 32, 32), torch.tensor([1.0, 5.0])
    expected = trunk(x, thickness)["dense3"]
    torch._dynamo.reset()
    compiled = torch.compile(trunk, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x, thickness)["dense3"], expected)
    loss = checkpoint(trunk, x, thickness, use_reentrant=False)["dense3"].square().sum()
    gradient = torch.autograd.grad(loss, trunk.conv0.weight)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected.square().sum(), trunk.conv0.weight))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = trunk(x, thickness)["dense3"]
    assert (half.float() - expected).abs().max() < 0.1 * expected.abs().max()


def test_i3d_starts_from_inflated_2d_kernels():
    trunk = DenseNet3D("i3d", 3, **SMALL)
    weight = trunk.denseblock1.denselayer1.conv2.weight
    assert torch.equal(weight[:, :, 0], weight[:, :, 1])
    assert torch.equal(weight[:, :, 0], weight[:, :, 2])


def test_slices_do_not_mix_without_fusion():
    trunk = DenseNet3D("none", 3, **SMALL).eval()
    x = torch.randn(1, 1, 3, 32, 32)
    changed = x.clone()
    changed[:, :, 2] += 1
    a, b = trunk(x)["dense3"], trunk(changed)["dense3"]
    assert torch.equal(a[:, :, :2], b[:, :, :2])
    assert not torch.equal(a[:, :, 2], b[:, :, 2])


def test_norm_can_be_any_callable():
    trunk = DenseNet3D("none", 3, **SMALL, norm=lambda channels: nn.GroupNorm(1, channels))
    assert isinstance(trunk.norm0, nn.GroupNorm)
    with pytest.raises(ValueError, match="Unknown norm 'LN'. Choose one of BN, SyncBN"):
        DenseNet3D("none", 3, **SMALL, norm="LN")


def test_wrong_input_is_named():
    with pytest.raises(ValueError, match="C = 1 and D = 3. Got"):
        DenseNet3D("none", 3, **SMALL)(torch.randn(1, 3, 32, 32))


def test_unknown_operator():
    with pytest.raises(ValueError, match="Choose one of none, i3d, p3d, acs, tsm, alignshift, a3d"):
        DenseNet3D("conv", 3)


def test_squeeze_is_a_weighted_sum_over_slices_and_channels():
    squeeze = SliceSqueeze(2, 3).double()
    x = torch.randn(2, 2, 3, 4, 5, dtype=torch.double)
    expected = torch.einsum("ncdhw,ocd->nohw", x, squeeze.weight[..., 0, 0])
    torch.testing.assert_close(squeeze(x), expected)
    assert squeeze.bias is None
