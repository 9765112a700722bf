"""Searches: what is tried, on which rows, how a killed one goes on, and what is printed."""

import csv
import hashlib
import re
import shlex
import signal
import statistics
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from ledgers import of_metric
from ledgers import record as made_record
from running import do, elsewhere
from tiny import write_glue

from analysis.frame import runs as frame_of
from runs import publish
from runs.config import expand
from runs.errors import UserError, is_users
from runs.identity import run_id
from runs.plan import cost, plan
from runs.record import Metric, read_ledger
from runs.sweep.pool import Sweep
from runs.tracking import Tracking
from runs.tune import cells as lists
from runs.tune import report
from runs.tune import trials as search
from runs.tune.__main__ import main as tune_main

pytestmark = pytest.mark.determinism

ROOT = Path(__file__).parents[2]


def cells_of(words):
    """The cells of a command line."""
    grid = [word.removeprefix("grid=") for word in words if word.startswith("grid=")]
    return lists.cells([word for word in words if not word.startswith("grid=")], *grid)


@pytest.fixture
def tiny_words(words) -> list[str]:
    """The words of a small run without its learning rate."""
    return [word for word in words if not word.startswith("train.lr")]


def output_of(words) -> Path:
    return Path(next(w.partition("=")[2] for w in words if w.startswith("output=")))


def trials_of(words) -> list[dict[str, str]]:
    (path,) = output_of(words).glob("tune/*/trials.csv")
    return list(csv.DictReader(path.open()))


def trials_left(words) -> list[int]:
    """How many runs each trial lacks."""
    (cell,) = cells_of(words)
    return [len(trial.ids) - len(trial.records) for trial in search.trials_of(cell)]


def stamps(words) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in output_of(words).glob("records/*.json")}


@pytest.mark.usefixtures("process")
def test_every_point_is_tried_once_on_held_out_rows_and_enters_no_table(
    tiny_words, capsys, monkeypatch, tmp_path
):
    command = [
        *tiny_words,
        "tracking=off",
        "seed=0,1",
        "grid={train.lr: [1e-9, 1e-8], train.lr_head: [1e-9]}",
    ]
    assert tune_main(command) == 0
    text = capsys.readouterr().out
    assert (
        text.count("note: dev: 8 of 40 training rows held out (task.holdout=0.2), the dev set is not used")
        == 1
    )
    assert [f"[trial {i}/2] train.lr=" in text for i in (1, 2)] == [True] * 2
    assert "accuracy on 8 held-out training rows (32 trained on), best epoch, 2 seeds" in text
    ledger = read_ledger(output_of(tiny_words), published=False)
    assert len(ledger.records) == 4
    for record in ledger:
        assert (record["config"]["task"]["holdout"], record["config"]["keep"]) == (0.2, "none")
        assert (record["data"]["train_rows"], record["data"]["dev_rows"]) == (32, 8)
        assert any("held out (task.holdout=0.2)" in words for words in record["deviations"])
    assert not list(output_of(tiny_words).rglob("*.safetensors"))
    trials = trials_of(tiny_words)
    assert sorted(run for trial in trials for run in trial["runs"].split()) == sorted(ledger.records)
    for trial in trials:
        best = [ledger.records[run]["result"]["protocols"]["paper"]["best"] for run in trial["runs"].split()]
        assert float(trial["accuracy"]) == pytest.approx(sum(best) / 2)
    # Rates of nothing leave the model as it is: a tie, and the first in the grid comes first.
    assert [trial["train.lr"] for trial in trials] == ["1e-09", "1e-08"]
    assert "2 settings have the best value: which of them comes first says nothing" in text
    # The words of the best one are a run on the real dev set.
    line = next(line for line in text.splitlines() if line.startswith("best: python -m runs "))
    (best_run,) = expand(shlex.split(line)[4:])
    assert (best_run.config["task"]["holdout"], best_run.config["keep"]) == (None, "best")
    assert best_run.config["train"]["lr"] == float(trials[0]["train.lr"])
    assert f"    lr: {{rte: {trials[0]['train.lr']}}}" in text
    # Trials enter no table and are like no other run, but they can be published.
    assert (frame_of(ledger).left_out != "").all()
    assert "of other cells on this device" in cost(plan([best_run], ledger), ledger)
    like = expand([*tiny_words, "task.holdout=0.2", "seed=7"])
    assert "est. " in cost(plan(like, ledger), ledger)
    monkeypatch.setattr(publish, "PUBLISHED", tmp_path / "published")
    assert publish.main(["rates", f"output={output_of(tiny_words)}"]) == 0
    assert len(list((tmp_path / "published" / "rates").iterdir())) == 4
    # The same command has nothing left to do.
    before = stamps(tiny_words)
    capsys.readouterr()
    assert tune_main(command) == 0
    again = capsys.readouterr().out
    assert "2 trials of 2 runs, 2 done before" in again
    assert "[trial" not in again
    assert again[again.index("accuracy on") :] == text[text.index("accuracy on") :]
    assert stamps(tiny_words) == before


@pytest.mark.usefixtures("process")
def test_the_lines_for_a_recipe_have_what_was_given_with_the_search(tiny_words, capsys):
    """Without the head's rate, which follows train.lr elsewhere, they would not repeat the best trial."""
    plain = [word for word in tiny_words if not word.startswith(("train.max_length", "method."))]
    words = [*plain, "method=lora", "train.lr_head=1e-9", "method.rank=2", "grid={train.lr: [1e-9]}"]
    assert tune_main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    start, end = lines.index("  by_task:"), lines.index("  chosen:")
    assert {"    lr: {rte: 1e-09}", "    lr_head: {rte: 1e-9}", "    rank: {rte: 2}"} <= {*lines[start:end]}


def test_no_line_for_a_recipe_that_a_recipe_refuses(tiny_words):
    plain = [word for word in tiny_words if not word.startswith(("method.", "train."))]
    more = ["method=lora", "method.scaling=proportional", "train.lr_head=${train.lr}", "method.rank=2"]
    (cell,) = lists.cells([*plain, *more], "{train.lr: [1e-3]}")
    lines = report.recipe(cell, ("0.001",), "rows")
    assert lines[1:4] == ["  by_task:", "    lr: {rte: 0.001}", "    rank: {rte: 2}"]


def test_the_time_left_is_what_the_missing_runs_would_take(tiny_words, monkeypatch):
    (cell,) = cells_of(
        [*tiny_words, "seed=0,1", "grid={train.lr: [1e-3, 1e-2, 1e-1], train.lr_head: [1e-2]}"]
    )
    monkeypatch.setattr(lists, "finished_record", lambda output, run_id: None)
    assert search.seconds_left(cell) is None
    cost = {1e-3: 10.0, 1e-2: 20.0}  # of each run; the two of the third rate are missing
    took = {
        cell_id: {"cost": {"train_seconds": cost[run.config["train"]["lr"]], "evaluate_seconds": 1.0}}
        for point, runs in cell.trials.items()
        for run, cell_id in zip(runs, cell.ids[point], strict=True)
        if run.config["train"]["lr"] in cost
    }
    monkeypatch.setattr(lists, "finished_record", lambda output, run_id: took.get(run_id))
    assert search.seconds_left(cell) == 2 * 16.0


def test_the_dev_set_is_never_looked_at(words, tmp_path):
    """The same curve, to the bit, with a dev set of other texts and labels; and another one where dev is
    used."""
    folder = write_glue(tmp_path / "glue", {"train": 40, "dev": 24})
    path = folder / "RTE" / "dev.tsv"
    here = [f"task.data_dir={folder}" if w.startswith("task.data_dir") else w for w in words]
    curves = []
    for poison in (False, True):
        if poison:
            rows = [f"{i}\tpoison\tpoison\tentailment" for i in range(30)]
            path.write_text("\n".join(["index\tsentence1\tsentence2\tlabel", *rows]) + "\n")
        at = elsewhere(here, output=tmp_path / str(poison))
        curves.append([do([*at, *extra])["curve"]["dev_loss"] for extra in (["task.holdout=0.25"], [])])
    assert curves[0][0] == curves[1][0]
    assert curves[0][1] != curves[1][1]


@pytest.mark.usefixtures("process")
def test_a_killed_search_goes_on(tiny_words, capsys):
    """SIGKILL between a trial's two runs: that trial is ended first, and no run is done twice."""
    command = [
        *tiny_words,
        "train.epochs=10",
        "seed=0,1",
        "grid={train.lr: [1e-2, 2e-2], train.lr_head: [1e-2]}",
    ]
    process = subprocess.Popen(
        [sys.executable, "-m", "runs.tune", *command],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    while not stamps(tiny_words):
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    before = stamps(tiny_words)
    assert len(before) == 1
    assert trials_left(command) == [1, 2]
    assert tune_main(command) == 0
    text = capsys.readouterr().out
    # By the one run that was done before
    assert "[trial 1/2] train.lr=0.01 train.lr_head=0.01  left: " in text
    assert text.count("already done (accuracy") == 1
    assert before.items() <= stamps(tiny_words).items()
    assert len(stamps(tiny_words)) == 4
    ledger = read_ledger(output_of(command), published=False)
    for trial in trials_of(command):
        of_lr = [r for r in ledger if r["config"]["train"]["lr"] == float(trial["train.lr"])]
        assert sorted(trial["runs"].split()) == sorted(record["id"] for record in of_lr)
        best = [record["result"]["protocols"]["paper"]["best"] for record in of_lr]
        assert float(trial["accuracy"]) == pytest.approx(sum(best) / 2)
        assert float(trial["spread"]) == pytest.approx(statistics.stdev(best))


@pytest.mark.usefixtures("process")
def test_the_second_of_two_searches_waits_for_the_first(tiny_words, capsys):
    command = [*tiny_words, "train.epochs=10", "grid={train.lr: [1e-2, 2e-2], train.lr_head: [1e-2]}"]
    first = [sys.executable, "-m", "runs.tune", *command]
    process = subprocess.Popen(first, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    while not stamps(tiny_words):
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    assert tune_main(command) == 0
    text = capsys.readouterr().out
    assert "2 trials of 1 run, 2 done before" in text
    said, _ = process.communicate()
    assert process.returncode == 0, said
    assert "2 trials of 1 run, 0 done before" in said
    assert [trial["state"] for trial in trials_of(command)] == ["complete"] * 2


@pytest.mark.usefixtures("process")
def test_a_failed_trial_stops_no_other_and_is_tried_again(tiny_words, monkeypatch, capsys):
    command = [*tiny_words, "train.max_steps=1", "grid={train.lr: [1e-2, 2e-2, 3e-2], train.lr_head: [1e-2]}"]
    real, calls = search.sweep, []

    def broken(runs, part, launch):
        calls.append(runs[0].config["train"]["lr"])
        return (
            Sweep([], Tracking(), failed=[(runs[0], "it broke", "log.txt")])
            if calls[-1] == 2e-2
            else real(runs, part, launch)
        )

    monkeypatch.setattr(search, "sweep", broken)
    assert tune_main(command) == 1
    text = capsys.readouterr().out
    assert sorted(calls) == [1e-2, 2e-2, 3e-2]
    assert (
        "failed, and tried again by the same command: train.lr=0.02 train.lr_head=0.01, VeRA r=8 on RTE, seed"
        " 0: it broke" in text
    )
    assert [trial["state"] for trial in trials_of(command)] == ["complete", "complete", "failed"]
    calls.clear()
    assert tune_main(command) == 1
    assert calls == [2e-2]
    monkeypatch.setattr(search, "sweep", real)
    assert tune_main(command) == 0
    assert [trial["state"] for trial in trials_of(command)] == ["complete"] * 3


@pytest.mark.usefixtures("process")
def test_perplexity_is_minimised_and_no_text_is_decoded(e2e_words, capsys):
    command = [w for w in e2e_words if not w.startswith("train.lr")]
    command += ["task.holdout=0.25", "grid={train.lr: [1e-9, 1e-2]}"]
    assert tune_main(command) == 0
    text = capsys.readouterr().out
    assert (
        "vera on E2E (decoder): perplexity on 2 held-out training rows (6 trained on), last epoch, 1 seed"
        in text
    )
    trials = trials_of(command)
    assert [trial["train.lr"] for trial in trials] == ["0.01", "1e-09"]
    assert float(trials[0]["perplexity"]) < float(trials[1]["perplexity"])
    assert "train.lr=0.01 is the largest tried" in text
    assert "settings have the best value" not in text
    best = next(line for line in text.splitlines() if line.startswith("best: "))
    assert "task.decode" not in best
    assert all(record["texts"] is None for record in read_ledger(output_of(command), published=False))
    with pytest.raises(UserError, match=r"task\.decode=test") as error:
        tune_main([*command, "task.decode=test"])
    assert "\n" not in str(error.value)


def test_what_the_words_search(tiny_words, e2e_words):
    def axes(*words):
        return {
            key: len(values) for cell in cells_of([*tiny_words, *words]) for key, values in cell.axes.items()
        }

    assert axes() == {"train.lr": 5, "train.lr_head": 3}
    assert axes("train.lr=1e-2") == {"train.lr_head": 3}
    # Method.rank=8 is among the words
    assert axes("grid={method.rank: [4, 8]}", "train.lr_head=1") == {"train.lr": 5}
    plain = [w for w in tiny_words if not w.startswith("method.")]
    searched = {cell.first.row: list(cell.axes) for cell in cells_of([*plain, "method=head,adapter_h"])}
    assert searched == {"head": ["train.lr_head"], "adapter_h": ["train.lr", "train.lr_head"]}
    for row in ("method=peft", "method=adalora"):
        (cell,) = cells_of([*plain, row])
        assert {key: len(values) for key, values in cell.axes.items()} == {"train.lr": 5, "train.lr_head": 3}
    (cell,) = cells_of([*plain, "grid={train.lr: [1e-2, 0.01, 1], method.sites: [[query], [query, value]]}"])
    assert cell.axes == {
        "train.lr": ["0.01", "1"],
        "train.lr_head": ["0.002", "0.004", "0.01"],
        "method.sites": ["[query]", "[query,value]"],
    }
    point, (run,) = list(cell.trials.items())[-1]
    assert cell.overrides_of(point) == ["train.lr=1", "train.lr_head=0.01", "method.sites=[query,value]"]
    assert (run.config["train"]["lr"], run.config["train"]["lr_head"], run.method["sites"]) == (
        1.0,
        0.01,
        ["query", "value"],
    )
    (cell,) = cells_of([w for w in e2e_words if not w.startswith("train.lr")])
    assert list(cell.axes) == ["train.lr"]
    assert cell.first.config["task"]["decode"] == "none"
    preset = cells_of(["experiment=table2_base", "method=vera", "task=rte,mrpc", "train.lr_head=1e-2"])
    assert [(c.first.task, len(c.trials), c.seeds) for c in preset] == [("rte", 5, 1), ("mrpc", 5, 1)]
    assert preset[0].overrides == [
        "method=vera",
        "model=roberta_base",
        "task=rte",
        "experiment=table2_base",
        "train.lr_head=1e-2",
    ]


def test_the_grids_are_values_that_the_papers_print():
    printed = yaml.safe_load((ROOT / "analysis" / "printed" / "recipes.yaml").read_text())
    grids = lists._read((ROOT / "conf" / "tune.yaml").read_text())

    def values(node, kind, key, inside=False):
        """What stands under a key, somewhere below a method's name."""
        for name, value in node.items() if isinstance(node, dict) else ():
            if inside and name == key:
                yield from map(float, value if isinstance(value, list) else [value])
            yield from values(value, kind, key, inside or name == kind)

    chosen = {("lora", "lr_head"): {1e-2}}  # this project's, as the file says
    for kind in ("vera", "lora"):
        for key in ("lr", "lr_head"):
            ours = set(map(float, grids[kind][f"train.{key}"]))
            assert ours - set(values(printed, kind, key)) == chosen.get((kind, key), set())


SHARED = """source: ours
epochs: 2
effective_batch: 8
max_length: 32
lr_head: 1e-3
by_row:
  lora: {lr: 5e-3, rank: 2}
  peft:IA3Config: {lr: 4e-3, by_task: {epochs: {rte: 1}}}
"""


def test_the_lines_for_a_recipe_keep_the_recipe_that_the_row_borrows(tmp_path):
    """A method of one's own that reads no rank: what is pasted changes the task that was searched alone."""
    conf = tmp_path / "conf"
    (conf / "method").mkdir(parents=True)
    (conf / "method" / "mine.yaml").write_text("kind: bitfit\nlabel: Mine\nkeep: best\nrecipe: lora\n")
    words = ["method=mine", "model=minilm", "--config-dir", str(conf)]
    before = expand([*words, "task=mrpc"])[0].config["train"]
    (cell,) = lists.cells([*words[:2], "task=cola"], "{train.lr: [0.5], train.lr_head: [1e-3]}", words[3])
    title, *lines = report.recipe(cell, ("0.5", "0.001"), "rows")
    assert title == "for conf/recipe/mine/minilm.yaml:"
    (conf / "recipe" / "mine").mkdir(parents=True)
    (conf / "recipe" / "mine" / "minilm.yaml").write_text(textwrap.dedent("\n".join(lines)))
    (found,), (other,) = expand([*words, "task=cola"]), expand([*words, "task=mrpc"])
    assert found.recipe == "mine/minilm"
    assert found.config["train"]["lr"] == 0.5
    assert other.config["train"] == before
    assert before["lr"] == 3e-3  # LoRA's on MRPC, and not the harness's


def test_the_lines_for_a_class_of_peft_are_a_recipe_that_it_takes(tmp_path):
    words = ["method=peft:IA3Config", "model=minilm", "task=cola", "recipe=lora/minilm"]
    (cell,) = lists.cells(words, "{train.lr: [0.5], train.lr_head: [1e-3]}")
    title, *lines = report.recipe(cell, ("0.5", "0.001"), "rows")
    assert title == "for conf/recipe/peft_ia3/minilm.yaml, which recipe=peft_ia3/minilm takes:"
    (tmp_path / "recipe" / "peft_ia3").mkdir(parents=True)
    (tmp_path / "recipe" / "peft_ia3" / "minilm.yaml").write_text(textwrap.dedent("\n".join(lines)))
    (run,) = expand([*words[:3], "recipe=peft_ia3/minilm", "--config-dir", str(tmp_path)])
    assert (run.config["train"]["lr"], run.config["train"]["epochs"]) == (0.5, 5)  # of LoRA's recipe: 5


@pytest.mark.usefixtures("process")
def test_of_a_recipe_that_rows_share_their_parts_are_printed_with_what_was_found(
    tiny_words, capsys, tmp_path
):
    """As lines that can take the place of those in the file: the same rows then have the best rates."""
    path = tmp_path / "conf" / "recipe" / "ours" / "encoder.yaml"
    path.parent.mkdir(parents=True)
    path.write_text(SHARED)
    words = [word for word in tiny_words if not word.startswith(("method.", "train."))]
    words += [
        "train.epochs=3",  # given with the search
        "recipe=ours/encoder",
        "method=lora,peft:IA3Config,bitfit",
        "--config-dir",
        str(tmp_path / "conf"),
    ]
    assert tune_main([*words, "tracking=off", "grid={train.lr: [1e-9, 1e-8], train.lr_head: [1e-9]}"]) == 0
    text = capsys.readouterr().out
    assert "chosen:" not in text
    block = text[text.index("for conf/recipe/ours/encoder.yaml, in by_row:") :].strip().splitlines()[1:]
    by_task = "{lr: {rte: 1e-09}, lr_head: {rte: 1e-09}, epochs: {rte: 3}}"
    assert block[0] == f"  lora: {{lr: 0.005, rank: 2, by_task: {by_task}}}"
    assert block[1].startswith("  peft:IA3Config: {lr: 0.004, by_task: {epochs: {rte: 3}, lr: {rte: 1e-09}")
    path.write_text(SHARED.partition("  lora:")[0] + "\n".join(block) + "\n")
    runs = expand([word for word in words if word != "train.epochs=3"])
    assert [run.config["train"]["lr"] for run in runs] == [1e-9] * 3
    assert [run.config["train"]["epochs"] for run in runs] == [3, 3, 3]
    assert runs[0].method["rank"] == 2


def test_the_grid_of_a_shared_recipe_is_by_row_then_class_then_kind():
    grids = {
        "lora": {"train.lr": ["1"], "train.lr_head": ["2"]},
        "ours": {
            "a": {"rows": ["lora", "IA3Config"], "train.lr": ["3"]},
            "b": {"rows": ["lora_r2"], "train.lr": ["4"]},
        },
    }
    words = ["model=minilm", "task=reviews", "method=lora,lora_r2,lora_r4,peft:IA3Config,peft:OFTConfig"]
    runs = expand([*words, "recipe=peers/minilm"])
    of_ours = {**grids, "peers": grids["ours"]}
    found = [lists._grid_of(run, of_ours).get("train.lr") for run in runs]
    assert found == [["3"], ["4"], ["3"], ["3"], None]
    assert lists._grid_of(expand(["method=lora"])[0], of_ours) == grids["lora"]


@pytest.mark.slow  # it takes seconds
def test_what_defines_the_results_defines_the_study(tiny_words, tmp_path):
    def name(*words, grid="{train.lr: [1e-2, 3e-2]}"):
        (cell,) = cells_of([*tiny_words, "train.lr_head=1e-2", f"grid={grid}", *words])
        return cell.name

    assert name("device=auto", "seed=0", "task.holdout=0.2", f"output={tmp_path}") == name()
    others = [["seed=1"], ["seed=0,1"], ["task.holdout=0.3"], ["train.epochs=3"]]
    names = {name(), name(grid="{train.lr: [1e-2]}"), *(name(*words) for words in others)}
    assert len(names) == len(others) + 2


def test_a_trial_that_diverged_is_never_the_best(tiny_words, monkeypatch):
    (cell,) = cells_of([*tiny_words, "grid={train.lr: [1e-2, 1e-1, 3e-1, 1], train.lr_head: [1e-3]}"])
    points = list(cell.trials)
    task = SimpleNamespace(metric="matthews", family="glue")
    monkeypatch.setattr(report.Metric, "of_task", lambda task: Metric("matthews"))

    def found(*values_and_statuses):
        made = [
            search.Trial(point, ["id"], [] if value is None else [finished("matthews", value, status)])
            for point, (value, status) in zip(points, values_and_statuses, strict=True)
        ]
        monkeypatch.setattr(report, "trials_of", lambda cell: made)
        order = [points.index(trial.point) for trial in report.ranked(cell, Metric("matthews"))]
        return order, [points.index(point) for point in report.best_point(cell, task)]

    # One that failed, one that diverged, and two that are equal: in the order of the grid
    assert found((None, "failed"), (0.1, "diverged"), (-0.2, "done"), (-0.2, "done")) == ([2, 3, 1, 0], [2])
    assert found(*[(0.1, "diverged")] * 3, (None, "failed")) == ([0, 1, 2, 3], [])


def test_the_best_at_an_end_of_an_axis(tiny_words):
    (cell,) = cells_of([*tiny_words, "grid={train.lr: [1e-2, 1e-1, 3e-2], train.lr_head: [1e-3]}"])
    assert report.edges(cell, ("0.03", "0.001")) == []
    assert report.edges(cell, ("0.1", "0.001")) == [("train.lr=0.1", "largest")]
    assert report.edges(cell, ("0.01", "0.001")) == [("train.lr=0.01", "smallest")]


def test_the_report_counts_the_runs_that_predict_one_class(tiny_words, monkeypatch):
    (cell,) = cells_of([*tiny_words, "grid={train.lr: [1e-2, 1e-1], train.lr_head: [1e-3]}"])
    task = SimpleNamespace(metric="accuracy", higher_is_better=True, scale=100.0, reported="best")
    made = [made_record(best=value) for value in (0.674, 0.326, 0.7)]
    for one, answer in zip(made, (1, 0, None), strict=True):
        hashed = hashlib.sha256(np.full(10, answer).tobytes()).hexdigest()[:16] if answer is not None else "0"
        one["predictions"] = {"best": hashed}
    trials = [search.Trial(p, ["id"], [one]) for p, one in zip([*cell.trials, ("1", "1")], made, strict=True)]
    monkeypatch.setattr(report, "trials_of", lambda cell: trials)
    lines = report.report(cell, task).splitlines()
    assert "predicts one class: 2 runs (the larger class is 67.4)" in lines
    monkeypatch.setattr(report, "trials_of", lambda cell: trials[2:])
    assert "one class" not in report.report(cell, task)


def finished(metric, value, status="done", reported="best"):
    protocols = {"protocols": {"paper": {reported: value}}} if value is not None else {"best": None}
    return {"status": status, "result": {**of_metric(metric), "reported": reported, **protocols}}


def test_a_trial_counts_by_all_of_its_runs():
    def trial(*records, runs=2):
        made = search.Trial(("0.1",), ["id"] * runs, list(records))
        return made.done, made.value, made.diverged

    assert trial(finished("accuracy", 0.8), finished("accuracy", 0.7)) == (True, pytest.approx(0.75), 0)
    assert trial(finished("accuracy", 0.8)) == (False, None, 0)
    worst = finished("accuracy", None, "diverged")  # in its first epoch
    assert trial(finished("accuracy", 0.8), worst) == (True, pytest.approx(0.4), 1)
    endless = finished("perplexity", None, "diverged", reported="last")
    assert trial(finished("perplexity", 4.0, reported="last"), endless) == (True, float("inf"), 1)
    # Finished without the number: not the worst, and not left out of the mean
    assert trial(finished("accuracy", 0.8), finished("accuracy", None)) == (True, None, 0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["grid={train.lrr: [1]}"], "no key 'train.lrr'. Did you mean train.lr?"),
        (["grid={train.lr: [fast]}"], "train.lr=fast: should be a number"),
        (["grid={train.lr: 1e-2}"], "grid={train.lr: 1e-2}: should be a mapping of keys to lists"),
        (["grid={train.lr: []}"], "should be a mapping of keys to lists"),
        (["grid=[1, 2]"], "should be a mapping of keys to lists"),
        (["grid={train.lr"], "should be a mapping of keys to lists"),
        (["grid={seed: [0, 1]}"], "seed is a word of its own, seed=..."),
        (["train.lr=1", "train.lr_head=1"], "vera: nothing to search"),
        (
            ["task.holdout=null"],
            "task.holdout=null: trials are judged on held-out training rows, never on the dev or test set",
        ),
        (["task.holdout=1"], "task.holdout=1: should be less than 1"),
        (["task.holdout=0.999", "task.train_rows=2"], "rte has too few training rows"),
        (["grid={method.rank: [0], train.lr: [1]}"], "rank must be a whole number of at least 1, got 0"),
        (["seed=0,0"], "appears twice in this sweep"),
        (["--nonsense"], "no option --nonsense"),
    ],
)
def test_a_mistake_is_one_line_before_anything_starts(change, message, tiny_words):
    kept = [w for w in tiny_words if "method.rank" not in w]
    with pytest.raises(Exception, match=re.escape(message)) as error:
        tune_main([*kept, *change])
    assert is_users(error.value)
    assert "\n" not in str(error.value)
    assert not output_of(tiny_words).exists()


def test_the_first_run_of_a_start_holds_nothing_out(words):
    plain = [w for w in words if not w.startswith("method.")]
    (run,) = expand([*plain, "method=lora_mnli", "task.holdout=0.2"])
    assert (run.config["task"]["holdout"], run.start.config["task"]["holdout"]) == (0.2, None)
    (usual,) = expand([*plain, "method=lora_mnli"])
    assert run_id(run.start) == run_id(usual.start)


def test_the_command_of_the_best_setting_has_the_folder_of_its_files(tiny_words, tmp_path):
    (cell,) = lists.cells(tiny_words, "{train.lr: [1e-3]}", str(tmp_path))
    line = report.best_command(cell, next(iter(cell.trials)))
    assert shlex.split(line)[:4] == ["python", "-m", "runs", f"--config-dir={tmp_path}"]
    assert expand(shlex.split(line)[3:])[0].config["train"]["lr"] == 1e-3
