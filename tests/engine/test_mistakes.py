"""A user's mistake ends both engines with a sentence and status 2; nothing is read or written before the config is
checked."""

import os
import random
import re
import shutil
import sys
from functools import reduce
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from a3d_det2.engine.config_check import Start, check_config, leaves
from a3d_det2.engine.config_rules import RULES
from a3d_det2.engine.mistakes import Mistake, exit_on_mistakes, mistakes
from a3d_det2.model_zoo import find_config_file

SLIPS = [
    ("MODEL.A3D.BLOCK_CONFIG", "[]", r"expected one entry or more, each a whole number from 1 on, got \[\]"),
    ("MODEL.A3D.NUM_SLICES", 4, "expected an odd number, so that the key slice is the middle one, got 4"),
    ("MODEL.A3D.OPERATOR", "a4d", "expected one of 'none', .*'a3d', got 'a4d'"),
    ("MODEL.ROI_HEADS.NUM_CLASSES", 0, "expected a whole number from 1 on, got 0"),
    ("MODEL.DEVICE", "gpu", "expected a device of torch such as 'cuda' or 'cpu', got 'gpu'"),
    ("MODEL.DEVICE", "cuda", "expected 'cpu', as torch finds no CUDA here, got 'cuda'"),
    ("MODEL.DEVICE", "meta", "expected a device of torch such as 'cuda' or 'cpu', got 'meta'"),
    ("MODEL.DEVICE", "fpga", r"got 'fpga' \(.{5,200}\)\.\n$"),
    ("OUTPUT_DIR", "s3://bucket/out", "got 's3://bucket/out' .results are written to files of this machine"),
    ("MODEL.WEIGHTS", "nowhere.pth", "expected a URL or the path of a file, .* there is no file 'nowhere.pth'"),
    ("INPUT.HU_WINDOW", "(-1024.0,)", r"expected two numbers, the lower one first, got \(-1024.0,\)"),
    ("INPUT.HU_WINDOW", "(50.0, 50.0)", "expected two numbers, the lower one first"),
    (
        "INPUT.HU_WINDOWS",
        "[[-150.0, 250.0], 3]",
        "entries are each two numbers, the lower one first",
    ),
    ("INPUT.HU_WINDOWS", "[[-150.0, 400.0]]", r"within INPUT.HU_WINDOW \(-200.0, 300.0\), got \(-150.0, 400.0\)"),
    ("SOLVER.ACCUMULATION", 0, "expected a whole number from 1 on, got 0"),
    ("SOLVER.EMA_DECAY", 1.0, "expected a number from 0 to below 1, got 1.0"),
    ("INPUT.AFFINE.SHIFT", -0.1, "expected a number from 0 to 1, got -0.1"),
    ("INPUT.RANDOM_FLIP", "both", "expected one of 'horizontal', 'vertical', 'none', got 'both'"),
    ("INPUT.MIN_SIZE_TRAIN", "()", r"expected one entry or more, each a whole number from 0 to 32767, got \(\)"),
    ("DATASETS.TRAIN", "()", r"expected one dataset or more to train on, got \(\)"),
    ("DATASETS.TRAIN", "('phantom_trian',)", "Unknown dataset 'phantom_trian'"),
    ("DATASETS.TEST", "('deeplesion_val',)", "expected 'deeplesion_val' in .*; there is no .*DL_info.csv"),
    ("SOLVER.MAX_ITER", 0, "expected a whole number from 1 on, got 0"),
    ("SOLVER.IMS_PER_BATCH", 0, "expected a whole number from 1 on, got 0"),
    ("SOLVER.CHECKPOINT_PERIOD", 0, "expected a whole number from 1 on, got 0"),
    ("SOLVER.WARMUP_ITERS", -5, "expected a whole number from 0 on, got -5"),
    ("SOLVER.CLIP_GRADIENTS.CLIP_VALUE", 0.0, "expected a number above 0, got 0.0"),
    ("SOLVER.STEPS", "(20, 10)", r"expected whole numbers above 0, each larger than the one before, got \(20, 10\)"),
    ("SOLVER.BASE_LR", "1e999", "expected a number above 0, got inf"),
    ("TEST.DETECTIONS_PER_IMAGE", 0, "expected a whole number from 1 on.*, got 0"),
    ("SEED", -7, "expected a whole number from 0 to 2147483647, or -1 for another seed each time, got -7"),
]


@pytest.mark.parametrize(("key", "value", "message"), SLIPS)
def test_a_slip_is_named_before_anything_is_written(start, tmp_path, key, value, message):
    printed = start(key, value)
    assert printed is not None
    assert key in printed
    assert re.search(message, printed), printed
    assert not (tmp_path / "out").exists()


def test_windows_and_what_they_do_not_go_with(start):
    windows = ["INPUT.HU_WINDOWS", "[[-150.0, 250.0]]"]
    assert "MODEL.PIXEL_MEAN [0.0] and PIXEL_STD [1.0] with INPUT.HU_WINDOWS, got [3.0]" in start(
        *windows, "MODEL.PIXEL_MEAN", "[3.0]"
    )
    assert "INPUT.HU_WINDOWS: expected none with a backbone that is not of the kind build_a3d_..." in start(
        *windows, "MODEL.BACKBONE.NAME", "build_densenet_2d_fused_backbone"
    )


def test_several_classes_are_for_detectron2(start, engine):
    printed = start("MODEL.ROI_HEADS.NUM_CLASSES", 3)
    assert "MODEL.ROI_HEADS.NUM_CLASSES: expected 1, for the " in printed


def test_several_slips_are_said_at_once(start):
    printed = start("SOLVER.MAX_ITER", 0, "SEED", -2, "INPUT.RESAMPLING", "cubic")
    named = {line.split(":")[0].strip() for line in printed.splitlines()[1:]}
    assert named == {"INPUT.RESAMPLING", "SEED", "SOLVER.MAX_ITER"}


def test_an_output_dir_that_cannot_be_written_to(start, tmp_path):
    (tmp_path / "file").write_text("")
    assert "OUTPUT_DIR: expected a folder that can be written to" in start("OUTPUT_DIR", tmp_path / "file" / "out")
    assert "OUTPUT_DIR: expected a folder that can be written to" in start("OUTPUT_DIR", "/proc/out")


def test_an_evaluation_needs_a_test_set_and_no_training_set(start):
    printed = start("DATASETS.TEST", "()", "DATASETS.TRAIN", "()", arguments=["--eval-only"])
    assert "DATASETS.TEST: expected one dataset or more to evaluate, got ()." in printed
    assert "TRAIN" not in printed


def test_an_evaluation_does_not_look_at_how_a_training_would_be_done(start):
    for key, value in (("SOLVER.AMP.ENABLED", True), ("SOLVER.IMS_PER_BATCH", 0)):
        assert start(key, value, arguments=["--eval-only"]) is None


def test_a_checkpoint_without_a_number_of_its_iteration(start, tmp_path):
    assert start("SOLVER.MAX_ITER", 1) is None
    path = tmp_path / "out" / "model_final.pth"
    checkpoint = torch.load(path)
    for value in (None, "3", -1, 2.5):
        checkpoint.get("trainer", checkpoint)["iteration"] = value
        torch.save(checkpoint, path)
        printed = start(arguments=["--resume"])
        assert f"model_final.pth: expected a whole number from 0 on as 'iteration', got {value!r}" in printed


def test_how_many_processes(start, engine, monkeypatch, capfd):
    if engine.__name__.endswith("launching"):
        for arguments in (["--num-gpus", "-1"], ["--num-machines", "0"]):
            with pytest.raises(SystemExit, match="2"):
                engine.main(["--config-file", "quick/a3d_7slice.yaml", *arguments])
            assert "expected --num-gpus from 0 and --num-machines from 1 on" in capfd.readouterr().err
        assert start(arguments=["--num-gpus", "0"]) is None
    else:
        monkeypatch.setenv("WORLD_SIZE", "x")
        assert "WORLD_SIZE and LOCAL_WORLD_SIZE, as torchrun sets them: invalid literal" in start()


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (("SOLVER.MAX_ITRE", "3"), "There is no key 'SOLVER.MAX_ITRE'. Did you mean SOLVER.MAX_ITER"),
        (("SOLVER", "3"), "There is no key 'SOLVER'"),
        (("SOLVER.MAX_ITER", "many"), "Type mismatch .* config key: SOLVER.MAX_ITER"),
        (("SOLVER.MAX_ITER", "(1"), "SOLVER.MAX_ITER"),
        (("SOLVER.MAX_ITER", "None"), "SOLVER.MAX_ITER: expected a value such as .*, got None"),
        (("SOLVER.AMP.ENABLED", "1"), "Type mismatch .* config key: SOLVER.AMP.ENABLED"),
    ],
)
def test_keys_and_types_on_the_command_line(start, opts, message):
    assert re.search(message, start(*opts))


def test_a_key_without_a_value(engine, capsys):
    with pytest.raises(SystemExit, match="2"):
        engine.main(["--config-file", "quick/a3d_7slice.yaml", "SOLVER.MAX_ITER", "3", "SEED"])
    assert "odd length" in capsys.readouterr().err


CONFIGS = {
    "not a mapping": b"- 1\n- 2\n",
    "text": b"MODEL",
    "not YAML": b"MODEL: [1, 2",
    "a tab": b"MODEL:\n\tDEVICE: cpu",
    "binary": bytes(range(256)),
    "UTF-16": "SEED: 1".encode("utf-16"),
    "an unknown key": b"MODEL: {DEVISE: cpu}",
    "a section that is a number": b"MODEL: 3",
    "a section that is nothing": b"SOLVER:\n",
    "a value that is a section": b"SEED: {a: 1}",
    "another type": b"SOLVER: {MAX_ITER: many}",
    "a date": b"SEED: 2020-01-01",
    "a missing base": b"_BASE_: nowhere.yaml",
    "itself as base": b"_BASE_: config.yaml",
    "a base of another type": b"_BASE_: 3",
    "a base elsewhere": b"_BASE_: http://127.0.0.1:1/../../created",
    "a version of the future": b"VERSION: 99",
    "code": b"OUTPUT_DIR: !!python/object/apply:os.system ['touch created']",
    "an object": b"OUTPUT_DIR: !!python/object/apply:builtins.eval [\"open('created', 'w')\"]",
    "a name": b"OUTPUT_DIR: !!python/name:os.system",
    "too deep": b"[" * 5000,
}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_file_that_is_no_config(start, tmp_path, name, monkeypatch):
    (tmp_path / "config.yaml").write_bytes(CONFIGS[name])
    monkeypatch.chdir(tmp_path)
    printed = start(config=tmp_path / "config.yaml")
    assert printed is not None
    assert len(printed) > 30
    assert sorted(os.listdir()) == ["config.yaml"]


def test_names_cannot_write_anywhere_on_the_screen(start, tmp_path):
    printed = start("MODEL.WEIGHTS", tmp_path / "\x1b[2Jä.pth")
    assert "\x1b" not in printed
    assert "[2Jä.pth" in printed


def test_no_file(start, tmp_path):
    assert "There is no file" in start(config=tmp_path / "nowhere.yaml")
    assert "There is no file" in start(config=tmp_path)


def test_weights_of_another_model(start, tmp_path):
    torch.save({"weight": torch.ones(2)}, tmp_path / "other.pth")
    assert re.search(r"other.pth: The weights do not fit the model", start("MODEL.WEIGHTS", tmp_path / "other.pth"))
    (tmp_path / "text.pth").write_text("weights")
    for arguments in ([], ["--eval-only"]):
        printed = start("MODEL.WEIGHTS", tmp_path / "text.pth", arguments=arguments)
        assert "text.pth: expected a checkpoint" in printed


def test_what_the_configs_of_the_package_say_is_allowed(engine, repo):
    for path in (repo / "configs").rglob("*.yaml"):
        try:
            cfg = engine.load_config(str(path), [])
        except Mistake:  # what torchvision's engine does not have
            assert re.search("cascade|retinanet|resnet|published", str(path))
            continue
        for key, rule in RULES.items():
            value = reduce(lambda part, name: part.get(name, {}), key.split("."), cfg)
            assert value == {} or rule.holds(value), (path, key, value)


def test_what_the_configs_of_detectron2_say_is_allowed():
    model_zoo = pytest.importorskip("detectron2.model_zoo")
    from a3d_det2.engine import launching
    from a3d_det2.engine.detectron2_rules import detectron2_checks, detectron2_rules

    folder = Path(model_zoo.__file__).parent / "configs"
    paths, refused = list(folder.rglob("*.yaml")), []
    start = Start(False, False, 1, 1, lambda name: [], detectron2_rules(), detectron2_checks)
    for path in paths:
        try:
            cfg = launching.load_config(str(path), ["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", "OUTPUT_DIR", "/tmp"])
            check_config(cfg, start)
        except Mistake as error:
            reasons = ("MODEL.LOAD_PROPOSALS", "python/object/apply:eval")
            refused.append([reason for reason in reasons if reason in str(error)])
    assert len(paths) > 80
    assert sorted(refused) == [["MODEL.LOAD_PROPOSALS"]] * 3 + [["python/object/apply:eval"]] * 6


@pytest.mark.parametrize("engine", ["launching"], indirect=True)
@pytest.mark.parametrize("slices", [1, 7])
def test_the_config_of_a_2d_model(start, engine, slices):
    """Of Detectron2's model zoo, on slices."""
    model_zoo = pytest.importorskip("detectron2.model_zoo")
    config = model_zoo.get_config_file("COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml")
    options = [
        "DATASETS.TRAIN",
        ("phantom_train",),
        "DATASETS.TEST",
        (),
        "MODEL.WEIGHTS",
        "",
        "MODEL.RESNETS.DEPTH",
        18,
    ]
    options += ["MODEL.RESNETS.RES2_OUT_CHANNELS", 64, "MODEL.ROI_HEADS.NUM_CLASSES", 1]
    printed = start(*options, "MODEL.A3D.NUM_SLICES", slices, config=config)
    assert f"MODEL.PIXEL_MEAN: expected {slices} entries, as build_resnet_fpn_backbone is 2D and has the" in printed
    assert start(*options, config=config) is None  # of 3 slices


def test_where_mistakes_come_from(capsys, monkeypatch):
    with pytest.raises(Mistake, match=r"^a.yaml: no such thing$"), mistakes("a.yaml: "):
        raise KeyError("no such thing")
    with pytest.raises(Mistake, match=r"AssertionError without a message, in .*test_mistakes.py, line \d+"), mistakes():
        raise AssertionError
    with pytest.raises(TypeError), exit_on_mistakes(), mistakes():
        raise TypeError("a bug of ours")
    text = (
        'Caught ValueError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n  File "a"\n'
    )
    with pytest.raises(SystemExit, match="2"), exit_on_mistakes(), mistakes():
        raise ValueError(text + "ValueError: a.png: is damaged: here.\n")
    assert capsys.readouterr().err.endswith("error: a.png: is damaged: here.\n")
    monkeypatch.setattr(sys, "flags", SimpleNamespace(dev_mode=True))
    with pytest.raises(Mistake), exit_on_mistakes(), mistakes():
        raise ValueError


# What somebody types by mistake; a key takes those of its kind and of no kind.
VALUES = {
    bool: ["True", "False"],
    int: ["0", "1", "-1", "2", "-7", "3", "64"],
    float: ["0.0", "1.0", "-1.0", "0.5", "1e-9", "1e999", "-1e999", "2.5", "-0.1"],
    str: ["''", "a", "none", "norm", "../a b", "None"],
    tuple: [
        "()",
        "(0,)",
        "(1,)",
        "(-1,)",
        "(1, 2)",
        "(2, 1)",
        "('a',)",
        "((1,),)",
        "(None,)",
        "('',)",
        "(0.5, 0.5)",
        "('p2', 'p3')",
    ],
}
VALUES[list] = VALUES[tuple] + ["[[1], [2], [3]]", "[[], []]", "[[0.5, -1.0]]", "[[8, 16], [32], [64]]"]
LEFT_OUT = {
    "OUTPUT_DIR",  # where the test writes
    "MODEL.A3D.COMPILE",  # takes minutes
    "DATALOADER.NUM_WORKERS",  # 1000 of them
    "SOLVER.MAX_ITER",
}


def keys_and_values(engine) -> list[tuple[str, str]]:
    """All that can be typed, in an order that is always the same and random."""
    values = dict(leaves(engine.load_config(find_config_file("quick/a3d_7slice.yaml"), [])))
    pairs = [
        (key, value)
        for key in sorted(values.keys() - LEFT_OUT)
        for value in [*VALUES.get(type(values[key]), []), "None"]
    ]
    random.Random(0).shuffle(pairs)
    return pairs


@pytest.mark.slow
def test_a_config_trains_or_its_key_is_named(engine, start, tmp_path):
    """A share of all single slips; TYPED_CONFIGS=1000 in the environment tries that many."""
    trained = 0
    pairs = keys_and_values(engine)[: int(os.getenv("TYPED_CONFIGS", "24"))]
    for key, value in pairs:
        try:
            printed = start(key, value)
        except FloatingPointError:  # of a loss that is infinite, which stops a training by itself
            printed = "MODEL.ANCHOR_GENERATOR"
        assert printed is None or (re.search(r"[A-Z]+\.[A-Z]+", printed) or key in printed), (key, value, printed)
        trained += printed is None
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
    assert 0 < trained < len(pairs)
