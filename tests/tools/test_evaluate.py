import csv
import json
import subprocess
import sys

import numpy as np
import pytest

from a3d_det2.data import load_deeplesion
from a3d_det2.data.coco import to_coco
from a3d_det2.data.mask_file import MASK_FILE, encode_mask, write_masks
from a3d_det2.engine import evaluate
from a3d_det2.evaluation import froc_sensitivities


def run(*arguments):
    evaluate.main([*map(str, arguments)])


@pytest.fixture(scope="session")
def phantom(phantom_root):
    return phantom_root / "phantom"


def records(phantom):
    return load_deeplesion(str(phantom / "DL_info.csv"), str(phantom / "Images_png"), "test", drop_noisy=True)


def results(phantom, seed=0, noise=2.0):
    """Detections around most lesions, and false positives."""
    rng = np.random.default_rng(seed)
    found = []
    for record in records(phantom):
        boxes = [np.array(a["bbox"]) + rng.normal(0, noise, 4) for a in record["annotations"]]
        boxes += [np.array([x, y, x + 12, y + 9]) for x, y in rng.integers(0, 80, (6, 2))]
        for x1, y1, x2, y2 in np.array(boxes).tolist():
            box = [x1, y1, x2 - x1, y2 - y1]
            found.append({"image_id": record["image_id"], "category_id": 0, "bbox": box, "score": rng.random()})
    return found


@pytest.fixture(scope="session")
def files(phantom, tmp_path_factory):
    folder = tmp_path_factory.mktemp("results")
    paths = []
    for name, noise in (("sharp", 1.0), ("blurred", 6.0)):
        path = folder / name / "inference" / "coco_instances_results.json"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(results(phantom, noise=noise)))
        paths.append(path)
    return paths


def test_scores_without_detectron2(repo, phantom, files, tmp_path):
    """As a command, where Detectron2 is not installed."""
    out = tmp_path / "out"
    script = "import sys, runpy; sys.modules['detectron2'] = None; sys.argv = sys.argv[1:]\n"
    script += "runpy.run_path(sys.argv[0], run_name='__main__')"
    arguments = ["--ground-truth", phantom / "DL_info.csv", "--results", files[0], "--output", out, "--gallery", "1"]
    command = [sys.executable, "-c", script, repo / "tools" / "evaluate.py", *arguments]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, cwd=repo)
    assert done.returncode == 0, done.stderr
    content = json.loads((out / "evaluation.json").read_text())
    assert list(content["results"]) == ["sharp"]
    summary = content["results"]["sharp"]
    found = results(phantom, noise=1.0)
    images = records(phantom)
    arrays = [
        np.array(
            [
                [x, y, x + w, y + h, d["score"]]
                for d in found
                if d["image_id"] == i["image_id"]
                for x, y, w, h in [d["bbox"]]
            ]
        )
        for i in images
    ]
    expected = froc_sensitivities(arrays, [np.array([a["bbox"] for a in i["annotations"]]) for i in images])
    assert summary["sensitivity"] == pytest.approx(expected, abs=1e-12)
    assert f"{100 * summary['average']:.2f}" in done.stdout
    assert {"report.html", "scores.csv", "evaluation.json", "pictures"} == {path.name for path in out.iterdir()}
    pictures = {path.name for path in (out / "pictures").iterdir()}
    assert {"froc.png", "strata.png", "scores_0.png", "random_sample_01.png", "worst_misses_01.png"} - pictures <= {
        "worst_misses_01.png"  # there may be no miss
    }


def test_ground_truth_as_coco_and_results_as_csv_give_the_same(phantom, files, tmp_path):
    images = records(phantom)
    (tmp_path / "coco.json").write_text(json.dumps(to_coco(images, str(phantom / "Images_png"))))
    with open(tmp_path / "results.csv", "w", newline="") as f:
        writer = csv.writer(f)
        writer.writerow(["image_id", "x1", "y1", "x2", "y2", "score"])
        for d in json.loads(files[0].read_text()):
            x, y, w, h = d["bbox"]
            writer.writerow([d["image_id"], x, y, x + w, y + h, d["score"]])
    summaries = []
    for truth, found in ((phantom / "DL_info.csv", files[0]), (tmp_path / "coco.json", tmp_path / "results.csv")):
        run("--ground-truth", truth, "--results", f"x={found}", "--output", tmp_path / truth.stem, "--gallery", 0)
        summaries.append(json.loads((tmp_path / truth.stem / "evaluation.json").read_text())["results"]["x"])
    for key in ("sensitivity", "average_interval", "AP50", "num_patients"):
        assert summaries[0][key] == pytest.approx(summaries[1][key], nan_ok=True)
    assert summaries[0]["strata"].keys() == summaries[1]["strata"].keys()


def test_compare(phantom, files, tmp_path, capsys):
    run("--ground-truth", phantom / "DL_info.csv", "--compare", *files, "--output", tmp_path, "--gallery", 0)
    comparison = json.loads((tmp_path / "evaluation.json").read_text())["comparison"]
    assert (comparison["first"], comparison["second"]) == ("sharp", "blurred")
    scores = json.loads((tmp_path / "evaluation.json").read_text())["results"]
    assert comparison["average"] == pytest.approx(scores["sharp"]["average"] - scores["blurred"]["average"])
    assert 0 < comparison["average_p_value"] <= 1
    printed = capsys.readouterr().out
    assert "sharp minus blurred" in printed
    assert f"{100 * comparison['average']:+.2f}" in printed
    with open(tmp_path / "scores.csv", newline="") as f:
        assert {row["result"] for row in csv.DictReader(f)} == {"sharp", "blurred"}


def test_rules_and_levels(phantom, files, tmp_path):
    arguments = ["--overlap", "iobb", "--threshold", "0.4", "--no-plus-one", "--repeat-hits", "false_positive"]
    arguments += ["--fps-per-image", "1", "3", "--resamples", "20", "--seed", "7", "--context", "3"]
    arguments += ["--output", tmp_path, "--gallery", 0]
    run("--ground-truth", phantom / "DL_info.csv", "--results", files[0], *arguments)
    summary = json.loads((tmp_path / "evaluation.json").read_text())["results"]["sharp"]
    rule = {"overlap": "iobb", "threshold": 0.4, "plus_one": False, "repeat_hits": "false_positive"}
    rule["assignment"] = "several"
    assert (summary["rule"], summary["fps_per_image"]) == (rule, [1, 3])
    assert (summary["resamples"], summary["seed"]) == (20, 7)
    assert list(summary["strata"]["end of series"]) == ["< 3 mm away", ">= 3 mm away"]


def test_splits(phantom, files, tmp_path, capsys):
    some = {d["image_id"] for d in json.loads(files[0].read_text())}
    (tmp_path / "some.txt").write_text(sorted(some)[0])
    one = [d for d in json.loads(files[0].read_text()) if d["image_id"] == sorted(some)[0]]
    (tmp_path / "one.json").write_text(json.dumps(one))
    run("--ground-truth", phantom / "DL_info.csv", "--split", tmp_path / "some.txt", "--results", tmp_path / "one.json")
    assert "some split: 1 key slices" in capsys.readouterr().out


def test_noisy_rows_and_weak_masks(phantom, tmp_path):
    with open(phantom / "DL_info.csv", newline="") as f:
        rows = [row for row in csv.DictReader(f) if row["Train_Val_Test"] == "3"]
    noisy = rows[0]["File_name"]
    with open(tmp_path / "DL_info.csv", "w", newline="") as f:
        writer = csv.DictWriter(f, rows[0])
        writer.writeheader()
        writer.writerows({**row, "Possibly_noisy": int(row["File_name"] == noisy)} for row in rows)
    images = load_deeplesion(str(tmp_path / "DL_info.csv"), "", "test")
    lesions = [(image, lesion) for image in images for lesion in image["annotations"]]
    found, masks = [], []
    for image, lesion in lesions:
        x1, y1, x2, y2 = lesion["bbox"]
        mask = np.zeros((image["height"], image["width"]), dtype=bool)
        mask[int(y1) : int(y2), int(x1) : int(x2)] = True
        masks.append({"row": lesion["row"], "image_id": image["image_id"], "bbox": lesion["bbox"], "source": "grabcut"})
        masks[-1] |= encode_mask(mask)
        box = {"image_id": image["image_id"], "bbox": [x1, y1, x2 - x1, y2 - y1], "score": 0.5}
        found.append({**box, "segmentation": encode_mask(mask)})
    write_masks(str(tmp_path / MASK_FILE), masks)
    (tmp_path / "all.json").write_text(json.dumps(found))
    (tmp_path / "kept.json").write_text(json.dumps([d for d in found if d["image_id"] != noisy]))
    counts = []
    for name, options in (("all", ["--keep-noisy"]), ("kept", [])):
        arguments = ["--results", tmp_path / f"{name}.json", "--output", tmp_path / name, "--gallery", 0, *options]
        run("--ground-truth", tmp_path / "DL_info.csv", *arguments)
        summary = json.loads((tmp_path / name / "evaluation.json").read_text())["results"][name]
        assert summary["masks"]["dice"]["mean"] == pytest.approx(1)
        assert summary["masks"]["num_lesions"] == summary["num_lesions"]
        counts.append((summary["num_images"], summary["num_lesions"]))
    assert counts[0] == (len(images), len(lesions))
    assert counts[1] == (len(images) - 1, len(lesions) - sum(row["File_name"] == noisy for row in rows))


def test_coco_beside_the_slices_has_a_gallery(phantom, files, tmp_path):
    (phantom / "coco.json").write_text(json.dumps(to_coco(records(phantom), str(phantom / "Images_png"))))
    run("--ground-truth", phantom / "coco.json", "--results", files[0], "--output", tmp_path, "--gallery", 1)
    (phantom / "coco.json").unlink()
    page = (tmp_path / "report.html").read_text()
    assert "Not shown" not in page
    assert "+4 mm" in page


def test_slices_of_the_gallery(phantom):
    image = records(phantom)[0]
    stack, interval = evaluate.load_slices(image)
    assert (stack.shape, interval) == ((5, image["height"], image["width"]), 2.0)
    bare = {"file_name": image["file_name"]}  # as of a COCO file that does not say how far slices are apart
    assert np.array_equal(evaluate.load_slices(bare)[0], stack[2:3])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('[{"image_id": "none.png", "bbox": [1, 2, 3, 4], "score": 1}]', "expected an image of the ground truth"),
        ('[{"image_id": 3, "bbox": [1, 2, 3, 4], "score": "1"}]', "expected a number as the score, got '1'"),
        ("[", "expected detections as JSON"),
        ("{}", "expected a list of detections"),
    ],
)
def test_bad_results_end_with_a_message(phantom, tmp_path, content, message):
    (tmp_path / "bad.json").write_text(content)
    with pytest.raises(SystemExit, match=f"bad.json.*{message}"):
        run("--ground-truth", phantom / "DL_info.csv", "--results", tmp_path / "bad.json")


def test_other_bad_arguments(phantom, files, tmp_path):
    truth = ["--ground-truth", phantom / "DL_info.csv"]
    for arguments, message in (
        ([*truth, "--results", tmp_path / "none.json"], "none.json"),
        (["--ground-truth", tmp_path / "none.csv", "--results", files[0]], "none.csv"),
        ([*truth, "--results", f"a={files[0]}", f"a={files[1]}"], "Two results are called 'a'"),
        ([*truth, "--results", files[0], "--threshold", "1.5"], "threshold of a hit"),
        ([*truth, "--results", files[0], "--split", "holdout"], "Unknown split 'holdout'"),
    ):
        with pytest.raises(SystemExit, match=message):
            run(*arguments)
    (tmp_path / "coco.json").write_text(json.dumps({"images": [], "annotations": []}))
    with pytest.raises(SystemExit, match="--split and --keep-noisy are for DL_info.csv"):
        run("--ground-truth", tmp_path / "coco.json", "--split", "test", "--results", files[0])


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--resamples", "-1"),
        ("--resamples", "x"),
        ("--fps-per-image", "nan"),
        ("--gallery", "-2"),
        ("--context", "inf"),
    ],
)
def test_numbers_out_of_range(phantom, files, option, value, capsys):
    with pytest.raises(SystemExit):
        run("--ground-truth", phantom / "DL_info.csv", "--results", files[0], option, value)
    assert f"argument {option}: " in capsys.readouterr().err


def test_output_that_is_a_file(phantom, files, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit, match="file"):
        run("--ground-truth", phantom / "DL_info.csv", "--results", files[0], "--output", tmp_path / "file")


def test_suspicious_results_are_counted(phantom, files, tmp_path, capsys):
    found = json.loads(files[0].read_text())
    found[0]["score"] = float("nan")
    found[1]["bbox"][2] = -5
    (tmp_path / "odd.json").write_text(json.dumps(found))
    out = tmp_path / "out"
    run("--ground-truth", phantom / "DL_info.csv", "--results", tmp_path / "odd.json", "--output", out, "--gallery", 0)
    warnings = json.loads((out / "evaluation.json").read_text())["results"]["odd"]["warnings"]
    assert len(warnings) == 2
    printed, page = capsys.readouterr().err, (out / "report.html").read_text()
    assert all(warning in printed and warning in page for warning in warnings)


def test_nothing_detected(phantom, tmp_path):
    (tmp_path / "none.json").write_text("[]")
    out = ["--output", tmp_path / "out", "--gallery", 1]
    run("--ground-truth", phantom / "DL_info.csv", "--results", tmp_path / "none.json", *out)
    summary = json.loads((tmp_path / "out" / "evaluation.json").read_text())["results"]["none"]
    assert summary["sensitivity"] == [0] * 6
    assert (tmp_path / "out" / "report.html").is_file()


def test_names():
    folder = "output/{}/inference/coco_instances_results.json"
    assert list(evaluate.named([folder.format("a3d"), folder.format("none")])) == ["a3d", "none"]
    assert evaluate.named(["mine=x/y.csv", "x/y.csv"]) == {"mine": "x/y.csv", "y": "x/y.csv"}
    assert list(evaluate.named(["1/run/inference/x.json", "2/run/inference/x.json"])) == ["x", "2/run/inference/x.json"]
    assert list(evaluate.named(["../inference/coco_instances_results.json"])) != [".."]
    for argument in ("", "=x.json", "x="):
        with pytest.raises(ValueError, match="Expected a file or NAME=FILE"):
            evaluate.named([argument])
