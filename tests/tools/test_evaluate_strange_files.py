"""Results and annotations from anybody: each ends with a message, or is scored."""

import copy
import json

import pytest

from a3d_det2.data import load_deeplesion
from a3d_det2.data.coco import to_coco
from a3d_det2.engine import evaluate

ANYTHING = {
    "null": None,
    "text": "a",
    "a list": [1, 2],
    "an object": {"a": 1},
    "true": True,
    "a large number": 10**400,
    "a large float": 1e308,
    "negative": -1,
    "not a number": float("nan"),
    "infinite": float("inf"),
    "half a character": "\ud800",
    "an escape": "\x1b[2J",
}
BOXES = {
    "three numbers": [1, 2, 3],
    "five": [1, 2, 3, 4, 5],
    "text": ["a"] * 4,
    "nested": [[1]] * 4,
    "null": [None] * 4,
}
MASKS = {
    "polygons": [[1, 1, 5, 1, 5, 5]],
    "no size": {"counts": "0"},
    "another size": {"size": [1, 1], "counts": "0"},
    "text that is cut off": {"size": [96, 96], "counts": "oooo"},
    "runs beyond the image": {"size": [96, 96], "counts": "PPPP1"},
    "other characters": {"size": [96, 96], "counts": "\x00\xff"},
    "a list of text": {"size": [96, 96], "counts": ["a"]},
    "too few": {"size": [96, 96], "counts": [5]},
}
TEXTS = {
    "empty": b"",
    "no JSON": b"[{",
    "a page": b"<html></html>",
    "binary": bytes(range(256)),
    "UTF-16": "[]".encode("utf-16"),
    "an object": b"{}",
    "a number": b"3",
    "a list of lists": b"[[1, 2]]",
    "a list of numbers": b"[1, 2]",
    "null": b"null",
    "deep": b"[" * 200_000,
    "a long number": b"[" + b"9" * 100_000 + b"]",
    "two lists": b"[] []",
}
CSV = "image_id,x1,y1,x2,y2,score\n"
TABLES = {
    "empty": "",
    "no header": "a,1,2,3,4,0.5\n",
    "a column less": "image_id,x1,y1,x2,y2\n",
    "a column twice": "image_id,x1,y1,x2,y2,score,score\n",
    "a value less": CSV + "{},1,2,3,4\n",
    "a value more": CSV + "{},1,2,3,4,0.5,6\n",
    "text": CSV + "{},a,2,3,4,0.5\n",
    "nothing": CSV + "{},,2,3,4,0.5\n",
    "hexadecimal": CSV + "{},0x1,2,3,4,0.5\n",
    "underscores": CSV + "{},1_0,2,3,4,0.5\n",
    "another image": CSV + "nobody,1,2,3,4,0.5\n",
    "NUL": CSV + "{},1,2,3,4,0.5\0\n",
    "a quote that does not end": CSV + '"{},1,2,3,4,0.5\n',
    "a long field": CSV + "x" * 200_000 + ",1,2,3,4,0.5\n",
    "semicolons": CSV.replace(",", ";"),
}


@pytest.fixture(scope="session")
def truth(phantom_root):
    folder = phantom_root / "phantom"
    records = load_deeplesion(str(folder / "DL_info.csv"), str(folder / "Images_png"), "test")
    return to_coco(records, str(folder / "Images_png"))


@pytest.fixture
def score(phantom_root, tmp_path, capsys):
    """Runs the command on a results file, or on one and annotations; says how it ended."""

    def run(name, content: bytes, annotations: bytes | None = None):
        (tmp_path / name).write_bytes(content)
        reference = phantom_root / "phantom" / "DL_info.csv"
        if annotations is not None:
            reference = tmp_path / "truth.json"
            reference.write_bytes(annotations)
        command = ["--ground-truth", reference, "--results", tmp_path / name, "--resamples", 5]
        try:
            evaluate.main([*map(str, command)])
            message = None
        except SystemExit as error:
            message = error.code
        assert isinstance(message, str) or "Avg." in capsys.readouterr().out
        return message

    return run


def result(truth):
    return {"image_id": truth["images"][0]["id"], "category_id": 0, "bbox": [1.0, 2.0, 30.0, 40.0], "score": 0.5}


def fields(kinds):
    return [(field, name) for field, values in kinds.items() for name in values]


RESULT = {
    "image_id": ANYTHING,
    "category_id": ANYTHING,
    "bbox": {**ANYTHING, **BOXES},
    "score": ANYTHING,
    "segmentation": {**ANYTHING, **MASKS},
}
IMAGE = dict.fromkeys(("id", "file_name", "width", "height", "slice_interval", "spacing", "patient"), ANYTHING)
ANNOTATION = {
    "id": ANYTHING,
    "image_id": ANYTHING,
    "bbox": {**ANYTHING, **BOXES},
    "diameters": ANYTHING,
    "lesion_type": ANYTHING,
    "segmentation": {**ANYTHING, **MASKS},
}


def test_there_are_many():
    assert sum(map(len, (fields(RESULT), fields(IMAGE), fields(ANNOTATION), TEXTS, TABLES))) >= 100


@pytest.mark.parametrize(("field", "name"), fields(RESULT))
def test_a_field_of_a_result(score, truth, field, name):
    first = truth["annotations"][0]  # a hit, whose mask is looked at
    found = {**result(truth), "image_id": first["image_id"], "bbox": first["bbox"], field: RESULT[field][name]}
    message = score("results.json", json.dumps([found]).encode())
    assert message is None or "results.json" in message or found["image_id"] in message, message
    if field == "segmentation" and name in MASKS:
        assert message is not None


@pytest.mark.parametrize("name", TEXTS)
def test_a_file_that_is_no_list_of_results(score, name):
    assert "results.json" in score("results.json", TEXTS[name])


@pytest.mark.parametrize("name", TABLES)
def test_a_table_that_is_none(score, truth, name):
    content = TABLES[name].format(truth["images"][0]["id"])
    assert "results.csv" in score("results.csv", content.encode())


@pytest.mark.parametrize(("field", "name"), fields(IMAGE))
def test_a_field_of_an_image(score, truth, field, name):
    changed = copy.deepcopy(truth)
    changed["images"][0][field] = IMAGE[field][name]
    message = score("results.json", json.dumps([result(truth)]).encode(), json.dumps(changed).encode())
    named = ("truth.json", "results.json", "images have none")
    assert message is None or any(text in message for text in named), message


@pytest.mark.parametrize(("field", "name"), fields(ANNOTATION))
def test_a_field_of_an_annotation(score, truth, field, name):
    changed = copy.deepcopy(truth)
    first = changed["annotations"][0]
    mask = {"size": [96, 96], "counts": [96 * 96]}
    found = {**result(truth), "image_id": first["image_id"], "bbox": list(first["bbox"]), "segmentation": mask}
    first[field] = ANNOTATION[field][name]
    message = score("results.json", json.dumps([found]).encode(), json.dumps(changed).encode())
    assert message is None or "truth.json" in message or found["image_id"] in message, message


def test_an_image_that_no_memory_holds(score, truth):
    changed, height, width = copy.deepcopy(truth), 200_000, 100_000
    changed["images"][0] |= {"height": height, "width": width}
    first = changed["annotations"][0]
    mask = {"size": [height, width], "counts": [height * width]}
    found = {**result(truth), "image_id": first["image_id"], "bbox": first["bbox"], "segmentation": mask}
    message = score("results.json", json.dumps([found]).encode(), json.dumps(changed).encode())
    assert f"{first['image_id']}, predicted mask: expected an image of at most" in message


@pytest.mark.parametrize("name", TEXTS)
def test_a_file_that_is_no_annotations(score, name):
    assert "truth.json" in score("results.json", b"[]", TEXTS[name])


def test_names_are_text_in_the_report(truth, phantom_root, tmp_path):
    """And no part of the page."""
    name = "<img src=x onerror=alert(1)>&\"'"
    changed = json.loads(json.dumps(truth).replace(truth["images"][0]["id"], "NAME"))
    changed = json.loads(json.dumps(changed).replace('"NAME"', json.dumps(name)))
    (tmp_path / "truth.json").write_text(json.dumps(changed))
    (tmp_path / "results.json").write_text(json.dumps([{**result(truth), "image_id": name}]))
    results = f"<script>alert(2)</script>={tmp_path / 'results.json'}"
    out = tmp_path / "out"
    command = ["--ground-truth", tmp_path / "truth.json", "--results", results, "--output", out, "--resamples", 5]
    command += ["--image-root", phantom_root / "phantom" / "Images_png"]
    evaluate.main([*map(str, command)])
    page = (out / "report.html").read_text()
    assert "onerror" in page
    assert "<img src=x" not in page
    assert "<script>alert" not in page
