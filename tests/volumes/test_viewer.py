import base64
import json
import re
import shutil

import cv2
import numpy as np
import pytest

from a3d_det2.volumes.lesion import Lesion, LesionSlice, Mask
from a3d_det2.volumes.viewer import CODES, GRADES, HU, _grades_that_may_fit, outlines, slice_edges, write_viewer
from tests.volumes.volumes import make_origin, make_volume

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DEPTH, ROWS, COLUMNS = 60, 96, 128
SPACING = (1.5, 2.0)  # a slice is 192 x 192 mm
POSITIONS = np.arange(DEPTH) * 3.0 + 9.0 * (np.arange(DEPTH) >= 30)  # three slices are missing in the middle
NAN = float("nan")
SHOWN = "viewer.dataset.ready && viewer.dataset.drawn === viewer.dataset.slice"


def example(tilt=(0.0, 0.0)):
    """A volume of 40 HU, below slice 35 with a lung on the left, and three lesions: the first with masks and 140 HU,
    the second in the lung, the third with a low score on one slice."""
    hu = 40 + np.random.default_rng(0).normal(0, 5, (DEPTH, ROWS, COLUMNS))
    hu[35:, :, 64:] -= 890
    y, x = np.mgrid[:ROWS, :COLUMNS]
    ellipse = ((x - 40) / 8.5) ** 2 + ((y - 50) / 6.5) ** 2 < 1
    hu[20:27, ellipse] += 100
    hu[40:43, 30:42, 80:96] = 20
    hu[5, :8, :10] = -100
    mask = Mask(44, 32, ellipse[44:57, 32:49])
    assert mask.pixels.sum() == ellipse.sum()
    first = [
        LesionSlice(i, np.array([32.0, 44, 48, 56]), NAN if i == 24 else 0.8 + 0.01 * i, mask) for i in range(20, 27)
    ]
    second = [LesionSlice(i, np.array([80.0, 30, 95, 41]), 0.5, None) for i in range(40, 43)]
    third = [LesionSlice(5, np.array([0.0, 0, 9, 7]), 0.08, None)]
    lesions = [
        make_lesion(1, 0.9312345678901234, first, 23, (25.5, 26.0)),
        make_lesion(2, 0.55, second, 41, (24.0, 24.0)),
        make_lesion(3, 0.08, third, 5, (16.0, 15.0)),
    ]
    origin = make_origin(tuple(f"1.2.840.113619.{i}" for i in range(DEPTH)), hu.shape[1:])
    secrets = {"origin": origin, "identifiers": {"PatientID": "P<4711>"}}
    return make_volume(
        hu.round(), SPACING, positions=POSITIONS, tilt=tilt, notes=("A note on </script> & more.",), **secrets
    ), lesions


def make_lesion(number, score, slices, largest, axes):
    boxes = np.array([one.box for one in slices])
    low, high = boxes[:, :2].min(axis=0), boxes[:, 2:].max(axis=0)
    box = np.array([[*low, slices[0].index], [*high, slices[-1].index]], dtype=float)
    nowhere = np.zeros((2, 3))
    return Lesion(
        number=number,
        score=score,
        slices=tuple(slices),
        measured_from="box" if slices[0].mask is None else "mask",
        largest=largest,
        long_axis=nowhere[:, :2],
        short_axis=nowhere[:, :2],
        long_mm=axes[0],
        short_mm=axes[1],
        extent_mm=3.0 * len(slices),
        volume_mm3=1234.0 * len(slices),
        center=nowhere[0],
        box=nowhere,
        center_voxel=box.mean(axis=0),
        box_voxel=box,
    )


def geometry(page):
    """The JSON of a page, where NaN is an error."""

    def refuse(text):
        raise AssertionError(text)

    text = re.search(r'<script type="application/json" id="geometry">(.*?)</script>', page, re.DOTALL).group(1)
    return json.loads(text, parse_constant=refuse)


def stored_slices(page):
    """(D, H, W) HU as a browser decodes them."""
    codes = [
        cv2.imdecode(np.frombuffer(base64.b64decode(text), np.uint8), cv2.IMREAD_GRAYSCALE)
        for text in re.findall(r'<script type="image/webp" data-index="\d+">(.*?)</script>', page)
    ]
    return np.interp(codes, CODES, HU)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    volume, lesions = example()
    path = tmp_path_factory.mktemp("viewer") / "viewer.html"
    write_viewer(str(path), volume, lesions)
    return path, volume, lesions


def test_names_nobody(written):
    path, volume, _ = written
    page = path.read_text()
    assert volume.name == "Nobody^Known"
    hidden = [
        volume.name,
        "Nobody",
        "1.2.840",
        *volume.instances,
        *volume.identifiers.values(),
        "4711",
        str(path.parent),
    ]
    assert [text for text in hidden if text in page] == []
    assert "<title>Lesions</title>" in page
    assert "A note on &lt;/script&gt; &amp; more." in page


def test_scores_and_places_are_exact(written):
    path, _, lesions = written
    shown = geometry(path.read_text())
    assert [lesion["score"] for lesion in shown["lesions"]] == [lesion.score for lesion in lesions]
    assert [lesion["largest"] for lesion in shown["lesions"]] == [23, 41, 5]
    assert [one["score"] is None for one in shown["lesions"][0]["slices"]] == [i == 24 for i in range(20, 27)]
    assert shown["lesions"][1]["slices"][0]["box"] == [80, 30, 96, 42]  # to the far edge of the last pixel
    assert [len(one["outlines"]) for one in shown["lesions"][0]["slices"]] == [1] * 7
    assert shown["positions"] == POSITIONS.tolist()


def test_outline_lies_within_the_edge_of_the_mask():
    lines = outlines(Mask(10, 20, np.array([[True]])))
    assert sorted(lines[0].tolist()) == [[20.25, 10.25], [20.25, 10.75], [20.75, 10.25], [20.75, 10.75]]
    ring = np.ones((5, 5), dtype=bool)
    ring[2, 2] = False
    assert len(outlines(Mask(0, 0, ring))) == 2
    assert outlines(Mask(0, 0, np.zeros((3, 3), dtype=bool))) == []


def test_edges_lie_halfway():
    volume = make_volume(np.zeros((4, 40, 40)), positions=[0, 2, 4, 10])
    assert slice_edges(volume).tolist() == [-1, 1, 3, 7, 11]


def test_density_survives(written):
    path, volume, _ = written
    stored = stored_slices(path.read_text())
    assert stored.shape == volume.hu.shape
    is_soft = (volume.hu > -200) & (volume.hu < 300)
    wrong = np.abs(stored - volume.hu)[is_soft]
    assert np.percentile(wrong, 99) < 15
    for where, hu in (((23, slice(47, 54), slice(36, 45)), 140), ((41, slice(32, 40), slice(83, 93)), 20)):
        assert stored[where].mean() == pytest.approx(hu, abs=6)


@pytest.mark.parametrize("hu", [-1024, -850, -200, -100, 40, 300, 1000, 3000])
def test_density_of_a_plain_slice(hu, tmp_path):
    write_viewer(str(tmp_path / "x.html"), make_volume(np.full((2, 32, 32), hu)), [])
    step = np.interp(hu, HU[1:], np.diff(HU) / np.diff(CODES))  # of a code
    assert np.abs(stored_slices((tmp_path / "x.html").read_text()) - hu).max() <= 1.5 * step


def noisy(depth, size=512):
    hu = np.empty((depth, size, size), dtype=np.int16)
    rng = np.random.default_rng(0)
    for one in hu:
        one[:] = rng.normal(40, 12, one.shape).round()
    return make_volume(hu)


def test_keeps_the_size_limit_with_noise(tmp_path):
    volume, path = noisy(20), tmp_path / "x.html"
    write_viewer(str(path), volume, [], size_limit=2e6)  # as 40e6 for 400 slices
    assert 1.5e6 < path.stat().st_size <= 2e6
    stored = stored_slices(path.read_text())
    assert stored.shape == volume.hu.shape  # all pixels
    assert (stored - volume.hu).std() < 5


def test_smaller_limits_take_lower_grades_and_fewer_pixels(tmp_path):
    volume, path = noisy(12, 256), tmp_path / "x.html"
    taken = []
    for limit in (1e6, 2e5, 4e4):
        write_viewer(str(path), volume, [], size_limit=limit)
        assert path.stat().st_size <= limit
        taken.append(next(_grades_that_may_fit(volume.hu, limit)))
        shape = stored_slices(path.read_text()).shape
        assert shape[0] == 12
        assert ("of their rows and columns" in path.read_text()) == (shape[1] < 256)
    assert taken == sorted(taken, key=GRADES.index)
    assert len(set(taken)) == 3


def test_what_cannot_fit_leaves_the_old_page(tmp_path):
    path = tmp_path / "x.html"
    path.write_text("old")
    with pytest.raises(ValueError, match="expected a size limit that 12 slices fit in, got 20000 bytes"):
        write_viewer(str(path), noisy(12, 64), [], size_limit=20_000)
    assert [p.read_text() for p in tmp_path.iterdir()] == ["old"]


def test_same_input_same_page(tmp_path, written):
    _, volume, lesions = written
    write_viewer(str(tmp_path / "again.html"), volume, lesions)
    assert (tmp_path / "again.html").read_bytes() == written[0].read_bytes()


# --- In a browser


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine")
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


def wait(page, condition):
    """Until a condition holds. Playwright's own way needs eval, which the page forbids."""
    for _ in range(500):
        if page.evaluate(condition):
            return
        page.wait_for_timeout(10)
    raise AssertionError(f"{condition}; {page.complaints}")


def open_page(browser, path, size):
    page = browser.new_page(viewport={"width": size[0], "height": size[1]}, has_touch=True)
    page.complaints, page.requests = [], []
    page.on("console", lambda message: page.complaints.append(message.text))
    page.on("pageerror", lambda error: page.complaints.append(str(error)))
    page.on("request", lambda r: page.requests.append(r.url))
    page.goto(path.as_uri())
    wait(page, SHOWN)
    return page


@pytest.fixture(params=[(1280, 900), (390, 844)], ids=["desktop", "phone"])
def page(request, browser, written):
    page = open_page(browser, written[0], request.param)
    yield page
    assert page.complaints == []
    assert not page.locator("#trouble").is_visible()
    page.close()


def shown_slice(page):
    wait(page, SHOWN)
    return int(page.locator("#viewer").get_attribute("data-slice"))


def colour(page, column, row):
    """(3,) mean RGB of what is shown at a pixel of the slice, between 0 and its width and height."""
    wait(page, SHOWN)
    script = """([x, y]) => {
        const shown = document.querySelector("#axial canvas");
        const canvas = document.createElement("canvas");
        canvas.width = canvas.height = 3;
        const context = canvas.getContext("2d");
        context.drawImage(shown, 1 - Math.floor(x * shown.width), 1 - Math.floor(y * shown.height));
        return [...context.getImageData(0, 0, 3, 3).data];
    }"""
    pixels = page.evaluate(script, [(column + 0.5) / COLUMNS, (row + 0.5) / ROWS])
    return np.reshape(pixels, (9, 4)).mean(axis=0)[:3]


def axial_box(page):
    page.locator("#axial canvas").scroll_into_view_if_needed()
    return page.locator("#axial canvas").bounding_box()


def test_opens_alone(page, written):
    assert [url for url in page.requests if not url.startswith("data:")] == [written[0].as_uri()]
    assert page.title() == "Lesions"
    assert page.get_by_text("Research use only, not a medical device").is_visible()
    page.evaluate("window.scrollTo(0, 1e6)")
    header = page.locator("header").bounding_box()
    assert header["y"] == 0
    assert header["height"] > 20
    assert page.locator("[data-notes]").inner_text() == "A note on </script> & more."
    assert shown_slice(page) == 23  # the first lesion
    assert page.locator("#axial span").all_inner_texts() == ["R", "L", "A", "P"]


def test_fits_the_screen(page):
    width = page.viewport_size["width"]
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    outside = """width => [...document.querySelectorAll('body *')].filter(
        e => e.getBoundingClientRect().right > width + 1).map(e => e.outerHTML.slice(0, 80))"""
    assert page.evaluate(outside, width) == []
    box = axial_box(page)
    assert box["width"] == pytest.approx(box["height"], abs=1)  # 128 x 1.5 mm by 96 x 2 mm
    box = page.locator("#coronal canvas").bounding_box()
    assert box["height"] / box["width"] == pytest.approx((POSITIONS[-1] + 3) / 192, rel=0.02)


def test_list_says_what_was_found(page, written):
    items = page.locator("[data-lesion]")
    assert [float(item.get_attribute("data-score")) for item in items.all()] == [one.score for one in written[2]]
    texts = [" ".join(text.split()) for text in items.all_inner_texts()]
    assert texts == [
        "1 26 x 26 mm score 0.93 slice 24, 8.6 ml from mask",
        "2 24 x 24 mm score 0.55 slice 42, 3.7 ml from box",
        "3 16 x 15 mm score 0.08 slice 6, 1.2 ml from box",
    ]


def test_list_leads_to_the_slice(page, written):
    for number, index, place, hu in ((2, 41, (88, 36), 20), (3, 5, (4, 4), -100), (1, 23, (40, 50), 140)):
        item = page.locator(f"[data-lesion='{number}']")
        item.locator("button").click()
        assert shown_slice(page) == index
        assert page.locator("#place").inner_text() == f"Slice {index + 1} of 60, {POSITIONS[index]:.1f} mm"
        assert page.locator("[aria-current=true]").inner_text() == item.inner_text()
        grey = (hu + 160) / 400 * 255
        assert colour(page, *place) == pytest.approx(grey, abs=15 / 400 * 255)


def test_density_under_the_mouse(page):
    box = axial_box(page)
    page.mouse.move(box["x"] + box["width"] * 40.5 / COLUMNS, box["y"] + box["height"] * 50.5 / ROWS)
    assert float(page.locator("#density").inner_text().split()[1]) == pytest.approx(140, abs=25)
    page.keyboard.press("Home")
    shown_slice(page)
    assert float(page.locator("#density").inner_text().split()[1]) == pytest.approx(40, abs=25)
    page.mouse.move(0, 0)
    assert page.locator("#density").inner_text() == ""


def test_wheel(page):
    box = axial_box(page)
    page.mouse.move(box["x"] + 100, box["y"] + 100)
    for delta, index in ((100, 24), (100, 25), (-100, 24), (-300, 21)):
        page.mouse.wheel(0, delta)
        wait(page, f"viewer.dataset.slice === '{index}'")
    for _ in range(4):
        page.mouse.wheel(0, 10)  # a touchpad
    wait(page, "viewer.dataset.slice === '23'")


def test_keys(page):
    for focus in ("body", "#slider", "[data-lesion='1'] button"):
        page.locator(focus).focus()
        page.keyboard.press("Home")
        for key, index in (
            ("ArrowUp", 0), ("ArrowDown", 1), ("PageDown", 11), ("PageUp", 1), ("End", 59), ("ArrowDown", 59),
            ("PageUp", 49), ("ArrowUp", 48),
        ):  # fmt: skip
            page.keyboard.press(key)
            assert shown_slice(page) == index


def test_slider(page):
    page.locator("#slider").fill("41")
    assert shown_slice(page) == 41
    assert page.locator("#slider").get_attribute("aria-valuetext") == "Slice 42 of 60"
    assert colour(page, 100, 70) == pytest.approx(0, abs=2)  # the lung


def drag(page, x, y, distance):
    """One finger, up or down."""
    session = page.context.new_cdp_session(page)
    session.send("Input.dispatchTouchEvent", {"type": "touchStart", "touchPoints": [{"x": x, "y": y}]})
    for i in range(1, 11):
        points = [{"x": x, "y": y + distance * i / 10}]
        session.send("Input.dispatchTouchEvent", {"type": "touchMove", "touchPoints": points})
    session.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})


def test_finger(page):
    page.evaluate("window.scrollTo(0, 0)")
    box = page.locator("#axial canvas").bounding_box()
    step = min(12, max(4, box["height"] / DEPTH))
    drag(page, box["x"] + 100, box["y"] + 100, 10 * step)
    assert shown_slice(page) == pytest.approx(33, abs=1)
    before = shown_slice(page)
    drag(page, box["x"] + 100, box["y"] + 200, -5 * step)
    assert shown_slice(page) == pytest.approx(before - 5, abs=1)
    assert page.evaluate("window.scrollY") == 0


def test_finger_beside_the_slice_scrolls_the_page(browser, written):
    page = open_page(browser, written[0], (390, 844))
    drag(page, 300, 800, -300)
    wait(page, "window.scrollY > 50")
    assert shown_slice(page) == 23
    page.close()


def test_two_fingers_leave_the_slice(page):
    box = axial_box(page)
    session = page.context.new_cdp_session(page)
    x, y = box["x"] + 150, box["y"] + 150
    for kind, points in (
        ("touchStart", [(x, y)]),
        ("touchStart", [(x, y), (x + 40, y)]),
        *(("touchMove", [(x, y - 5 * i), (x + 40, y + 5 * i)]) for i in range(1, 9)),
        ("touchEnd", []),
    ):
        touches = [{"x": a, "y": b, "id": i} for i, (a, b) in enumerate(points)]
        session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": touches})
    assert shown_slice(page) == 23


def test_threshold_hides(page):
    page.keyboard.press("Home")
    for _ in range(5):
        page.keyboard.press("ArrowDown")
    edge = (4, 7.5)  # of the third lesion's box, which has a score of 0.08
    assert is_orange(colour(page, *edge))
    page.locator("#threshold").fill("0.5")
    assert page.locator("[data-lesion]:visible").count() == 2
    assert page.locator("#count").inner_text() == "2 of 3"
    assert not is_orange(colour(page, *edge))
    page.locator("#threshold").fill("0.08")
    assert page.locator("[data-lesion]:visible").count() == 3
    assert is_orange(colour(page, *edge))
    page.locator("#threshold").focus()
    page.keyboard.press("ArrowUp")  # of this slider, not of the slices
    assert page.locator("[data-lesion]:visible").count() == 2
    assert shown_slice(page) == 5


def is_orange(rgb):
    return rgb[0] - rgb[2] > 60


def test_overlays_hide(page):
    page.locator("[data-lesion='2'] button").click()
    edge = (79.5, 36)
    rgb = colour(page, *edge)
    assert rgb[2] - rgb[0] > 60  # the chosen one is blue
    page.locator("#overlays").click()
    assert page.locator("#overlays").get_attribute("aria-pressed") == "false"
    assert np.ptp(colour(page, *edge)) < 1
    page.keyboard.press("o")
    assert np.array_equal(colour(page, *edge), rgb)


def test_outline_of_the_mask(page):
    page.locator("[data-lesion='2'] button").click()  # the first is orange then
    page.locator("#slider").fill("23")
    assert is_orange(colour(page, 34, 45.75))  # a quarter of a pixel within the edge of the mask
    assert not is_orange(colour(page, 34, 44.9))  # within the box
    assert is_orange(colour(page, 34, 43.5))  # the box


def test_windows(page):
    for control, grey in (("2", 255 * (140 + 1350) / 1500), ("3", 255 * (140 + 500) / 1800), ("1", 255 * 300 / 400)):
        page.keyboard.press(control)
        assert colour(page, 40, 50) == pytest.approx(grey, abs=10)
        page.keyboard.press("1")
        page.locator("[data-preset]").nth(int(control) - 1).click()
        assert colour(page, 40, 50) == pytest.approx(grey, abs=10)
        assert page.locator("#viewer").get_attribute("data-window") == str(int(control) - 1)
        pressed = page.locator("[data-preset][aria-pressed=true]")
        assert pressed.get_attribute("data-preset") == str(int(control) - 1)


def test_projection_leads_to_the_slice(page):
    page.locator("#coronal canvas").scroll_into_view_if_needed()
    box = page.locator("#coronal canvas").bounding_box()
    for index in (0, 10, 29, 30, 59):
        height = (POSITIONS[index] + 1.5) / (POSITIONS[-1] + 3) * box["height"]
        page.locator("#coronal canvas").click(position={"x": 5, "y": height})
        assert shown_slice(page) == index


def axial_picture(page):
    return page.evaluate("document.querySelector('#axial canvas').toDataURL()")


def test_every_slice_is_decoded(page):
    """They are more than are kept, so the first ones are decoded again."""
    page.keyboard.press("Home")
    shown_slice(page)
    first = axial_picture(page)
    for index in range(1, DEPTH):
        page.keyboard.press("ArrowDown")
        assert shown_slice(page) == index
    page.keyboard.press("Home")
    shown_slice(page)
    assert axial_picture(page) == first


@pytest.mark.parametrize("size", [(1280, 900), (390, 844)])
def test_no_lesion(browser, size, tmp_path):
    volume, _ = example()
    write_viewer(str(tmp_path / "viewer.html"), volume, [])
    page = open_page(browser, tmp_path / "viewer.html", size)
    assert page.get_by_text("No lesion found").is_visible()
    assert shown_slice(page) == 30
    page.keyboard.press("ArrowDown")
    assert shown_slice(page) == 31
    assert page.complaints == []
    page.close()
