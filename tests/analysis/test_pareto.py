"""The frontier by brute force, the picture's data by hand, failed rows beside it, labels apart."""

import copy
import json
import random

import pytest
from ledgers import ledger, record, seeds

from analysis import figures
from analysis.figures import pareto
from analysis.figures.__main__ import main
from analysis.figures.figure import canvas
from runs.errors import UserError

pytestmark = pytest.mark.properties


def made(name, *records, **how):
    return figures.make(name, ledger(*records), **how)


def lines(figure):
    return {row["method"]: row for row in figure.data.to_dict("records")}


def sized(row, parameters, *bests, cost=(), model="minilm", **changes):
    """A run for each value, of a row with so many parameters."""
    found = seeds(row, bests=bests, model=model, **changes)
    for one in found:
        one["parameters"]["adapter"] = parameters
        one["cost"] |= dict(cost)
    return found


ROWS = [
    *sized("head", 0, 0.70, 0.71, 0.72),
    *sized("vera", 1000, 0.80, 0.82, 0.81, cost={"adapter_bytes": 4000}),
    *sized("bitfit", 5000, 0.75, 0.76, 0.77),  # worse than vera in both
    *sized("full", 2_000_000, 0.90, 0.88, 0.89, cost={"adapter_bytes": 8 * 10**6}),
]


def peers(count):
    """So many rows a little better than BitFit."""
    return [one for i in range(count) for one in sized(f"peer{i:02}", 20_000 + i, 0.78 + 0.0001 * i)]


# --- the frontier and the data


def test_the_frontier_is_what_no_other_row_beats():
    draw = random.Random(0)
    for _ in range(300):
        points = [(draw.randrange(6), draw.randrange(6)) for _ in range(draw.randrange(1, 9))]
        beaten = [any(a >= x and b >= y and (a > x or b > y) for a, b in points) for x, y in points]
        assert pareto.on_frontier(*zip(*points, strict=True)) == [not lost for lost in beaten]


def test_a_row_has_medians_ends_and_whether_it_is_on_the_frontier():
    (figure,) = made("pareto", *ROWS)
    assert figure.name == "pareto_metric_by_parameters_rte_minilm"
    name, found = "accuracy, best epoch", lines(figure)
    shown = [(key, row["parameters"], round(row[name], 6), row["frontier"]) for key, row in found.items()]
    assert shown == [
        *(("head", 0, 71.0, True), ("VeRA r=1024", 1000, 81.0, True)),
        *(("bitfit", 5000, 76.0, False), ("full", 2_000_000, 89.0, True)),
    ]
    # Of three seeds the bootstrap's interval of the median is their range
    vera = found["VeRA r=1024"]
    assert [vera[f"{name} low"], vera[f"{name} high"]] == pytest.approx([80, 82])
    for x, value in (("bytes", 4000), ("seconds", 11), ("memory", 10**9)):
        assert lines(made("pareto", *ROWS, axes=(x, "metric"))[0])["VeRA r=1024"][x] == value
    assert vera["runs"] == tuple(r["id"] for r in ROWS if r["cell"]["row"] == "vera")
    (line,) = [line for line in canvas(figure).axes[0].get_lines() if line.get_linestyle() == "--"]
    corners = [(x, round(y, 6)) for x, y in zip(*line.get_data(), strict=True)]
    assert corners[1:-1] == [(0, 71.0), (1000, 81.0), (2_000_000, 89.0)]  # drawn in steps: across, then up


@pytest.mark.parametrize("x", pareto.AXES)
def test_any_two_are_drawn(x):
    forgets = {"forgetting": {"text": "t", "sha256": "s", "tokens": 9, "before": 3.0, "after": 3.1}}
    rows = [row | {"result": row["result"] | forgets} for row in ROWS]
    found = [made("pareto", *rows, axes=(x, y))[0] for y in pareto.AXES if y != x]
    assert [len(figure.data) for figure in found] == [4] * 5
    assert "nan" not in figures.svg(found[0])


def test_what_is_not_drawn_is_said():
    odd = [*sized("lora", 3000, float("nan"), 0.8, 0.9), *sized("dora", 3000, float("nan"))]
    odd += [record("adapter_p", status="diverged", values=[], model="minilm"), *copy.deepcopy(ROWS)]
    odd[-1]["device"]["name"] = "another CPU"
    (figure,) = made("pareto", *odd, axes=("seconds", "metric"))
    notes = "\n".join(figure.notes)
    for words in (
        "LoRA r=8: 1 of 3 runs without a finite accuracy, best epoch.",
        "dora: 1 of 1 runs without a finite accuracy, best epoch.",
        "adapter_p: 1 of 1 runs without a finite seconds.",
        "a CPU, another CPU: seconds and memory of different machines do not compare.",
    ):
        assert words in notes
    assert {*lines(figure)} == {"head", "VeRA r=1024", "bitfit", "full", "LoRA r=8"}


def test_rows_that_report_another_number_are_not_mixed_in():
    scored = seeds("vera", "e2e", (0.5, 0.5), model="gpt2_medium")
    for one in scored:
        one["texts"] = {"scores": [{"which": "last", "variant": "0.9", "bleu": 66.0}]}
    plain = record("lora", "e2e", model="gpt2_medium")
    (figure,) = made("pareto", *scored, *seeds("full", "e2e", (0.5,), model="gpt2_medium"), plain)
    assert {*lines(figure)} == {"LoRA r=8", "full"}
    assert "VeRA r=1024: reports BLEU, last epoch: not drawn." in figure.notes


def test_axes_with_a_zero_and_wide_values_are_logarithmic_and_a_metrics_are_not():
    near = [*sized("vera", 1000, 0.8), *sized("lora", 2000, 0.9)]
    scales = []
    for rows in (ROWS, ROWS[3:], near):
        (axes,) = canvas(made("pareto", *rows)[0]).axes
        scales.append((axes.get_xscale(), axes.get_yscale()))
    assert scales == [("symlog", "linear"), ("log", "linear"), ("linear", "linear")]


# --- failed rows


def test_a_failed_row_is_listed_beside_the_picture_and_squeezes_no_axis():
    """Worse than the head alone and far from the others; and so are the ends of bars."""
    failed, split_ = sized("delora", 9000, 0.40), sized("glora", 9000, 0.80, 0.80, 0.42)
    (figure,) = made("pareto", *ROWS, *peers(12), *failed, *split_)
    assert [key for key, row in lines(figure).items() if row["failed"]] == ["delora"]
    assert any("not drawn: delora (40)" in line for line in figure.foot)
    (axes,) = canvas(figure).axes
    assert 65 < axes.get_ylim()[0] < 70
    assert len(figure.data) == 18  # every row is in the data
    broken = sized("lora", 9000, 0.4, 0.4, 0.4, status="diverged")  # without a head, if most of its seeds are
    whole = [one | {"status": "done", "id": one["id"] + "-done"} for one in broken]
    for most, wanted in (([*broken[:2], whole[2]], True), ([broken[0], *whole[1:]], False)):
        (figure,) = made("pareto", *ROWS[3:], *peers(12), *most)
        assert lines(figure)["LoRA r=8"]["failed"] is wanted
    # A row as bad that lies near the others, and one on the frontier, are drawn
    (figure,) = made("pareto", *ROWS, *sized("delora", 9000, 0.69))
    assert not any(row["failed"] for row in lines(figure).values())
    assert not figure.foot
    (figure,) = made("pareto", *ROWS, *peers(12), *sized("delora", -1, 0.40))
    assert [lines(figure)["delora"][key] for key in ("frontier", "failed")] == [True, False]


# --- the legend


def texts(figure):
    """What the legend names, from the best down."""
    return [text.get_text() for of in canvas(figure).legends for text in of.get_texts()]


def test_the_legend_names_each_row_with_its_value_or_of_many_the_frontier_and_what_is_asked_for():
    named = ["full: 89.0", "VeRA r=1024: 81.0", "head: 71.0"]
    (figure,) = made("pareto", *ROWS)
    assert texts(figure) == [named[0], "bitfit: 76.0", *named[1:]]
    (figure,) = made("pareto", *ROWS, labels=("vera",))
    assert texts(figure) == named
    of_all = [one | {"cell": one["cell"] | {"task": "reviews"}} for one in [*ROWS, *peers(pareto.CROWDED)]]
    demo = made("demo", *of_all)
    costs = ["parameters", "bytes", "seconds", "memory"]
    assert [of.name.removeprefix("accuracy_vs_") for of in demo] == costs
    assert texts(demo[0]) == named
    assert texts(made("demo", *of_all, labels=("peer03",))[0]) == [named[0], "peer03: 78.0", *named[1:]]
    assert len(demo[0].data) == pareto.CROWDED + 4


# --- parameters and demo


def test_parameters_leaves_other_ranks_to_figure_2_unless_a_task_is_named():
    rows = ("head", "vera", "vera_r64", "lora_r1", "vera_only_d")
    records = [record(row, "rte", s, 0.8, 0.7, model="minilm") for row in rows for s in range(5)]
    (rte,) = made("parameters", *records, record("vera", "alpaca", 0, 0.8, model="smollm2"))
    assert (rte.name, {*lines(rte)}) == ("parameters_rte_minilm", {"head", "VeRA r=1024"})
    (named,) = made("parameters", *records, tasks=("rte",))
    assert len(lines(named)) == len(rows)
    assert made("parameters") == []


def test_the_demos_picture_has_one_number_of_rows():
    own, other = seeds("vera", "reviews", model="minilm"), seeds("lora", "reviews", model="minilm")
    for one, rows in [*((one, 500) for one in own), *((one, 2000) for one in other)]:
        one["config"]["task"] |= {"train_rows": 1000, "dev_rows": rows}
        one["data"] |= {"train_rows": 1000, "dev_rows": rows}
    first, second = made("demo", *own, *other)
    assert (first.name, second.name) == ("accuracy_vs_parameters", "accuracy_vs_parameters_1000_2000")
    assert [len(figure.data) for figure in (first, second)] == [1, 1]
    assert "1,000 training and 2,000 dev rows" in second.title
    failed = record("vera", "reviews", 9, status="failed", model="minilm")
    failed["config"]["task"] |= {"train_rows": 50}
    failed.pop("data"), failed.pop("result")
    assert [figure.name for figure in made("demo", *other, failed)] == ["accuracy_vs_parameters"]


# --- the command


@pytest.fixture
def output(tmp_path):
    (tmp_path / "records").mkdir()
    for one in ROWS:
        (tmp_path / "records" / f"{one['id']}.json").write_text(json.dumps(one))
    return f"output={tmp_path}"


def test_the_command_draws_it_and_refuses_other_axes_and_labels_in_one_line(output, capsys):
    words = ["pareto", "x=bytes", "task=rte", output]
    assert main([*words, "labels=vera"]) == 0
    assert "pareto_metric_by_bytes_rte_minilm.png" in capsys.readouterr().out
    for bad, why in (
        (["pareto", "x=params"], "^x=params: should be .* Did you mean parameters"),
        (["pareto", "x=metric"], "^x=metric y=metric: give two different ones$"),
        (["figure2", "x=bytes"], "^x=: the axes of figure2 are fixed; pareto has x= and y=$"),
        ([*words, "labels=verra"], r"^no row labels= 'verra'\. Did you mean vera\?"),
    ):
        with pytest.raises(UserError, match=why):
            main(bad)
