#!/usr/bin/env python
"""Convert a checkpoint of another model to one that train_net.py and Detectron2's own tools load.

    python tools/convert_checkpoint.py --config-file configs/a3d_7slice.yaml --input published.pth --output a3d.pth

The input is a model that the authors of the A3D paper published (docs/published_checkpoints.md), torchvision's
DenseNet, or a 2D model of Detectron2's model zoo. Every key is accounted for: one that finds no place is an error.
"""

import argparse
import os

from detectron2.modeling import build_model
from detectron2.utils.logger import setup_logger

from a3d_det2 import LesionCheckpointer
from a3d_det2.engine.launching import load_config
from a3d_det2.engine.mistakes import exit_on_mistakes, mistakes
from a3d_det2.model_zoo import find_config_file


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", required=True, help="config of the model to load into")
    parser.add_argument("--input", required=True, help="checkpoint to convert")
    parser.add_argument("--output", required=True, help="file to write, ending with .pth")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE overrides of the config")
    args = parser.parse_args()
    stem, extension = os.path.splitext(args.output)
    if extension != ".pth":
        parser.error(f"--output: expected a file name ending with .pth, got {args.output}")
    setup_logger(name="fvcore")
    with exit_on_mistakes(), mistakes():
        cfg = load_config(find_config_file(args.config_file), ["MODEL.DEVICE", "cpu", *args.opts])
        model = build_model(cfg)
        folder, name = os.path.split(os.path.abspath(stem))
        os.makedirs(folder, exist_ok=True)
        checkpointer = LesionCheckpointer(model, folder, stem_weights=cfg.MODEL.A3D.STEM_WEIGHTS)
        checkpointer.load(args.input)
        checkpointer.save(name, tag=False)
    print(f"Wrote {args.output}: {sum(p.numel() for p in model.parameters()):,} parameters")


if __name__ == "__main__":
    main()
