import numpy as np
import pytest
from matplotlib.figure import Figure

from a3d_det2.evaluation.froc import FrocCurve
from a3d_det2.evaluation.report.figures import draw_key_slice, froc_axis, plot_froc, plot_scores, plot_strata


def curve(last, lesions=3):
    return FrocCurve(np.array([0.5, last]), np.array([0.4, 0.8]), np.array([0.9, 0.1]), 10, lesions)


def test_curves_are_dotted_beyond_their_end():
    figure = plot_froc({"short": curve(2), "long": curve(20), "no lesions": curve(2, lesions=0)})
    solid, dotted, other = figure.axes[0].lines
    assert (solid.get_linestyle(), dotted.get_linestyle(), other.get_linestyle()) == ("-", ":", "-")
    assert solid.get_xdata().max() <= 2 < dotted.get_xdata().min()
    assert set(dotted.get_ydata()) == {0.8}
    assert len(other.get_xdata()) == len(froc_axis())
    labels = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert labels == ["short (3 lesions)", "long (3 lesions)"]


def test_bands():
    figure = plot_froc({"a": curve(20)}, {"a": np.column_stack([np.full(500, 0.3), np.full(500, 0.9)])})
    (band,) = figure.axes[0].collections
    assert band.get_paths()[0].vertices[:, 1].min() == 0.3


def test_strata_have_their_intervals():
    figure = plot_strata({"a": {"all": (0.5, 0.4, 0.7), "thin": (0.6, np.nan, np.nan)}, "b": {"all": (0.8, 0.7, 0.9)}})
    axes = figure.axes[0]
    assert [text.get_text() for text in axes.get_yticklabels()] == ["all", "thin"]
    bars = axes.collections[0].get_segments()
    assert bars[0][:, 0].tolist() == pytest.approx([0.4, 0.7])
    assert bars[1][:, 0].tolist() == pytest.approx([0.6, 0.6])


@pytest.mark.parametrize(
    ("scores", "scale"),
    [
        ([0.1, 0.9], "log"),
        ([-1.0, 2.0], "linear"),
        ([0.0, 1.0], "linear"),
        ([0.5, 0.5], "linear"),
        ([0.5, np.inf], "linear"),
    ],
)
def test_scores(scores, scale):
    figure = plot_scores({"first": np.array(scores), "second": np.zeros(0)}, [0.3, np.nan])
    axes = figure.axes[0]
    assert axes.get_xscale() == scale
    assert sum(patch.get_height() for patch in axes.patches) == np.isfinite(scores).sum()
    assert len(axes.lines) == 1


def test_names_that_matplotlib_would_read_otherwise(tmp_path):
    names = [r"a $\foo$", "_base", "$x^2$"]
    figure = plot_froc({name: curve(20) for name in names})
    figure.savefig(tmp_path / "froc.png")
    assert len(figure.axes[0].get_legend().get_texts()) == 3
    plot_strata({name: {"all": (0.5, 0.4, 0.7)} for name in names}).savefig(tmp_path / "strata.png")


def test_scores_of_any_size(tmp_path):
    scores = np.array([1e308, -1.7e308, 1.7e308, 0.5, 0.1])
    plot_scores({"first": scores}, [1e308, 0.5]).savefig(tmp_path / "scores.png")


@pytest.mark.parametrize("subject", [[5, 10, 60, 70], [-3, -3, 200, 200], [-1e308, 0, 1e308, 5]])
def test_what_lies_outside_does_not_move_the_slice(subject):
    axes = Figure().add_subplot()
    found = np.array([[-50, -50, 900, 900, 0.5], [0, 0, 1e308, 1e308, 0.4]])
    draw_key_slice(axes, np.zeros((80, 100)), np.zeros((0, 4)), found, subject=np.array(subject, dtype=float))
    assert (axes.get_xlim(), axes.get_ylim()) == ((0, 100), (80, 0))


def test_no_scores():
    assert plot_scores({"first": np.zeros(0)}).axes
