"""The fast dense blocks against the plain ones, in float64."""

import copy
import math

import pytest
import torch
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.profiler import ProfilerActivity, profile

from a3d_det2.kernels import cpu, fast_block
from a3d_det2.kernels.mixing import plain_mixing
from a3d_det2.layers import FUSION_CONVS, A3DConv
from a3d_det2.modeling import DenseNet3D
from a3d_det2.modeling.densenet import DenseLayer, Transition

pytestmark = pytest.mark.skipif(cpu.unavailable() is not None, reason=str(cpu.unavailable()))

SMALL = {"block_config": (2, 3), "growth_rate": 5, "num_init_features": 6, "bn_size": 2}


def trunk(op: str, **options) -> DenseNet3D:
    torch.manual_seed(0)
    net = DenseNet3D(op, 5, **{**SMALL, **options}).double()
    for name, tensor in [*net.named_buffers(), *net.named_parameters()]:
        if "running_var" in name:
            tensor.uniform_(0.5, 2)
        elif "running_mean" in name or ("norm" in name and tensor.is_floating_point()):
            nn.init.normal_(tensor)
    return net


def results(net: DenseNet3D, gradients: bool = True) -> dict[str, torch.Tensor]:
    """Everything that a forward and backward gives or changes."""
    torch.manual_seed(1)
    x = torch.randn(2, 1, 5, 36, 20, dtype=torch.double, requires_grad=gradients)
    thickness = torch.tensor([1.0, 5.0], dtype=torch.double)
    net.zero_grad()
    found = {}
    with torch.set_grad_enabled(gradients):
        outputs = net(x, thickness)
        if gradients:
            sum((y * torch.randn(y.shape, dtype=y.dtype)).sum() for y in outputs.values()).backward()
            found["image"] = x.grad
            found |= {f"gradient of {name}": p.grad for name, p in net.named_parameters() if p.grad is not None}
    found |= {name: y.detach() for name, y in outputs.items()}
    return {**found, **{f"buffer {name}": buffer.clone() for name, buffer in net.named_buffers()}}


def assert_same(net: DenseNet3D, gradients: bool = True) -> None:
    other = copy.deepcopy(net)
    got = results(net, gradients)
    with plain_mixing():
        expected = results(other, gradients)
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(got[name], value, rtol=1e-9, atol=1e-10 * float(value.abs().max()), msg=name)


@pytest.mark.parametrize("checkpointing", fast_block.CHECKPOINTS)
@pytest.mark.parametrize("op", FUSION_CONVS)
def test_training_as_plain(op, checkpointing):
    assert_same(trunk(op, checkpointing=checkpointing))


@pytest.mark.parametrize("op", FUSION_CONVS)
def test_inference_as_plain(op, monkeypatch):
    monkeypatch.setattr(fast_block, "STRIPE_BYTES", 4096)  # several stripes, the last one smaller
    net = trunk(op).eval()
    assert len(fast_block.stripes(torch.empty(2, 6, 5, 9, 5, dtype=torch.double), 6)) > 2
    assert_same(net, gradients=False)
    assert_same(net, gradients=True)  # norms do not train, the rest does
    assert_same(net.train(), gradients=False)


def test_thickness_aware():
    for checkpointing in fast_block.CHECKPOINTS:
        assert_same(trunk("a3d", thickness_aware=True, checkpointing=checkpointing))
    assert_same(trunk("a3d", thickness_aware=True).eval(), gradients=False)


def test_frozen_parts():
    net = trunk("a3d")
    for name, parameter in net.named_parameters():
        parameter.requires_grad_("denselayer2" in name)
    net.denseblock1.denselayer1.norm1.eval()
    net.denseblock2.denselayer2.norm2.eval()
    assert_same(net)


def test_other_norms_and_hooks_take_the_plain_path():
    net = trunk("a3d", norm=lambda channels: nn.GroupNorm(1, channels), checkpointing="layer")
    assert_same(net)
    net, seen = trunk("a3d"), []
    net.denseblock1.denselayer2.conv1.register_forward_hook(lambda module, args, y: seen.append(y))
    assert_same(net)
    assert len(seen) == 2


def test_backward_twice_and_no_second_derivatives():
    net = trunk("a3d")
    x = torch.randn(1, 1, 5, 16, 16, dtype=torch.double, requires_grad=True)
    loss = net(x)["dense2"].square().sum()
    first, second = (torch.autograd.grad(loss, x, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)
    (gradient,) = torch.autograd.grad(loss, x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def test_outputs_are_not_written_to_and_the_input_neither():
    net = trunk("a3d").eval()
    x = torch.randn(1, 1, 5, 16, 16, dtype=torch.double)
    kept = x.clone()
    with torch.no_grad():
        first = net(x)
        copies = {name: y.clone() for name, y in first.items()}
        net(x + 1)
    assert torch.equal(x, kept)
    assert all(torch.equal(first[name], y) for name, y in copies.items())


def test_gradient_of_an_output_is_not_changed():
    net = trunk("none")
    y = net(torch.randn(1, 1, 5, 16, 16, dtype=torch.double))["dense2"]
    gradient = torch.randn_like(y)
    kept = gradient.clone()
    y.backward(gradient)
    assert torch.equal(gradient, kept)


def test_an_output_that_is_overwritten_is_noticed():
    net = trunk("a3d", block_config=(2,))
    y = net(torch.randn(1, 1, 5, 16, 16, dtype=torch.double))["dense1"]
    y.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.square().sum().backward()


def test_stripes_of_an_odd_height(monkeypatch):
    monkeypatch.setattr(fast_block, "STRIPE_BYTES", 1024)
    transition = Transition(3, 8, 4, "BN").double().eval()
    x = torch.randn(1, 8, 3, 13, 5, dtype=torch.double)
    with torch.no_grad():
        y = transition(x)
        with plain_mixing():
            torch.testing.assert_close(y, transition(x))


@pytest.mark.parametrize("checkpointing", ["layer", "block"])
def test_plain_checkpointing_twice(checkpointing):
    with plain_mixing():
        net = trunk("a3d", checkpointing=checkpointing)
        loss = net(torch.randn(1, 1, 5, 16, 16, dtype=torch.double))["dense2"].square().sum()
        weight = net.conv0.weight
        first, second = (torch.autograd.grad(loss, weight, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)
    assert net.denseblock1.denselayer1.norm1.num_batches_tracked == 1


def test_backward_where_the_forward_was_not():
    net, x = trunk("a3d"), torch.randn(1, 1, 5, 16, 16, dtype=torch.double)
    loss = net(x)["dense2"].square().sum()
    with plain_mixing():
        loss.backward()


def test_blocks_without_layers():
    assert_same(trunk("a3d", block_config=(2, 0)))


class HalfLayer(DenseLayer):
    def forward(self, x):
        return 0.5 * super().forward(x)


class HalfConv(A3DConv):
    def forward(self, x, thickness=None):
        return 0.5 * super().forward(x, thickness)


class HalfFuse(A3DConv):
    def fuse(self, x, thickness):
        return 0.5 * super().fuse(x, thickness)


class HalfMixing(A3DConv):
    def mixing_weight(self, thickness, batch_size):
        return 0.5 * super().mixing_weight(thickness, batch_size)


def patched(module):
    forward = module.forward
    module.forward = lambda *args: 0.5 * forward(*args)


@pytest.mark.parametrize("gradients", [True, False])
@pytest.mark.parametrize(
    "change",
    [
        lambda layer: setattr(layer, "__class__", HalfLayer),
        lambda layer: setattr(layer.conv1, "__class__", HalfConv),
        lambda layer: setattr(layer.conv2, "__class__", HalfConv),
        lambda layer: setattr(layer.conv2, "__class__", HalfFuse),
        lambda layer: setattr(layer.conv1, "__class__", HalfMixing),
        lambda layer: patched(layer),
        lambda layer: patched(layer.conv2),
        lambda layer: patched(layer.norm2),
    ],
)
def test_what_does_something_else_is_asked(change, gradients):
    """Subclasses and whatever takes the place of a forward: the result is what calling the modules gives."""
    net = trunk("a3d").train(gradients)
    x = torch.randn(1, 1, 5, 16, 16, dtype=torch.double)
    with torch.set_grad_enabled(gradients):
        before = net(x)["dense2"]
        change(net.denseblock1.denselayer1)
        with plain_mixing():
            expected = net(x)["dense2"]
        got = net(x)["dense2"]
    assert not torch.allclose(expected, before)
    torch.testing.assert_close(got, expected)


def test_a_compiled_convolution_is_called():
    net, graphs = trunk("a3d").eval(), []
    torch._dynamo.reset()
    net.denseblock1.denselayer1.conv2.compile(backend=lambda graph, inputs: graphs.append(graph) or graph.forward)
    x = torch.randn(1, 1, 5, 16, 16, dtype=torch.double)
    with torch.no_grad():
        got = net(x)["dense2"]
        assert graphs
        with plain_mixing():
            torch.testing.assert_close(got, net(x)["dense2"])


def test_tensor_modes_see_every_operation():
    net, x = trunk("a3d").eval(), torch.randn(1, 1, 5, 16, 16, dtype=torch.double)
    with torch.no_grad():
        graph = make_fx(lambda x: net(x)["dense2"])(x)
        torch.testing.assert_close(graph(x + 1), net(x + 1)["dense2"])
        with FakeTensorMode(allow_non_fake_inputs=True):
            assert net(torch.empty(1, 1, 5, 16, 16, dtype=torch.double))["dense2"].shape[-1] == 2


def test_autocast_of_a_float32_input():
    net = DenseNet3D("a3d", 3, **SMALL).eval()
    x = torch.rand(1, net.conv0.out_channels, 3, 8, 8)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        y = net.denseblock1(x)
    assert (y - net.denseblock1(x)).abs().max() < 0.1 * y.abs().max()


def saved_bytes(checkpointing: str) -> int:
    """What one forward keeps for its backward, each memory once."""
    net = DenseNet3D("a3d", 5, block_config=(6, 6), checkpointing=checkpointing)
    own = {p.untyped_storage().data_ptr() for p in net.parameters()}
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        outputs = net(torch.randn(1, 1, 5, 64, 64))
    assert outputs
    return sum(kept.values())


def test_checkpointing_keeps_less():
    everything, layer, block = map(saved_bytes, fast_block.CHECKPOINTS)
    assert layer < 0.5 * everything
    assert block < 0.5 * everything  # not less than "layer": the block's output is kept, in which all layers' are
    with plain_mixing():
        everything, layer, block = map(saved_bytes, fast_block.CHECKPOINTS)
        assert layer < 0.7 * everything
        assert block < 0.7 * layer


def test_unknown_checkpointing():
    with pytest.raises(ValueError, match="Unknown checkpointing 'all'"):
        DenseNet3D("a3d", 3, checkpointing="all")


def copied(net: DenseNet3D, x: torch.Tensor, monkeypatch) -> tuple[int, int]:
    """How many values a forward copies or concatenates, and how many its outputs, one for each block, have."""
    cat, concatenated = torch.cat, []  # the profiler does not tell the sizes of these

    def recorded(*args, **kwargs):
        concatenated.append(cat(*args, **kwargs))
        return concatenated[-1]

    monkeypatch.setattr(torch, "cat", recorded)
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as profiled:
        outputs = net(x)
    monkeypatch.undo()
    shapes = [event.input_shapes[0] for event in profiled.events() if event.name == "aten::copy_"]
    shapes += [tensor.shape for tensor in concatenated]
    return sum(math.prod(shape) for shape in shapes if len(shape) >= 4), sum(y.numel() for y in outputs.values())


@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("op", ["none", "a3d"])
def test_no_value_is_copied_twice(op, gradients, monkeypatch):
    net, x = DenseNet3D(op, 3, block_config=(6, 12, 12)).train(gradients), torch.randn(1, 1, 3, 32, 32)
    with torch.set_grad_enabled(gradients):
        moved, values = copied(net, x, monkeypatch)
        assert 0 < moved <= values
        with plain_mixing():
            moved, values = copied(net, x, monkeypatch)
            assert moved > 5 * values


@pytest.mark.filterwarnings("ignore")
def test_traced_by_torch_jit_is_the_plain_path():
    net = DenseNet3D("a3d", 3, **SMALL).eval()
    x = torch.randn(1, 1, 3, 32, 32)
    with torch.no_grad():
        traced = torch.jit.trace(net, x, strict=False, check_trace=False)
        torch.testing.assert_close(traced(x + 1), net(x + 1), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_compiled_by_inductor():
    net = DenseNet3D("a3d", 3, block_config=(2,), growth_rate=8, num_init_features=8)
    compiled = copy.deepcopy(net)
    compiled.compile()
    assert compiled.state_dict().keys() == net.state_dict().keys()
    x = torch.randn(1, 1, 3, 32, 32)
    for module in (net, compiled):
        module(x)["dense1"].square().sum().backward()
    for (name, a), b in zip(net.named_parameters(), compiled.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-3, atol=1e-3 * float(a.grad.abs().max()), msg=name)
