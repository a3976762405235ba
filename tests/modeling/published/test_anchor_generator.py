import pytest

pytest.importorskip("detectron2")

import torch
from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling.anchor_generator import build_anchor_generator

from a3d_det2 import add_a3d_config


@pytest.fixture
def generator(repo):
    cfg = get_cfg()
    add_a3d_config(cfg)
    cfg.merge_from_file(str(repo / "configs" / "a3d_7slice.yaml"))
    cfg.MODEL.ANCHOR_GENERATOR.NAME = "PublishedAnchorGenerator"
    return build_anchor_generator(cfg, [ShapeSpec(channels=8, stride=4)])


def test_sides_that_are_published(generator):
    (cell,) = generator.cell_anchors.buffers()
    squares = cell[1::3]
    assert [box.tolist() for box in squares[:2]] == [[-8, -8, 9, 9], [-12, -12, 13, 13]]
    assert (squares[:, 2] - squares[:, 0]).tolist() == [17, 25, 33, 49, 97, 193]
    assert generator.num_anchors == [18]


def test_the_first_pixel_of_a_cell_is_the_centre(generator):
    (anchors,) = generator([torch.zeros(1, 8, 3, 5)])
    centres = (anchors.tensor[:, :2] + anchors.tensor[:, 2:]) / 2 - 0.5  # of boxes that name their last pixel
    by_cell = centres.reshape(3, 5, 18, 2)
    assert torch.equal(by_cell[..., 0], 4.0 * torch.arange(5)[None, :, None].expand(3, 5, 18))
    assert torch.equal(by_cell[..., 1], 4.0 * torch.arange(3)[:, None, None].expand(3, 5, 18))
