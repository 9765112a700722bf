"""The frontier by brute force, the picture's data by hand, labels apart, and what is said of odd records."""

import copy
import json
import random

import pytest
from ledgers import ledger, of_metric, record, seeds
from matplotlib.figure import Figure as Canvas

from analysis import figures
from analysis.figures import pareto
from analysis.figures.__main__ import main
from analysis.figures.figure import canvas
from analysis.figures.labels import Label, place_labels
from analysis.table import texts
from runs.errors import UserError


def lines(figure):
    return [dict(zip(figure.header, row, strict=True)) for row in texts(figure.rows)]


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


# --- the frontier


def beats(one, other, better):
    scores = [[s * v for s, v in zip(better, point, strict=True)] for point in (one, other)]
    pairs = list(zip(*scores, strict=True))
    return all(a >= b for a, b in pairs) and any(a > b for a, b in pairs)


@pytest.mark.parametrize("better", [(-1, 1), (-1, -1), (1, 1), (1, -1)])
def test_the_frontier_is_what_no_other_row_beats(better):
    draw = random.Random(0)
    for _ in range(300):
        points = [(draw.randrange(6), draw.randrange(6)) for _ in range(draw.randrange(1, 9))]
        kept = pareto.frontier(points, better)
        whole = [i for i, p in enumerate(points) if not any(beats(o, p, better) for o in points)]
        assert sorted(kept) == whole
        along = [points[i][0] * better[0] for i in kept]
        assert along == sorted(along, reverse=True)


def test_the_line_is_at_the_best_y_that_a_row_at_least_as_good_in_x_has():
    corners = pareto.steps([(1, 5), (3, 7)], (10, 0))
    assert corners == [(1, 0), (1, 0), (1, 5), (3, 5), (3, 7), (10, 7)]


# --- the data


def test_a_row_has_medians_intervals_and_whether_it_is_on_the_frontier():
    (figure,) = pareto.make(ledger(*ROWS))
    assert figure.name == "pareto_metric_by_parameters_rte_minilm"
    found = lines(figure)
    assert figure.header[:4] == ["method", "parameters", "parameters low", "parameters high"]
    shown = [
        (row["method"], row["parameters"], row["accuracy, best epoch"], row["frontier"]) for row in found
    ]
    assert shown == [
        ("head", "0", "71.0", "yes"),
        ("VeRA r=1024", "1000", "81.0", "yes"),
        ("bitfit", "5000", "76.0", "no"),
        ("full", "2000000", "89.0", "yes"),
    ]
    # Of three seeds the bootstrap's interval of the median is their range
    assert (found[1]["accuracy, best epoch low"], found[1]["accuracy, best epoch high"]) == ("80.0", "82.0")
    assert found[1]["runs"].split() == [r["id"] for r in ROWS if r["cell"]["row"] == "vera"]


def test_the_direction_is_the_metrics_own():
    def made(row, parameters, value):
        return record(row, "alpaca", best=value, values=[value], model="smollm2") | {
            "parameters": {"adapter": parameters, "head": 0},
            "result": {
                **of_metric("perplexity"),
                "select": "paper",
                "best": value,
                "best_epoch": 1.0,
                "last": value,
                "protocols": {"paper": {"best": value, "best_epoch": 1.0, "last": value}},
            },
        }

    (figure,) = pareto.make(ledger(made("vera", 10, 6.0), made("lora", 20, 5.0), made("full", 30, 5.5)))
    assert [(row["method"], row["frontier"]) for row in lines(figure)] == [
        ("VeRA r=1024", "yes"),
        ("LoRA r=8", "yes"),
        ("full", "no"),
    ]


@pytest.mark.parametrize("x", pareto.AXES)
@pytest.mark.parametrize("y", pareto.AXES)
def test_any_two_are_drawn(x, y):
    forgets = {"forgetting": {"text": "t", "sha256": "s", "tokens": 9, "before": 3.0, "after": 3.1}}
    rows = [row | {"result": row["result"] | forgets} for row in ROWS]
    if x != y:
        (figure,) = pareto.make(ledger(*rows), axes=(x, y))
        assert len(figure.rows) == 4
        assert "nan" not in figures.svg(figure)


def test_the_numbers_of_the_axes_are_those_of_the_records():
    axes = {"bytes": "4000", "seconds": "11.0", "memory": "1000000000"}
    for name, value in axes.items():
        (figure,) = pareto.make(ledger(*ROWS), axes=(name, "metric"))
        (vera,) = [row for row in lines(figure) if row["method"] == "VeRA r=1024"]
        assert vera[name] == value


def test_what_is_not_drawn_is_said():
    odd = [
        *ROWS,
        *sized("lora", 3000, float("nan"), 0.8, 0.9),
        *sized("dora", 3000, float("nan")),
        record("adapter_p", status="diverged", values=[], model="minilm"),
    ]
    odd[0]["device"]["name"] = "another CPU"
    try:
        (figure,) = pareto.make(ledger(*odd), axes=("seconds", "metric"))
    finally:
        odd[0]["device"]["name"] = "a CPU"
    notes = "\n".join(figure.notes)
    assert "LoRA r=8: 1 of 3 runs without a finite metric: left out." in notes
    assert "dora: 1 of 1 runs without a finite metric: not drawn." in notes
    assert "adapter_p: 1 of 1 runs without a finite seconds: not drawn." in notes
    assert "a CPU, another CPU: seconds and memory of different machines do not compare." in notes
    assert notes.startswith("hollow, of fewer seeds than the protocol's: ")
    assert {row["method"] for row in lines(figure)} == {"head", "VeRA r=1024", "bitfit", "full", "LoRA r=8"}


def test_rows_that_report_another_number_are_not_mixed_in():
    scored = seeds("vera", "e2e", (0.5, 0.5), model="gpt2_medium")
    for one in scored:
        one["texts"] = {"scores": [{"which": "last", "variant": "0.9", "bleu": 66.0}]}
    plain = record("lora", "e2e", model="gpt2_medium")
    (figure,) = pareto.make(ledger(*scored, *seeds("full", "e2e", (0.5,), model="gpt2_medium"), plain))
    assert {row["method"] for row in lines(figure)} in ({"VeRA r=1024"}, {"LoRA r=8", "full"})
    assert any("reports" in note and note.endswith("not drawn.") for note in figure.notes)


def test_axes_with_a_zero_and_wide_values_are_logarithmic_and_a_metrics_are_not():
    (figure,) = pareto.make(ledger(*ROWS))
    (axes,) = canvas(figure).axes
    assert (axes.get_xscale(), axes.get_yscale()) == ("symlog", "linear")
    (figure,) = pareto.make(ledger(*ROWS[3:]))
    assert canvas(figure).axes[0].get_xscale() == "log"
    near = [*sized("vera", 1000, 0.8), *sized("lora", 2000, 0.9)]
    (figure,) = pareto.make(ledger(*near))
    assert canvas(figure).axes[0].get_xscale() == "linear"


# --- labels


def test_labels_do_not_lie_on_each_other_or_on_points():
    page = Canvas(figsize=(7, 4.4), layout="constrained")
    axes, draw = page.subplots(), random.Random(1)
    spots = [(draw.random(), draw.random()) for _ in range(25)]
    axes.plot(*zip(*spots, strict=True), "o")
    placed = place_labels(page, axes, [Label(f"a row, {i}", *spot, "black") for i, spot in enumerate(spots)])
    page.draw_without_rendering()
    boxes = [text.get_window_extent() for text in placed]
    frame = axes.get_window_extent()
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
    assert all(frame.x0 <= b.x0 and b.x1 <= frame.x1 and frame.y0 <= b.y0 and b.y1 <= frame.y1 for b in boxes)
    pixels = axes.transData.transform(spots)
    assert not any(box.contains(*spot) for box in boxes for spot in pixels)


def test_each_row_of_a_picture_is_labelled():
    (figure,) = pareto.make(ledger(*ROWS))
    (axes,) = canvas(figure).axes
    assert {text.get_text() for text in axes.texts} == {"head", "VeRA r=1024", "bitfit", "full"}


def test_of_very_many_rows_the_frontier_and_the_papers_methods_are_labelled():
    """On the demo's picture, too: 26 rows of peft between VeRA and the head, all below both."""
    peers = [sized(f"peer{i:02}", 20_000 + i, 0.5) for i in range(pareto.CROWDED + 1)]
    of_all = ledger(*(one for row in [*peers, copy.deepcopy(ROWS)] for one in row))
    for one in of_all:
        one["cell"]["task"], one["parameters"]["head"] = "reviews", 148_610
    (figure,), (demo, *others) = pareto.make(of_all), figures.FIGURES["demo"](of_all)
    names = [of.name.removeprefix("accuracy_vs_") for of in (demo, *others)]
    assert names == ["parameters", "bytes", "seconds", "memory"]
    for picture in (figure, demo):
        (axes,) = canvas(picture).axes
        assert {text.get_text() for text in axes.texts} == {"head", "VeRA r=1024", "bitfit", "full"}
        assert axes.get_xlabel().endswith("without the classification head (148,610 more)")
        assert "Every row is in the data." in picture.notes[-1]
        assert len(picture.rows) == pareto.CROWDED + 5


# --- the command


@pytest.fixture
def output(tmp_path):
    (tmp_path / "records").mkdir()
    for one in ROWS:
        (tmp_path / "records" / f"{one['id']}.json").write_text(json.dumps(one))
    return tmp_path


def test_the_command_draws_it_and_refuses_other_axes_in_one_line(output, capsys):
    assert main(["pareto", "x=bytes", "y=metric", "task=rte", f"output={output}"]) == 0
    assert "pareto_metric_by_bytes_rte_minilm.png" in capsys.readouterr().out
    known = "Known: metric, parameters, bytes, seconds, memory, forgetting"
    with pytest.raises(UserError, match=f"^no axis x= 'params'. Did you mean parameters\\? {known}$"):
        main(["pareto", "x=params"])
    with pytest.raises(UserError, match=r"^x=bytes y=bytes: two different ones of metric, "):
        main(["pareto", "x=bytes", "y=bytes"])
    with pytest.raises(UserError, match=r"^x=: the axes of figure2 are fixed; pareto has x= and y=$"):
        main(["figure2", "x=bytes"])


@pytest.mark.parametrize(
    ("words", "name"),
    [
        ([], "metric_by_parameters"),
        (["x=bytes"], "metric_by_bytes"),
        (["x=metric"], "parameters_by_metric"),
        (["y=parameters"], "parameters_by_metric"),
    ],
)
def test_an_axis_that_is_not_given_is_one_of_the_usual(words, name, output, capsys):
    main(["pareto", *words, "task=rte", f"output={output}"])
    assert f"pareto_{name}_rte" in capsys.readouterr().out
