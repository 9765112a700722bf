"""Figures from small ledgers: the data behind them by hand, and what is odd or missing said in words."""

import csv
import io
import statistics
import xml.etree.ElementTree as ET

import matplotlib
import pytest
from ledgers import ledger, of_metric, record, seeds

from analysis import figures
from analysis.figures import figure2, figure3, figure4, figure5, figure6, parameters, pareto
from analysis.figures.__main__ import main
from analysis.figures.figure import COLOURS, canvas, colour, draw_nothing
from analysis.paper import NAMES
from analysis.table import make_row, texts
from runs.errors import UserError
from runs.record import Ledger


def ranked(kind, rank, seed, best, model="roberta_large", row=None, parameters=None, alpha=8, **changes):
    """A run of a rank; alpha: LoRA's, whose recipe has 8 at rank 8."""
    usual = {"vera": 256, "lora": 8}[kind]
    made = record(
        row or (kind if rank == usual else f"{kind}_r{rank}"), "rte", seed, best, model=model, **changes
    )
    made["config"]["method"] |= {"kind": kind, "rank": rank}
    if kind == "lora":
        made["config"]["method"] |= {"alpha": alpha, "label": f"LoRA r={rank}"}
        made["config"]["recipe"] = {"rank": 8, "alpha": 8}
    made["id"] += f"-{rank}-{alpha}"
    made["label"] |= {"row": f"{NAMES[kind]} r={rank}", "model": "A model"}
    made["parameters"]["adapter"] = parameters or (48 * (1024 + rank) if kind == "vera" else 48 * 2048 * rank)
    return made


def measure(kind, values, ids=("a",), row="vera", seed=0, model="roberta_large", **changes):
    """A measure as runs/measure writes it."""
    label = {"row": row, "model": "A model", "task": "RTE"}
    of = [
        {"id": i, "cell": {"row": row, "model": model, "task": "rte", "seed": seed}, "label": label}
        for i in ids
    ]
    made = {
        "schema": 1,
        "id": f"{kind}-{'-'.join(ids)}-{seed}",
        "kind": kind,
        "of": of,
        "settings": {},
        "seeds": {},
    }
    return made | {"values": values, "summary": {}} | changes


def measured(*measures, records=()):
    return ledger(*records, measures=measures)


def svg_text(figure):
    """The words that a figure's picture shows."""
    with matplotlib.rc_context({"svg.fonttype": "none"}):
        return "\n".join(ET.fromstring(drawn(figure)).itertext())


def drawn(figure):
    """As figures.svg, with the text as text."""
    text = io.StringIO()
    canvas(figure).savefig(text, format="svg")
    return text.getvalue()


def paths(figure):
    """The lines over ranks that a picture of figure 2 has, as points, by dash and colour."""
    (axes,) = canvas(figure).axes
    several = [
        line for line in axes.get_lines() if len(line.get_xdata()) > 1 and len(set(line.get_xdata())) > 1
    ]
    return {
        (line.get_linestyle(), line.get_color()): [
            (x, pytest.approx(y)) for x, y in zip(*line.get_data(), strict=True)
        ]
        for line in several
    }


def lines(figure, **wanted):
    """The rows of a figure's data, as dicts, that have these values."""
    found = [dict(zip(figure.header, row, strict=True)) for row in texts(figure.rows)]
    return [row for row in found if all(row[key] == value for key, value in wanted.items())]


# --- figure 2


def test_what_nothing_has_run_for_is_drawn_once_with_what_it_quotes():
    """Neither an own run nor a published one is of a rank, and figure 2 has numbers of the paper."""
    both = ledger(record("bitfit", "rte"), record("head", "rte"))
    both.origin[record("head", "rte")["id"]] = "a_study"
    assert [figure.name for figure in figures.make("figure2", both)] == ["figure2"]
    ranks = [ranked("vera", rank, 0, 0.7, model="roberta_large") for rank in (64, 256)]
    both = ledger(record("bitfit", "rte"), *ranks)
    both.origin |= {one["id"]: "a_study" for one in ranks}
    (figure,) = figures.make("figure2", both)
    assert (figure.name, figure.title.endswith("(published)")) == ("figure2", True)


def test_figure_2_is_the_median_and_range_of_each_rank_and_names_its_runs():
    values = [0.80, 0.75, 0.90, 0.70, 0.85]
    records = [ranked("vera", 4, s, v) for s, v in enumerate(values)] + [
        ranked("lora", 8, s, 0.8) for s in range(3)
    ]
    (figure,) = figure2.make(ledger(*records))
    (vera,) = lines(figure, method="VeRA", rank="4")
    assert (vera["parameters"], vera["median"], vera["low"], vera["high"]) == (
        "49344",
        "80.0",
        "70.0",
        "90.0",
    )
    assert (vera["seeds"], vera["runs"].split()) == ("5/5", [r["id"] for r in records[:5]])
    (lora,) = lines(figure, method="LoRA", source="ours")
    assert (lora["parameters"], lora["seeds"]) == ("786432", "3/5")
    assert "LoRA r=8: 3 of 5 seeds (hollow)." in figure.notes
    assert "VeRA: not run here at rank 1, 16, 64, 256, 1024 (make rank-scaling)." in figure.notes
    quoted = [row for row in lines(figure) if "quoted" in row["source"]]
    assert [(q["median"], q["runs"]) for q in quoted] == [("85.9", ""), ("85.2", "")]


def test_figure_2_has_a_line_of_lora_for_each_convention_of_alpha():
    """The recipe's own rank and alpha is on both; a rank that ran by one alone is told to be missing on the
    other."""
    made = [ranked("vera", 256, s, 0.8) for s in range(5)] + [ranked("lora", 8, s, 0.7) for s in range(5)]
    for rank, best in ((1, 0.5), (2, 0.55)):
        made += [ranked("lora", rank, s, best) for s in range(5)]
    made += [ranked("lora", 2, s, 0.65, alpha=2) for s in range(5)]
    (figure,) = figure2.make(ledger(*made))
    ours = [(row["method"], row["rank"], row["alpha"], row["median"]) for row in lines(figure, source="ours")]
    assert ours == [
        ("LoRA", "1", "8, constant", "50.0"),
        ("LoRA", "2", "8, constant", "55.0"),
        ("LoRA", "2", "2, proportional", "65.0"),
        ("LoRA", "8", "8, constant and proportional", "70.0"),
        ("VeRA", "256", "-", "80.0"),
    ]
    (two,) = lines(figure, alpha="2, proportional")
    assert two["runs"].split() == [one["id"] for one in made[-5:]]
    assert "LoRA, constant alpha: not run here at rank 4, 16, 32, 64 (make rank-scaling)." in figure.notes
    assert (
        "LoRA, alpha proportional to r: not run here at rank 1, 4, 16, 32, 64 (make rank-scaling)."
        in figure.notes
    )
    assert any(note.startswith("constant alpha: the recipe's at every rank") for note in figure.notes)
    assert any(note.endswith("It does not say which alpha LoRA's ranks have.") for note in figure.notes)
    text = svg_text(figure)
    assert "LoRA, constant alpha" in text
    assert "LoRA, alpha proportional to r" in text
    drawn_ = paths(figure)
    counts = {1: 98304, 2: 196608, 8: 786432}
    assert drawn_["-", "#0072B2"] == [(counts[1], 50.0), (counts[2], 55.0), (counts[8], 70.0)]
    assert drawn_["--", "#0072B2"] == [(counts[2], 65.0), (counts[8], 70.0)]


def test_figure_2_without_a_proportional_alpha_has_no_second_line():
    (figure,) = figure2.make(
        ledger(*(ranked("lora", rank, 0, 0.8) for rank in (1, 8)), ranked("vera", 256, 0, 0.8))
    )
    assert "LoRA, alpha proportional to r" not in svg_text(figure)
    assert ("--", "#0072B2") not in paths(figure)
    assert (
        "LoRA, alpha proportional to r: not run here at rank 1, 2, 4, 16, 32, 64 (make rank-scaling)."
        in figure.notes
    )


def test_a_rank_set_on_the_command_line_is_that_ranks_point_and_is_not_counted_twice():
    twice = [ranked("vera", 64, 0, 0.7), ranked("vera", 64, 0, 0.9, row="vera")]
    twice[1]["deviations"] = ["method.rank=64 instead of 256"]
    (figure,) = figure2.make(ledger(*twice, ranked("vera", 64, 1, 0.8)))
    (point,) = lines(figure, source="ours")
    assert (point["median"], point["low"], point["high"], point["seeds"]) == ("75.0", "70.0", "80.0", "2/5")
    assert any(note.endswith(f"not counted twice, left out: {twice[1]['id']}.") for note in figure.notes)


def test_other_models_have_a_figure_of_their_own_where_ranks_vary():
    small = [ranked("vera", r, 0, 0.8, model="minilm") for r in (1, 64)] + [
        ranked("lora", 8, 0, 0.8, model="lone")
    ]
    found = figure2.make(ledger(*small))
    assert [f.name for f in found] == ["figure2", "figure2_minilm_rte"]
    assert not any("quoted" in row["source"] for row in lines(found[1]))
    assert found[1].notes[0] == "minilm on rte is not in the paper, whose figure is RoBERTa-large on RTE."


def test_ranks_on_other_tasks_are_figures_of_their_own_and_never_mixed():
    made = [
        ranked("vera", r, 0, 0.8 + 0.1 * (task == "cola"), model="minilm")
        for r in (1, 64)
        for task in ("rte", "cola")
    ]
    for i, one in enumerate(made):
        one["cell"]["task"] = ("rte", "cola")[i % 2]
        one["id"] += one["cell"]["task"]
        one["result"] |= of_metric("matthews")
    made[1]["result"]["protocols"]["paper"]["best"] = made[3]["result"]["protocols"]["paper"]["best"] = 0.55
    _, cola, rte = figure2.make(ledger(*made))
    assert (cola.name, rte.name) == ("figure2_minilm_cola", "figure2_minilm_rte")
    assert {row["median"] for row in lines(cola)} == {"55.0"}
    assert {row["median"] for row in lines(rte)} == {"80.0"}
    assert cola.title == "Figure 2: CoLA by trainable parameters, A model"
    assert "CoLA dev Matthews x 100" in svg_text(cola)


# --- figures 3 and 5


def test_figure_3_is_the_median_over_runs_by_layer_and_site():
    made = [
        measure(
            "magnitude",
            {"layer": [0, 0], "site": ["query", "value"], "d": [q, 0.1], "b": [0.5, None]},
            (name,),
            seed=s,
        )
        for s, (name, q) in enumerate((("a", 0.3), ("b", 0.1), ("c", 0.7)))
    ]
    ablation = measure(
        "magnitude", {"layer": [0], "site": ["query"], "d": [9.0], "b": [9.0]}, ("z",), row="vera_only_d"
    )
    records = [record() | {"id": i} for i in "abc"] + [record("vera_only_d") | {"id": "z"}]
    (figure,) = figure3.make(measured(*made, ablation, records=records))
    assert not any("left out" in note for note in figure.notes)  # an ablation is no part of it
    (query,) = lines(figure, site="query", layer="0")
    assert [query[key] for key in ("d median", "d low", "d high", "b median", "n")] == [
        "0.3",
        "0.1",
        "0.7",
        "0.5",
        "3",
    ]
    assert query["runs"] == "a b c"
    assert lines(figure, site="value")[0]["b median"] == "-"
    assert figures.svg(figure).count("<svg") == 1


def test_a_trials_measure_is_in_no_figure():
    values = {"layer": [0], "site": ["query"], "d": [0.2], "b": [0.5]}
    stopped = record() | {"id": "a"}
    stopped["config"] = stopped["config"] | {"train": stopped["config"]["train"] | {"max_steps": 3}}
    (figure,) = figure3.make(measured(measure("magnitude", values, ("a",), seed=0), records=[stopped]))
    assert figure.rows == []
    assert "Nothing measured" in figure.notes[0]


def test_odd_measures_are_told_and_never_averaged_in():
    values = {"layer": [0], "site": ["query"], "d": [0.2], "b": [0.5]}
    odd = [
        measure("magnitude", values | {"d": [float("nan")]}, ("a",), seed=0),
        measure("magnitude", values, ("b",), seed=1),
    ]
    other = measure("magnitude", values | {"d": [5.0]}, ("c",), seed=2, settings={"d_init": 1.0})
    again = measure("magnitude", values, ("b",), seed=1, id="again")
    gone = measure("magnitude", values | {"d": [7.0]}, ("d",), seed=3)
    faster = measure("magnitude", values | {"d": [8.0]}, ("e",), seed=4)
    records = [record() | {"id": i} for i in "abc"] + [record(lr=5e-2, deviations=["lr"]) | {"id": "e"}]
    (figure,) = figure3.make(measured(*odd, other, again, gone, faster, records=records))
    (query,) = lines(figure)
    assert (query["d median"], query["d high"], query["n"]) == ("0.2", "0.2", "1")
    notes = "\n".join(figure.notes)
    for words in (
        "1 of 2 runs have no finite change",
        "no record of run d",
        "2 measures of other settings",
        "measured twice",
    ):
        assert words in notes


def test_figure_5_is_over_query_matrices_and_quotes_two_means():
    values = {"layer": [0, 0, 1], "site": ["query", "value", "query"], "lora_vera": [0.2, 0.9, 0.4]}
    values |= {"lora_random": [0.01, 0.02, -0.01], "vera_random": [0.0, None, 0.0]}
    of = [record() | {"id": i} for i in "ab"]
    (figure,) = figure5.make(measured(measure("similarity", values, ("a", "b")), records=of))
    (first,) = lines(figure, pair="LoRA and VeRA", site="query", layer="0", source="ours")
    assert (first["median"], first["n"], first["runs"]) == ("2.000e-01", "1", "a b")
    assert "LoRA and VeRA: mean over layers of what is drawn 3.0e-01." in figure.notes
    assert "VeRA and random, layer 0, value: 1 of 1 have no cosine (a change that is zero)." in figure.notes
    quoted = lines(figure, source="paper (quoted)")
    assert [(q["pair"], q["median"]) for q in quoted] == [
        ("LoRA and VeRA", "2.0e-03"),
        ("LoRA and random", "-8.0e-05"),
    ]


# --- figure 4


def test_figure_4_on_another_task_with_accuracy_and_never_on_one_without():
    records = [
        record(row, "mrpc", s, v, model="minilm")
        for row, v in (("head", 0.7), ("lora", 0.84))
        for s in range(5)
    ]
    records += [record(row, "cola", 0, 0.5, model="minilm") for row in ("head", "lora")]
    for one in records[10:]:
        one["result"] |= of_metric("matthews")
    paper, mrpc = figure4.make(ledger(*records))
    assert not lines(paper, source="ours")
    assert mrpc.name == "figure4_minilm_mrpc"
    (ours,) = lines(mrpc)
    assert (ours["accuracy"], ours["head"]) == ("84.0", "70.0")
    assert float(ours["gain"]) == pytest.approx(100 * 84 / 70 / 43.008, rel=1e-3)


def test_figure_4_is_the_papers_formula_beside_its_printed_values():
    records = [record("head", "rte", s, 0.5 + 0.01 * s, model="roberta_large") for s in range(5)]
    records += [ranked("vera", 256, s, 0.8) for s in range(5)] + [ranked("vera", 4, s, 0.8) for s in range(5)]
    for r in records[:5]:
        r["parameters"]["adapter"] = 0
    (figure,) = figure4.make(ledger(*records))
    (ours,) = lines(figure, source="ours")  # and no row for another rank
    assert float(ours["gain"]) == pytest.approx(100 * 80 / 52 / 61.44, rel=1e-3)
    assert (ours["accuracy"], ours["head"], len(ours["runs"].split())) == ("80.0", "52.0", 10)
    printed = {row["method"]: row for row in lines(figure, source="paper (quoted)")}
    assert {name: row["gain"] for name, row in printed.items()} == {
        "Adapter P 3M": "0.05",
        "Adapter P 0.8M": "0.17",
        "Adapter H 6M": "0.02",
        "Adapter H 0.8M": "0.15",
        "LoRA": "0.18",
        "VeRA": "2.64",
    }
    assert printed["VeRA"]["head"] == "53.0"  # 100 * 85.9 / 2.64 / 61.44
    assert printed["LoRA"]["head"] == "60.2"
    (alone,) = figure4.make(ledger(*records[5:]))
    assert not lines(alone, source="ours")
    assert any("No run of the head alone" in note for note in alone.notes)


# --- figure 6


def fit(seed=0, errors=(0.5, 0.7)):
    values = {
        "method": ["lora", "vera"],
        "rank": [1, 10],
        "parameters": [20, 20],
        "mse": [list(errors), [0.4, 0.4]],
    }
    settings = {"size": 10, "matrices": 2, "steps": 5, "lr": 0.1, "optimizer": "adam", "target": "normal"}
    values["best"] = [[0.5, 0.6], None]
    return measure(
        "matrix_fit", values, (), seed=seed, settings=settings, seeds={"random": seed}, id=f"fit {seed}"
    )


def test_figure_6_is_the_mean_over_matrices():
    (figure,) = figure6.make(measured(fit(1), fit(0, (0.5, 0.9))))
    lora, vera = lines(figure)
    spread = f"{statistics.stdev([0.5, 0.9]):.3e}"
    assert (lora["mse mean"], lora["mse spread"], lora["least"]) == ("7.000e-01", spread, "5.500e-01")
    assert (vera["mse mean"], vera["least"], vera["runs"]) == ("4.000e-01", "", "fit 0")
    assert "1 other fits are left out: measure fit 0 is shown." in figure.notes
    assert figures.svg(figure).startswith("<svg")


# --- all


@pytest.mark.parametrize("name", figures.FIGURES)
def test_an_empty_ledger_never_raises_and_says_why(name):
    for figure in figures.FIGURES[name](Ledger()):
        assert figure.notes
        assert all(row[-1].text == "" for row in figure.rows)  # quoted: no runs
        assert bool(figure.rows) == (name in ("figure2", "figure4", "figure5"))
        ET.fromstring(figures.svg(figure))


@pytest.mark.parametrize("name", figures.FIGURES)
def test_an_odd_ledger_never_raises(name):
    odd = [
        *(
            ranked("vera", 4, 0, 0.7, status="failed"),
            ranked("vera", 4, 1, float("nan")),
            ranked("lora", 8, 0, 0.5),
        ),
        *(ranked("lora", 1, 0, 0.0, status="diverged"), record("head", "rte", 0, 0.0, model="roberta_large")),
        *(
            record("vera", "reviews", 0, float("inf"), model="minilm"),
            record("lora", "reviews", 0, 0.5, model="minilm"),
        ),
    ]
    odd[2]["result"]["protocols"]["paper"]["best"] = None
    bad = measure("magnitude", {"layer": [0], "site": ["query"], "d": [None], "b": [None]})
    empty = measure(
        "similarity", {key: [] for key in ("layer", "site", "lora_vera", "lora_random", "vera_random")}
    )
    for figure in figures.FIGURES[name](measured(bad, empty, fit(0, (float("nan"), None)), records=odd)):
        picture = figures.svg(figure)
        ET.fromstring(picture)
        assert "nan" not in picture
        assert "inf" not in str(figure.rows)


def test_a_run_without_its_number_is_told_and_not_drawn():
    records = [ranked("vera", 4, s, 0.8) for s in range(4)] + [
        ranked("vera", 4, 4, float("nan")),
        ranked("vera", 1, 0, 0.7),
    ]
    (figure,) = figure2.make(ledger(*records))
    (point,) = lines(figure, rank="4")
    assert [point[key] for key in ("median", "low", "high", "seeds")] == ["nan", "nan", "nan", "4/5"]
    assert "VeRA r=4: 1 of 5 runs finished without the number (nan): not drawn." in figure.notes
    picture = figures.svg(figure)
    assert "nan" not in picture


def test_the_numbers_of_a_figure_name_their_runs_or_measure():
    of = [
        record("vera") | {"id": "a"},
        ranked("vera", 4, 0, 0.8) | {"id": "b"},
        record("head", model="roberta_large"),
    ]
    of += [record("vera", "reviews", model="minilm"), record("vera", "rte", model="roberta_large")]
    values = {"layer": [0], "site": ["query"], "d": [0.2], "b": [0.5]}
    cosines = {
        "layer": [0],
        "site": ["query"],
        "lora_vera": [0.2],
        "lora_random": [0.1],
        "vera_random": [0.0],
    }
    found = [measure("magnitude", values), measure("similarity", cosines, ("a", "b")), fit()]
    for name, make in figures.FIGURES.items():
        ours = [row for figure in make(measured(*found, records=of)) for row in figure.rows if row[-1].text]
        assert ours, name
        for row in ours:
            numbers = [cell for cell in row if cell.ids]
            assert len(numbers) >= 3
            assert {" ".join(cell.ids) for cell in numbers} == {row[-1].text}


def test_files_are_whole_and_the_same_each_time(tmp_path):
    (figure,) = figure6.make(measured(fit()))
    first = {path.name: path.read_bytes() for path in figures.save(figure, tmp_path / "a")}
    second = {path.name: path.read_bytes() for path in figures.save(figure, tmp_path / "b")}
    assert sorted(first) == ["figure6.csv", "figure6.pdf", "figure6.png"]
    assert first == second
    assert first["figure6.pdf"].startswith(b"%PDF")
    assert list(csv.reader(first["figure6.csv"].decode().splitlines())) == [
        figure.header,
        *texts(figure.rows),
    ]
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == sorted(first)  # nothing half-written is left
    assert figures.svg(figure) == figures.svg(figure)


def test_a_spreadsheet_runs_no_label_of_a_figure_and_counts_with_its_numbers(tmp_path):
    rows = [make_row("=cmd|' /C calc'!A0", "-8.0e-05", "+a\n=b", "-")]
    figure = figures.Figure("f", "t", ["@a", "b", "c", "runs"], rows, [], draw_nothing)
    figures.save(figure, tmp_path)
    lines = [["'@a", "b", "c", "runs"], ["'=cmd|' /C calc'!A0", "-8.0e-05", "'+a =b", "-"]]
    assert list(csv.reader((tmp_path / "f.csv").read_text().splitlines())) == lines


def test_a_method_has_one_colour_and_they_are_apart():
    assert colour("vera_r64") == colour("vera") != colour("lora") == colour("lora_mnli")
    assert colour("adapter_p_3m") == colour("adapter_h_6m")
    assert len(set(COLOURS.values())) == len(COLOURS)


def test_the_command_draws_or_says_in_one_line_why_not(tmp_path, capsys):
    assert main(["figure4", f"output={tmp_path}"]) == 0
    assert "figure4.png" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"^no records of figure3"):
        main(["figure3", f"output={tmp_path}"])
    known = "Known: figure2, figure3, figure4, figure5, figure6, parameters, demo, pareto, all"
    with pytest.raises(UserError, match=f"no figure 'figure7'. Did you mean figure6\\? {known}"):
        main(["figure7"])


# --- the metric against trainable parameters


def test_parameters_shows_each_tasks_own_epoch_and_leaves_other_ranks_to_figure_2():
    rows = ("head", "vera", "vera_r64", "lora_r1", "vera_only_d")
    records = [record(row, "rte", s, 0.8, 0.7, model="minilm") for row in rows for s in range(5)]
    for one in records:
        one["config"]["method"]["kind"] = one["cell"]["row"].partition("_")[0]
    shots = [record("vera", "digits", s, 0.8, 0.7, model="dinov2_small") for s in range(3)]
    for one in shots:
        one["config"]["task"]["family"] = "images"
        one["result"]["reported"] = "last"
    other = record("vera", "alpaca", 0, 0.8, model="smollm2")
    digits, rte = parameters.make(ledger(*records, *shots, other))
    assert (digits.name, rte.name) == ("parameters_digits_dinov2_small", "parameters_rte_minilm")
    assert [(row["median"], row["seeds"]) for row in lines(digits)] == [("70.0", "3/5")]
    assert [(row["method"], row["median"]) for row in lines(rte)] == [
        ("head", "80.0"),
        ("VeRA r=1024", "80.0"),
    ]
    assert "last epoch" in digits.title
    assert "best epoch" in rte.title
    assert parameters.make(ledger()) == []


def test_parameters_of_a_perplexity_has_its_name_its_decimals_and_its_seeds():
    made = [record(row, "alpaca", s, values=[3.2, 3.14 + s], model="smollm2") for row, s in PERPLEXED]
    for one in made:
        one["result"] |= of_metric("perplexity")
        one["config"]["task"]["family"] = "instruct"
    (figure,) = parameters.make(ledger(*made), ("alpaca",))
    told = {row["method"]: (row["median"], row["seeds"]) for row in lines(figure)}
    assert told == {"VeRA r=1024": ("3.64", "2/5"), "LoRA r=8": ("3.14", "1/5")}
    assert figure.title == "smollm2 on alpaca: median of 1 to 2 seeds, last epoch; lines span the seeds"
    assert "LoRA r=8: 1 of 5 seeds (hollow)." in figure.notes
    (axes,) = canvas(figure).axes
    assert axes.get_ylabel() == "dev perplexity"


PERPLEXED = (("vera", 0), ("vera", 1), ("lora", 0))


def test_ranks_on_other_data_or_of_other_epochs_are_no_points_of_a_line():
    def of(kind, rank, rows, epochs, **more):
        made = [ranked(kind, rank, seed, 0.8, model="minilm", **more) for seed in range(2)]
        for one in made:
            one["data"] |= {"train_rows": rows}
            one["config"]["train"]["epochs"] = epochs
            one["id"] += f"-{rows}-{epochs}"
        return made

    alike = [one for rank in (1, 16, 1024) for one in of("vera", rank, 2000, 15)]
    alike += [one for rank in (1, 2) for one in of("lora", rank, 2000, 10)]  # a method's own recipe
    others = [*of("vera", 256, 5000, 3), *of("lora", 8, 5000, 3), *of("lora", 4, 2000, 15)]
    made = {figure.name: figure for figure in figure2.make(ledger(*alike, *others))}
    figure = made["figure2_minilm_rte"]
    assert [(row["method"], row["rank"]) for row in lines(figure)] == [
        *(("LoRA", "1"), ("LoRA", "2")),
        *(("VeRA", "1"), ("VeRA", "16"), ("VeRA", "1024")),
    ]
    assert "6 runs on other data, or of other epochs, than most ranks: left out." in figure.notes
    # Nor does all=true lose a rank that has a variant
    variant = of("vera", 16, 2000, 15, lr=0.5)
    for one in variant:
        one["deviations"] = ["another rate"]
    several = {f.name: f for f in figures.make("figure2", ledger(*alike, *variant), every=True)}
    assert [row["rank"] for row in lines(several["figure2_minilm_rte"])] == ["1", "2", "1", "16", "1024"]


def test_a_picture_names_the_data_of_rows_that_have_not_the_same():
    vera, lora = (seeds(row, "rte", model="minilm") for row in ("vera", "lora"))
    for one in lora:
        one["data"] |= {"train_rows": 5000}
    (figure,) = parameters.make(ledger(*vera, *lora))
    assert "10 training and 10 dev rows: VeRA r=1024." in figure.notes
    assert "5,000 training and 10 dev rows: LoRA r=8." in figure.notes


def test_a_task_that_is_named_has_every_row_and_figure_4_what_is_no_rank():
    rows = ("vera", "pvera", "lora_r1", "lora_plus_r1", "lora_fa_r1", "vera_plus", "lora_fa", "vera_unique")
    rows += ("lora_mnli", "svft_r4")  # another start, and an own method
    made = [record(row, "rte", s, 0.8, model="minilm", values=[0.8]) for row in rows for s in range(2)]
    head = [record("head", "rte", s, 0.7, model="minilm") for s in range(2)]
    for row, one in zip([row for row in rows for _ in range(2)], made, strict=True):
        one["config"]["method"]["label"] = one["label"]["row"] = row

    def shown(figure):
        return {row["method"] for row in lines(figure)}

    (named,) = parameters.make(ledger(*made), ("rte",))
    assert shown(named) == {*rows}
    (usual,) = parameters.make(ledger(*made))
    of_table = {"vera", "pvera", "vera_plus", "lora_fa", "svft_r4"}
    assert shown(usual) == of_table
    gains = {figure.name: figure for figure in figure4.make(ledger(*made, *head))}["figure4_minilm_rte"]
    assert shown(gains) == of_table


def test_a_users_dollar_is_no_mathematics():
    made = seeds("vera", "rte", model="minilm")
    for one in made:
        one["label"] |= {"row": "a $^$ b", "task": "c $_$ d"}
    for draw in (parameters.make, pareto.make):
        (figure,) = draw(ledger(*made))
        assert figures.svg(figure).startswith("<svg")


def test_the_demos_picture_has_one_number_of_rows():
    own, other = seeds("vera", "reviews", model="minilm"), seeds("lora", "reviews", model="minilm")
    for one, size in [*((one, (1000, 500)) for one in own), *((one, (1000, 2000)) for one in other)]:
        one["config"]["task"] |= {"train_rows": size[0], "dev_rows": size[1]}
        one["data"] |= {"train_rows": size[0], "dev_rows": size[1]}
    first, second = parameters.demo(ledger(*own, *other))
    assert (first.name, second.name) == ("accuracy_vs_parameters", "accuracy_vs_parameters_1000_2000")
    assert [len(figure.rows) for figure in (first, second)] == [1, 1]
    assert "1,000 training and 2,000 dev rows" in second.title
    failed = record("vera", "reviews", 9, status="failed", model="minilm")
    failed["config"]["task"] |= {"train_rows": 50}
    failed.pop("data"), failed.pop("result")
    (alone,) = parameters.demo(ledger(*other, failed))
    assert alone.name == "accuracy_vs_parameters"
