"""Figures from small ledgers: the data behind them by hand, what draws them, and their
files. The data of the published records are in tests/nets/golden/figures.jsonl."""

import csv
import random
import xml.etree.ElementTree as ET

import pytest
from ledgers import ledger, record, seed_records

from analysis import figures
from analysis.figures import pareto
from analysis.figures.__main__ import main
from analysis.figures.figure import canvas
from analysis.figures.layers import measured_values
from analysis.frame import runs
from analysis.paper import METHOD_NAMES
from analysis.render import to_csv
from runs.command.errors import UserError
from runs.record.ledger import Ledger, write_record

pytestmark = pytest.mark.properties


def made(name, records, *measures, **how):
    """The parts of a figure by name."""
    return figures.figures_of_ledger(name, ledger(*records, measures=measures), **how)


def lines(figure, **wanted):
    """The rows of a figure's data that have these values, as dicts."""
    rows = figure.data.to_dict("records")
    return [
        row for row in rows if all(row[key] == value for key, value in wanted.items())
    ]


def of(row, *keys):
    return [row[key] for key in keys]


def ranked(kind, rank, seed, best, model="roberta_large", row=None, alpha=8, **changes):
    """A run of a rank; alpha: LoRA's, whose recipe has 8 at rank 8."""
    usual = {"vera": 256, "lora": 8}[kind]
    row = row or (kind if rank == usual else f"{kind}_r{rank}")
    one = record(row, "rte", seed, best, model=model, **changes)
    one["config"]["method"] |= {"kind": kind, "rank": rank}
    if kind == "lora":
        one["config"]["method"] |= {"alpha": alpha, "label": f"LoRA r={rank}"}
        one["config"]["recipe"] = {"rank": 8, "alpha": 8}
    one["id"] += f"-{rank}-{alpha}"
    one["label"] |= {"row": f"{METHOD_NAMES[kind]} r={rank}", "model": "A model"}
    one["parameters"]["adapter"] = (
        48 * (1024 + rank) if kind == "vera" else 48 * 2048 * rank
    )
    return one


def measure(kind, values, ids=("a",), row="vera", seed=0, **changes):
    """A measure as runs/measure writes it."""
    label = {"row": row, "model": "A model", "task": "RTE"}
    cell = {"row": row, "model": "roberta_large", "task": "rte", "seed": seed}
    one = {
        "schema": 1,
        "id": f"{kind}-{'-'.join(ids)}-{seed}",
        "kind": kind,
        "settings": {},
        "seeds": {},
    }
    runs_ = [{"id": i, "cell": cell, "label": label} for i in ids]
    return one | {"of": runs_, "values": values, "summary": {}} | changes


def magnitude(run, d, seed=0, **changes):
    values = {
        "layer": [0, 0],
        "site": ["query", "value"],
        "d": [d, 0.1],
        "b": [0.5, None],
    }
    return measure("magnitude", values, (run,), seed=seed, **changes)


# --- own and published


def test_what_is_published_is_named_so_and_stands_below_own_runs():
    ranks = [ranked("vera", rank, 0, 0.7) for rank in (64, 256)]
    both = ledger(record("bitfit", "rte"), *ranks)
    both.origin |= {one["id"]: "a_study" for one in ranks}
    (figure,) = figures.figures_of_ledger("figure2", both)
    assert (figure.name, figure.title.endswith("(published)")) == ("figure2", True)
    assert len(lines(figure, source="published")) == 2
    both.published |= {one["id"]: ("a_study", one) for one in ranks}
    both.origin |= {one["id"]: "ours" for one in ranks}
    assert [of.name for of in figures.figures_of_ledger("figure2", both)] == [
        "figure2",
        "figure2_published",
    ]


# --- figure 2


def test_figure_2_is_the_median_and_range_of_each_rank_by_each_convention_of_alpha():
    """The recipe's own rank and alpha is on both lines of LoRA; a rank that ran by one
    is missing on the other."""
    values = [0.80, 0.75, 0.90, 0.70, 0.85]
    vera = [ranked("vera", 4, s, v) for s, v in enumerate(values)]
    lora = [
        ranked("lora", 8, 0, 0.7),
        ranked("lora", 2, 0, 0.5),
        ranked("lora", 2, 0, 0.65, alpha=2),
    ]
    (figure,) = made("figure2", vera + lora)
    (point,) = lines(figure, method="VeRA", rank=4)
    assert of(point, "parameters", "n", "wanted", "source") == [49344, 5, 5, "ours"]
    assert of(point, "median", "low", "high") == pytest.approx([80, 70, 90])
    assert point["runs"] == tuple(one["id"] for one in vera)
    found = [
        of(row, "rank", "alpha", "scaling")
        for row in lines(figure, source="ours", method="LoRA")
    ]
    assert found == [
        [2, 8, "constant"],
        [2, 2, "proportional"],
        [8, 8, "constant and proportional"],
    ]
    several = [
        line
        for line in canvas(figure).axes[0].get_lines()
        if len({*line.get_xdata()}) > 1
    ]
    paths = {
        line.get_linestyle(): [round(float(y), 6) for y in line.get_ydata()]
        for line in several
    }
    # hollow
    assert paths == {"-": [50.0, 70.0], "--": [65.0, 70.0], "None": [65.0, 70.0]}
    (bar,) = (
        of for of in canvas(figure).axes[0].collections if hasattr(of, "get_segments")
    )
    # VeRA's one rank
    assert bar.get_segments()[0].ravel().tolist() == pytest.approx(
        [49344, 70, 49344, 90]
    )
    quoted = [
        of(row, "method", "rank", "median")
        for row in lines(figure, source="paper, table 2 (quoted)")
    ]
    assert quoted == [["VeRA", 256, 85.9], ["LoRA", 8, 85.2]]
    # A rank set on the command line is that rank's point, and a seed of it counts once
    twice = [
        ranked("vera", 64, 0, 0.7),
        ranked("vera", 64, 0, 0.9, row="vera"),
        ranked("vera", 64, 1, 0.8),
    ]
    twice[1]["deviations"] = ["rank 64 instead of 256"]
    (point,) = lines(made("figure2", twice)[0], source="ours")
    assert of(point, "median", "low", "high", "n") == pytest.approx([75, 70, 80, 2])


# --- figure 3


def test_odd_measures_are_told_and_never_averaged_in():
    odd = [
        magnitude("a", float("nan")),
        magnitude("b", 0.2, 1),
        magnitude("b", 0.2, 1, id="again"),
    ]
    odd += [magnitude("c", 5.0, 2, settings={"d_init": 1.0}), magnitude("d", 7.0, 3)]
    odd += [magnitude("e", 8.0, 4), magnitude("f", 9.0, 5)]
    records = [record(seed=s) | {"id": i} for s, i in enumerate("abc")]
    records += [
        record(lr=5e-2, deviations=["lr"]) | {"id": "e"},
        record() | {"id": "f"},
    ]
    # a run that was stopped is in no figure
    train = records[-1]["config"]["train"] | {"max_steps": 3}
    records[-1]["config"] = records[-1]["config"] | {"train": train}
    (figure,) = made("figure3", records, *odd)
    (query,) = lines(figure, site="query")
    assert of(query, "median", "high", "n") == [0.2, 0.2, 1]
    assert any(note.startswith("5 measures are left out: ") for note in figure.notes)
    assert "query, layer 0: 1 of 2 not finite." in figure.notes
    assert not [*measured_values(runs(ledger(records[-1])), odd[-1:], "magnitude", "d")]


# --- figure 4


def test_figure_4_is_the_papers_formula_beside_its_printed_values():
    heads = [
        record("head", "rte", s, 0.5 + 0.01 * s, model="roberta_large")
        for s in range(5)
    ]
    of_ranks = [ranked("vera", rank, s, 0.8) for rank in (256, 4) for s in range(5)]
    (figure,) = made("figure4", heads + of_ranks)
    (ours,) = lines(figure, source="ours")  # and no row for another rank
    assert of(ours, "accuracy", "head", "gain") == pytest.approx(
        [80, 52, 100 * 80 / 52 / 61.44]
    )
    assert (ours["complete"], len(ours["runs"])) == (True, 10)
    printed = {
        row["method"]: of(row, "gain", "head")
        for row in lines(figure, source="paper (quoted)")
    }
    gains = {
        "Adapter P 3M": 0.05,
        "Adapter P 0.8M": 0.17,
        "Adapter H 6M": 0.02,
        "Adapter H 0.8M": 0.15,
    }
    assert {name: gain for name, (gain, _) in printed.items()} == gains | {
        "LoRA": 0.18,
        "VeRA": 2.64,
    }
    assert printed["VeRA"][1] == pytest.approx(100 * 85.9 / 2.64 / 61.44)
    assert not made("figure4", of_ranks)  # without the head alone


# --- figure 5


def test_figure_5_has_the_papers_means_across_it():
    of_runs = [record(row, "rte", model="roberta_large") for row in ("lora", "vera")]
    values = {
        "layer": [0],
        "site": ["query"],
        "lora_vera": [0.5],
        "lora_random": [0.0],
        "vera_random": [0.0],
    }
    (figure,) = made(
        "figure5",
        of_runs,
        measure("similarity", values, tuple(one["id"] for one in of_runs)),
    )
    found = [
        of(row, "pair", "median")
        for row in lines(figure, source="paper's mean (quoted)")
    ]
    assert found == [["LoRA and VeRA", 2e-3], ["LoRA and random", -8e-5]]


# --- figure 6


def fit(seed=0, errors=(0.5, 0.7)):
    values = {"method": ["lora", "vera"], "rank": [1, 10], "parameters": [20, 20]}
    values |= {"mse": [list(errors), [0.4, 0.4]], "best": [[0.5, 0.6], None]}
    settings = {
        "size": 10,
        "matrices": 2,
        "steps": 5,
        "lr": 0.1,
        "optimizer": "adam",
        "target": "normal",
    }
    more = {"settings": settings, "seeds": {"random": seed}, "id": f"fit {seed}"}
    return measure("matrix_fit", values, (), seed=seed, **more)


# --- two numbers of each row


def sized(row, parameters, *bests, cost=(), model="minilm", **changes):
    """A run for each value, of a row with so many parameters."""
    found = seed_records(row, bests=bests, model=model, **changes)
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
    return [
        one
        for i in range(count)
        for one in sized(f"peer{i:02}", 20_000 + i, 0.78 + 0.0001 * i)
    ]


def by_row(figure):
    return {row["method"]: row for row in lines(figure)}


def test_the_frontier_is_what_no_other_row_beats():
    draw = random.Random(0)
    for _ in range(300):
        points = [
            (draw.randrange(6), draw.randrange(6)) for _ in range(draw.randrange(1, 9))
        ]
        beaten = [
            any(a >= x and b >= y and (a > x or b > y) for a, b in points)
            for x, y in points
        ]
        assert pareto.on_frontier(*zip(*points, strict=True)) == [
            not lost for lost in beaten
        ]


def test_a_row_has_its_median_with_its_ends_and_the_frontier_is_drawn_in_steps():
    (figure,) = made("pareto", ROWS)
    assert figure.name == "metric_by_parameters_rte_minilm"
    name, vera = "accuracy, best epoch", by_row(figure)["VeRA r=1024"]
    # Of three seeds the bootstrap's interval of the median is their range
    assert of(vera, name, f"{name} low", f"{name} high") == pytest.approx([81, 80, 82])
    (line,) = [
        line
        for line in canvas(figure).axes[0].get_lines()
        if line.get_linestyle() == "--"
    ]
    corners = [(x, round(y, 6)) for x, y in zip(*line.get_data(), strict=True)]
    # across, then up
    assert corners[1:-1] == [(0, 71.0), (1000, 81.0), (2_000_000, 89.0)]
    for x, value in (("bytes", 4000), ("seconds", 11), ("memory", 10**9)):
        assert (
            by_row(made("pareto", ROWS, axes=(x, "metric"))[0])["VeRA r=1024"][x]
            == value
        )


@pytest.mark.parametrize(
    ("x", "y"), [*zip([*pareto.AXES][:3], [*pareto.AXES][:2:-1], strict=True)]
)
def test_any_two_are_drawn(x, y):
    forgets = {
        "forgetting": {
            "text": "t",
            "sha256": "s",
            "tokens": 9,
            "before": 3.0,
            "after": 3.1,
        }
    }
    rows = [row | {"result": row["result"] | forgets} for row in ROWS]
    one, other = (made("pareto", rows, axes=axes)[0] for axes in ((x, y), (y, x)))
    assert len(one.data) == len(other.data) == 4
    assert "nan" not in figures.svg(one)


def test_what_is_not_drawn_is_said():
    odd = [
        *sized("lora", 3000, float("nan"), 0.8, 0.9),
        *sized("dora", 3000, float("nan")),
        *ROWS,
    ]
    odd += [record("adapter_p", status="diverged", values=[], model="minilm")]
    odd += sized("peer", 3000, 0.8, device={"type": "cpu", "name": "another CPU"})
    scored = seed_records(
        "bitfit", "rte", (0.5, 0.5), model="minilm", deviations=["texts"]
    )
    odd = [one for one in odd if one["cell"]["row"] != "bitfit"] + scored
    for one in scored:
        one["texts"] = {"scores": [{"which": "last", "variant": "0.9", "bleu": 66.0}]}
    (figure,) = made("pareto", odd, axes=("seconds", "metric"))
    notes = "\n".join(figure.notes)
    for words in (
        "LoRA r=8: 1 of 3 runs without a finite accuracy, best epoch.",
        "dora: 1 of 1 runs without a finite accuracy, best epoch.",
        "adapter_p: 1 of 1 runs without a finite seconds.",
        "a CPU, another CPU: seconds and memory of different machines do not compare.",
        "bitfit: reports BLEU, last epoch: not drawn.",
    ):
        assert words in notes
    assert {*by_row(figure)} == {"head", "VeRA r=1024", "full", "LoRA r=8", "peer"}


def test_axes_with_a_zero_and_wide_values_are_logarithmic_and_a_metrics_are_not():
    near = [*sized("vera", 1000, 0.8), *sized("lora", 2000, 0.9)]
    of_axes = [
        canvas(made("pareto", rows)[0]).axes[0] for rows in (ROWS, ROWS[3:], near)
    ]
    scales = [(axes.get_xscale(), axes.get_yscale()) for axes in of_axes]
    assert scales == [("symlog", "linear"), ("log", "linear"), ("linear", "linear")]


def test_a_failed_row_is_listed_beside_the_picture_and_squeezes_no_axis():
    """Worse than the head alone and far from the others; and so are the ends of
    bars."""
    failed, split_ = sized("delora", 9000, 0.40), sized("glora", 9000, 0.80, 0.80, 0.42)
    (figure,) = made("pareto", [*ROWS, *peers(12), *failed, *split_])
    assert [key for key, row in by_row(figure).items() if row["failed"]] == ["delora"]
    assert any("not drawn: delora (40.0)" in line for line in figure.foot)
    (axes,) = canvas(figure).axes
    assert 65 < axes.get_ylim()[0] < 70
    assert len(figure.data) == 18  # every row is in the data
    for most in (2, 1):  # without a head, if most of its seeds have diverged
        broken = sized("lora", 9000, 0.4, 0.4, 0.4, status="diverged")
        for one in broken[most:]:
            one["status"] = "done"
        (figure,) = made("pareto", [*ROWS[3:], *peers(12), *broken])
        assert by_row(figure)["LoRA r=8"]["failed"] is (most == 2)
    # A row as bad that lies near the others, and one on the frontier, are drawn
    (figure,) = made("pareto", [*ROWS, *sized("delora", 9000, 0.69)])
    assert not any(row["failed"] for row in by_row(figure).values())
    assert not figure.foot
    (figure,) = made("pareto", [*ROWS, *peers(12), *sized("delora", -1, 0.40)])
    assert [by_row(figure)["delora"][key] for key in ("frontier", "failed")] == [
        True,
        False,
    ]


def texts(figure):
    """What the legend names, from the best down."""
    return [text.get_text() for of in canvas(figure).legends for text in of.get_texts()]


def test_the_legend_names_each_row_with_its_value_or_of_many_the_frontier_and_what_is_asked_for():
    named = ["full: 89.0", "VeRA r=1024: 81.0", "head: 71.0"]
    (figure,) = made("pareto", ROWS)
    assert texts(figure) == [named[0], "bitfit: 76.0", *named[1:]]
    (figure,) = made("pareto", ROWS, labels=("vera",))
    assert texts(figure) == named
    of_all = [
        one | {"cell": one["cell"] | {"task": "reviews"}}
        for one in [*ROWS, *peers(pareto.CROWDED)]
    ]
    demo = made("demo", of_all)
    costs = ["parameters", "bytes", "seconds", "memory"]
    assert [of.name for of in demo] == [
        f"metric_by_{cost}_reviews_minilm" for cost in costs
    ]
    assert texts(demo[0]) == named
    assert texts(made("demo", of_all, labels=("peer03",))[0]) == [
        named[0],
        "peer03: 78.0",
        *named[1:],
    ]
    assert len(demo[0].data) == pareto.CROWDED + 4


def test_parameters_leaves_other_ranks_to_figure_2_unless_a_task_is_named():
    records = [
        record(row, "rte", 0, 0.8, model="minilm")
        for row in ("vera", "vera_r64", "vera_only_d")
    ]
    head = record("head", "rte", 0, 0.6, model="minilm")
    for named, count in ((False, 2), (True, 4)):
        (figure,) = made("parameters", [*records, head], names_tasks=named)
        assert len(figure.data) == count
    assert not made("parameters", records)  # nothing to compare


# --- all


@pytest.mark.parametrize("name", figures.FIGURES)
def test_an_empty_ledger_has_no_figure_and_an_odd_one_never_raises(name):
    assert not figures.figures_of_ledger(name, Ledger())
    odd = [
        ranked("vera", 4, 0, 0.7, status="failed"),
        ranked("vera", 4, 1, float("nan")),
    ]
    odd += [ranked("lora", 8, 0, 0.5), ranked("lora", 1, 0, 0.0, status="diverged")]
    odd += [record("head", "rte", 0, 0.0, model="roberta_large")]
    odd += [record("vera", "reviews", 0, float("inf"), model="minilm")]
    odd += [record("lora", "reviews", 0, 0.5, model="minilm")]
    odd[2]["result"]["protocols"]["paper"]["best"] = None
    keys = ("layer", "site", "lora_vera", "lora_random", "vera_random")
    measures = [magnitude("a", None), measure("similarity", {key: [] for key in keys})]
    found = made(name, odd, *measures, fit(0, (float("nan"), None)))
    for figure in (figure for figure in found if len(figure.data)):
        picture = figures.svg(figure)
        ET.fromstring(picture)
        assert "nan" not in picture
        assert "inf" not in to_csv(figure.data)


def test_files_are_whole_and_the_same_each_time(tmp_path):
    (figure,) = made("figure6", [], fit())
    first, second = (
        {
            path.name: path.read_bytes()
            for path in figures.save_figure(figure, tmp_path / name)
        }
        for name in "ab"
    )
    assert first == second
    assert sorted(first) == ["figure6.csv", "figure6.pdf", "figure6.png"]
    # nothing half-written
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == sorted(first)
    rows = csv.DictReader(first["figure6.csv"].decode().splitlines())
    assert [of(row, "mean", "runs") for row in rows] == [
        ["0.6", "fit 0"],
        ["0.4", "fit 0"],
    ]
    (again,) = made("figure6", [], fit())
    assert figures.svg(figure) == figures.svg(again)


@pytest.mark.usefixtures("undrawn")
def test_the_command_draws_or_says_in_one_line_why_not(tmp_path, capsys):
    for one in ROWS:
        write_record(tmp_path, one)
    output = f"output={tmp_path}"
    assert (
        main(["figure4", output])
        == main(["pareto", "x=bytes", "task=rte", output, "labels=vera"])
        == 0
    )
    shown = capsys.readouterr().out
    assert "figure4_minilm_rte.png" in shown
    assert "metric_by_bytes_rte_minilm.png" in shown
    for bad, why in (
        (["figure3", "published=false"], "^no records of figure3"),
        (["figure7"], "no figure 'figure7'. Did you mean figure6"),
        (["pareto", "x=metric"], "^x=metric y=metric: give two different ones$"),
        (
            ["figure2", "x=bytes"],
            "^x=: the axes of figure2 are fixed; pareto has x= and y=$",
        ),
        (["pareto", "labels=verra"], r"^no row labels= 'verra'\. Did you mean vera\?"),
    ):
        with pytest.raises(UserError, match=why):
            main([*bad, output])
