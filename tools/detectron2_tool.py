#!/usr/bin/env python
"""Run one of Detectron2's own tools with the configs, samples and weights of this package.

    python tools/detectron2_tool.py /path/to/detectron2/tools/analyze_model.py --tasks flop --config-file CONFIG
    python tools/detectron2_tool.py /path/to/detectron2/tools/visualize_data.py --source dataloader --config-file CONFIG

In the tool, ``get_cfg`` has the keys of this package, the default mapper is DeepLesionMapper, the checkpointer is
LesionCheckpointer, and an image that is drawn is the key slice. --config-file also takes a name of the model zoo, such
as quick/a3d_7slice.yaml. docs/detectron2.md lists the tools that were tried.
"""

import runpy
import sys
from pathlib import Path

import detectron2.checkpoint
import detectron2.config
import detectron2.data.build
import numpy as np
from detectron2.data import detection_utils

from a3d_det2 import DeepLesionMapper, LesionCheckpointer, add_a3d_config
from a3d_det2.data.slices import read_slice, window_hu
from a3d_det2.model_zoo import find_config_file

_get_cfg = detectron2.config.get_cfg


def get_cfg() -> detectron2.config.CfgNode:
    cfg = _get_cfg()
    add_a3d_config(cfg)
    return cfg


def read_image(file_name: str, format: str | None = None) -> np.ndarray:
    """A slice as an (H, W, 3) uint8 picture."""
    return grey_picture(window_hu(read_slice(file_name)))


def key_slice_as_rgb(image: np.ndarray, format: str) -> np.ndarray:
    """The middle one of (H, W, D) windowed slices as an (H, W, 3) uint8 picture."""
    return grey_picture(image[:, :, image.shape[2] // 2])


def grey_picture(windowed: np.ndarray) -> np.ndarray:
    return np.repeat((windowed + 50).clip(0, 255).astype(np.uint8)[:, :, None], 3, axis=2)


def main() -> None:
    if len(sys.argv) < 2 or not Path(sys.argv[1]).is_file():
        sys.exit(f"{__doc__}\nExpected the path of one of Detectron2's tools, got {sys.argv[1:2]}.")
    detectron2.config.get_cfg = get_cfg
    detectron2.data.build.DatasetMapper = DeepLesionMapper
    detectron2.checkpoint.DetectionCheckpointer = LesionCheckpointer
    detection_utils.read_image, detection_utils.convert_image_to_rgb = read_image, key_slice_as_rgb
    sys.argv = sys.argv[1:]
    for i, argument in enumerate(sys.argv):
        if argument == "--config-file" and i + 1 < len(sys.argv):
            sys.argv[i + 1] = find_config_file(sys.argv[i + 1])
        elif argument.startswith("--config-file="):
            sys.argv[i] = f"--config-file={find_config_file(argument.partition('=')[2])}"
    sys.path.insert(0, str(Path(sys.argv[0]).parent))  # as Python does for a script
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
