import importlib
import logging
from importlib.util import find_spec

import pytest

TINY = """
MODEL.DEVICE cpu MODEL.A3D.NUM_SLICES 3 MODEL.A3D.BLOCK_CONFIG [1,1,1] MODEL.A3D.GROWTH_RATE 4
MODEL.A3D.NUM_INIT_FEATURES 8 MODEL.A3D.BN_SIZE 1 MODEL.FPN.OUT_CHANNELS 8 MODEL.ROI_BOX_HEAD.FC_DIM 8
MODEL.RPN.POST_NMS_TOPK_TRAIN 20 MODEL.RPN.POST_NMS_TOPK_TEST 20 INPUT.MIN_SIZE_TRAIN (64,) INPUT.MIN_SIZE_TEST 64
INPUT.MAX_SIZE_TRAIN 64 INPUT.MAX_SIZE_TEST 64 DATALOADER.NUM_WORKERS 0 SOLVER.IMS_PER_BATCH 2 SOLVER.STEPS ()
SOLVER.WARMUP_ITERS 0 SOLVER.MAX_ITER 2 TEST.EVAL_PERIOD 0 SEED 0
""".split()


@pytest.fixture(params=["launching", "torchvision_loop"])
def engine(request):
    if request.param == "launching" and find_spec("detectron2") is None:
        pytest.skip("Detectron2 is not installed")
    return importlib.import_module(f"a3d_det2.engine.{request.param}")


@pytest.fixture
def start(engine, phantom_root, tmp_path, monkeypatch, capfd):
    """Runs a training in this process; returns what it printed as its error, None where it ends well."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(phantom_root))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    for logger in (logging.root, *map(logging.getLogger, ("detectron2", "fvcore", "a3d_det2"))):
        monkeypatch.setattr(logger, "handlers", [])  # a training adds its own

    def run(*opts, arguments=(), config="quick/a3d_7slice.yaml"):
        changes = {**dict(zip(TINY[::2], TINY[1::2], strict=True)), "OUTPUT_DIR": tmp_path / "out"}
        changes |= dict(zip(opts[::2], opts[1::2], strict=True))
        capfd.readouterr()
        status = None
        try:
            engine.main(["--config-file", str(config), *arguments, *(str(x) for pair in changes.items() for x in pair)])
        except SystemExit as error:
            status = error.code
        printed = capfd.readouterr().err
        if status is None:
            return None
        assert status == 2, printed
        assert "Traceback" not in printed
        return printed[printed.index(": error: ") :]

    return run
