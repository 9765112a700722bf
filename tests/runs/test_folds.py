"""Cross-validation on training rows (task.folds), and the rows that it suspects of a
wrong label."""

import copy
import csv
import math
import re

import ledgers
import numpy as np
import pytest
from cleanlab.filter import find_label_issues
from cleanlab.rank import get_label_quality_scores
from running import ROOT, call_here, output_of, refused, train_here

from runs.config import expand
from runs.mistakes import dev_rows, words_on_own_errors
from runs.mistakes import main as mistakes
from runs.record.cell import is_trial_or_stopped
from runs.record.folder import RecordFolder
from runs.record.folds import records_of_folds
from runs.record.spreadsheet import read_own_csv
from runs.run.identity import run_id
from runs.sweep import sweep
from runs.sweep.pool import Job, Sweep
from runs.tracking.tracker import Tracking
from tasks import load, reviews
from tasks.base import draw_folds

pytestmark = pytest.mark.properties

NAMES = ["negative", "positive"]
NOUNS = {"billing": "the bill of the dog", "refund": "a bright cat"}


def write_rows(path, count=36, flipped=()):
    """Rows of two classes that their words tell apart, some with the other label."""
    names = [*NOUNS]
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("text", "label"))
        for number in range(count):
            right = number % 2
            given = 1 - right if number in flipped else right
            writer.writerow((f"{NOUNS[names[right]]} is", names[given]))
    return path


@pytest.fixture
def text_words(words, tmp_path):
    kept = [w for w in words if not w.startswith(("task", "train.", "method"))]
    rows = write_rows(tmp_path / "rows.csv", flipped=(4, 9, 17))
    more = ["task=text", "task.name=tickets", f"task.train_file={rows}"]
    more += ["train.epochs=1", "train.effective_batch=8", "train.lr=1e-2"]
    return [*kept, *more, "method=lora", "method.rank=8", "seed=0"]


def test_folds_are_of_all_classes_and_of_one_size():
    groups = [0] * 17 + [1] * 9 + [2]
    fold = draw_folds(groups, 5, "mine")
    assert fold == draw_folds(groups, 5, "mine") != draw_folds(groups, 5, "other")
    sizes = np.bincount(fold)
    assert sizes.max() - sizes.min() <= 1
    for group in (0, 1):
        of_group = [f for f, g in zip(fold, groups, strict=True) if g == group]
        counts = np.bincount(of_group, minlength=5)
        assert counts.max() - counts.min() <= 1
    with refused("task.folds=5", "4 training rows"):
        draw_folds([0] * 4, 5, "mine")


def test_one_override_is_a_run_for_each_fold(text_words):
    runs = expand([*text_words, "task.folds=3"])
    assert [run.config["task"]["fold"] for run in runs] == [0, 1, 2]
    assert len({run_id(run) for run in runs}) == 3
    assert all(is_trial_or_stopped(run.config) for run in runs)
    (plain,) = expand(text_words)
    # such a run keeps the id and the configuration of before
    assert {"fold", "folds"}.isdisjoint(plain.config["task"])
    (one,) = expand([*text_words, "task.folds=3", "task.fold=1"])
    assert run_id(one) == run_id(runs[1])
    seeds = [*text_words[:-1], "seed=0,1", "task.folds=3"]
    assert len(expand(seeds)) == 6
    (without_folds,) = expand([*text_words, "task.folds=null"])
    assert run_id(without_folds) == run_id(plain)
    for wrong in (["task.folds=1"], ["task.fold=0"], ["task.folds=3", "task.fold=3"]):
        with refused("task.fold"):
            expand([*text_words, *wrong])
    for wrong_number in ("0", "two"):
        with refused(f"task.folds={wrong_number}"):
            expand([*text_words, f"task.folds={wrong_number}"])
    with refused("exclude each other"):
        expand([*text_words, "task.folds=3", "task.holdout=0.2"])


def test_the_only_note_on_dev_rows_is_that_of_the_fold(text_words):
    (run,) = expand([*text_words, "task.folds=3", "task.fold=1"])
    assert load(run.config["task"]).notes == [
        "dev: fold 1 of 3, 12 of 36 training rows"
    ]
    (plain,) = expand(text_words)
    assert load(plain.config["task"]).notes == [
        "no dev file: every tenth, 4 of the 36 training rows are held out for it"
    ]


def test_a_dev_file_beside_folds_is_said_to_be_unused(text_words, tmp_path):
    rows = write_rows(tmp_path / "dev.csv", count=6)
    words = [*text_words, f"task.dev_file={rows}"]
    unused = f"task.folds divides task.train_file alone: {rows} is not used"
    (run,) = expand([*words, "task.folds=3", "task.fold=1"])
    assert unused in load(run.config["task"]).advice
    (plain,) = expand(words)
    assert unused not in load(plain.config["task"]).advice


def test_no_advice_on_the_tenth_that_a_fold_replaces(text_words, tmp_path):
    rows = write_rows(tmp_path / "rows.csv", count=30)  # every tenth is of one class
    (run,) = expand([*text_words, "task.folds=3", "task.fold=1"])
    assert run.config["task"]["train_file"] == str(rows)
    (plain,) = expand(text_words)
    absent = "tickets: 1 of them have no dev row"
    assert absent in load(plain.config["task"]).advice
    assert absent not in load(run.config["task"]).advice


def test_of_another_family_they_are_refused(alpaca_words):
    with refused("task.folds=3", "task=text has"):
        train_here([*alpaca_words, "task.folds=3", "task.fold=0"])


def test_every_row_is_judged_by_the_run_that_has_not_seen_it(
    text_words, tmp_path, capsys
):
    """All of them once, in the order of their loss."""
    records = [
        train_here([*text_words, "task.folds=3", f"task.fold={n}"]) for n in range(2)
    ]
    output = output_of(text_words)
    run = records[0]["id"]
    rows, _ = dev_rows(records[1], output)
    assert len(rows) == 24
    assert (
        "the rows of fold 2 (of 0 to 2), which nobody has trained yet."
        in capsys.readouterr().out
    )
    records.append(train_here([*text_words, "task.folds=3", "task.fold=2"]))
    out = tmp_path / "suspects.csv"
    assert mistakes([run, f"output={output}", "limit=3", f"out={out}"]) == 0
    printed = capsys.readouterr().out
    summary = r"the prediction differs from the label in \d+ of 36 training rows; the 3"
    assert re.search(f"{summary} with the largest loss are shown", printed)
    last = printed.splitlines()[-1]
    assert re.match(r"The predictions agree with [\d.]+% of these labels\.", last)
    with refused(f"'tickets' is a task. Its newest run here is {records[2]['id']}"):
        mistakes(["tickets", f"output={output}"])
    content = out.read_bytes()
    with refused("suspects.csv is there already", "out="):
        mistakes([run, f"output={output}", f"out={out}"])
    assert out.read_bytes() == content
    with refused("no such folder"):
        mistakes([run, f"output={output}", f"out={tmp_path}/no/suspects.csv"])
    ranked = read_own_csv(out)
    assert sorted(int(row["row"]) for row in ranked) == [*range(1, 37)]
    lines = (tmp_path / "rows.csv").read_text().splitlines()
    for row in ranked:
        assert lines[int(row["row"])] == f"{row['text']},{row['label']}"
    losses = [float(row["loss"]) for row in ranked]
    assert losses == sorted(losses, reverse=True)
    for record in records:
        assert record["data"]["dev_rows"] == 12
        assert record["data"]["train_rows"] == 24


def test_folds_of_another_protocol_or_seed_are_not_joined(monkeypatch):
    folds = []
    for fold in range(4):
        seed = 7 if fold == 2 else 0
        one = copy.deepcopy(ledgers.record("vera", "mrpc", seed, 0.5))
        one["config"]["task"] |= {"folds": 4, "fold": fold}
        one["config"]["data_seed"] = seed
        one["protocol"] = 2 if fold == 3 else 1
        folds.append(one)
    monkeypatch.setattr(RecordFolder, "newest", lambda *_: folds)
    assert [*records_of_folds(folds[0], "outputs")] == [0, 1]


def test_the_last_line_says_how_many_errors_are_the_models_own():
    text = words_on_own_errors(differing=270, rows=1000)
    assert text == (
        "The predictions agree with 73.0% of these labels. For example, if 50 of the "
        "labels (5%) were wrong, at least 220 of the 270 would differ because the model "
        "is wrong"
    )
    # as few as there may be wrong labels
    text = words_on_own_errors(differing=20, rows=1000)
    assert text == "The predictions agree with 98.0% of these labels."


def test_a_cross_validation_ends_with_the_command_that_joins_it(text_words, capsys):
    def line_after(runs, pending=()):
        jobs = [Job(run.label, run, run_id(run)) for run in runs]
        commanded = Sweep(jobs, Tracking())
        commanded.pending = [jobs[number] for number in pending]
        sweep._point_to_suspect_labels(commanded)
        return capsys.readouterr().out

    runs = expand([*text_words, "task.folds=3"])
    command = "Which labels may be wrong: vera-bench mistakes"
    where = f"output={output_of(text_words)}"
    ids = [run_id(run) for run in runs]
    assert line_after(runs) == f"{command} {ids[0]} out=suspects.csv {where}\n"
    # of a fold that is done
    assert f" {ids[1]} " in line_after(runs, pending=[0])
    assert line_after(runs, pending=[0, 1, 2]) == ""
    for run in runs:
        run.config["output"] = "outputs"
    assert line_after(runs) == f"{command} {ids[0]} out=suspects.csv\n"
    assert line_after(expand([*text_words[:-1], "seed=0,1"])) == ""


def test_the_help_and_the_page_say_which_row_is_row_1():
    text = call_here("runs.mistakes", "--help", check=0).stdout
    says = "Row 1 is the first row below the header (line 2 of the file)."
    assert says in " ".join(text.split())
    page = (ROOT / "docs" / "own_task.md").read_text()
    assert "Row 1 is line 2 of the file, below the header." in " ".join(page.split())


def test_the_rows_of_a_file_are_ranked_by_the_run(text_words, tmp_path, capsys):
    record = train_here(text_words)
    where = f"output={output_of(text_words)}"
    file = write_rows(tmp_path / "more.csv", count=12, flipped=(7,))
    capsys.readouterr()
    assert mistakes([record["id"], str(file), where, "limit=1"]) == 0
    (shown,) = [
        line for line in capsys.readouterr().out.splitlines() if " loss " in line
    ][:1]
    out = tmp_path / "answers.csv"
    call_here("runs.predict", record["id"], str(file), where, f"out={out}", check=0)
    answers = read_own_csv(out)
    losses = [float(row["loss"]) for row in answers]
    worst = answers[losses.index(max(losses))]
    assert f"label {worst['label']}" in shown
    assert shown.endswith(f"loss {max(losses):.6g}")
    right = [float(row[f"p({row['label']})"]) for row in answers]
    assert losses == pytest.approx([-math.log(share) for share in right], rel=1e-4)
    without = tmp_path / "without.csv"
    without.write_text("text\nthe dog\na cat\n")
    with refused("no column 'label' with labels"):
        mistakes([record["id"], str(without), where])


@pytest.mark.slow  # five short trainings of MiniLM
def test_planted_errors_come_first_as_often_as_in_cleanlab(tmp_path):
    """On reviews, whose labels are known: of 40 flipped labels the ranking by loss has
    as many among its first rows as cleanlab's, of the same predictions."""
    reviewed = [row for _, row in reviews.splits(400, 100)["train"].rows]
    planted = set(np.random.default_rng(0).choice(400, 40, replace=False).tolist())
    file = tmp_path / "reviews.csv"
    with open(file, "w", newline="") as opened:
        writer = csv.writer(opened)
        writer.writerow(("text", "label"))
        for number, row in enumerate(reviewed):
            label = NAMES.index(row["label"])
            if number in planted:
                label = 1 - label
            writer.writerow((row["text"], NAMES[label]))
    words = ["model=minilm", "method=head", "task=text", "task.name=planted"]
    words += [f"task.train_file={file}", "task.folds=5", f"output={tmp_path}"]
    words += ["train.epochs=2", "train.lr_head=2e-2", "device=cpu", "tracking=off"]
    records = [train_here([*words, f"task.fold={number}"]) for number in range(5)]

    suspects = tmp_path / "suspects.csv"
    where = f"output={tmp_path}"
    assert mistakes([records[0]["id"], where, f"out={suspects}"]) == 0
    ranked = [int(row["row"]) - 1 for row in read_own_csv(suspects)]
    rows, _ = dev_rows(records[0], str(tmp_path))
    by_row = sorted(rows, key=lambda row: int(row["row"]))
    given = np.array([NAMES.index(row["label"]) for row in by_row])
    shares = np.array([[float(row[f"p({name})"]) for name in NAMES] for row in by_row])
    scores = get_label_quality_scores(given, shares / shares.sum(1, keepdims=True))
    flagged = int(find_label_issues(given, shares / shares.sum(1, keepdims=True)).sum())
    for first in (len(planted), flagged):
        ours = len(planted & {*ranked[:first]})
        theirs = len(planted & {*np.argsort(scores, kind="stable")[:first].tolist()})
        assert ours >= theirs - 0.02 * len(planted)
    # by chance a fifth of them would be among the first 80 of 400 rows
    assert len(planted & {*ranked[: 2 * len(planted)]}) > len(planted) / 4
