import re

import pytest
import torch

from a3d_det2.modeling import DenseNet3D, load_torchvision_densenet

torchvision = pytest.importorskip("torchvision")


@pytest.fixture(scope="module")
def densenet121():
    torch.manual_seed(0)
    network = torchvision.models.densenet121()
    for name, buffer in network.named_buffers():  # statistics that are not the initial ones
        if name.endswith("running_mean"):
            buffer.normal_(0, 0.1)
        elif name.endswith("running_var"):
            buffer.uniform_(0.5, 1.5)
    return network.eval()


def old_style(state_dict):
    """The key style of the published files: norm.1 instead of norm1, and no num_batches_tracked."""
    return {
        re.sub(r"(denselayer\d+\.(?:norm|conv))([12])\.", r"\1.\2.", key): value
        for key, value in state_dict.items()
        if not key.endswith("num_batches_tracked")
    }


@pytest.mark.parametrize("style", [dict, old_style])
@pytest.mark.parametrize("op", ["none", "a3d", "i3d", "p3d"])
def test_loads_by_name_in_both_key_styles(densenet121, style, op):
    trunk = DenseNet3D(op, 3)
    before = {name: p.clone() for name, p in trunk.named_parameters() if name.endswith("fusion_weight")}
    state_dict = style(densenet121.state_dict())
    assert style is dict or "features.denseblock1.denselayer1.norm.1.weight" in state_dict
    load_torchvision_densenet(trunk, state_dict)
    theirs = densenet121.features
    conv = trunk.denseblock3.denselayer24.conv2
    assert torch.equal(conv.weight, conv.from_2d(theirs.denseblock3.denselayer24.conv2.weight))
    assert torch.equal(trunk.transition2.norm.running_mean, theirs.transition2.norm.running_mean)
    assert torch.equal(trunk.conv0.weight, theirs.conv0.weight[:, 1:2])
    assert all(torch.equal(trunk.get_parameter(name), value) for name, value in before.items())


def test_equal_grey_slices_give_what_the_2d_network_gives(densenet121):
    trunk = DenseNet3D("none", 3).eval()
    load_torchvision_densenet(trunk, densenet121.state_dict(), stem_weights="sum")
    image = torch.randn(2, 1, 64, 64)
    features = densenet121.features
    with torch.no_grad():
        ours = trunk(image.unsqueeze(2).expand(-1, -1, 3, -1, -1))
        x = features.pool0(features.relu0(features.norm0(features.conv0(image.expand(-1, 3, -1, -1)))))
        for i in (1, 2, 3):
            x = features.get_submodule(f"denseblock{i}")(x)
            for k in range(3):
                torch.testing.assert_close(ours[f"dense{i}"][:, :, k], x, rtol=1e-4, atol=1e-4)
            x = features.get_submodule(f"transition{i}")(x)


def test_a_shallower_trunk_must_fit(densenet121):
    with pytest.raises(ValueError, match=r"denseblock1.denselayer6.norm1.weight: no such parameter in the trunk"):
        load_torchvision_densenet(DenseNet3D("none", 3, block_config=(5, 12, 24)), densenet121.state_dict())


def test_every_key_is_accounted_for(densenet121):
    state_dict = densenet121.state_dict()
    with pytest.raises(ValueError, match=r"features.extra.weight: no such parameter"):
        load_torchvision_densenet(DenseNet3D("none", 3), {**state_dict, "features.extra.weight": torch.zeros(1)})
    missing = {key: value for key, value in state_dict.items() if key != "features.norm0.bias"}
    with pytest.raises(ValueError, match=r"norm0.bias: no value for it"):
        load_torchvision_densenet(DenseNet3D("none", 3), missing)
    wide = torchvision.models.densenet161().state_dict()
    with pytest.raises(ValueError, match=r"conv0.weight: expected shape \(64, 1, 7, 7\), got \(96, 1, 7, 7\)"):
        load_torchvision_densenet(DenseNet3D("none", 3), wide)


def test_unknown_stem_weights():
    with pytest.raises(ValueError, match="Choose one of middle, sum"):
        load_torchvision_densenet(DenseNet3D("none", 3), {}, stem_weights="mean")
