"""A config and weights -> a predictor of volumes, with either engine."""

from collections.abc import Callable, Sequence

import torch
from fvcore.common.config import CfgNode
from torch import Tensor, nn

from ..checkpoint.download import find_weights, sha256
from ..checkpoint.formats import Published
from ..checkpoint.strict import StrictCheckpointer
from ..config import AMP_DTYPES
from ..data.recist import BOX_MARGIN
from ..volumes.predictor import Found, VolumePredictor
from .ensemble import Detectron2Ensemble, TorchvisionEnsemble, of_instances, of_torchvision, with_views

DTYPES = {"float32": torch.float32, **AMP_DTYPES}


class LesionPredictor(VolumePredictor):
    """Finds lesions in volumes with the model of a config, as Detectron2's DefaultPredictor does in an image.

    predictor = LesionPredictor(cfg, "model_best.pth")
    lesions = predictor.predict(read_volume("ct.nii.gz"))

    Attributes:
        model: the detector, in evaluation mode.
        device: where it runs.
        weights_sha256: of the file of weights, in hexadecimal; of several with a + between them.
    """

    def __init__(
        self,
        cfg: CfgNode,
        weights: str | None = None,
        *,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype = "float32",
        batch_size: int | None = None,
        min_score: float = 0.1,
        box_margin: float = BOX_MARGIN,
        **options,
    ):
        """
        Args:
            cfg: of Detectron2, or for torchvision one of fvcore's, as ``torchvision_loop.load_config`` gives it.
            weights: path of a checkpoint; None is MODEL.WEIGHTS.
            device: None is MODEL.DEVICE, or the CPU where there is no CUDA.
            dtype: "float32", or "bfloat16" or "float16" for autocast.
            batch_size: key slices at once; None is 1 on the CPU and 8 elsewhere.
            min_score, box_margin, options: see :class:`.VolumePredictor`. DeepLesion's boxes have a margin of 5 pixels.

        Raises:
            ValueError: if the weights do not fit, are those of a backbone alone, or an argument cannot be.
            FileNotFoundError: if there are no such weights.
        """
        cfg = cfg.clone()
        cfg.defrost()
        self.device = torch.device(device or (cfg.MODEL.DEVICE if torch.cuda.is_available() else "cpu"))
        if self.device.type == "cuda" and not torch.cuda.is_available():
            raise ValueError(f"Expected the device 'cpu', as torch finds no CUDA here, got {device!r}.")
        cfg.MODEL.DEVICE = str(self.device)
        dtype = DTYPES.get(dtype, dtype)
        if dtype not in DTYPES.values():
            raise ValueError(f"Unknown dtype {dtype!r}. Choose one of {', '.join(DTYPES)}.")
        # What is left out of the results is left out before masks are made of it.
        for head in (cfg.MODEL.ROI_HEADS, cfg.MODEL.get("RETINANET")):
            if head is not None:
                head.SCORE_THRESH_TEST = max(head.SCORE_THRESH_TEST, min_score)
        detector, self.model, self.weights_sha256 = build_detector(
            cfg, weights or cfg.MODEL.WEIGHTS, self.device, dtype
        )
        super().__init__(
            detector,
            num_slices=cfg.MODEL.A3D.NUM_SLICES,
            slice_interval=cfg.INPUT.SLICE_INTERVAL,
            hu_window=cfg.INPUT.HU_WINDOW,
            resampling=cfg.INPUT.RESAMPLING,
            window_first=cfg.INPUT.AFFINE.ORDER == "first",
            min_size=cfg.INPUT.MIN_SIZE_TEST,
            max_size=cfg.INPUT.MAX_SIZE_TEST,
            batch_size=(1 if self.device.type == "cpu" else 8) if batch_size is None else batch_size,
            min_score=min_score,
            box_margin=box_margin,
            **options,
        )


def build_detector(
    cfg: CfgNode, weights: str, device: torch.device, dtype: torch.dtype
) -> tuple[Callable[[Tensor, float], Sequence[Found]], nn.Module, str]:
    """Build the detector of a config and load its weights.

    Returns:
        what :class:`.VolumePredictor` calls, the model, and the SHA-256 of the file of weights; of several, for
        TEST.ENSEMBLE, with a + between them.
    """
    if type(cfg).__module__.startswith("detectron2."):
        from detectron2.modeling import build_model

        from ..checkpoint.detectron2 import LesionCheckpointer as Loader

        build, forward, kind = build_model, _detectron2_forward, Detectron2Ensemble
    else:
        from ..modeling.torchvision_rcnn import build_lesion_rcnn

        def build(cfg: CfgNode) -> nn.Module:
            return build_lesion_rcnn(cfg).to(device)

        forward, kind, Loader = _torchvision_forward, TorchvisionEnsemble, StrictCheckpointer
    digests: list[str] = []

    def load(path: str) -> nn.Module:
        checkpointer = Loader(build(cfg), stem_weights=cfg.MODEL.A3D.STEM_WEIGHTS)
        load_detector(checkpointer, path)
        digests.append(sha256(find_weights(path, checkpointer.path_manager)))
        return checkpointer.model.eval()

    model = with_views(cfg, load(weights), kind, load).eval()

    @torch.inference_mode()
    def detect(images: Tensor, slice_interval: float) -> list[Found]:
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            return forward(model, images.to(device, non_blocking=True), slice_interval)

    return detect, model, "+".join(digests)


def load_detector(checkpointer: StrictCheckpointer, weights: str) -> None:
    """Load the weights of a whole detector.

    Raises:
        ValueError: if there are none, they do not fit, or they are what a training starts from, and lack the heads.
    """
    if not weights:
        raise ValueError("Expected the weights of a trained detector, got none.")
    # Other formats start a training: what they lack is left as it was drawn at random.
    checkpointer.formats = tuple(kind for kind in checkpointer.formats if isinstance(kind, Published))
    checkpointer.load(weights, checkpointables=[])


def _detectron2_forward(model: nn.Module, images: Tensor, thickness: float) -> list[Found]:
    height, width = images.shape[-2:]
    inputs = [{"image": image, "thickness": thickness, "height": height, "width": width} for image in images]
    return [of_instances(output["instances"]) for output in model(inputs)]


def _torchvision_forward(model: nn.Module, images: Tensor, thickness: float) -> list[Found]:
    intervals = torch.full((len(images),), thickness, dtype=torch.float32, device=images.device)
    return [of_torchvision(output) for output in model(list(images), None, intervals)]
