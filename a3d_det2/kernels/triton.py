"""The mixing step on CUDA, in Triton, which comes with torch.

Tensors are seen as rows of lanes, as in ``csrc/mixing.cpp``: the lanes are what lies side by side in memory, channels
or pixels.
"""

import importlib.util

import torch
from torch import Tensor

from .memory_format import check_same, rows_and_lanes, strides

DTYPES = {torch.float32, torch.float64, torch.float16, torch.bfloat16}
MAX_SLICES = 32
PROGRAMS = 528  # of a backward, about 4 for each multiprocessor of a large GPU; each has its own sums

if importlib.util.find_spec("triton") is not None:
    import triton
    import triton.language as tl
else:
    triton = None


def unavailable() -> str | None:
    """Why this kernel cannot be used; None if it can."""
    return "Triton is not installed" if triton is None else None


if triton is not None:

    @triton.jit
    def mix_kernel(
        x, y, weight, scale, shift,
        rows, lanes, channels, weight_n,
        x_n, x_d, x_row, y_n, y_d, y_row,
        SLICES: tl.constexpr, MIX: tl.constexpr, AFFINE: tl.constexpr, PLANES: tl.constexpr,
        ROWS: tl.constexpr, LANES: tl.constexpr, COMPUTE: tl.constexpr,
    ):  # fmt: skip
        lane_blocks = tl.cdiv(lanes, LANES)
        blocks = tl.cdiv(rows, ROWS) * lane_blocks
        pid = tl.program_id(0).to(tl.int64)
        n, block = pid // blocks, pid % blocks
        zero = pid * 0  # in 64 bits, which a slice's offset may need
        row = (block // lane_blocks * ROWS + tl.arange(0, ROWS))[:, None]
        lane = (block % lane_blocks * LANES + tl.arange(0, LANES))[None, :]
        inside = (row < rows) & (lane < lanes)
        channel, known = (row, row < rows) if PLANES else (lane, lane < lanes)
        if AFFINE:
            factor = tl.load(scale + channel, mask=known, other=0.0)
            offset = tl.load(shift + channel, mask=known, other=0.0)
        z = ()
        for d in tl.static_range(SLICES):
            value = tl.load(x + n * x_n + (zero + d) * x_d + row * x_row + lane, mask=inside, other=0.0).to(COMPUTE)
            if AFFINE:
                value = value * factor + offset
                value = tl.where(value < 0, 0.0, value).to(COMPUTE)  # a NaN stays one
            z = z + (value,)
        at_y = y + n * y_n + row * y_row + lane
        if MIX:
            for k in range(SLICES):
                total = tl.zeros((ROWS, LANES), COMPUTE)
                for d in tl.static_range(SLICES):
                    at = weight + n * weight_n + (d * SLICES + k) * channels + channel
                    total += tl.load(at, mask=known, other=0.0) * z[d]
                tl.store(at_y + (zero + k) * y_d, total.to(y.dtype.element_ty), mask=inside)
        else:
            for k in tl.static_range(SLICES):
                tl.store(at_y + (zero + k) * y_d, z[k].to(y.dtype.element_ty), mask=inside)

    @triton.jit
    def mix_backward_kernel(
        grad_y, x, weight, scale, shift, grad_x, sums,
        rows, lanes, channels, weight_n,
        g_n, g_d, g_row, x_n, x_d, x_row, o_n, o_d, o_row,
        chunks, steps,
        SLICES: tl.constexpr, GROUPS: tl.constexpr, GROUP: tl.constexpr,
        MIX: tl.constexpr, AFFINE: tl.constexpr, PLANES: tl.constexpr, ACCUMULATE: tl.constexpr,
        ROWS: tl.constexpr, LANES: tl.constexpr, COMPUTE: tl.constexpr,
    ):  # fmt: skip
        """A program takes GROUP input slices, one block of channels, and ``steps`` tiles along the pixels, over which
        it sums the gradients with respect to the coefficients; ``sums`` is (N, chunks, SLICES ** 2 + 2 GROUPS,
        channels): those for the weight, then scale and shift of each group."""
        across = tl.cdiv(rows, ROWS) if PLANES else tl.cdiv(lanes, LANES)  # blocks of channels
        pid = tl.program_id(0).to(tl.int64)
        group, rest = pid % GROUPS, pid // GROUPS
        block, rest = rest % across, rest // across
        chunk, n = rest % chunks, rest // chunks
        first_d = group * GROUP
        zero = pid * 0  # in 64 bits, which a slice's offset may need
        in_rows, in_lanes = tl.arange(0, ROWS)[:, None], tl.arange(0, LANES)[None, :]
        channel = block * ROWS + in_rows if PLANES else block * LANES + in_lanes
        known = channel < channels
        if AFFINE:
            factor = tl.load(scale + channel, mask=known, other=0.0)
            offset = tl.load(shift + channel, mask=known, other=0.0)
            grad_scale = tl.zeros((ROWS, LANES), COMPUTE)
            grad_shift = tl.zeros((ROWS, LANES), COMPUTE)
        totals = ()
        if MIX:
            for _ in tl.static_range(GROUP * SLICES):
                totals = totals + (tl.zeros((ROWS, LANES), COMPUTE),)
        for step in range(steps):
            if PLANES:
                row, lane = channel, (chunk * steps + step) * LANES + in_lanes
            else:
                row, lane = (chunk * steps + step) * ROWS + in_rows, channel
            inside = (row < rows) & (lane < lanes)
            grads = ()
            for k in tl.static_range(SLICES):
                at = grad_y + n * g_n + (zero + k) * g_d + row * g_row + lane
                grads = grads + (tl.load(at, mask=inside, other=0.0).to(COMPUTE),)
            summed = ()
            for i in tl.static_range(GROUP):
                d = first_d + i
                value = tl.load(x + n * x_n + d * x_d + row * x_row + lane, mask=inside, other=0.0).to(COMPUTE)
                z = value
                if AFFINE:
                    z = value * factor + offset
                    z = tl.where(z < 0, 0.0, z).to(COMPUTE)
                if MIX:
                    grad = tl.zeros((ROWS, LANES), COMPUTE)
                    for k in tl.static_range(SLICES):
                        at = weight + n * weight_n + (d * SLICES + k) * channels + channel
                        grad += tl.load(at, mask=known, other=0.0) * grads[k]
                        summed = summed + (totals[i * SLICES + k] + z * grads[k],)
                else:
                    grad = grads[i]
                if AFFINE:
                    grad = tl.where(z == 0, 0.0, grad).to(COMPUTE)
                    grad_scale += tl.where(inside, grad * value, 0.0).to(COMPUTE)
                    grad_shift += tl.where(inside, grad, 0.0).to(COMPUTE)
                    grad = grad * factor
                to = grad_x + n * o_n + d * o_d + row * o_row + lane
                if ACCUMULATE:
                    grad += tl.load(to, mask=inside, other=0.0).to(COMPUTE)
                tl.store(to, grad.to(grad_x.dtype.element_ty), mask=inside)
            if MIX:
                totals = summed
        out = sums + (n * chunks + chunk) * (SLICES * SLICES + 2 * GROUPS) * channels
        at_channel = block * ROWS + tl.arange(0, ROWS) if PLANES else block * LANES + tl.arange(0, LANES)
        valid = at_channel < channels
        if MIX:
            for i in tl.static_range(GROUP):
                for k in tl.static_range(SLICES):
                    at = out + ((first_d + i) * SLICES + k) * channels + at_channel
                    total = tl.sum(totals[i * SLICES + k], axis=1 if PLANES else 0)
                    tl.store(at, total, mask=valid)
        if AFFINE:
            at = out + (SLICES * SLICES + 2 * group) * channels + at_channel
            tl.store(at, tl.sum(grad_scale, axis=1 if PLANES else 0), mask=valid)
            tl.store(at + channels, tl.sum(grad_shift, axis=1 if PLANES else 0), mask=valid)


def _power_of_2_up_to(size: int, most: int) -> int:
    return min(most, triton.next_power_of_2(max(1, size)))


def _compute(x: Tensor):
    return (tl.float64, torch.float64) if x.dtype == torch.float64 else (tl.float32, torch.float32)


def _coefficients(dtype: torch.dtype, *tensors: Tensor | None) -> list[Tensor | None]:
    return [None if t is None else t.detach().to(dtype).contiguous() for t in tensors]


def _weight_n(weight: Tensor | None) -> int:
    return weight[0].numel() if weight is not None and weight.dim() == 4 else 0


def group_size(slices: int) -> int:
    """How many input slices a program of the backward takes: so many that its sums fit into its registers."""
    return max(size for size in range(1, max(1, 64 // slices) + 1) if slices % size == 0)


def mix(x: Tensor, weight: Tensor | None, scale: Tensor | None, shift: Tensor | None, out: Tensor) -> None:
    """Write :func:`mix_slices` to ``out``, of the shape and dtype of ``x`` and with the same dimension side by side; it
    may be ``x`` itself."""
    if x.numel() == 0:
        return
    check_same(x, out)
    planes, rows, lanes = rows_and_lanes(x)
    compute, dtype = _compute(x)
    weight, scale, shift = _coefficients(dtype, weight, scale, shift)
    lane_block = _power_of_2_up_to(lanes, 512 if planes else 64)
    row_block = _power_of_2_up_to(rows, max(1, 512 // lane_block))
    grid = (len(x) * triton.cdiv(rows, row_block) * triton.cdiv(lanes, lane_block),)
    with torch.cuda.device_of(x):  # Triton launches on the current device
        mix_kernel[grid](
            x, out, weight, scale, shift,
            rows, lanes, x.shape[1], _weight_n(weight), *strides(x, planes), *strides(out, planes),
            SLICES=x.shape[2], MIX=weight is not None, AFFINE=scale is not None, PLANES=planes,
            ROWS=row_block, LANES=lane_block, COMPUTE=compute, num_warps=4,
        )  # fmt: skip


def mix_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    grad_x: Tensor,
    accumulate: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Write the gradient with respect to ``x`` to ``grad_x``, or add it there.

    Returns:
        the gradients with respect to weight, scale and shift; empty tensors for those that are None.
    """
    if x.numel() > 0:
        check_same(x, grad, grad_x)
    batch, channels, slices = x.shape[:3]
    compute, dtype = _compute(x)
    planes, rows, lanes = rows_and_lanes(x)
    pixel_block = _power_of_2_up_to(lanes if planes else rows, 256 if planes else 4)
    channel_block = _power_of_2_up_to(channels, max(1, 256 // pixel_block) if planes else 64)
    group = slices if weight is None else group_size(slices)
    tiles, across = triton.cdiv(lanes if planes else rows, pixel_block), triton.cdiv(channels, channel_block)
    groups = slices // group
    chunks = max(1, min(tiles, PROGRAMS // max(1, batch * across * groups)))
    steps = triton.cdiv(tiles, chunks)
    sums = torch.zeros(batch, chunks, slices * slices + 2 * groups, channels, dtype=dtype, device=x.device)
    if x.numel() > 0:
        plain = _coefficients(dtype, weight, scale, shift)
        with torch.cuda.device_of(x):
            mix_backward_kernel[(batch * chunks * across * groups,)](
                grad, x, *plain, grad_x, sums,
                rows, lanes, channels, _weight_n(weight),
                *strides(grad, planes), *strides(x, planes), *strides(grad_x, planes), chunks, steps,
                SLICES=slices, GROUPS=groups, GROUP=group,
                MIX=weight is not None, AFFINE=scale is not None, PLANES=planes, ACCUMULATE=accumulate,
                ROWS=channel_block if planes else pixel_block,
                LANES=pixel_block if planes else channel_block, COMPUTE=compute, num_warps=8,
            )  # fmt: skip
    # (N, chunks, D * D + 2 groups, C) -> (N, D * D, C) and (2 groups, C)
    of_weight, others = sums.sum(1, dtype=torch.float64).split([slices * slices, 2 * groups], dim=1)
    others = others.sum(0)
    none = x.new_empty(0)
    if weight is not None:
        grad_weight = (of_weight if weight.dim() == 4 else of_weight.sum(0)).reshape(weight.shape).to(weight.dtype)
    return (
        none if weight is None else grad_weight,
        none if scale is None else others[0::2].sum(0).to(scale.dtype),
        none if shift is None else others[1::2].sum(0).to(shift.dtype),
    )
