from __future__ import annotations

import matplotlib.image
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from jaxrecipes.report.charts import _learned_forgotten, _losses, draw_charts, running_mean
from jaxrecipes.report.results import collect_results


def test_charts_are_pictures_and_described(run_folder, tmp_path):
    charts = draw_charts(collect_results(run_folder), tmp_path / "plots")
    assert len(charts) == 3
    for chart in charts:
        picture = matplotlib.image.imread(chart.path)
        assert picture.shape[1] > 1000 and picture[..., :3].std() > 0.02
        assert chart.title and "block_expansion, full" in chart.description


def test_the_curve_has_the_measured_points(run_folder):
    results = collect_results(run_folder)
    axes = _learned_forgotten(results).axes[0]
    lines = {line.get_label(): line for line in axes.lines}
    for arm in results["arms"]:
        x, y = lines[arm["name"]].get_data()
        records = arm["evaluations"]
        np.testing.assert_allclose(x, [-one["learn"]["change"]["value"] for one in records])
        np.testing.assert_allclose(y, [one["keep"]["kl"]["value"] for one in records])
    assert len({line.get_color() for line in lines.values()}) >= 2


def test_the_base_is_drawn_where_it_is(run_folder):
    results = collect_results(run_folder)
    for panel, name in zip(_losses(results).axes, ("learn", "keep"), strict=True):
        base = next(line for line in panel.lines if line.get_label() == "base")
        expected = results["arms"][0]["before"][name]["loss"]["value"]
        np.testing.assert_allclose(base.get_ydata(), expected, atol=1e-6)


def test_what_was_not_measured_is_not_drawn(run_folder, tmp_path):
    results = collect_results(run_folder)
    for arm in results["arms"]:
        arm["training"] = []
        for record in arm["evaluations"]:
            record["keep"] = None
    charts = draw_charts(results, tmp_path)
    assert [chart.path.name for chart in charts] == ["losses.png"]


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=60))
def test_running_mean_averages_the_latest_tenth(values):
    array = np.asarray(values)
    width = max(1, len(values) // 10)
    expected = [array[max(0, i + 1 - width) : i + 1].mean() for i in range(len(values))]
    np.testing.assert_allclose(running_mean(array), expected, atol=1e-9)
