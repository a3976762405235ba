from importlib import import_module

import pytest


@pytest.mark.parametrize(
    ("name", "other", "public"),
    [
        ("detection_reader", "detections", ["Detections", "detections_from_results", "read_detections"]),
        ("split_evaluation", "summary", ["compare", "nan_to_none"]),
        ("evaluation_files", "results", ["evaluate_results"]),
        ("report.figures", "visualization", ["draw_key_slice", "plot_froc", "plot_key_slices"]),
        ("report.tables", "tables", ["comparison_table", "csv_rows", "score_table"]),
        ("report.page", "report", ["write_report"]),
    ],
)
def test_the_other_name_of_a_module_has_the_same_in_it(name, other, public):
    module, alias = (import_module(f"a3d_det2.evaluation.{n}") for n in (name, other))
    assert [getattr(alias, n) for n in public] == [getattr(module, n) for n in public]


def test_an_evaluation_is_one_of_a_split():
    from a3d_det2.evaluation.split_evaluation import SplitEvaluation
    from a3d_det2.evaluation.summary import Evaluation

    assert Evaluation is SplitEvaluation
