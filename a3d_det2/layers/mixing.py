from ..kernels.mixing import kernel_for, mix_slices, mix_slices_plain, plain_mixing  # noqa: F401 - an old path
