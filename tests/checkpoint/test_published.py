"""Checkpoints in the names of the published, mmdetection-based models."""

import re
import subprocess
import sys

import pytest

pytest.importorskip("detectron2")

import torch
from detectron2.config import get_cfg
from detectron2.modeling import build_model

from a3d_det2 import LesionCheckpointer, add_a3d_config
from a3d_det2.checkpoint.formats import convert_published, is_published

SIZES, RATIOS = (16, 24, 32, 48, 96, 192), (0.5, 1.0, 2.0)
SMALL = ["MODEL.A3D.BLOCK_CONFIG", [1, 2, 1], "MODEL.A3D.GROWTH_RATE", 4, "MODEL.A3D.NUM_INIT_FEATURES", 8]
SMALL += ["MODEL.A3D.BN_SIZE", 2, "MODEL.FPN.OUT_CHANNELS", 12, "MODEL.ROI_BOX_HEAD.FC_DIM", 20]
SMALL += ["MODEL.ROI_MASK_HEAD.CONV_DIM", 6, "MODEL.DEVICE", "cpu", "MODEL.A3D.NORM", "BN"]


def build(repo, operator="a3d", slices=3, options=()):
    cfg = get_cfg()
    add_a3d_config(cfg)
    cfg.merge_from_file(str(repo / f"configs/{operator}_{slices}slice.yaml"))
    cfg.merge_from_list([*SMALL, *options])
    return build_model(cfg).eval()


def published(operator="a3d", slices=3, kernel_depth=True) -> dict:
    """Random weights under the published names, in the shapes of ``SMALL``."""
    torch.manual_seed(1)
    weights = {}

    def conv(name, c_out, c_in, k, fuses=False, bias=False, prefix="backbone.", unused=False):
        depth = [k] if operator == "i3d" and fuses else [1] if kernel_depth and prefix == "backbone." else []
        weights[f"{prefix}{name}.weight"] = torch.randn(c_out, c_in, *depth, k, k)
        if bias:
            weights[f"{prefix}{name}.bias"] = torch.randn(c_out)
        if fuses and operator == "a3d":
            weights[f"{prefix}{name}.adaptive_align_weights"] = torch.randn(slices, slices, c_in)
        if unused and operator == "a3d":  # of 3 slices in any model
            weights[f"{prefix}{name}.adaptive_align_weights"] = torch.randn(3, 3, c_in)

    def norm(name, channels):
        for part in ("weight", "bias", "running_mean", "running_var"):
            weights[f"backbone.{name}.{part}"] = torch.rand(channels) + 0.5
        weights[f"backbone.{name}.num_batches_tracked"] = torch.tensor(7)

    conv("conv0", 8, 1, 7, unused=True)
    norm("norm0", 8)
    channels, outputs = 8, []
    for block, layers in enumerate((1, 2, 1), 1):
        if block > 1:
            norm(f"transition{block - 1}.norm", channels)
            conv(f"transition{block - 1}.conv", channels // 2, channels, 1, unused=True)
            channels //= 2
        for layer in range(1, layers + 1):
            name = f"denseblock{block}.denselayer{layer}"
            norm(f"{name}.norm1", channels)
            conv(f"{name}.conv1", 8, channels, 1, fuses=True)
            norm(f"{name}.norm2", 8)
            conv(f"{name}.conv2", 4, 8, 3, fuses=True)
            channels += 4
        outputs.append(channels)
    for level, channels in enumerate(outputs, 1):
        weights[f"backbone.reductionz{level}.reduction_z_conv.weight"] = torch.randn(channels, channels, slices, 1, 1)
        weights[f"backbone.lateral{level + 1}.weight"] = torch.randn(12, channels, 1, 1)
        weights[f"backbone.lateral{level + 1}.bias"] = torch.randn(12)
    conv("rpn_conv", 12, 12, 3, bias=True, prefix="rpn_head.")
    conv("rpn_cls", 18, 12, 1, bias=True, prefix="rpn_head.")
    conv("rpn_reg", 72, 12, 1, bias=True, prefix="rpn_head.")
    for name, c_out, c_in in (
        ("shared_fcs.0", 20, 12 * 49),
        ("shared_fcs.1", 20, 20),
        ("fc_cls", 2, 20),
        ("fc_reg", 8, 20),
    ):
        weights[f"bbox_head.{name}.weight"] = torch.randn(c_out, c_in)
        weights[f"bbox_head.{name}.bias"] = torch.randn(c_out)
    for i in range(4):
        conv(f"convs.{i}.conv", 6, 12 if i == 0 else 6, 3, bias=True, prefix="mask_head.")
    weights["mask_head.upsample.weight"] = torch.randn(6, 6, 2, 2)
    weights["mask_head.upsample.bias"] = torch.randn(6)
    conv("conv_logits", 2, 6, 1, bias=True, prefix="mask_head.")
    return weights


def equal(ours, theirs):
    return torch.equal(ours, theirs.reshape(ours.shape))


UNUSED = {f"backbone.{name}.adaptive_align_weights" for name in ("conv0", "transition1.conv", "transition2.conv")}


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("kernel_depth", [True, False], ids=["3D kernels", "2D kernels"])
@pytest.mark.parametrize(
    ("operator", "slices"), [("a3d", 3), ("a3d", 7), ("none", 3), ("i3d", 3), ("acs", 7), ("tsm", 3), ("alignshift", 7)]
)
def test_round_trip(repo, tmp_path, caplog, operator, slices, kernel_depth, zipped):
    theirs = published(operator, slices, kernel_depth)
    path = tmp_path / "published.pth"
    content = {"meta": {"epoch": 20}, "state_dict": {f"module.{k}": v for k, v in theirs.items()}}
    content["optimizer"] = torch.optim.SGD([torch.ones(2)], 0.1, 0.9).state_dict()
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    model = build(repo, operator, slices)
    for value in model.state_dict().values():
        value.fill_(-123)
    with caplog.at_level("INFO"):
        LesionCheckpointer(model).load(str(path))
    unused = UNUSED & theirs.keys()
    assert unused == (UNUSED if operator == "a3d" else set())
    assert all(f"module.{name}: not in the model" in caplog.text for name in unused)
    ours = model.state_dict()
    assert not any((value == -123).any() for value in ours.values())  # every parameter and buffer of ours is set
    converted = convert_published(theirs)
    assert len(converted) == len(theirs) - len(unused)  # none of theirs is left over
    assert set(converted) == set(ours)

    layer = "denseblock2.denselayer2"
    trunk, backbone = f"backbone.bottom_up.trunk.{layer}", "backbone.bottom_up.squeeze.dense2.weight"
    assert equal(ours[f"{trunk}.conv2.weight"], theirs[f"backbone.{layer}.conv2.weight"])
    assert equal(ours[f"{trunk}.norm1.running_var"], theirs[f"backbone.{layer}.norm1.running_var"])
    assert ours[f"{trunk}.norm1.num_batches_tracked"] == 7
    if operator == "a3d":
        assert equal(ours[f"{trunk}.conv1.fusion_weight"], theirs[f"backbone.{layer}.conv1.adaptive_align_weights"])
    assert equal(ours[backbone], theirs["backbone.reductionz2.reduction_z_conv.weight"])
    for level in range(3):
        assert equal(ours[f"backbone.neck.laterals.{level}.weight"], theirs[f"backbone.lateral{level + 2}.weight"])
    assert equal(ours["roi_heads.box_head.fc2.bias"], theirs["bbox_head.shared_fcs.1.bias"])
    assert equal(ours["roi_heads.mask_head.mask_fcn4.weight"], theirs["mask_head.convs.3.conv.weight"])
    assert equal(ours["roi_heads.mask_head.deconv.weight"], theirs["mask_head.upsample.weight"])


def test_background_is_last_and_has_neither_box_nor_mask():
    theirs = published()
    ours = convert_published(theirs)
    for part in ("weight", "bias"):
        lesion, background = ours[f"roi_heads.box_predictor.cls_score.{part}"]
        assert torch.equal(background, theirs[f"bbox_head.fc_cls.{part}"][0])
        assert torch.equal(lesion, theirs[f"bbox_head.fc_cls.{part}"][1])
        assert torch.equal(ours[f"roi_heads.box_predictor.bbox_pred.{part}"], theirs[f"bbox_head.fc_reg.{part}"][4:])
        mask = ours[f"roi_heads.mask_head.predictor.{part}"]
        assert torch.equal(mask, theirs[f"mask_head.conv_logits.{part}"][1:])


def test_each_anchor_keeps_its_outputs(repo):
    """mmdetection 1 counts base anchors ratio by ratio, with all scales for each."""
    theirs = published()
    widths = [size / ratio**0.5 for ratio in RATIOS for size in SIZES]
    heights = [size * ratio**0.5 for ratio in RATIOS for size in SIZES]
    theirs["rpn_head.rpn_cls.bias"] = torch.tensor(widths)
    theirs["rpn_head.rpn_reg.bias"] = torch.tensor(
        [[w, h, -w, -h] for w, h in zip(widths, heights, strict=True)]
    ).ravel()
    model = build(repo)
    model.load_state_dict(convert_published(theirs))
    (anchors,) = model.proposal_generator.anchor_generator.cell_anchors
    width, height = anchors[:, 2] - anchors[:, 0], anchors[:, 3] - anchors[:, 1]
    head = model.proposal_generator.rpn_head
    torch.testing.assert_close(head.objectness_logits.bias.detach(), width)
    expected = torch.stack([width, height, -width, -height], dim=1)
    torch.testing.assert_close(head.anchor_deltas.bias.detach().view(18, 4), expected)


def test_boxes_are_those_of_mmdetection_1_but_end_behind_their_last_pixel(repo):
    """Anchors and decoding of mmdetection 1, whose boxes name their last pixel."""
    model = build(repo, options=["MODEL.ANCHOR_GENERATOR.NAME", "PublishedAnchorGenerator"])
    (anchors,) = model.proposal_generator.anchor_generator([torch.zeros(1, 1, 3, 5)])
    theirs = []
    for top in (0, 4, 8):
        for left in (0, 4, 8, 12, 16):
            for size in SIZES:
                for ratio in RATIOS:
                    reach_x, reach_y = (size / ratio**0.5 - 1) / 2, (size * ratio**0.5 - 1) / 2
                    corners = left + round(-reach_x), top + round(-reach_y), left + round(reach_x), top + round(reach_y)
                    theirs.append([float(corner) for corner in corners])
    x1, y1, x2, y2 = torch.tensor(theirs).T
    behind = torch.tensor([0.0, 0.0, 1.0, 1.0])
    assert torch.equal(anchors.tensor, torch.stack([x1, y1, x2, y2], dim=1) + behind)

    dx, dy, dw, dh = deltas = torch.randn(4, len(x1)) * 0.5
    w, h = x2 - x1 + 1, y2 - y1 + 1
    cx, cy = (x1 + x2) / 2 + dx * w, (y1 + y2) / 2 + dy * h
    w, h = w * dw.exp(), h * dh.exp()
    decoded = torch.stack([cx - w / 2 + 0.5, cy - h / 2 + 0.5, cx + w / 2 - 0.5, cy + h / 2 - 0.5], dim=1)
    ours = model.proposal_generator.box2box_transform.apply_deltas(deltas.T.contiguous(), anchors.tensor)
    torch.testing.assert_close(ours, decoded + behind)


def test_unknown_and_missing_keys_are_named(repo, tmp_path):
    path = tmp_path / "published.pth"
    theirs = published()
    torch.save({**theirs, "backbone.upsample.weight": torch.zeros(1), "extra": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match=r"published.pth: [^$]*no place[^$]*backbone.upsample.weight\n  extra"):
        LesionCheckpointer(build(repo)).load(str(path))
    torch.save({key: v for key, v in theirs.items() if key != "rpn_head.rpn_conv.bias"}, path)
    with pytest.raises(ValueError, match=r"proposal_generator.rpn_head.conv.bias: not in the checkpoint"):
        LesionCheckpointer(build(repo)).load(str(path))
    torch.save({**theirs, "backbone.transition3.norm.weight": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match=r"trunk.transition3.norm.weight: not in the model"):
        LesionCheckpointer(build(repo)).load(str(path))


def test_other_anchors_are_an_error_and_the_checkpointer_stays_usable(repo, tmp_path):
    theirs = published()
    torch.save(theirs, tmp_path / "good.pth")
    torch.save({**theirs, "rpn_head.rpn_cls.bias": torch.zeros(10)}, tmp_path / "bad.pth")
    checkpointer = LesionCheckpointer(build(repo))
    with pytest.raises(
        ValueError, match=r"bad.pth: .*objectness_logits.bias: expected .* 6 sizes x 3 ratios .* \(10,\)"
    ):
        checkpointer.load(str(tmp_path / "bad.pth"))
    with pytest.raises(FileNotFoundError, match=r"nowhere.pth: there is no such"):
        checkpointer.load(str(tmp_path / "nowhere.pth"))
    checkpointer.load(str(tmp_path / "good.pth"))


def test_another_architecture_is_an_error(repo, tmp_path):
    path = tmp_path / "published.pth"
    torch.save(published(), path)
    with pytest.raises(ValueError, match=re.escape("conv1.fusion_weight: expected shape (7, 7, 8), got (3, 3, 8)")):
        LesionCheckpointer(build(repo, slices=7)).load(str(path))
    with pytest.raises(ValueError, match=r"conv1.fusion_weight: not in the model"):
        LesionCheckpointer(build(repo, "none")).load(str(path))
    with pytest.raises(ValueError, match=r"roi_heads.mask_head.deconv.bias: not in the model"):
        LesionCheckpointer(build(repo, options=["MODEL.MASK_ON", False])).load(str(path))
    assert not is_published(build(repo).state_dict())


@pytest.mark.slow
def test_convert_checkpoint(repo, tmp_path):
    torch.save(published(), tmp_path / "published.pth")
    options = [str(option) for option in SMALL]

    def convert(config, name):
        command = [sys.executable, "tools/convert_checkpoint.py", "--config-file", f"configs/{config}.yaml"]
        command += ["--input", tmp_path / name, "--output", tmp_path / "ours" / "a3d.pth", *options]
        return subprocess.run(command, capture_output=True, text=True, cwd=repo)

    done = convert("a3d_3slice", "published.pth")
    assert done.returncode == 0, done.stderr
    saved = torch.load(tmp_path / "ours" / "a3d.pth")["model"]
    assert all(
        torch.equal(saved[key], value.reshape(saved[key].shape))
        for key, value in convert_published(published()).items()
    )
    assert [p.name for p in (tmp_path / "ours").iterdir()] == ["a3d.pth"]
    done = convert("a3d_7slice", "published.pth")
    assert done.returncode == 2
    assert "expected shape (7, 7, 8), got (3, 3, 8)" in done.stderr
    assert "Traceback" not in done.stderr
