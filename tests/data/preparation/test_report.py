from a3d_det2.data.preparation import KINDS, Finding, Report

COUNTS = {"train": ((2, 3), (1, 2)), "val": ((0, 0), (0, 0))}
HARMLESS = [Finding("neighbour_missing", f"s/{i:03d}", "not on disk") for i in range(3)]
BLOCKING = Finding("row", "line 7", "malformed")


def test_by_hand():
    report = Report(COUNTS, 4, [*HARMLESS, BLOCKING])
    assert report.to_dict() == {
        "can_train": False,
        "series": 4,
        "splits": {
            "train": {
                "key_slices": 2,
                "lesions": 3,
                "key_slices_without_noisy": 1,
                "lesions_without_noisy": 2,
            },
            "val": {
                "key_slices": 0,
                "lesions": 0,
                "key_slices_without_noisy": 0,
                "lesions_without_noisy": 0,
            },
        },
        "findings": {
            "row": {
                "blocking": True,
                "meaning": KINDS["row"][1],
                "count": 1,
                "list": [{"where": "line 7", "message": "malformed"}],
            },
            "neighbour_missing": {
                "blocking": False,
                "meaning": KINDS["neighbour_missing"][1],
                "count": 3,
                "list": [{"where": f"s/{i:03d}", "message": "not on disk"} for i in range(3)],
            },
        },
    }
    assert report.to_text(examples=2).splitlines() == [
        "4 series",
        "  train 2 key slices / 3 lesions (1 / 2 without the noisy rows)",
        "  val   0 key slices / 0 lesions (0 / 0 without the noisy rows)",
        "",
        "Keeps training from starting:",
        f"  1 {KINDS['row'][1]} [row]",
        "    line 7: malformed",
        "",
        "Worth knowing:",
        f"  3 {KINDS['neighbour_missing'][1]} [neighbour_missing]",
        "    s/000: not on disk",
        "    s/001: not on disk",
        "    and 1 more",
        "",
        "Training cannot start.",
    ]


def test_nothing_that_keeps_training_from_starting():
    for findings in ([], HARMLESS):
        report = Report(COUNTS, 4, findings)
        assert report.can_train
        assert report.to_text().endswith("\n\nTraining can start.")
