"""3D context for 2D detectors: context-fusion convolutions in Detectron2, for lesion detection in CT.

Without Detectron2 the package still has the operators (``layers``), trunk and neck, also in torchvision's detectors
(``modeling``), samples and phantom (``data``), and metrics and report (``evaluation``). With it, importing the package
registers

    backbones       build_a3d_densenet_backbone, build_a3d_densenet_fpn_backbone, build_a3d_densenet_fused_backbone,
                    build_a3d_resnet_fpn_backbone
    architectures   LesionRCNN, LesionRetinaNet
    mask head       DiceMaskHead
    datasets        deeplesion_{train,val,test}, phantom_{train,val,test} and those of split files (splits/NAME.txt)
                    under $DETECTRON2_DATASETS
"""

from importlib.util import find_spec

if find_spec("detectron2") is not None:
    from .checkpoint import BestCheckpointer, LesionCheckpointer
    from .config import add_a3d_config
    from .data.augmentation import RandomAffine, RandomHUJitter
    from .data.dataset_mapper import DeepLesionMapper
    from .data.deeplesion import datasets_root, register_all_deeplesion
    from .data.transforms import AffineTransform
    from .evaluation.deeplesion_evaluation import DeepLesionEvaluator
    from .modeling.backbone import (
        build_a3d_densenet_backbone,
        build_a3d_densenet_fpn_backbone,
        build_a3d_densenet_fused_backbone,
        build_a3d_resnet_fpn_backbone,
    )
    from .modeling.lesion_rcnn import LesionRCNN
    from .modeling.lesion_retinanet import LesionRetinaNet
    from .modeling.mask_head import DiceMaskHead

    register_all_deeplesion(datasets_root())

    __all__ = [
        "AffineTransform",
        "BestCheckpointer",
        "DeepLesionEvaluator",
        "DeepLesionMapper",
        "DiceMaskHead",
        "LesionCheckpointer",
        "LesionRCNN",
        "LesionRetinaNet",
        "RandomAffine",
        "RandomHUJitter",
        "add_a3d_config",
        "build_a3d_densenet_backbone",
        "build_a3d_densenet_fpn_backbone",
        "build_a3d_densenet_fused_backbone",
        "build_a3d_resnet_fpn_backbone",
    ]
