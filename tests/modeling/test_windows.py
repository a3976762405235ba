"""Several windows as channels: of the slices that the mapper gives, into all of ImageNet's first layer."""

import numpy as np
import pytest
import torch
import torchvision
from hypothesis import given
from hypothesis import strategies as st

from a3d_det2.checkpoint import load_torchvision_densenet
from a3d_det2.data import window_hu
from a3d_det2.engine import torchvision_loop
from a3d_det2.layers import FUSION_CONVS
from a3d_det2.layers.thickness import slice_thickness
from a3d_det2.model_zoo import get_config_file
from a3d_det2.modeling.build import build_squeezed_densenet
from a3d_det2.modeling.squeeze import StackedTrunk
from a3d_det2.modeling.windows import WindowChannels
from tests.engine.conftest import TINY

WIDE = (-1024.0, 2050.0)
WINDOWS = [[-175.0, 275.0], [-1024.0, -500.0], [100.0, 1500.0]]


def config(*options):
    return torchvision_loop.load_config(get_config_file("quick/a3d_7slice.yaml"), [*TINY, *map(str, options)])


@given(st.integers(-1024, 2000), st.integers(1, 3000), st.integers(0, 2**32 - 1))
def test_they_are_what_window_hu_gives(low, width, seed):
    window = (float(low), float(min(low + width, 2050)))
    hu = np.random.default_rng(seed).uniform(-2000, 3000, (2, 3, 4, 5)).astype(np.float32)
    channels = WindowChannels([window, WIDE], WIDE)(torch.from_numpy(window_hu(hu, WIDE)))
    assert channels.shape == (2, 2, 3, 4, 5)
    # An input of 24 bits for 3,074 HU: as exact as the narrowest window allows.
    tolerance = 2e-3 + 0.1 / (window[1] - window[0])
    np.testing.assert_allclose(channels[:, 0], window_hu(hu, window), atol=tolerance)
    np.testing.assert_allclose(channels[:, 1], window_hu(hu, WIDE), atol=1e-3)


@pytest.mark.parametrize("window", [(-2000.0, 0.0), (0.0, 3000.0), (10.0, 10.0)])
def test_a_window_that_is_not_within_the_other(window):
    with pytest.raises(ValueError, match="within INPUT.HU_WINDOW"):
        WindowChannels([window], WIDE)


def test_equal_windows_are_the_grey_image():
    """With ImageNet's weights: three equal channels are a grey image repeated three times, which "sum" is exactly."""
    trunk = ["MODEL.A3D.BLOCK_CONFIG", "[6,12,24]", "MODEL.A3D.GROWTH_RATE", 32, "MODEL.A3D.NUM_INIT_FEATURES", 64]
    trunk += ["MODEL.A3D.BN_SIZE", 4, "MODEL.A3D.OPERATOR", "none", "INPUT.HU_WINDOW", WIDE]
    grey = build_squeezed_densenet(config(*trunk)).eval()
    windows = build_squeezed_densenet(config(*trunk, "INPUT.HU_WINDOWS", [list(WIDE)] * 3)).eval()
    imagenet = torchvision.models.densenet121().state_dict()
    load_torchvision_densenet(grey.trunk, imagenet, "sum")
    load_torchvision_densenet(windows.trunk, imagenet)
    assert torch.equal(windows.trunk.conv0.weight, imagenet["features.conv0.weight"])
    windows.squeeze.load_state_dict(grey.squeeze.state_dict())
    x = torch.from_numpy(window_hu(np.random.default_rng(0).uniform(-1024, 2050, (1, 3, 64, 64)), WIDE))
    with torch.no_grad():
        expected, found = grey(x), windows(x)
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-3, atol=1e-3 * float(expected[name].std()))


@pytest.mark.parametrize("op", FUSION_CONVS)
@pytest.mark.parametrize("channels_last", [False, True])
def test_every_operator(op, channels_last):
    torch.manual_seed(0)
    options = ["MODEL.A3D.OPERATOR", op, "INPUT.HU_WINDOWS", WINDOWS, "INPUT.HU_WINDOW", WIDE]
    trunk = build_squeezed_densenet(config(*options))
    x = torch.rand(2, 3, 64, 64) * 255 - 50
    if channels_last:
        x = x.to(memory_format=torch.channels_last)
    with slice_thickness(torch.tensor([2.0, 5.0])):
        features = trunk(x)
    sum(value.square().mean() for value in features.values()).backward()
    assert trunk.trunk.conv0.weight.shape[1] == 3
    grad = trunk.trunk.conv0.weight.grad
    assert all(float(grad[:, i].abs().max()) > 0 for i in range(3))
    assert not any("windows" in name for name in trunk.state_dict())


def test_a_network_with_slices_as_channels_has_none():
    with pytest.raises(ValueError, match="INPUT.HU_WINDOWS are channels of each slice"):
        build_squeezed_densenet(config("INPUT.HU_WINDOWS", [[-150, 250]]), squeezed=StackedTrunk)
