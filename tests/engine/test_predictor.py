"""Both engines in volumes: at a key slice they find what an evaluation finds there."""

import numpy as np
import pytest
import torch

from a3d_det2.checkpoint.strict import StrictCheckpointer
from a3d_det2.data.deeplesion import load_deeplesion
from a3d_det2.data.torch_dataset import build_lesion_dataset
from a3d_det2.engine import prediction_options, predictor
from a3d_det2.engine.predictor import LesionPredictor
from a3d_det2.model_zoo import get_config_file
from a3d_det2.volumes import read_volume
from a3d_det2.volumes.png_series import PngFolder
from tests.engine.conftest import TINY

MASKS = ["MODEL.MASK_ON", "True", "MODEL.ROI_MASK_HEAD.CONV_DIM", "8", "MODEL.ROI_MASK_HEAD.NUM_CONV", "1"]


def make_config(engine, *opts):
    changes = ["INPUT.MIN_SIZE_TEST", "96", "INPUT.MAX_SIZE_TEST", "96", "MODEL.WEIGHTS", ""]
    return engine.load_config(get_config_file("quick/a3d_7slice.yaml"), [*TINY, *changes, *opts])


def save_weights(engine, cfg, path, seed=0):
    """Weights as they are drawn, with boxes that score differently."""
    torch.manual_seed(seed)
    if hasattr(engine, "Trainer"):
        from detectron2.modeling import build_model

        model = build_model(cfg)
    else:
        from a3d_det2.modeling.torchvision_rcnn import build_lesion_rcnn

        model = build_lesion_rcnn(cfg)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("cls_score.weight", "objectness_logits.weight", "cls_logits.weight")):
                parameter.mul_(5)
            if name.endswith("cls_score.bias"):
                parameter[1] += 1  # with torchvision the class of lesions
    StrictCheckpointer(model, str(path.parent)).save(path.stem, tag=False)
    return model.eval()


def evaluated(engine, cfg, model, record):
    """Boxes and scores that an evaluation gets for a key slice."""
    if hasattr(engine, "Trainer"):
        from a3d_det2.data.dataset_mapper import DeepLesionMapper

        with torch.no_grad():
            instances = model([DeepLesionMapper(cfg, is_train=False)(record)])[0]["instances"]
        return instances.pred_boxes.tensor.numpy(), instances.scores.numpy()
    item = build_lesion_dataset(cfg, [record], is_train=False)[0]
    with torch.no_grad():
        (found,) = engine.forward(model, [item], torch.device("cpu"))
    return found["boxes"].numpy(), found["scores"].numpy()


@pytest.mark.parametrize(
    ("size", "opts"),
    [(96, []), (128, []), (96, MASKS), (96, ["INPUT.RESAMPLING", "published", "INPUT.AFFINE.ORDER", "first"])],
)
def test_a_key_slice_is_that_of_an_evaluation(engine, phantom_root, tmp_path, size, opts):
    cfg = make_config(engine, *opts, "INPUT.MIN_SIZE_TEST", str(size), "INPUT.MAX_SIZE_TEST", str(size))
    model = save_weights(engine, cfg, tmp_path / "model.pth")
    folder = phantom_root / "phantom"
    predictor = LesionPredictor(cfg, str(tmp_path / "model.pth"), min_score=0.0, crop_to_body=False, progress=False)
    compared, intervals = 0, set()
    for record in load_deeplesion(str(folder / "DL_info.csv"), str(folder / "Images_png"), "test"):
        source = PngFolder(str(folder / "Images_png" / record["file_name"].split("/")[-2]))
        volume = source.read()
        key = source.series.numbers.index(int(record["file_name"][-7:-4]))
        boxes, scores = evaluated(engine, cfg, model, record)
        found = predictor.detect(volume, [key])
        assert len(found) == len(scores)
        order = np.argsort(-scores, kind="stable")
        np.testing.assert_allclose([one.score for one in found], scores[order], atol=1e-4)
        np.testing.assert_allclose(np.array([one.box for one in found]).reshape(-1, 4), boxes[order], atol=1e-3)
        assert all((one.mask is not None) <= bool(cfg.MODEL.MASK_ON) for one in found)
        compared += len(found)
        intervals.add(record["slice_interval"])
    assert compared > 5
    assert len(intervals) > 2


def test_half_precision_is_close(engine, phantom_root, tmp_path):
    cfg = make_config(engine)
    save_weights(engine, cfg, tmp_path / "model.pth")
    series = sorted((phantom_root / "phantom" / "Images_png").iterdir())[0]
    volume = read_volume(str(series))
    how = {"min_score": 0.0, "progress": False}
    full = LesionPredictor(cfg, str(tmp_path / "model.pth"), **how).detect(volume)
    half = LesionPredictor(cfg, str(tmp_path / "model.pth"), dtype="bfloat16", batch_size=3, **how).detect(volume)
    best = [max(one.score for one in found) for found in (full, half)]
    assert best[0] == pytest.approx(best[1], abs=0.05)


def test_weights_that_cannot_be_used(engine, tmp_path):
    cfg = make_config(engine)
    with pytest.raises(ValueError, match="Expected the weights of a trained detector, got none"):
        LesionPredictor(cfg)
    with pytest.raises(FileNotFoundError, match="there is no such file of weights"):
        LesionPredictor(cfg, str(tmp_path / "none.pth"))
    other = make_config(engine, "MODEL.A3D.GROWTH_RATE", "6")
    save_weights(engine, other, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="The weights do not fit the model"):
        LesionPredictor(cfg, str(tmp_path / "other.pth"))
    # What a training may start from has no heads.
    content = torch.load(tmp_path / "other.pth")["model"]
    trunk = {key: value for key, value in content.items() if key.startswith("backbone.")}
    torch.save(trunk, tmp_path / "trunk.pth")
    with pytest.raises(ValueError, match=r"(?s)trunk.pth: The weights do not fit.*not in the checkpoint"):
        LesionPredictor(other, str(tmp_path / "trunk.pth"))


def test_options_that_cannot_be(engine, tmp_path):
    cfg = make_config(engine)
    with pytest.raises(ValueError, match="Unknown dtype 'int8'. Choose one of float32, float16, bfloat16"):
        LesionPredictor(cfg, dtype="int8")
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="Expected the device 'cpu', as torch finds no CUDA here, got 'cuda'"):
            LesionPredictor(cfg, device="cuda")


def test_dtypes_of_the_command_line():
    """They are named where no torch is loaded."""
    assert tuple(predictor.DTYPES) == prediction_options.DTYPES
