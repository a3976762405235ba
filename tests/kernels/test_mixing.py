import logging
import os
import subprocess
import sys
from contextlib import nullcontext

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from a3d_det2.kernels import cpu, mixing, triton
from a3d_det2.kernels.memory_format import check_same, is_channels_last, is_planes, like
from a3d_det2.kernels.mixing import kernel_for, mix_slices, mix_slices_plain, plain_mixing
from a3d_det2.layers import A3DConv
from tests.kernels.mixing_cases import CASES, LAYOUTS, assert_close, inputs, reference

needs_kernel = pytest.mark.skipif(cpu.unavailable() is not None, reason=str(cpu.unavailable()))
DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")),
]


def run(x, weight, scale, shift, grad) -> list:
    y = mix_slices(x, weight, scale, shift)
    y.backward(grad)
    return [y.detach(), *(None if t is None else t.grad for t in (x, weight, scale, shift))]


def test_plain_by_hand():
    # Two slices of one channel and two pixels; 2 x - 3 is below 0 for the first pixel of the first slice.
    x = torch.tensor([[1.0, 2.0], [3.0, 4.0]]).view(1, 1, 2, 1, 2)
    weight = torch.tensor([[10.0, 1.0], [100.0, 0.0]]).view(2, 2, 1)  # [d, k]
    scale, shift = torch.tensor([2.0]), torch.tensor([-3.0])
    z = [[0, 1], [3, 5]]
    expected = [[10 * z[0][p] + 100 * z[1][p] for p in (0, 1)], [z[0][p] for p in (0, 1)]]
    assert mix_slices_plain(x, weight, scale, shift).view(2, 2).tolist() == expected
    assert mix_slices(x, weight, scale, shift).view(2, 2).tolist() == expected
    assert mix_slices(x, None, scale, shift).view(2, 2).tolist() == z


@needs_kernel
@pytest.mark.parametrize("dtype", [torch.float, torch.double, torch.bfloat16, torch.half])
@pytest.mark.parametrize("device", DEVICES)
def test_equals_the_reference_in_every_layout(device, dtype):
    torch.manual_seed(0)
    for shape, layout, weights, affine in CASES:
        arguments = inputs(shape, layout, dtype, weights, affine, device)
        grad = torch.randn(shape, device=device).to(dtype)
        assert_close(run(*arguments, grad), reference(*arguments, grad), dtype)


@needs_kernel
@settings(max_examples=150, deadline=None)
@given(
    st.tuples(*(st.integers(*ends) for ends in ((0, 3), (1, 40), (1, 33), (0, 9), (0, 9)))),
    st.sampled_from(list(LAYOUTS)),
    st.sampled_from(["none", "shared", "own"]),
    st.booleans(),
    st.sampled_from([torch.float, torch.double, torch.bfloat16]),
    st.integers(0, 9),
)
def test_any_shape(shape, layout, weights, affine, dtype, seed):
    torch.manual_seed(seed)
    arguments = inputs(shape, layout, dtype, weights, affine, "cpu")
    grad = torch.randn(shape).to(dtype)
    assert_close(run(*arguments, grad), reference(*arguments, grad), dtype)


@pytest.mark.parametrize("device", DEVICES)
def test_gradients(device):
    arguments = inputs((2, 3, 4, 2, 3), "channels_last_3d", torch.double, "own", True, device)
    assert torch.autograd.gradcheck(mix_slices, arguments)
    assert torch.autograd.gradcheck(mix_slices, [arguments[0], arguments[1][0].detach().requires_grad_()])


@needs_kernel
def test_second_derivatives_are_an_error_with_the_kernels_only():
    x, weight, *_ = inputs((1, 2, 3, 2, 2), "contiguous", torch.double, "shared", False, "cpu")
    for context in (nullcontext(), plain_mixing()):
        with context:
            (first,) = torch.autograd.grad(mix_slices(x, weight).square().sum(), x, create_graph=True)
            if isinstance(context, nullcontext):
                with pytest.raises(RuntimeError, match="no second derivatives"):
                    torch.autograd.grad(first.square().sum(), weight)
            else:
                assert torch.autograd.grad(first.square().sum(), weight)[0].any()


@needs_kernel
def test_overlapping_inputs_and_empty_gradients():
    x = torch.randn(2, 4, 1, 5, 5).to(memory_format=torch.channels_last_3d).expand(-1, -1, 3, -1, -1)
    weight = torch.randn(3, 3, 4)
    torch.testing.assert_close(mix_slices(x, weight), mix_slices_plain(x, weight))
    empty = torch.zeros(0, 4, 3, 5, 5).to(memory_format=torch.channels_last_3d).requires_grad_()
    mix_slices(empty, weight.requires_grad_()).backward(torch.zeros(0, 4, 3, 5, 5))
    assert not weight.grad.any()


@needs_kernel
def test_sums_over_many_pixels_stay_accurate():
    for layout in ("contiguous", "channels_last_3d"):
        x = LAYOUTS[layout](torch.full((1, 2, 3, 512, 512), 1 / 3)).requires_grad_()
        weight = torch.full((3, 3, 2), 0.1, requires_grad=True)
        mix_slices(x, weight).backward(torch.full_like(x, 0.7))
        expected = x[0, 0, 0, 0, 0].double() * torch.tensor(0.7).double() * 512 * 512
        assert (weight.grad.double() / expected - 1).abs().max() < 1e-5


@needs_kernel
def test_is_a_well_behaved_operator():
    for layout in ("channels_last_3d", "contiguous", "some of more channels"):
        torch.library.opcheck(torch.ops.a3d_det2.mix, inputs((2, 3, 4, 2, 3), layout, torch.float, "own", True, "cpu"))


@needs_kernel
@pytest.mark.parametrize("layout", LAYOUTS)
def test_keeps_the_order_of_strides(layout):
    x = inputs((2, 6, 3, 4, 5), layout, torch.float, "none", False, "cpu")[0].detach()
    y = mix_slices(x, torch.randn(3, 3, 6))
    if layout in ("contiguous", "channels_last_3d", "slices in the batch"):
        assert y.stride() == x.stride()
    assert is_channels_last(y) or is_planes(y)
    assert kernel_for(x) is cpu


@needs_kernel
@pytest.mark.parametrize("layout", ["contiguous", "channels_last_3d"])
def test_in_the_place_of_the_input(layout):
    x, weight, scale, shift = (t.detach() for t in inputs((2, 35, 7, 9, 5), layout, torch.float, "own", True, "cpu"))
    expected = mix_slices_plain(x, weight, scale, shift)
    cpu.mix(x, weight, scale, shift, x)
    torch.testing.assert_close(x, expected)


@needs_kernel
@pytest.mark.parametrize("layout", ["contiguous", "channels_last_3d"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_goes_where_it_goes_in_plain_pytorch(layout, value):
    x, weight, scale, shift = inputs((1, 5, 3, 4, 4), layout, torch.float, "shared", True, "cpu")
    with torch.no_grad():
        x[0, 2, 1, 3, 1] = value
        assert torch.equal(
            mix_slices(x, weight, scale, shift).isnan(), mix_slices_plain(x, weight, scale, shift).isnan()
        )
        assert torch.equal(mix_slices(x, None, scale, shift).isinf(), mix_slices_plain(x, None, scale, shift).isinf())
        half = x.bfloat16()
        assert torch.equal(mix_slices(half, None, scale, shift).isnan(), half.isnan())


@needs_kernel
@pytest.mark.parametrize("layout", ["contiguous", "channels_last_3d"])
def test_large_tensors_that_are_written_past_the_cache(layout):
    """From 16 MB on; with an offset that forbids it, and channels that do not fill a vector."""
    for channels in (32, 33):
        arguments = inputs((1, channels, 3, 256, 257), layout, torch.float, "shared", True, "cpu")
        grad = torch.randn(arguments[0].shape).contiguous(memory_format=torch.channels_last_3d)
        assert_close(run(*arguments, grad), reference(*arguments, grad), torch.float)
    space = torch.empty(arguments[0].numel() + 1)[1:].view(1, 3, 256, 257, 33).permute(0, 4, 1, 2, 3)
    x, *coefficients = (t.detach() for t in arguments)
    space.copy_(x)
    torch.testing.assert_close(mix_slices(space, *coefficients), mix_slices(x, *coefficients))


@needs_kernel
@pytest.mark.slow
def test_more_than_2_to_the_31_elements():
    pages = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if pages < 14e9:
        pytest.skip(f"needs 14 GB of free memory, there are {pages / 1e9:.0f}")
    x = torch.zeros(1, 3, 9500, 9500, 8, dtype=torch.bfloat16).permute(0, 4, 1, 2, 3)
    assert x.numel() > 2**31
    last = torch.arange(24.0).view(8, 3)
    x[0, :, :, -1, -1] = last.bfloat16()
    weight = torch.arange(72.0).view(3, 3, 8).remainder(5)
    y = mix_slices(x, weight)
    assert torch.equal(y[0, :, :, -1, -1].float(), torch.einsum("cd,dkc->ck", last, weight).bfloat16().float())
    assert not y[0, :, :, -1, -2].any()
    assert not y[0, :, :, 0].any()


def test_autocast_and_half_precision_accumulate_in_float32():
    """1 + 127 * 2^-9: each summand alone is lost in bfloat16 beside 1."""
    x = torch.full((1, 1, 32, 1, 1), 2.0**-9)
    x[:, :, 0] = 1
    weight = torch.ones(32, 32, 1)
    with torch.autocast("cpu", torch.bfloat16):
        assert mix_slices(x.bfloat16(), weight)[0, 0, 0].item() == torch.tensor(1 + 31 * 2.0**-9).bfloat16().item()
        assert mix_slices(x, weight).dtype == torch.float
    assert mix_slices(x.half(), weight)[0, 0, 0].item() == torch.tensor(1 + 31 * 2.0**-9).half().item()


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (((2, 3, 4, 5), None, None, None), r"Expected an input of shape \(N, C, D, H, W\). Got \(2, 3, 4, 5\)"),
        (((2, 3, 4, 5, 5), (4, 4, 2), None, None), r"weight of shape \(4, 4, 3\) or \(2, 4, 4, 3\). Got \(4, 4, 2\)"),
        (((2, 3, 4, 5, 5), None, (3,), None), "both scale and shift"),
        (((2, 3, 4, 5, 5), None, (3,), (2,)), r"shape \(3,\). Got \(3,\) and \(2,\)"),
    ],
)
def test_bad_shapes_are_named(shapes, message):
    arguments = [None if shape is None else torch.zeros(shape) for shape in shapes]
    with pytest.raises(ValueError, match=message):
        mix_slices(*arguments)


def test_a_kernel_is_not_called_with_tensors_that_do_not_fit():
    x = torch.zeros(1, 3, 2, 4, 4)
    for other in (x.double(), x[:, :2], x.contiguous(memory_format=torch.channels_last_3d)):
        with pytest.raises(ValueError, match="with strides like"):
            check_same(x, other)
    check_same(x, like(x.contiguous(memory_format=torch.channels_last_3d), x))


def test_plain_mixing_and_a_missing_kernel(monkeypatch, caplog):
    x, weight = torch.randn(1, 3, 2, 4, 4), torch.randn(2, 2, 3)
    with plain_mixing():
        assert kernel_for(x) is None
        expected = mix_slices(x, weight)
    monkeypatch.setattr(cpu, "_library", "no such file")
    mixing._log_missing.cache_clear()
    with caplog.at_level(logging.WARNING):
        assert torch.equal(mix_slices(x, weight), expected)
        mix_slices(x, weight)
    assert [r.getMessage() for r in caplog.records] == ["Mixing slices in plain PyTorch, which is slower: no such file"]
    assert kernel_for(x.to("meta")) is None


def test_kernels_switched_off_in_the_environment():
    code = "import torch; from a3d_det2.kernels.mixing import kernel_for; print(kernel_for(torch.zeros(1, 1, 1, 1, 1)))"
    environment = {**os.environ, "A3D_DET2_KERNELS": "0"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "None\n"


@needs_kernel
def test_more_slices_than_the_kernels_take():
    op = A3DConv(2, 2, 1, cpu.MAX_SLICES + 1)
    assert kernel_for(torch.zeros(1, 2, op.num_slices, 2, 2)) is None
    assert op(torch.randn(1, 2, op.num_slices, 2, 2)).shape == (1, 2, op.num_slices, 2, 2)


@pytest.mark.skipif(triton.unavailable() is not None, reason="Triton is not installed")
def test_triton_kernel(repo):
    """Without a GPU in Triton's interpreter."""
    environment = dict(os.environ) if torch.cuda.is_available() else {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.kernels.triton_cases"], cwd=repo, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert f"cases on {'cuda' if torch.cuda.is_available() else 'cpu'}" in done.stdout


@pytest.mark.skipif(triton.unavailable() is not None, reason="Triton is not installed")
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("slices", [3, 7, 27])
def test_triton_kernel_compiles_for_gpus(slices, dtype):
    """For compute capability 8.0 and 9.0, which needs no GPU; what the interpreter takes the compiler need not."""
    import triton.language as tl
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile

    shape = {"SLICES": slices, "MIX": True, "AFFINE": True, "PLANES": False, "ROWS": 4, "LANES": 64}
    group = triton.group_size(slices)
    for function, more in (
        (triton.mix_kernel, {}),
        (triton.mix_backward_kernel, {"GROUPS": slices // group, "GROUP": group, "ACCUMULATE": True}),
    ):
        constants = {**shape, **more, "COMPUTE": tl.float32}
        signature = {}
        for name in function.arg_names:
            if name in constants:
                signature[name] = "constexpr"
            elif name in ("x", "y", "grad_y", "grad_x"):
                signature[name] = f"*{dtype}"
            elif name in ("weight", "scale", "shift", "sums"):
                signature[name] = "*fp32"
            else:
                signature[name] = "i64" if "_" in name else "i32"
        places = {(function.arg_names.index(name),): value for name, value in constants.items()}
        for capability in (80, 90):
            compiled = compile(
                ASTSource(function, signature, places), GPUTarget("cuda", capability, 32), {"num_warps": 8}
            )
            assert len(compiled.asm["cubin"]) > 0
