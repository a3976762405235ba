"""3D context for 2D detectors: context-fusion convolutions in Detectron2, for lesion detection in CT.

    layers          the operators, and what converts any 2D network: torch alone
    kernels         how they run fast
    modeling        trunk, squeeze and neck; the detectors of both engines
    checkpoint      loading, strictly, of our weights and those of others
    data            slices, samples, datasets, the phantom; preparation of a downloaded DeepLesion
    evaluation      FROC, bootstrap, strata; the report
    volumes         whole CTs: from DICOM, NIfTI or PNG to measured lesions
    engine          trainers and commands
    config, model_zoo

None of them loads Detectron2, but for the modules that are there for it, nor does importing the package: its names are
imported when they are first used. Whoever takes one from it that needs Detectron2, gives a config of Detectron2's to
``add_a3d_config``, or imports ``a3d_det2.registration``, has these registered:

    backbones       build_a3d_densenet_backbone, build_a3d_densenet_fpn_backbone, build_a3d_densenet_fused_backbone,
                    build_a3d_resnet_fpn_backbone, build_a3d_retinanet_{densenet,resnet}_fpn_backbone,
                    build_densenet_2d_fused_backbone
    architectures   LesionRCNN, LesionRetinaNet
    RPN, mask head  LesionRPN, DiceMaskHead
    as published    PublishedRCNN, PublishedAnchorGenerator, PublishedRPN, PublishedROIHeads, PublishedMaskHead
    datasets        deeplesion_{train,val,test}, phantom_{train,val,test} and those of split files (splits/NAME.txt)
                    under $DETECTRON2_DATASETS
"""

from importlib import import_module

from .optional import detectron2_problem, needs_detectron2

__version__ = "0.2.0"

_ROOMS = (
    "checkpoint",
    "config",
    "data",
    "engine",
    "evaluation",
    "kernels",
    "layers",
    "model_zoo",
    "modeling",
    "volumes",
)
_PURE = {
    "AffineTransform": "data.transforms",
    "LesionPredictor": "engine.predictor",
    "add_a3d_config": "config",
    "datasets_root": "data.deeplesion",
}
_OF_DETECTRON2 = {
    "BestCheckpointer": "engine.hooks",
    "DeepLesionEvaluator": "evaluation.deeplesion_evaluation",
    "DeepLesionMapper": "data.dataset_mapper",
    "DiceMaskHead": "modeling.mask_head",
    "LesionCheckpointer": "checkpoint.detectron2",
    "LesionRCNN": "modeling.meta_arch",
    "LesionRCNNWithTTA": "engine.tta",
    "LesionRPN": "modeling.lesion_rpn",
    "LesionRetinaNet": "modeling.meta_arch",
    "PublishedAnchorGenerator": "modeling.published",
    "PublishedMaskHead": "modeling.published",
    "PublishedRCNN": "modeling.published",
    "PublishedROIHeads": "modeling.published",
    "PublishedRPN": "modeling.published",
    "RandomAffine": "data.augmentation",
    "RandomHUJitter": "data.augmentation",
    "TakesSlices": "modeling.meta_arch",
    "Trainer": "engine.trainer",
    "build_a3d_densenet_backbone": "modeling.backbone",
    "build_a3d_densenet_fpn_backbone": "modeling.backbone",
    "build_a3d_densenet_fused_backbone": "modeling.backbone",
    "build_a3d_resnet_fpn_backbone": "modeling.backbone",
    "build_a3d_retinanet_densenet_fpn_backbone": "modeling.backbone",
    "build_a3d_retinanet_resnet_fpn_backbone": "modeling.backbone",
    "build_densenet_2d_fused_backbone": "modeling.backbone",
    "register_ct_coco": "data.registration",
    "register_all_deeplesion": "data.registration",
}

__all__ = [*_PURE, *(() if detectron2_problem() else _OF_DETECTRON2)]


def __getattr__(name: str):
    if name in _ROOMS:
        return import_module(f".{name}", __name__)
    if name in _PURE:
        return getattr(import_module(f".{_PURE[name]}", __name__), name)
    if name in _OF_DETECTRON2:
        with needs_detectron2(f"a3d_det2.{name}"):
            import_module(".registration", __name__)
            return getattr(import_module(f".{_OF_DETECTRON2[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_ROOMS, *__all__})
