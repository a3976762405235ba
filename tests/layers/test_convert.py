import copy
import functools
import pickle
from collections import OrderedDict

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from a3d_det2.layers import A3DConv, AlignShiftConv, FusionConv, I3DConv, P3DConv, SliceConv, convert_to_3d

NETWORKS = ["resnet50", "densenet121", "regnet_y_400mf", "mobilenet_v3_small", "convnext_tiny"]
THICKNESS = torch.tensor([1.0, 5.0])


def network(name: str) -> nn.Module:
    """A torchvision network whose norms have the statistics of their inputs, so that these reach its output."""
    return copy.deepcopy(_network(name))


@functools.cache
def _network(name: str) -> nn.Module:
    torch.manual_seed(0)
    net = pytest.importorskip("torchvision").models.get_model(name)
    for norm in net.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.momentum = 1.0
    with torch.no_grad():
        net(torch.randn(4, 3, 64, 64))
    return net.eval()


def stack_of(image, num_slices):
    return image.unsqueeze(2).expand(-1, -1, num_slices, -1, -1)


class Small(nn.Module):
    """What networks are made of besides: a forward with functions, upsampling, a transposed convolution, a dict."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.norm = nn.BatchNorm2d(16)
        self.body = nn.Sequential(nn.Conv2d(16, 16, 3, stride=2, padding=1, bias=False), nn.GroupNorm(2, 16))
        self.up = nn.ConvTranspose2d(16, 8, 2, stride=2)

    def forward(self, x):
        fine = torch.relu(self.norm(self.stem(x)))
        coarse = self.body(nn.functional.max_pool2d(fine, 2))
        up = self.up(nn.functional.interpolate(coarse, scale_factor=2))
        return OrderedDict(fine=fine, up=up, scores=[coarse.mean((2, 3))])


@pytest.mark.parametrize("name", NETWORKS)
def test_equal_slices_without_fusion_give_what_the_2d_network_gives(name):
    net = network(name)
    image = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        y = convert_to_3d(net, "none", 3)(stack_of(image, 3))
        expected = net(image)
    assert y.shape == (2, 1000, 3)
    for k in range(3):
        torch.testing.assert_close(y[:, :, k], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("op", ["i3d", "p3d", "acs", "tsm", "alignshift", "a3d"])
@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_with_every_operator(name, op):
    net = network(name)
    grouped = any(isinstance(m, nn.Conv2d) and m.groups > 1 for m in net.modules())
    if op == "acs" and grouped:
        with pytest.raises(ValueError, match=r"Cannot convert (features|trunk_output)\..*: ACSConv .* groups = 1"):
            convert_to_3d(net, op, 3)
    slice_wise = (lambda path, conv: conv.groups > 1) if op == "acs" else None
    converted = convert_to_3d(net, op, 3, slice_wise=slice_wise)
    state_dict = net.state_dict()
    assert state_dict.keys() == {k for k in converted.state_dict() if not k.endswith("fusion_weight")}
    for path, module in converted.named_modules():
        if isinstance(module, FusionConv):
            assert torch.equal(module.weight, module.from_2d(state_dict[f"{path}.weight"]))
        if isinstance(module, P3DConv):
            middle = (module.depth - 1) // 2  # it starts without fusion: take some of the next slice
            module.fusion_weight.data[:, :, middle + 1] += 0.05 * module.fusion_weight[:, :, middle]
        assert type(module) is not nn.Conv2d
    x = stack_of(torch.randn(2, 3, 64, 64), 3)
    with torch.no_grad():
        y = converted(x, THICKNESS)
        other = converted(torch.cat([x[:, :, :2], x[:, :, 2:] + 1], dim=2), THICKNESS)
        apart = torch.cat([converted(x[i : i + 1], THICKNESS[i : i + 1]) for i in range(2)])
    assert y.shape == (2, 1000, 3)
    assert (y[:, :, 1] - other[:, :, 1]).abs().max() > 0.01 * y.abs().max()  # slice 2 reaches slice 1
    torch.testing.assert_close(y, apart, rtol=0, atol=1e-3 * y.abs().max().item())  # samples do not reach each other


def test_outputs_of_any_structure():
    net = Small().eval()
    converted = convert_to_3d(net, "none", 5)
    x = torch.randn(2, 3, 5, 16, 16)
    with torch.no_grad():
        y = converted(x)
        expected = [net(x[:, :, k]) for k in range(5)]
    assert type(y) is OrderedDict
    torch.testing.assert_close(y["fine"], torch.stack([e["fine"] for e in expected], 2))
    torch.testing.assert_close(y["up"], torch.stack([e["up"] for e in expected], 2))
    torch.testing.assert_close(y["scores"][0], torch.stack([e["scores"][0] for e in expected], 2))


def test_batch_norm_is_over_batch_and_slices():
    net = Small()
    converted = convert_to_3d(net, "none", 5)
    x = torch.randn(2, 3, 5, 16, 16)
    norm3d = nn.BatchNorm3d(16)
    fine = torch.stack([net.stem(x[:, :, k]) for k in range(5)], 2)
    torch.testing.assert_close(converted(x)["fine"], torch.relu(norm3d(fine)))
    torch.testing.assert_close(converted.norm.running_var, norm3d.running_var)


def test_the_network_given_stays_as_it_is():
    net = Small()
    net.stem.weight.requires_grad_(False)
    before = copy.deepcopy(net.state_dict())
    converted = convert_to_3d(net, "a3d", 3)
    assert type(net.stem) is nn.Conv2d
    assert not net._forward_hooks
    assert not converted.stem.weight.requires_grad  # what was frozen stays frozen
    assert converted.stem.fusion_weight.requires_grad  # what is new is trained
    with torch.no_grad():
        converted.body[0].weight.zero_()
    assert all(torch.equal(a, b) for a, b in zip(before.values(), net.state_dict().values(), strict=True))


def test_grey_stem():
    net = Small().eval()
    grey = torch.randn(2, 1, 16, 16)
    summed = convert_to_3d(net, "none", 3, stem_weights="sum")
    assert summed.stem.weight.shape == (16, 1, 3, 3)
    with torch.no_grad():
        expected = net(grey.expand(-1, 3, -1, -1))["up"]
        torch.testing.assert_close(summed(stack_of(grey, 3))["up"][:, :, 1], expected, rtol=1e-4, atol=1e-5)
    middle = convert_to_3d(net, "none", 3, stem_weights="middle")
    assert torch.equal(middle.stem.weight, net.stem.weight[:, 1:2])


def test_slice_wise_and_options():
    net = Small()
    paths = []

    def slice_wise(path, conv):
        paths.append((path, conv.in_channels))
        return path == "stem"

    converted = convert_to_3d(net, "a3d", 3, slice_wise=slice_wise, thickness_aware=True)
    assert paths == [("stem", 3), ("body.0", 16)]
    assert type(converted.stem) is SliceConv
    assert converted.body[0].thickness_aware


def test_thickness_reaches_the_operators():
    converted = convert_to_3d(Small(), "alignshift", 3).eval()
    x = torch.randn(2, 3, 3, 16, 16)
    with torch.no_grad():
        thin, mixed = (
            converted(x, torch.tensor([2.0, 2.0]))["up"],
            converted(x, thickness=torch.tensor([2.0, 8.0]))["up"],
        )
    assert torch.equal(thin[0], mixed[0])
    assert not torch.allclose(thin[1], mixed[1])
    with pytest.raises(ValueError, match=r"Expected the slice thickness .* \(2,\). Got None"):
        converted(x)


def test_thickness_reaches_a_part_that_is_checkpointed():
    class Checkpointed(Small):
        def forward(self, x):
            return checkpoint(self.body, torch.relu(self.stem(x)), use_reentrant=False)

    torch.manual_seed(0)
    plain, wrapped = nn.Sequential(), Checkpointed()
    plain = nn.Sequential(wrapped.stem, nn.ReLU(), wrapped.body)
    x = torch.randn(2, 3, 3, 16, 16)
    grads = []
    for net in (plain, wrapped):
        converted = convert_to_3d(net, "alignshift", 3)
        converted(x, THICKNESS).square().sum().backward()
        grads.append([p.grad for p in (converted[0] if net is plain else converted.stem).parameters()])
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b)


class SelfCheckpointed(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(8, 4, 3, padding=1)

    def forward(self, x):
        return checkpoint(self.conv, x, use_reentrant=False)


def gradients(converted, order):
    """The gradient of two samples of different thickness, forward and backward in the given order."""
    torch.manual_seed(0)
    losses = {}
    for step in order:
        name = step[-1]
        if step.startswith("forward"):
            x = torch.randn(1, 8, 3, 5, 5, generator=torch.Generator().manual_seed(int(name)))
            losses[name] = converted(x, torch.tensor([float(name)])).square().sum()
        elif step == "evaluate":
            with torch.no_grad():
                converted(torch.randn(2, 8, 3, 5, 5), torch.tensor([7.0, 7.0]))
        else:
            losses[name].backward()
    return converted[0].conv.weight.grad if hasattr(converted[0], "conv") else converted[0].weight.grad


def test_recomputation_has_the_thickness_of_its_forward():
    net = nn.Sequential(SelfCheckpointed())
    plain = nn.Sequential(net[0].conv)
    expected = gradients(convert_to_3d(plain, "alignshift", 3), ["forward 2", "backward 2", "forward 5", "backward 5"])
    order = ["forward 2", "evaluate", "backward 2", "forward 5", "evaluate", "backward 5"]
    torch.testing.assert_close(gradients(convert_to_3d(net, "alignshift", 3), order), expected)
    order = ["forward 2", "forward 5", "backward 2", "backward 5"]
    torch.testing.assert_close(gradients(convert_to_3d(plain, "alignshift", 3), order), expected)
    with pytest.raises(RuntimeError, match="run the backward of each before the next"):
        gradients(convert_to_3d(net, "alignshift", 3), order)


def test_a_single_convolution():
    conv = nn.Conv2d(8, 6, 3, padding=1)
    converted = convert_to_3d(conv, "a3d", 3)
    assert type(converted) is A3DConv
    x = torch.randn(2, 8, 3, 5, 5)
    torch.testing.assert_close(converted(x)[:, :, 1], conv(converted.mix(x)[:, :, 1]))
    assert type(convert_to_3d(conv, "alignshift", 3, reference_thickness=1.0)) is AlignShiftConv


def test_a_shared_convolution_stays_shared():
    conv = nn.Conv2d(4, 4, 1)
    converted = convert_to_3d(nn.Sequential(conv, nn.Sequential(conv)), "i3d", 3)
    assert type(converted[0]) is I3DConv
    assert converted[1][0] is converted[0]
    converted(torch.randn(1, 4, 3, 2, 2))


def test_a_subclass_with_a_forward_of_its_own():
    class Scaled(nn.Conv2d):
        def __init__(self, *args):
            super().__init__(*args)
            self.norm = nn.BatchNorm2d(self.out_channels)

        def forward(self, x):
            return 2 * self.norm(super().forward(x))

    def scale(fusion_conv, original):
        fusion_conv.norm = original.norm
        fusion_conv.register_forward_hook(lambda conv, args, y: 2 * conv.norm(y))

    net = nn.Sequential(nn.Conv2d(3, 4, 1), Scaled(4, 4, 3)).eval()
    with pytest.raises(ValueError, match=r"(?s)Cannot convert 1, Scaled\(.*Scaled has a forward of its own"):
        convert_to_3d(net, "a3d", 3)
    converted = convert_to_3d(net, "none", 3, subclasses={Scaled: scale})
    x = torch.randn(2, 3, 3, 8, 8)
    torch.testing.assert_close(converted(x)[:, :, 2], net(x[:, :, 2]))
    assert converted.state_dict().keys() == net.state_dict().keys()


class Listed(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self._convs = [self.conv]


class Aliased(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.call = self.conv.forward


class Scaling(nn.Conv2d):
    def __init__(self, *args):
        super().__init__(*args)
        self.scale = nn.Parameter(torch.ones(1))


def tied() -> nn.Module:
    net = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1))
    net[1].weight = net[0].weight
    return net


@pytest.mark.parametrize(
    ("net", "message"),
    [
        (
            nn.Sequential(nn.Conv2d(3, 4, 1), nn.Sequential(nn.Conv3d(4, 4, 1))),
            r"convert 1\.0, a Conv3d: it works on vol",
        ),
        (nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm3d(4)), "convert 1, a BatchNorm3d: it works on volumes"),
        (nn.Sequential(nn.LazyConv2d(4, 1)), "convert 0, a LazyConv2d: it does not know its channels"),
        (nn.Sequential(nn.Conv2d(3, 4, 1, padding_mode="reflect")), "convert 0, Conv2d.*padding_mode.* Got 'reflect'"),
        (nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 4, 1))), "convert 0, .*parametrized"),
        (nn.Sequential(nn.utils.spectral_norm(nn.Conv2d(3, 4, 1))), "convert 0, Conv2d.*it has hooks"),
        (nn.Sequential(SliceConv(3, 4, 1, 3)), "convert 0, a SliceConv: it is a fusion conv already"),
        (nn.Sequential(nn.Linear(3, 4)), "convert Sequential: there is no nn.Conv2d"),
        (nn.Sequential(nn.ReLU(), Aliased()), "convert 1, a Aliased: it keeps a convolution in call, a method"),
        (nn.Sequential(nn.Conv2d(3, 4, 1), Scaling(4, 4, 1)), "convert 1, Scaling.* has scale beside weight and bias"),
        (tied(), "convert 1: it shares a parameter with 0"),
        (nn.Sequential(nn.ReLU(), Listed()), "convert 1, a Listed: it keeps a convolution in _convs, a list"),
    ],
)
def test_what_cannot_be_converted_is_named_by_its_path(net, message):
    with pytest.raises(ValueError, match=message):
        convert_to_3d(net, "a3d", 3)


def test_bad_arguments():
    net = Small()
    with pytest.raises(ValueError, match="Unknown fusion operator 'c3d'"):
        convert_to_3d(net, "c3d", 3)
    with pytest.raises(ValueError, match="num_slices >= 1. Got 0"):
        convert_to_3d(net, "a3d", 0)
    with pytest.raises(ValueError, match="Unknown stem_weights 'mean'. Choose one of middle, sum"):
        convert_to_3d(net, "a3d", 3, stem_weights="mean")
    with pytest.raises(ValueError, match="needs a first convolution with 3 input channels. Got 0, Conv2d.1,"):
        convert_to_3d(nn.Sequential(nn.Conv2d(1, 4, 1)), "a3d", 3, stem_weights="sum")
    with pytest.raises(TypeError, match="thickness_aware"):
        convert_to_3d(net, "tsm", 3, thickness_aware=True)


@pytest.mark.parametrize("shape", [(2, 3, 16, 16), (2, 3, 5, 16, 16)])
def test_wrong_shape_is_named(shape):
    with pytest.raises(ValueError, match=r"converted Small takes .* D = 3. Got \(2, 3, "):
        convert_to_3d(Small(), "a3d", 3)(torch.randn(shape))


def test_converted_networks_are_copied_pickled_and_compiled():
    converted = convert_to_3d(Small(), "alignshift", 3).eval()
    x = torch.randn(2, 3, 3, 16, 16)
    expected = converted(x, THICKNESS)["up"]
    twin = copy.deepcopy(converted)
    torch.testing.assert_close(twin(x, THICKNESS)["up"], expected)
    twin(x, 4 * THICKNESS)
    assert twin.stem.weight.data_ptr() != converted.stem.weight.data_ptr()
    torch.testing.assert_close(pickle.loads(pickle.dumps(converted))(x, THICKNESS)["up"], expected)
    torch._dynamo.reset()
    compiled = torch.compile(converted, backend="aot_eager")
    for factor in (1, 4):
        torch.testing.assert_close(compiled(x, factor * THICKNESS)["up"], converted(x, factor * THICKNESS)["up"])


def test_kernels_of_other_modules_are_named():
    deform = pytest.importorskip("torchvision").ops.DeformConv2d(3, 4, 1)
    with pytest.raises(
        ValueError, match="convert 1, a DeformConv2d: it has a convolution's kernel but is no nn.Conv2d"
    ):
        convert_to_3d(nn.Sequential(nn.Conv2d(3, 3, 1), deform), "a3d", 3)


def test_a_convolution_that_is_not_called_is_named(caplog):
    class Functional(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)

        def forward(self, x):
            return nn.functional.conv2d(self.a(x), self.b.weight)

    converted = convert_to_3d(Functional(), "a3d", 3)
    for _ in range(2):
        converted(torch.randn(1, 3, 3, 4, 4))
    (record,) = caplog.records
    assert "The first forward of the converted Functional did not call b. If it uses" in record.getMessage()


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (lambda x: x.sum((0, 2, 3)), r"Expected outputs of shape \(N \* D, ...\) = \(6, ...\) .* Got \(4,\)"),
        (lambda x: {"a": object()}, "gives tensors, in tuples, lists or dicts. Got a object"),
    ],
)
def test_outputs_that_cannot_be_unfolded(output, message):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 1)

        def forward(self, x):
            return output(self.conv(x))

    with pytest.raises(ValueError, match=message):
        convert_to_3d(Net(), "a3d", 3)(torch.randn(2, 3, 3, 4, 4))


def test_scalars_and_vectors_come_out():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 1)

        def forward(self, x):
            y = self.conv(x)
            return y.mean(), y.mean((1, 2, 3)), None, "name"

    loss, vector, none, name = convert_to_3d(Net(), "none", 3)(torch.randn(2, 3, 3, 4, 4))
    assert (loss.shape, vector.shape, none, name) == ((), (2, 3), None, "name")


def test_parts_of_a_converted_network_say_what_they_take():
    converted = convert_to_3d(Small(), "a3d", 3)
    with pytest.raises(ValueError, match=r"slices are in the batch, .* Got \(2, 3, 3, 8, 8\)"):
        converted.stem(torch.randn(2, 3, 3, 8, 8))


def test_compiled_for_two_batch_sizes():
    resnet = pytest.importorskip("torchvision.models.resnet")
    net = resnet.ResNet(resnet.BasicBlock, [1, 1, 1, 1]).eval()
    converted = convert_to_3d(net, "alignshift", 3)
    torch._dynamo.reset()
    compiled = torch.compile(converted, backend="aot_eager")
    for n in (2, 1, 3):
        x, thickness = torch.randn(n, 3, 3, 32, 32), torch.full((n,), 3.0)
        torch.testing.assert_close(compiled(x, thickness), converted(x, thickness), rtol=1e-3, atol=1e-3)
