"""Searches: what is tried, on which rows, in which order the trials come, and what is
printed of them."""

import csv
import hashlib
import itertools
import math
import shlex
import statistics
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from ledgers import metric_fields
from ledgers import record as made_record
from running import output_of, replace_words, train_here
from tiny import write_glue

from analysis.frame import runs as frame_of
from runs import publish, tune
from runs.config import CONF, expand
from runs.record.ledger import read_ledger, read_study
from runs.run.identity import run_id

pytestmark = pytest.mark.determinism


@pytest.fixture
def tiny_words(words) -> list[str]:
    """The words of a small run without its learning rate."""
    return [word for word in words if not word.startswith("train.lr")]


# --- the command


@pytest.mark.usefixtures("process")
def test_every_point_is_tried_once_on_held_out_rows_and_enters_no_table(
    tiny_words, capsys, monkeypatch, tmp_path
):
    assert (
        tune.main([*tiny_words, "seed=0,1", "train.lr=1e-9,1e-8", "train.lr_head=1e-9"])
        == 0
    )
    text = capsys.readouterr().out
    assert (
        "accuracy on 8 held-out training rows (32 trained on), best epoch, 2 seeds"
        in text
    )
    output = output_of(tiny_words)
    ledger = read_ledger(output, published=False)
    assert len(ledger.records) == 4
    for record in ledger:
        assert (record["config"]["task"]["holdout"], record["config"]["keep"]) == (
            0.2,
            "none",
        )
        assert (record["data"]["train_rows"], record["data"]["dev_rows"]) == (32, 8)
        assert any(
            "held out (task.holdout=0.2)" in words for words in record["deviations"]
        )
    assert not list(Path(output).rglob("*.safetensors"))
    (path,) = Path(output).glob("tune/*/trials.csv")
    trials = list(csv.DictReader(path.open()))
    assert sorted(run for trial in trials for run in trial["runs"].split()) == sorted(
        ledger.records
    )
    for trial in trials:
        best = [
            ledger.records[run]["result"]["protocols"]["paper"]["best"]
            for run in trial["runs"].split()
        ]
        assert float(trial["accuracy"]) == pytest.approx(sum(best) / 2)
        assert float(trial["spread"]) == pytest.approx(statistics.stdev(best))
    # Rates of nothing leave the model as it is: a tie, and the first in the grid comes
    # first
    assert [float(trial["train.lr"]) for trial in trials] == [1e-9, 1e-8]
    # The command of the best one is a run on the real dev set
    line = next(
        line for line in text.splitlines() if line.startswith("best: vera-bench ")
    )
    (best_run,) = expand(shlex.split(line)[4:])
    assert (best_run.config["task"]["holdout"], best_run.config["keep"]) == (
        None,
        "best",
    )
    assert best_run.config["train"]["lr"] == 1e-9
    # Trials enter no table, and can be published
    assert (frame_of(ledger).left_out != "").all()
    monkeypatch.setattr("runs.record.ledger.PUBLISHED", tmp_path / "published")
    assert publish.main(["rates", f"output={output}"]) == 0
    assert len(read_study(tmp_path / "published" / "rates").records) == 4


# --- what is tried


def test_the_dev_set_is_never_looked_at(words, tmp_path):
    """The same curve, to the bit, with a dev set of other texts and labels; and another
    one where dev is used."""
    folder = write_glue(tmp_path / "glue", {"train": 40, "dev": 24})
    path = folder / "RTE" / "dev.tsv"
    here = replace_words(words, **{"task.data_dir": folder, "train.epochs": 1})
    curves = []
    for poison in (False, True):
        if poison:
            rows = [f"{i}\tpoison\tpoison\tentailment" for i in range(30)]
            path.write_text(
                "\n".join(["index\tsentence1\tsentence2\tlabel", *rows]) + "\n"
            )
        at = replace_words(here, output=tmp_path / str(poison))
        curves.append(
            [
                train_here([*at, *extra])["curve"]["dev_loss"]
                for extra in (["task.holdout=0.25"], [])
            ]
        )
    assert curves[0][0] == curves[1][0]
    assert curves[0][1] != curves[1][1]


def test_what_trials_start_from_is_a_usual_run_and_not_done_again(words, monkeypatch):
    plain = [w for w in words if not w.startswith(("method.", "train.lr"))]
    line, done = (
        [*plain, "method=lora_mnli", "train.lr_head=1"],
        SimpleNamespace(signal=15, exit_code=0),
    )
    given: dict = {}

    def sweep(runs, launch, runs_to_repeat):
        given.update(runs=runs, runs_to_repeat=runs_to_repeat)
        return done

    monkeypatch.setattr(tune, "sweep", sweep)
    tune.main([*line, "redo=true", "train.lr=1e-3,1e-2"])
    trials = [run for run in given["runs"] if run.start]
    assert given["runs_to_repeat"] == trials
    assert [run.config["task"]["holdout"] for run in trials] == [0.2, 0.2]
    (usual,) = expand([*line, "train.lr=1e-3"])
    assert run_id(usual.start) == run_id(given["runs"][0])


@pytest.mark.slow
def test_what_the_words_search(tiny_words, e2e_words):
    plain = [w for w in tiny_words if not w.startswith("method.")]
    for words, *wanted in (
        (tiny_words, {"train.lr": 5, "train.lr_head": 3}),
        ([*tiny_words, "train.lr=1e-2"], {"train.lr_head": 3}),
        (
            [*plain, "train.lr_head=1", "method.rank=4,8"],
            {"train.lr": 5, "method.rank": 2},
        ),
        (
            [*plain, "method=head,adapter_h"],
            {"train.lr_head": 4},
            {"train.lr": 3, "train.lr_head": 3},
        ),
        ([w for w in e2e_words if not w.startswith("train.lr")], {"train.lr": 5}),
    ):
        found, launch = tune.searches_of_command(words)
        assert [
            {key: len(values) for key, values in cell.axes.items()} for cell in found
        ] == wanted
    assert found[0].runs[0].config["task"]["decode"] == "none"
    assert "task.decode" not in tune.command_of_trial(found[0], {"train.lr": "1"})
    assert launch.tracking.mode == "off"
    launch = tune.searches_of_command(
        [*tiny_words, "tracking=offline", "launcher=local"]
    )[1]
    assert (launch.tracking.mode, launch.launcher.name) == ("offline", "local")
    ((cell,), _) = tune.searches_of_command(
        [*plain, "train.lr=1e-2,1", "method.sites=[query],[query,value]"]
    )
    assert cell.axes["method.sites"] == ["[query]", "[query,value]"]
    rates = cell.runs[-1].config["train"]
    assert (rates["lr"], rates["lr_head"], cell.runs[-1].method["sites"]) == (
        1.0,
        0.01,
        ["query", "value"],
    )
    preset = tune.searches_of_command(
        ["experiment=table2_base", "method=vera", "task=rte,mrpc", "train.lr_head=1e-2"]
    )[0]
    assert [(c.runs[0].task, len(c.runs)) for c in preset] == [("rte", 5), ("mrpc", 5)]
    rest = [
        "model=roberta_base",
        "task=rte",
        "experiment=table2_base",
        "train.lr_head=1e-2",
    ]
    assert preset[0].overrides == ["method=vera", *rest]


def test_the_grids_are_values_that_the_papers_print():
    printed = yaml.safe_load(
        (CONF.parent / "analysis" / "printed" / "recipes.yaml").read_text()
    )
    grids = yaml.safe_load((CONF / "tune.yaml").read_text())

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
            assert ours - set(values(printed, kind, key)) == chosen.get(
                (kind, key), set()
            )


def test_the_grid_of_a_shared_recipe_is_by_row_then_class_then_kind():
    grids = {"lora": {"train.lr": ["1"], "train.lr_head": ["2"]}, "peers": {}}
    grids["peers"]["a"] = {"rows": ["lora", "IA3Config"], "train.lr": ["3"]}
    grids["peers"]["b"] = {"rows": ["lora_r2"], "train.lr": ["4"]}
    words = [
        "model=minilm",
        "task=reviews",
        "method=lora,lora_r2,lora_r4,peft:IA3Config,peft:OFTConfig",
    ]
    found = [
        tune.grid_of(run, grids).get("train.lr")
        for run in expand([*words, "recipe=peers/minilm"])
    ]
    assert found == [["3"], ["4"], ["3"], ["3"], None]
    assert tune.grid_of(expand(["method=lora"])[0], grids) == grids["lora"]


def test_what_defines_the_results_defines_the_folder(tiny_words, tmp_path):
    def name(*words, rate="1e-2"):
        return tune.GridSearch(
            [], {"train.lr": [rate, "1e-3"]}, expand([*tiny_words, *words])
        ).file.parent.name

    changes = ("seed=1", "seed=0,1", "task.holdout=0.3", "train.epochs=3")
    others = {name(rate="3e-2"), *map(name, changes)}
    assert name("device=auto", f"output={tmp_path}") == name() not in others
    assert len(others) == len(changes) + 1


# --- what came of it


def finished(metric, value, status="done"):
    """A record with this number at the epoch of the table; None: finished without
    one."""
    record = made_record(status=status)
    result = {**metric_fields(metric), "best": value, "best_epoch": 1}
    result["protocols"] = (
        {"paper": {result["reported"]: value}} if value is not None else {}
    )
    record["result"] = record["result"] | result
    return record


@pytest.fixture
def results(tiny_words, monkeypatch):
    """The results of a search with these records: a list of seeds' for each rate, None
    for a missing one."""

    def of(*trials):
        records = {str(n): record for n, record in enumerate(itertools.chain(*trials))}
        monkeypatch.setattr(
            tune, "finished_record", lambda output, run_id: records[run_id]
        )
        rates = [str(10.0**-i) for i in range(len(trials))]
        cell = tune.GridSearch(
            [], {"train.lr": rates}, expand(tiny_words) * len(records)
        )
        vars(cell)["ids"] = [*records]
        return cell

    return of


LOW = (0.1, "diverged")


@pytest.mark.parametrize(
    ("metric", "trials", "order", "values", "best"),
    [
        # One that failed, one that diverged, and two that are equal: in the order of
        # the grid
        (
            "matthews",
            [[None], [LOW], [-0.2], [-0.2]],
            [2, 3, 1, 0],
            [-0.2, -0.2, 0.1, math.nan],
            True,
        ),
        ("matthews", [[LOW], [(0.3, "diverged")]], [1, 0], [0.3, 0.1], False),
        ("perplexity", [[5.0], [4.0]], [1, 0], [4.0, 5.0], True),
        # A trial counts by all of its runs: one that diverged in its first epoch has
        # the worst value
        ("accuracy", [[0.8, 0.7], [0.9, None]], [0, 1], [0.75, math.nan], True),
        (
            "accuracy",
            [[0.8, (None, "diverged")], [0.8, (None, "done")]],
            [0, 1],
            [0.4, math.nan],
            False,
        ),
        (
            "perplexity",
            [[4.0, (None, "diverged")], [None, None]],
            [0, 1],
            [math.inf, math.nan],
            False,
        ),
    ],
)
def test_the_best_trial_comes_first_and_none_that_diverged_is_the_best(
    metric, trials, order, values, best, results
):
    def made(of):
        return (
            None
            if of is None
            else finished(metric, *(of if isinstance(of, tuple) else (of,)))
        )

    cell = results(*([made(of) for of in trial] for trial in trials))
    frame, _ = tune.trial_results(cell)
    assert list(frame.index) == order
    np.testing.assert_allclose(frame.value, values)
    assert list(frame["train.lr"]) == [cell.axes["train.lr"][i] for i in order]
    assert ("best: vera-bench " in tune.report(cell)) == best


def test_the_report_says_only_of_trials_with_a_value_that_they_diverged(results):
    """It said so of trials that had not finished, too."""
    first, second = finished("accuracy", 0.3, "diverged"), finished("accuracy", *LOW)
    assert "in each trial a run diverged" in tune.report(results([first], [second]))
    text = tune.report(results([first], [None]))
    assert "in each trial with a value a run diverged" in text


def test_the_report_of_the_best_trial(results, tmp_path):
    """Its table, ends of axes, what predicts one class, and the line for a recipe."""
    made = [made_record(best=value) for value in (0.674, 0.7)]
    made[0]["predictions"] = {
        "best": hashlib.sha256(np.full(10, 1).tobytes()).hexdigest()[:16]
    }
    cell = results(*([one] for one in made))
    frame, _ = tune.trial_results(cell)
    assert list(frame.one_class) == [0, 1]
    text = tune.report(cell)
    assert "train.lr=0.1 is the smallest tried" in text
    assert "by_task: {lr: {rte: 0.1}}" in text
    assert f"trials: {cell.file}" in text
    more = ["method.scaling=proportional", "train.lr_head=${train.lr}", "method.rank=2"]
    cell = replace(cell, overrides=["method=lora", *more], config_dir=str(tmp_path))
    words = shlex.split(tune.command_of_trial(cell, {"train.lr": "0.001"}))
    assert words[1:] == [
        f"--config-dir={tmp_path}",
        "method=lora",
        *more,
        "train.lr=0.001",
    ]
    assert expand(words[1:])[0].config["train"]["lr"] == 1e-3
