#!/usr/bin/env python
"""Compare the first training step of a published config with that of the same config as it is here by default.

    python datasets/make_phantom.py --output datasets/phantom
    python tools/compare_published.py --config-file published/a3d_3slice.yaml

From the same weights, on the same images of the phantom without random augmentation, it prints each loss and the norm
of the gradient in each part of the model: by default, with one of the published rules at a time, and with all of them;
the last column also starts as the published model does. RPN and heads sample regions at random, so that each figure is
the mean over several draws.
"""

import argparse
import json
import statistics
from collections import defaultdict
from functools import reduce

import torch
from detectron2.data import get_detection_dataset_dicts
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from tqdm import tqdm

from a3d_det2 import DeepLesionMapper
from a3d_det2.engine.evaluate import at_least
from a3d_det2.engine.launching import load_config
from a3d_det2.files import replacing
from a3d_det2.model_zoo import get_config_file

RULES = {  # name -> the keys that take its published values
    "by default": [],
    "boxes": ["MODEL.META_ARCHITECTURE"],
    "anchors": ["MODEL.ANCHOR_GENERATOR.NAME", "MODEL.PROPOSAL_GENERATOR.NAME", "MODEL.RPN.BOUNDARY_THRESH"],
    "regions": ["MODEL.ROI_HEADS.NAME"],
    "mask targets": ["MODEL.ROI_MASK_HEAD.NAME"],
}
PARTS = {  # of the model, by the beginning of the names of its parameters
    "trunk": "backbone.bottom_up.trunk.",
    "squeeze": "backbone.bottom_up.squeeze.",
    "neck": "backbone.neck.",
    "RPN": "proposal_generator.",
    "box head": "roi_heads.box_",
    "mask head": "roi_heads.mask_head.",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", default="published/a3d_3slice.yaml", help="of configs/published (%(default)s)")
    parser.add_argument("--images", type=at_least(int, 1), default=4, help="in the step (default %(default)s)")
    parser.add_argument("--size", type=at_least(int, 32), default=256, help="of the images in px (default %(default)s)")
    parser.add_argument("--draws", type=at_least(int, 1), default=5, help="of regions (default %(default)s)")
    parser.add_argument("--json", help="file to write the figures to")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE, changes of both configs")
    args = parser.parse_args()
    size = str(args.size)
    options = ["MODEL.DEVICE", "cpu", "MODEL.A3D.NORM", "BN", "MODEL.WEIGHTS", "", "INPUT.AFFINE.PROB", "0.0"]
    options += ["INPUT.RANDOM_FLIP", "none", "INPUT.MIN_SIZE_TRAIN", f"({size},)", "INPUT.MAX_SIZE_TRAIN", size]
    options += ["DATASETS.TRAIN", "('phantom_train',)", *args.opts]
    published = load_config(get_config_file(args.config_file), options)
    default = load_config(get_config_file(args.config_file.removeprefix("published/")), options)

    torch.manual_seed(0)
    weights = build_model(default).state_dict()
    records = get_detection_dataset_dicts(published.DATASETS.TRAIN)[: args.images]
    mapper = DeepLesionMapper(default, is_train=True)
    batch = [mapper(record) for record in records]
    configs = {name: with_values_of(default, published, keys) for name, keys in RULES.items()}
    configs |= {"all": published, "all, and initialisation": published}
    columns = {}
    for name, cfg in tqdm(configs.items(), "configs"):
        torch.manual_seed(0)
        model = build_model(cfg).train()
        if name in (*RULES, "all"):
            model.load_state_dict(weights)
        columns[name] = mean_step(model, batch, args.draws)
    print(table(columns))
    if args.json:
        with replacing(args.json) as part, open(part, "w") as f:
            json.dump({"config": args.config_file, "size": args.size, "columns": columns}, f, indent=1)


def with_values_of(cfg, other, keys: list[str]):
    """A config with the values that another one has of some keys."""
    changed = cfg.clone()
    for key in keys:
        changed.merge_from_list([key, reduce(getattr, key.split("."), other)])
    return changed


def mean_step(model: torch.nn.Module, batch: list[dict], draws: int) -> dict[str, float]:
    """Each loss and the norm of the gradient in each part, on average over several draws of regions."""
    figures = defaultdict(list)
    for seed in range(draws):
        torch.manual_seed(seed)
        model.zero_grad()
        with EventStorage(0):
            losses = model(batch)
        sum(losses.values()).backward()
        for name, loss in losses.items():
            figures[name].append(loss.item())
        for part, prefix in PARTS.items():
            of_part = [p.grad for name, p in model.named_parameters() if name.startswith(prefix)]
            figures[f"gradient, {part}"].append(float(torch.nn.utils.get_total_norm(of_part)))
    return {name: statistics.mean(values) for name, values in figures.items()}


def table(columns: dict[str, dict[str, float]]) -> str:
    rows = [["", *columns], ["---"] * (1 + len(columns))]
    for name in next(iter(columns.values())):
        rows.append([name, *(f"{column[name]:.4g}" for column in columns.values())])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


if __name__ == "__main__":
    main()
