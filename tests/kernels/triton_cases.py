"""The Triton kernel on all cases: on CUDA, or with TRITON_INTERPRET=1 in Triton's interpreter on the CPU."""

import os

import torch

from a3d_det2.kernels import triton
from a3d_det2.kernels.memory_format import like, side_by_side
from tests.kernels.mixing_cases import CASES, assert_close, inputs, reference

device = "cpu" if os.environ.get("TRITON_INTERPRET") else "cuda"
torch.manual_seed(0)
# The interpreter is slow, and NumPy, with which it computes, has no bfloat16.
dtypes = [torch.float] if device == "cpu" else [torch.float, torch.double, torch.half, torch.bfloat16]
cases = CASES[::14] if device == "cpu" else CASES
for shape, layout, weights, affine in cases:
    for dtype in dtypes:
        x, *coefficients = inputs(shape, layout, dtype, weights, affine, device)
        x = side_by_side(x.detach())
        grad = torch.randn(shape, device=device).to(dtype)
        y, grad_x = torch.empty_like(x), torch.randn_like(x)
        triton.mix(x, *coefficients, y)
        before = grad_x.clone()
        grads = triton.mix_backward(like(grad, x), x, *coefficients, grad_x, accumulate=True)
        grads = [None if c is None else g for c, g in zip(coefficients, grads, strict=True)]
        y_expected, x_expected, *expected = reference(x, *coefficients, grad)
        assert_close([y, grad_x, *grads], [y_expected, x_expected + before.double(), *expected], dtype)
print(f"{len(cases) * len(dtypes)} cases on {device}")
