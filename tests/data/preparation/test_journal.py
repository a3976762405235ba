import json
import os

import pytest

from a3d_det2.data.preparation import Journal


def result(name, fingerprint="x"):
    return {"series": name, "fingerprint": fingerprint, "findings": [], "masks": [], "packed": "yes"}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "prepare.jsonl"


def series_in(path):
    return [json.loads(line)["series"] for line in path.read_text().splitlines()]


def test_results_are_kept_as_they_come_and_put_in_order(path):
    journal = Journal(str(path))
    for name in ("b", "a", "c", "a"):
        journal.append(result(name))
    assert series_in(path) == ["b", "a", "c"]
    journal.append(result("a", "y"))
    assert series_in(path) == ["b", "a", "c", "a"]
    assert Journal(str(path)).results == {"a": result("a", "y"), "b": result("b"), "c": result("c")}
    journal.finish({"a", "c"})
    assert (
        path.read_text()
        == json.dumps(result("a", "y"), sort_keys=True) + "\n" + json.dumps(result("c"), sort_keys=True) + "\n"
    )
    assert os.listdir(path.parent) == ["prepare.jsonl"]


def test_a_line_that_was_cut_off_is_dropped(path):
    journal = Journal(str(path))
    for name in ("b", "a", "c"):
        journal.append(result(name))
    lines = path.read_text()
    for length in range(len(lines)):
        path.write_text(lines[:length])
        again = Journal(str(path))
        whole = lines[:length].count("\n")
        # The last line is whole also where only its end is missing.
        assert list(again.results) in (["b", "a", "c"][:whole], ["b", "a", "c"][: whole + 1])
        for name in ("b", "a", "c"):
            again.append(result(name))
        again.finish({"a", "b", "c"})
        assert series_in(path) == ["a", "b", "c"]


@pytest.mark.parametrize(
    "line",
    [
        *("", "null", "[]", "3", "{}", '{"series": "d"}', "\udcff"),
        json.dumps({**result("d"), "series": []}),
        json.dumps({**result("d"), "series": 3}),
        json.dumps({**result("d"), "masks": {}}),
        json.dumps({**result("d"), "masks": [3]}),
        json.dumps({**result("d"), "masks": [{"row": "1", "source": "none"}]}),
        json.dumps({**result("d"), "findings": [{"kind": "row"}]}),
        json.dumps({**result("d"), "findings": [{"kind": "a", "where": "", "message": ""}]}),
        json.dumps({**result("d"), "findings": [{"kind": [], "where": "", "message": ""}]}),
        json.dumps({**result("d"), "packed": None}),
    ],
)
def test_what_is_no_result_is_dropped(path, line):
    path.write_text(line + "\n" + json.dumps(result("a")) + "\n", errors="surrogateescape")
    assert Journal(str(path)).results == {"a": result("a")}
