"""SOLVER.AMP.DTYPE, for both engines."""

import pytest
import torch
from fvcore.common.config import CfgNode

from a3d_det2.config import add_a3d_config, amp_dtype


def config(dtype: str) -> CfgNode:
    solver = {"AMP": {"ENABLED": True}, "CLIP_GRADIENTS": {}}
    cfg = CfgNode({"MODEL": {}, "INPUT": {}, "DATALOADER": {}, "SOLVER": solver})
    add_a3d_config(cfg)
    cfg.SOLVER.AMP.DTYPE = dtype
    return cfg


def test_dtype():
    assert amp_dtype(config("float16"), "cpu") == torch.float16
    assert amp_dtype(config("bfloat16"), "cuda") == torch.bfloat16
    assert amp_dtype(config(""), "cuda") == torch.float16
    assert amp_dtype(config(""), "cpu") == torch.bfloat16
    with pytest.raises(ValueError, match="Unknown SOLVER.AMP.DTYPE 'half'. Choose one of float16, bfloat16, or ''"):
        amp_dtype(config("half"), "cpu")


@pytest.mark.parametrize(("dtype", "scales"), [("float16", True), ("bfloat16", False), ("", True)])
@pytest.mark.filterwarnings("ignore:torch.cuda.amp.GradScaler is enabled")
def test_detectron2s_trainer_gets_it(dtype, scales, monkeypatch):
    pytest.importorskip("detectron2")
    from detectron2.config import get_cfg

    from a3d_det2 import Trainer

    cfg = get_cfg()
    add_a3d_config(cfg)
    cfg.SOLVER.AMP.ENABLED, cfg.SOLVER.AMP.DTYPE = True, dtype
    monkeypatch.setattr(torch.amp.GradScaler, "__init__", lambda self, device, enabled: setattr(self, "on", enabled))
    trainer = Trainer.build_step(cfg, torch.nn.Linear(1, 1), [None], None)
    assert trainer.precision == (torch.bfloat16 if dtype == "bfloat16" else torch.float16)
    assert trainer.grad_scaler.on == scales
