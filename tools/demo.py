#!/usr/bin/env python
"""Phantom, training, evaluation, pictures, report and a whole volume in a few minutes on a CPU.

Trains configs/quick/a3d_7slice.yaml and, as the comparison, the same network on the key slice alone; with Detectron2
where it is installed, and otherwise with torchvision.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

from tabulate import tabulate

from a3d_det2.optional import detectron2_problem
from a3d_det2.threads import BESIDE_OTHERS

REPO = Path(__file__).resolve().parents[1]
RUNS = {"A3D, 7 slices": "a3d_7slice", "the key slice alone": "a3d_1slice"}
ENGINES = {"detectron2": "train_net.py", "torchvision": "tools/train_torchvision.py"}
SHOWN = 10  # lesions of the CT
PROGRESS = re.compile(
    r"(iter: \d+ .*?loss: \S+|Inference done .*?(?=\. Data)|Starting training.*"  # Detectron2's log
    r"|(?<= )\d*[02468]0/\d+ .*loss: [\d.]+)"  # the bar of train_torchvision.py, every 20 iterations
)


def run(title: str, log: Path, *command: str, **environment: str) -> None:
    """Run a command with its output in ``log``, showing progress lines only.

    Raises:
        SystemExit: if it fails; the end of the log is printed.
    """
    print(f"\n{title}\n  $ python {' '.join(command)}\n  log: {log}", flush=True)
    with open(log, "w") as f:
        process = subprocess.Popen(
            [sys.executable, *command],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=REPO,
            env={**BESIDE_OTHERS, **os.environ, "PYTHONUNBUFFERED": "1", **environment},
        )
        for line in process.stdout:
            f.write(line)
            if found := PROGRESS.search(line):
                print(f"  {found[1]}", flush=True)
    if process.wait() != 0:
        print("".join(log.read_text().splitlines(keepends=True)[-20:]))
        raise SystemExit(f"{' '.join(command)} failed; its whole output is in {log}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=REPO / "demo_output")
    parser.add_argument("--engine", choices=ENGINES, help="(default: Detectron2 where it is installed)")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE overrides for both trainings")
    args = parser.parse_args()
    output, start = args.output.resolve(), time.monotonic()
    output.mkdir(parents=True, exist_ok=True)
    datasets = {"DETECTRON2_DATASETS": str(output)}
    installed = detectron2_problem() is None
    engine = args.engine or ("detectron2" if installed else "torchvision")
    why = "asked for" if args.engine else f"Detectron2 is {'' if installed else 'not '}installed"
    print(f"Engine: {engine} ({why}), {ENGINES[engine]}", flush=True)

    if not (output / "phantom" / "DL_info.csv").is_file():
        shutil.rmtree(output / "phantom", ignore_errors=True)
        run("1. Phantom", output / "phantom.log", "datasets/make_phantom.py", "--output", str(output / "phantom"))
    for i, (title, name) in enumerate(RUNS.items()):
        shutil.rmtree(output / name, ignore_errors=True)
        config = f"configs/quick/{name}.yaml"
        command = [ENGINES[engine], "--config-file", config, "OUTPUT_DIR", str(output / name), *args.opts]
        run(f"{i + 2}. Train and evaluate: {title}", output / f"{name}.log", *command, **datasets)
    results = output / "a3d_7slice" / "inference"
    command = ["tools/visualize_json_results.py", "--input", str(results / "coco_instances_results.json")]
    command += ["--dataset", "phantom_test", "--output", str(output / "pictures")]
    run("4. Pictures", output / "pictures.log", *command, **datasets)
    files = [f"{title}={output / name / 'inference' / 'coco_instances_results.json'}" for title, name in RUNS.items()]
    command = ["tools/evaluate.py", "--ground-truth", str(output / "phantom" / "DL_info.csv"), "--compare", *files]
    run("5. Report", output / "report.log", *command, "--output", str(output / "report"), "--gallery", "4")

    # Lesions as flat as those of the phantom that it has learned.
    ct = output / "ct"
    shutil.rmtree(ct, ignore_errors=True)
    command = ["datasets/make_phantom.py", "--output", str(ct), "--volumes", "1", "--format", "dicom", "--size", "128"]
    command += ["--slice-interval", "2.5", "--lesion-size", "20", "45", "--lesion-depth", "3", "5"]
    run("6. A CT of the whole body", output / "ct.log", *command)
    volume = output / "volume"
    command = ["tools/predict.py", "--engine", engine, "-i", str(ct / "volume_001"), "-o", str(volume)]
    command += ["--config-file", "configs/quick/a3d_7slice.yaml"]
    command += ["--weights", str(output / "a3d_7slice" / "model_final.pth")]
    command += ["--dicom"] if find_spec("highdicom") else []
    run("7. Its lesions", output / "volume.log", *command, *args.opts)

    reports = [json.loads((output / name / "inference" / "froc.json").read_text()) for name in RUNS.values()]
    rows = [[title, *r["sensitivity"], r["average"]] for title, r in zip(RUNS, reports, strict=True)]
    header = ["model input", *(f"{fps:g}" for fps in reports[0]["fps_per_image"]), "Avg. (0.5-4)"]
    found = json.loads((volume / "lesions.json").read_text())["lesions"]
    truth = json.loads((ct / "truth" / "volume_001.json").read_text())["lesions"]
    sizes = [f"{x['long_axis_mm']:.0f} x {x['short_axis_mm']:.0f} mm ({x['score']:.2f})" for x in found[:SHOWN]]
    print(
        f"\nLesions in the CT: {len(truth)}, among vessels of kinds that the training has not seen. Results: "
        f"{len(found)}; the strongest, long x short axis and score: {', '.join(sizes) or 'none'}"
    )
    print(
        f"\nSensitivity at false positives per image, on the {reports[0]['num_lesions']} lesions of the "
        f"{reports[0]['num_images']} held-out phantom key slices:\n{tabulate(rows, header, floatfmt='.3f')}"
    )
    print(f"\nDone in {time.monotonic() - start:.0f} s. Written:")
    pages = (output / "pictures" / "overview.png", output / "report" / "report.html", volume / "viewer.html")
    dicom = sorted(volume.glob("dicom/*"))
    for path in (results / "froc.json", results / "froc.png", *pages, *dicom):
        print(f"  {os.path.relpath(path)}")
    print(f"Engine: {engine}")


if __name__ == "__main__":
    main()
