import copy

import pytest
import torch
from torch import nn

from a3d_det2.layers import convert_to_3d
from a3d_det2.layers.token_fusion import TokenFusion

OPS = ["a3d", "tsm", "alignshift"]
THICKNESS = torch.tensor([1.0, 5.0])


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("places", [(), (5,), (3, 4)])
def test_starts_as_the_identity_and_is_the_gated_mixing(op, places):
    fusion = TokenFusion(op, 16, 3)
    tokens = torch.randn(2 * 3, *places, 16, requires_grad=True)
    assert torch.equal(fusion(tokens, THICKNESS), tokens)
    with torch.no_grad():
        fusion.gate.uniform_(0.5, 1)
    volume = tokens.reshape(2, 3, -1, 16).permute(0, 3, 1, 2)[..., None]  # (N, C, D, L, 1)
    mixed = fusion.mixing.mix(volume, THICKNESS)[..., 0].permute(0, 2, 3, 1).reshape(tokens.shape)
    torch.testing.assert_close(fusion(tokens, THICKNESS), tokens + fusion.gate * (mixed - tokens))
    fusion(tokens, THICKNESS).square().sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in fusion.parameters())
    assert {name for name, _ in fusion.named_parameters()} <= {"gate", "mixing.fusion_weight"}


@pytest.mark.parametrize("op", ["none", "i3d", "p3d", "acs"])
def test_operators_that_fuse_by_their_convolution(op):
    with pytest.raises(ValueError, match=f"Expected a3d, tsm or alignshift to mix tokens with, got '{op}'"):
        TokenFusion(op, 16, 3)


def swin():
    transformer = pytest.importorskip("torchvision.models.swin_transformer")
    net = transformer.SwinTransformer([4, 4], 16, [2, 2], [2, 4], [4, 4], num_classes=7)
    return net, transformer.SwinTransformerBlock


def vit():
    transformer = pytest.importorskip("torchvision.models.vision_transformer")
    net = transformer.VisionTransformer(32, 8, 2, 2, 16, 32, num_classes=7)
    nn.init.normal_(net.heads.head.weight)  # zero otherwise
    return net, transformer.EncoderBlock


def vit_det():
    pytest.importorskip("timm")  # which that ViT takes layers of
    vit = pytest.importorskip("detectron2.modeling.backbone.vit")
    return vit.ViT(32, 8, embed_dim=16, depth=2, num_heads=2, window_size=2, window_block_indexes=[0]), vit.Block


@pytest.mark.parametrize("make", [swin, vit, vit_det])
@pytest.mark.parametrize("op", OPS)
def test_networks_of_tokens(make, op):
    torch.manual_seed(0)
    net, block = make()
    net.eval()
    images = torch.randn(2, 3, 3, 32, 32)  # (N, C, D, H, W)
    with torch.no_grad():
        expected = [_tensor(net(images[:, :, k])) for k in range(3)]
        converted = convert_to_3d(net, op, 3, token_blocks=[block], slice_wise=lambda name, conv: True)
        found = _tensor(converted(images, THICKNESS))
    for k in range(3):  # starts as the 2D network
        torch.testing.assert_close(found[:, :, k], expected[k], rtol=1e-4, atol=1e-4)

    fusions = [m for m in converted.modules() if isinstance(m, TokenFusion)]
    assert len(fusions) == sum(type(m) is block for m in net.modules())
    for fusion in fusions:
        nn.init.ones_(fusion.gate)
    changed = images.clone()
    changed[:, :, 2] += torch.randn_like(changed[:, :, 2])
    before, after = (_tensor(converted(x, THICKNESS)) for x in (images, changed))
    # Slice 1 sees slice 2, and slice 0 sees it through two blocks.
    assert (before - after)[:, :, 1].abs().max() > 1e-4
    assert (before - after)[:, :, 0].abs().max() > 1e-6
    before.square().sum().backward()
    assert all(fusion.gate.grad.abs().sum() > 0 for fusion in fusions)
    again = copy.deepcopy(converted)
    torch.testing.assert_close(_tensor(again(images, THICKNESS)), before)
    assert {name for name in converted.state_dict() if name not in net.state_dict()} == {
        name for name in converted.state_dict() if ".token_fusion." in name
    }


def _tensor(output):
    return next(iter(output.values())) if isinstance(output, dict) else output


def test_blocks_that_are_not_there():
    net, _ = swin()
    with pytest.raises(ValueError, match="Cannot convert SwinTransformer: there is no TransformerEncoderLayer in it"):
        convert_to_3d(net, "a3d", 3, token_blocks=[nn.TransformerEncoderLayer])
    with pytest.raises(ValueError, match="Expected a block of tokens with a LayerNorm, got Sequential"):
        convert_to_3d(nn.Sequential(nn.Conv2d(3, 3, 1), nn.Sequential()), "a3d", 3, token_blocks=[nn.Sequential])
