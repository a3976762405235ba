"""How the slice thickness reaches the operators, whatever lies between."""

import threading

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from a3d_det2.layers import A3DConv, AlignShiftConv, convert_to_3d
from a3d_det2.layers.thickness import current_thickness, slice_thickness
from a3d_det2.modeling import DenseNet3D

THIN, THICK = torch.tensor([1.0, 2.0]), torch.tensor([5.0, 8.0])


def stack() -> torch.Tensor:
    return torch.randn(2, 8, 3, 6, 6, generator=torch.Generator().manual_seed(0))


def test_scopes_stand_in_each_other_and_end_with_an_error():
    assert current_thickness() is None
    with slice_thickness(THIN):
        with slice_thickness(None):
            assert current_thickness() is THIN
        with slice_thickness(THICK):
            assert current_thickness() is THICK
        with pytest.raises(ValueError, match="missing"), slice_thickness(THICK):
            raise ValueError("missing")
        assert current_thickness() is THIN
    assert current_thickness() is None


def test_a_scope_is_of_one_thread():
    seen = []
    with slice_thickness(THIN):
        thread = threading.Thread(target=lambda: seen.append(current_thickness()))
        thread.start()
        thread.join()
    assert seen == [None]


@pytest.mark.parametrize("conv", [AlignShiftConv(8, 4, 3, 3), A3DConv(8, 4, 3, 3, thickness_aware=True)])
def test_an_operator_takes_it_from_the_scope_unless_it_is_given(conv):
    expected = {t: conv(stack(), t) for t in (THIN, THICK)}
    assert not torch.allclose(expected[THIN], expected[THICK])
    with slice_thickness(THICK):
        assert torch.equal(conv(stack()), expected[THICK])
        assert torch.equal(conv(stack(), THIN), expected[THIN])
    with pytest.raises(ValueError, match="Expected the slice thickness in mm"):
        conv(stack())


def test_networks_take_it_from_the_scope():
    small = {"block_config": (1,), "growth_rate": 4, "num_init_features": 8, "bn_size": 2}
    trunk = DenseNet3D("alignshift", 3, **small).eval()
    converted = convert_to_3d(nn.Sequential(nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)), "alignshift", 3)
    for net, x in ((trunk, stack()[:, :1]), (converted, stack())):
        with slice_thickness(THICK):
            inside = net(x)
        expected = net(x, THICK)
        inside, expected = (y["dense1"] if net is trunk else y for y in (inside, expected))
        torch.testing.assert_close(inside, expected)


def test_a_converted_network_that_fails_leaves_no_thickness_behind():
    class Failing(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(8, 4, 1)

        def forward(self, x):
            self.conv(x)
            raise RuntimeError("out of memory")

    converted = convert_to_3d(Failing(), "alignshift", 3)
    with slice_thickness(THIN):
        for x, error in ((stack(), RuntimeError), (stack()[:, :, :2], ValueError)):
            with pytest.raises(error):
                converted(x, THICK)
            assert current_thickness() is THIN
    assert current_thickness() is None


@pytest.mark.parametrize("checkpointing", ["layer", "block"])
@pytest.mark.parametrize("plain", [False, True])
def test_what_is_run_again_in_the_backward_has_the_thickness_of_its_forward(checkpointing, plain):
    from a3d_det2.kernels.mixing import plain_mixing

    gradients = []
    for kind in ("", checkpointing):
        torch.manual_seed(0)
        net = DenseNet3D("alignshift", 3, (2,), growth_rate=4, num_init_features=8, bn_size=2, checkpointing=kind)
        with plain_mixing() if plain else slice_thickness(None):
            losses = []
            for thickness in (THIN, THICK):
                with slice_thickness(thickness):
                    losses.append(net(stack()[:, :1])["dense1"].square().sum())
            with slice_thickness(torch.tensor([50.0, 50.0])):  # of somebody else, in the backward
                sum(losses).backward()
        gradients.append([p.grad for p in net.parameters()])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4 * float(a.abs().max()))


def test_a_checkpointed_network_opens_the_scope_itself():
    conv = AlignShiftConv(8, 4, 3, 3)

    def run(x):
        with slice_thickness(THICK):
            return conv(x)

    checkpoint(run, stack().requires_grad_(), use_reentrant=False).sum().backward()
    assert conv.weight.grad is not None


def test_a_forward_within_a_backward_has_its_own_thickness():
    converted, seen = convert_to_3d(nn.Sequential(nn.Conv2d(8, 4, 3)), "alignshift", 3), []
    y = converted(stack(), THIN)
    y.register_hook(lambda grad: seen.append(converted(stack(), THICK).detach()))
    y.sum().backward()
    assert torch.equal(seen[0], converted(stack(), THICK))


def test_checkpointing_around_a_converted_network():
    converted = convert_to_3d(nn.Sequential(nn.Conv2d(8, 4, 3)), "alignshift", 3)
    gradients = []
    for run in (lambda *args: checkpoint(converted, *args, use_reentrant=False), converted):
        converted.zero_grad()
        (run(stack(), THIN) + 2 * run(stack(), THICK)).square().sum().backward()
        gradients.append(converted[0].weight.grad.clone())
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("strict", [True, False])
def test_a_converted_network_is_exported(strict):
    converted = convert_to_3d(nn.Sequential(nn.Conv2d(8, 4, 3)), "alignshift", 3).eval()
    exported = torch.export.export(converted, (stack(), THIN), strict=strict).module()
    for thickness in (THIN, THICK):
        torch.testing.assert_close(exported(stack(), thickness), converted(stack(), thickness))


def test_a_converted_network_cannot_be_replicated():
    converted = convert_to_3d(nn.Sequential(nn.Conv2d(8, 4, 3)), "alignshift", 3)
    with pytest.raises(NotImplementedError, match="converted Sequential cannot be replicated by DataParallel"):
        converted._replicate_for_data_parallel()


class Scoped(nn.Module):
    def __init__(self, op: str, **options):
        super().__init__()
        self.trunk = DenseNet3D(op, 3, (1,), growth_rate=4, num_init_features=8, bn_size=2, **options)

    def forward(self, x, thickness):
        with slice_thickness(thickness):
            return self.trunk(x)["dense1"]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("how", ["trace", "export", "compile"])
@pytest.mark.parametrize("options", [{"op": "alignshift"}, {"op": "a3d", "thickness_aware": True}])
def test_an_exported_network_takes_it_as_an_input(options, how):
    torch.manual_seed(0)
    net, x = Scoped(**options).eval(), stack()[:, :1]
    with torch.no_grad():
        if how == "trace":
            exported = torch.jit.trace(net, (x, THIN), check_trace=False)
        elif how == "export":
            exported = torch.export.export(net, (x, THIN)).module()
        else:
            exported = torch.compile(net, backend="aot_eager", fullgraph=True)
        for thickness in (THIN, THICK):
            torch.testing.assert_close(exported(x, thickness), net(x, thickness), rtol=1e-4, atol=1e-4)
        assert not torch.allclose(exported(x, THIN), exported(x, THICK))
    assert current_thickness() is None
