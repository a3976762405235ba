"""``a3d-train``: a training with Detectron2, or without it with torchvision.

    a3d-train --config-file quick/a3d_7slice.yaml --num-gpus 2 SOLVER.MAX_ITER 300
    a3d-train --engine torchvision --config-file quick/a3d_7slice.yaml

All arguments but ``--engine`` are those of train_net.py or tools/train_torchvision.py; a config is a file or a name of
the model zoo.
"""

import argparse
from importlib import import_module

from ..optional import detectron2_problem

ENGINES = {"detectron2": "launching", "torchvision": "torchvision_loop"}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--engine", choices=ENGINES)
    args, others = parser.parse_known_args(argv)
    problem = detectron2_problem()
    engine = args.engine or ("torchvision" if problem else "detectron2")
    why = "asked for" if args.engine else f"Detectron2: {problem}" if problem else "Detectron2 is installed"
    print(f"Engine: {engine} ({why}); --engine chooses {' or '.join(ENGINES)}", flush=True)
    import_module(f".{ENGINES[engine]}", __package__).main(others)
