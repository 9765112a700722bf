"""The learning curves of single runs."""

import ledgers
import pytest
from running import call_here, refused

from analysis.figures.curve import curve
from analysis.figures.figure import COLOURS, canvas, picture

pytestmark = pytest.mark.properties


def test_a_curve_has_each_evaluation_of_each_run():
    vera = ledgers.record(values=[0.5, 0.7, 0.6])
    lora = ledgers.record(row="lora", values=[0.4, 0.8])
    vera["curve"]["step"] = [8, 16, 24]
    figure = curve([vera, lora])
    assert figure.data.score.tolist() == pytest.approx([50, 70, 60, 40, 80])
    assert figure.data.step.tolist()[:3] == [8, 16, 24]
    assert figure.data.epoch.tolist() == [1, 2, 3, 1, 2]  # the other has no steps
    assert figure.data.runs.unique().tolist() == [vera["id"], lora["id"]]
    assert b"<svg" in picture(figure, "svg")


def test_a_method_has_its_colour_and_seeds_of_a_method_differ():
    vera = ledgers.record()
    lora = ledgers.record(row="lora")
    other_seed = ledgers.record(seed=1)
    assert colours([vera, lora]) == [COLOURS["vera"], COLOURS["lora"]]
    assert len({*colours([vera, other_seed])}) == 2


def colours(records):
    """The colour of each run's score."""
    return [line.get_color() for line in canvas(curve(records)).axes[0].get_lines()]


def test_what_has_no_curve_or_another_metric_is_refused():
    other = ledgers.record(task="e2e")
    other["result"] |= ledgers.metric_fields("perplexity")
    with refused("one picture is of one metric"):
        curve([ledgers.record(), other])
    with refused("stopped before the first evaluation"):
        curve([ledgers.record(values=[], status="diverged")])


@pytest.mark.parametrize("words", [("curve",), ("figure2", "0123456789ab")])
def test_ids_are_for_curves_alone(words, tmp_path):
    done = call_here("analysis.figures.__main__", *words, f"output={tmp_path}", check=2)
    assert "curve takes the ids of runs, and no other figure" in done.stderr
