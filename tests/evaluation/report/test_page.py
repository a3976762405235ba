import json
import math
import shutil

import numpy as np
import pytest

from a3d_det2.data.dl_info import LESION_TYPES
from a3d_det2.evaluation.detection_reader import detections_from_results
from a3d_det2.evaluation.report.page import _plot_scores, write_report
from a3d_det2.evaluation.split_evaluation import SplitEvaluation, compare, nan_to_none

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def images(count=20):
    rng = np.random.default_rng(0)
    records = []
    for i in range(count):
        corner = rng.integers(5, 90, (rng.integers(0, 3), 2))
        boxes = np.concatenate([corner, corner + rng.integers(10, 40, corner.shape)], axis=1).astype(float).tolist()
        records.append(
            {
                "image_id": f"<b>{i}</b>.png",  # what a page has to escape
                "file_name": f"{i}/050.png",
                "height": 128,
                "width": 160,
                "patient": i // 2,
                "slice_interval": (2.0, 5.0)[i % 2],
                "slice_range": (40, 60),
                "spacing": (0.8, 0.8),
                "annotations": [
                    {"bbox": box, "diameters": (box[2] - box[0], 1.0), "lesion_type": 1 + i % 8} for box in boxes
                ],
            }
        )
    return records


def detect(records, seed):
    rng = np.random.default_rng(seed)
    found = []
    for record in records:
        boxes = [np.array(a["bbox"]) + rng.normal(0, 2, 4) for a in record["annotations"] if rng.random() < 0.8]
        boxes += [np.array([x, y, x + 20, y + 15]) for x, y in rng.integers(0, 100, (5, 2))]
        for x1, y1, x2, y2 in np.array(boxes).tolist():
            found.append(
                {"image_id": record["image_id"], "bbox": [x1, y1, x2 - x1, y2 - y1], "score": rng.random() ** 3}
            )
    return detections_from_results(found, [record["image_id"] for record in records])


def load_slices(image):
    rng = np.random.default_rng(len(image["image_id"]))
    return rng.normal(40, 60, (5, image["height"], image["width"])).astype(np.float32), 2.0


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """Folder, and the JSON of two models."""
    folder, records = tmp_path_factory.mktemp("report"), images()
    evaluations = {
        name: SplitEvaluation(records, detect(records, seed), lesion_types=LESION_TYPES, resamples=100)
        for name, seed in (("A3D <7>", 1), ("/" + "experiments_of_this_year/" * 6 + "results.json", 2))
    }
    summaries = {name: evaluation.summary() for name, evaluation in evaluations.items()}
    comparison = compare(*evaluations.values())
    write_report(str(folder), "A & B", evaluations, summaries, comparison, load_slices=load_slices, gallery=2)
    return folder, json.loads(json.dumps(nan_to_none({"results": summaries, "comparison": comparison})))


def test_pictures_as_png(report):
    names = {path.name for path in (report[0] / "pictures").iterdir()}
    assert names == {
        "froc.png", "strata.png", "scores_0.png", "scores_1.png",
        "worst_misses_01.png", "worst_misses_02.png", "strongest_false_positives_01.png",
        "strongest_false_positives_02.png", "random_sample_01.png", "random_sample_02.png",
    }  # fmt: skip


def test_kinds_of_detections_add_up():
    records = images()
    evaluation = SplitEvaluation(records, detect(records, 1), resamples=0)
    axes = _plot_scores(evaluation, evaluation.summary()).axes[0]
    counts = [sum(bar.get_height() for bar in bars) for bars in axes.containers]
    matches = evaluation.matches
    found = matches.hit_by[matches.hit_by < len(matches.score)]
    false_positives = matches.false_positive.sum()
    assert counts == [len(set(found)), len(matches.score) - len(set(found)) - false_positives, false_positives]


def test_same_input_same_page(tmp_path):
    records = images()
    evaluation = SplitEvaluation(records, detect(records, 1), resamples=10)
    pages = []
    for name in ("first", "second"):
        summaries = {"a": evaluation.summary()}
        write_report(str(tmp_path / name), "x", {"a": evaluation}, summaries, load_slices=load_slices, gallery=1)
        pages.append((tmp_path / name / "report.html").read_bytes())
    assert pages[0] == pages[1]


def test_key_slices_that_cannot_be_read_are_said_to_be(tmp_path, caplog):
    records = images()
    evaluation = SplitEvaluation(records, detect(records, 1), resamples=10)

    def broken(image):
        raise FileNotFoundError(f"{image['file_name']}: no such slice")

    write_report(str(tmp_path), "x", {"a": evaluation}, {"a": evaluation.summary()}, load_slices=broken, gallery=1)
    page = (tmp_path / "report.html").read_text()
    assert page.count("Not shown: ") == 3
    assert "/050.png: no such slice" in page
    assert "3 of the gallery's key slices cannot be shown; the first one: " in caplog.text


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine")
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


@pytest.fixture(params=[(1280, 900), (390, 844)], ids=["desktop", "phone"])
def page(request, browser, report):
    page = browser.new_page(viewport=dict(zip(("width", "height"), request.param, strict=True)))
    page.complaints, page.requests = [], []
    page.on("console", lambda message: page.complaints.append(message.text))
    page.on("pageerror", lambda error: page.complaints.append(str(error)))
    page.on("request", lambda r: page.requests.append(r.url))
    page.goto((report[0] / "report.html").as_uri())
    page.evaluate("document.querySelectorAll('img').forEach(image => image.loading = 'eager')")
    page.wait_for_function("[...document.images].every(image => image.complete)")
    yield page
    page.close()


def test_opens_alone(page, report):
    assert page.complaints == []
    page_itself = (report[0] / "report.html").as_uri()
    assert [url for url in page.requests if not url.startswith("data:")] == [page_itself]
    assert page.title() == "A & B"
    assert page.locator("b").count() == 0  # ids are text


def test_images_are_there(page):
    sizes = page.evaluate("[...document.images].map(image => [image.naturalWidth, image.clientWidth])")
    # Curves, strata, two histograms, and six cases of two models and five slices.
    assert len(sizes) == 4 + 6 * 7
    assert all(natural > 0 and shown > 40 for natural, shown in sizes)


def test_fits_the_screen(page):
    width = page.viewport_size["width"]
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    # What is wider than the screen, a table, scrolls by itself.
    outside = page.evaluate(
        """width => [...document.querySelectorAll('body *')].filter(e => e.getBoundingClientRect().right > width + 1
            && !e.closest('.scroll')).map(e => e.outerHTML.slice(0, 80))""",
        width,
    )
    assert outside == []
    smallest = page.evaluate(
        """Math.min(...[...document.querySelectorAll('p, td, th, small, figcaption')].map(
            e => parseFloat(getComputedStyle(e).fontSize)))"""
    )
    assert smallest >= 10


def percent(value):
    return "-" if value is None else f"{100 * value:.2f}"


def interval(limits):
    return "-" if limits[0] is None else f"{100 * limits[0]:.2f} to {100 * limits[1]:.2f}"


def cells(row):
    return [" ".join(text.split()) for text in row.locator("td").all_inner_texts()]


def test_tables_say_what_the_json_says(page, report):
    content = report[1]
    for name, summary in content["results"].items():
        shown = cells(page.locator(f'table[data-table=scores] tr[data-result="{name}"]'))
        values = zip([*summary["sensitivity"], summary["average"]],
                     [*summary["sensitivity_interval"], summary["average_interval"]], strict=True)  # fmt: skip
        assert shown == [name, *(f"{percent(v)} {interval(i)}" for v, i in values), f"{summary['AP50']:.2f}"]

        table = page.locator(f'table[data-table=strata][data-result="{name}"]')
        parts = {("", "all"): summary}
        parts |= {(g, n): s for g, strata in summary["strata"].items() for n, s in strata.items() if s["num_lesions"]}
        rows = table.locator("tbody tr:not(.group)").all()
        assert len(rows) == len(parts) > 10
        for row in rows:
            group, stratum = row.get_attribute("data-group"), row.get_attribute("data-stratum")
            scores = parts[group, stratum]
            numbers = [str(scores[key]) for key in ("num_images", "num_lesions", "num_patients")]
            average = f"{percent(scores['average'])} {interval(scores['average_interval'])}"
            assert cells(row) == [stratum, *numbers, *map(percent, scores["sensitivity"]), average]

        for row, point in zip(
            page.locator(f'table[data-table=points][data-result="{name}"] tbody tr').all(),
            summary["operating_points"],
            strict=True,
        ):
            level, threshold, fps, sensitivity, _ = cells(row)
            assert float(level) == point["level"]
            assert (
                (threshold == "-")
                if point["score_threshold"] is None
                else (math.isclose(float(threshold), point["score_threshold"], rel_tol=1e-3))
            )
            assert float(fps) == pytest.approx(point["fps_per_image"], rel=1e-2)
            assert sensitivity == percent(point["sensitivity"])


def test_comparison_says_what_the_json_says(page, report):
    comparison = report[1]["comparison"]
    rows = page.locator("table[data-table=comparison] tbody tr").all()
    label, points, limits, p = cells(rows[0])
    assert (label, p) == ("Avg.", f"{comparison['average_p_value']:.3f}")
    assert float(points) == pytest.approx(100 * comparison["average"], abs=0.006)
    low, high = (float(text) for text in limits.split(" to "))
    assert [low, high] == pytest.approx([100 * x for x in comparison["average_interval"]], abs=0.006)
    for row, value in zip(rows[1:7], comparison["sensitivity"], strict=True):
        assert float(cells(row)[1]) == pytest.approx(100 * value, abs=0.006)
