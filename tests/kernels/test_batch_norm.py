import copy

import pytest
import torch
from torch import nn
from torch.multiprocessing import spawn

from a3d_det2.kernels.batch_norm import (
    Statistics,
    add_channel_statistics_backward,
    batch_statistics,
    channel_statistics,
    coefficients,
    is_affine,
    over_processes,
    update_running_statistics,
)
from a3d_det2.kernels.mixing import mix_slices
from tests.kernels.mixing_cases import LAYOUTS


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float, torch.double, torch.bfloat16])
def test_channel_statistics(layout, dtype):
    torch.manual_seed(0)
    for shape in ((2, 5, 3, 4, 7), (1, 35, 2, 9, 31), (3, 1, 1, 1, 1)):
        # Far from 0: squares must not be summed up as they are.
        x = LAYOUTS[layout]((torch.randn(shape, dtype=torch.double) + 100).to(dtype))
        mean, var = channel_statistics(x)
        expected_var, expected_mean = torch.var_mean(x.double(), (0, 2, 3, 4), correction=0)
        tolerance = 1e-12 if dtype == torch.double else 1e-5
        torch.testing.assert_close(mean.double(), expected_mean, rtol=tolerance, atol=0)
        torch.testing.assert_close(var.double(), expected_var, rtol=tolerance, atol=1e-9)
        assert mean.dtype == var.dtype == (torch.double if dtype == torch.double else torch.float)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last_3d"])
@pytest.mark.parametrize("value", [0.0, 1000.0])
def test_statistics_are_accurate_beside_an_outlier(layout, value):
    x = torch.rand(1, 3, 3, 128, 128) + 30
    x[..., 0, 0] = value
    x = LAYOUTS[layout](x)
    mean, var = channel_statistics(x)
    expected_var, expected_mean = torch.var_mean(x.double(), (0, 2, 3, 4), correction=0)
    torch.testing.assert_close(mean.double(), expected_mean, rtol=1e-6, atol=0)
    torch.testing.assert_close(var.double(), expected_var, rtol=1e-5, atol=0)


def test_bfloat16_gradients_are_rounded_once():
    """factor x + offset cancel: rounded each for itself, they would leave the same error at all pixels."""
    torch.manual_seed(0)
    x = (100 + torch.randn(1, 2, 3, 8, 8)).bfloat16()
    mean, _ = channel_statistics(x)
    grads = torch.randn(2), 100 * torch.rand(2)
    got = add_channel_statistics_backward(torch.zeros_like(x), x, mean, *grads)
    exact = add_channel_statistics_backward(torch.zeros_like(x).double(), x.double(), mean.double(), *grads)
    assert got.dtype == torch.bfloat16
    assert ((got.double() - exact).abs() <= 2**-8 * exact.abs() + 1e-5).all()


def test_statistics_gradients():
    x = torch.randn(2, 3, 2, 3, 2, dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: batch_statistics(nn.BatchNorm3d(3), x)[:2], (x,))


@pytest.mark.parametrize("training", [True, False])
def test_is_batch_norm_and_relu(training):
    """Output, gradients and buffers, over several steps."""
    torch.manual_seed(0)
    norm = nn.BatchNorm3d(5, momentum=0.3).double().train(training)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2)
    plain = copy.deepcopy(norm)
    for _ in range(3):
        x = torch.randn(2, 5, 3, 4, 4, dtype=torch.double, requires_grad=True)
        y = x.detach().clone().requires_grad_()
        statistics = batch_statistics(norm, x) if training else None
        got = mix_slices(x, None, *coefficients(norm, statistics))
        if training:
            update_running_statistics(norm, statistics)
        expected = torch.relu(plain(y))
        torch.testing.assert_close(got, expected)
        weights = torch.randn_like(got)
        got.backward(weights)
        expected.backward(weights)
        torch.testing.assert_close(x.grad, y.grad)
    for a, b in zip(norm.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)
    for a, b in zip(norm.buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(a, b)


def test_which_norms_are_affine():
    hooked = nn.BatchNorm3d(3)
    hooked.register_forward_hook(lambda *args: None)
    others = [nn.GroupNorm(1, 3), nn.InstanceNorm3d(3), nn.BatchNorm3d(3, affine=False), hooked]
    others += [nn.BatchNorm3d(3, track_running_stats=False), nn.BatchNorm3d(3, momentum=None)]
    assert not any(is_affine(norm) for norm in others)
    assert all(is_affine(norm) for norm in (nn.BatchNorm3d(3), nn.SyncBatchNorm(3), nn.BatchNorm3d(3).eval()))


def test_one_value_per_channel_is_an_error():
    with pytest.raises(ValueError, match="Expected more than one value per channel in training. Got 1"):
        batch_statistics(nn.BatchNorm3d(3), torch.zeros(1, 3, 1, 1, 1))


def test_cat():
    a, b = (Statistics(torch.full((n,), float(n)), torch.zeros(n), 7) for n in (1, 2))
    assert Statistics.cat([a, b]).mean.tolist() == [1, 2, 2]
    assert Statistics.cat([a, b]).count == 7


def _process(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"file://{folder}/store", world_size=2, rank=rank)
    x = torch.load(f"{folder}/input.pt")[[slice(0, 1), slice(1, 4)][rank]].requires_grad_()  # batches differ
    mean, var = torch.var_mean(x, (0, 2, 3, 4), correction=0)[::-1]
    statistics = over_processes(mean, var, x.numel() // x.shape[1])
    torch.save([t.detach() for t in statistics], f"{folder}/statistics{rank}.pt")
    weights = torch.arange(1.0, 4, dtype=x.dtype) * (rank + 1)
    ((statistics.mean + 2 * statistics.var) * weights).sum().backward()
    torch.save(x.grad, f"{folder}/gradient{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_statistics_over_processes(tmp_path):
    """As over the joint batch, where the losses of the processes are added."""
    x = torch.randn(4, 3, 2, 3, 3, dtype=torch.double).add_(5).requires_grad_()
    torch.save(x.detach(), tmp_path / "input.pt")
    spawn(_process, (str(tmp_path),), nprocs=2)
    var, mean = torch.var_mean(x, (0, 2, 3, 4), correction=0)
    ((mean + 2 * var) * torch.arange(1.0, 4, dtype=x.dtype) * 3).sum().backward()
    for rank in (0, 1):
        got_mean, got_var, count = torch.load(tmp_path / f"statistics{rank}.pt")
        torch.testing.assert_close(got_mean, mean.detach())
        torch.testing.assert_close(got_var, var.detach())
        assert count == x.numel() // 3
    gradient = torch.cat([torch.load(tmp_path / f"gradient{rank}.pt") for rank in (0, 1)])
    torch.testing.assert_close(gradient, x.grad)
