import platform

from setuptools import Extension, find_packages, setup

# The CPU kernel of the mixing step, once per instruction set that torch.backends.cpu.get_cpu_capability() may name. It
# is a plain library for ctypes, in need of neither torch's nor Python's headers, and of the OpenMP that torch loads.
# Where it cannot be compiled the installation goes on: plain PyTorch does the same, slower.
if platform.machine() in ("x86_64", "AMD64"):
    INSTRUCTIONS = {
        "avx2": ["-mavx2", "-mfma"],
        "avx512": ["-march=x86-64-v4", "-mprefer-vector-width=512"],
    }
else:
    INSTRUCTIONS = {"default": []}

setup(
    name="a3d_det2",
    version="0.1.0",
    description="3D context for 2D detectors: context-fusion convolutions in Detectron2, for lesion detection in CT",
    license="Apache-2.0",
    python_requires=">=3.10",
    packages=find_packages(include=["a3d_det2", "a3d_det2.*"]),
    package_data={"a3d_det2.evaluation": ["report.html"]},
    ext_modules=[
        Extension(
            f"a3d_det2.layers._mixing_{name}",
            ["a3d_det2/layers/csrc/mixing.cpp"],
            extra_compile_args=[*"-std=c++17 -O3 -g0 -fopenmp -Wno-psabi -Wno-ignored-attributes".split(), *flags],
            extra_link_args=["-fopenmp"],
            optional=True,
        )
        for name, flags in INSTRUCTIONS.items()
    ],
    # Detectron2 is on no package index; README.md says how to install it.
    install_requires=[
        "fvcore",
        "jinja2",
        "matplotlib",
        "numpy",
        "opencv-python-headless",
        "pillow",
        "pycocotools",
        "tabulate",
        "torch",
        "tqdm",
    ],
    extras_require={
        "packed": ["blosc2"],  # to read and write Images_packed
        "torchvision": ["tensorboard", "torchvision"],  # to train without Detectron2
        "dev": ["blosc2", "hypothesis", "playwright", "pytest", "ruff", "tensorboard", "torchvision"],
    },
)
