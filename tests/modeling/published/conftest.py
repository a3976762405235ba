import pytest

pytest.importorskip("detectron2")

import torch
from detectron2.modeling import build_model

from a3d_det2 import model_zoo

SMALL = """
MODEL.DEVICE cpu MODEL.A3D.NORM BN MODEL.A3D.BLOCK_CONFIG [1,2,1] MODEL.A3D.GROWTH_RATE 4 MODEL.A3D.BN_SIZE 2
MODEL.A3D.NUM_INIT_FEATURES 8 MODEL.FPN.OUT_CHANNELS 12 MODEL.ROI_BOX_HEAD.FC_DIM 20 MODEL.ROI_MASK_HEAD.CONV_DIM 6
""".split()


@pytest.fixture
def build():
    """Builds the model of a config on a small scale, whose heads give random numbers of some size."""

    def build(config, *options):
        cfg = model_zoo.get_config(f"{config}.yaml")
        cfg.merge_from_list([*SMALL, *options])
        torch.manual_seed(0)
        model = build_model(cfg).eval()
        image = torch.randn(1, cfg.MODEL.A3D.NUM_SLICES, 64, 96) * 50
        with torch.no_grad(), model.slice_scope([{"image": image[0], "thickness": 5.0}]):
            features = model.backbone(image)["p2"]
            model.backbone.neck.laterals[0].weight /= features.std()
            model.backbone.neck.laterals[1].weight /= features.std()
            model.backbone.neck.laterals[2].weight /= features.std()
            head = model.proposal_generator.rpn_head
            (logits,), (deltas,) = head([model.backbone(image)["p2"]])
            head.objectness_logits.weight /= logits.std()
            head.anchor_deltas.weight *= 0.7 / deltas.std()
        for fc in (model.roi_heads.box_predictor.cls_score, model.roi_heads.box_predictor.bbox_pred):
            torch.nn.init.normal_(fc.weight, std=1.0)
        return model

    return build
