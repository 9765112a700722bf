"""peft's leaderboard: the reader, both questions, the page and the command."""

import io
import itertools
import json
import re
import shutil
import subprocess
import sys

import board_again
import numpy as np
import pandas as pd
import pytest
import simulated_boards
from scipy import stats

from analysis.leaderboard import others_rows, page
from analysis.leaderboard.board import board, boards, power_by_seeds, shift, shifts
from analysis.leaderboard.inference import (
    decided_pairs,
    detectable_difference,
    letter_groups,
    pair_indices,
    question_p,
    rerun_variance,
    wilson_interval,
)
from analysis.leaderboard.reader import (
    COLUMNS,
    PUBLISHED,
    QUESTIONS,
    read_leaderboard,
    read_published,
)
from analysis.leaderboard.tables import leaderboard_tables
from analysis.results.pages import others_pages
from analysis.tables.__main__ import main
from runs.command.errors import UserError
from runs.record.ledger import ROOT

pytestmark = pytest.mark.properties

GREEDY, SAMPLED = "4.57.1", "5.13.1"


def result(row="lora/rank32", correct=600, version=GREEDY, day=1, **peft_config):
    """The content of a result file, as method_comparison/MetaMathQA writes it."""
    config = {"peft_type": "LORA", "r": 32, "target_modules": ["q_proj", "v_proj"]}
    config |= {"peft_version": f"0.18.{day}"} | peft_config
    last = {"step": 5000, "test accuracy": correct / QUESTIONS, "train loss": 0.6}
    return {
        "run_info": {
            "created_at": f"2026-01-{day:02}T12:00:00+00:00",
            "experiment_name": row,
            "train_config": {
                "model_id": "meta-llama/Llama-3.2-3B",
                "seed": 0,
                "optimizer_kwargs": {"lr": 1e-4, "weight_decay": 0.1},
                "generation_kwargs": {"max_length": 800, "max_new_tokens": 300},
            },
            "peft_config": config,
        },
        "train_info": {
            "accelerator_memory_max": 22_000_000_000,
            "train_time": 1000.0,
            "file_size": 36_000_000,
            "num_trainable_params": 9_175_040,
            "status": "success",
            "metrics": [{"step": 250, "valid accuracy": 0.3}, last],
        },
        "meta_info": {
            "package_info": {
                "transformers-version": version,
                "peft-version": "0.18.1",
                "torch-version": "2.9.0",
                "peft-commit-hash": None,
            }
        },
    }


def write(folder, *results):
    """A folder of result files."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, content in enumerate(results):
        name = (
            f"{number:03}--{content['run_info']['experiment_name'].replace('/', '-')}"
        )
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


@pytest.fixture
def folders(tmp_path):
    """Two greedy sets and a sampled one of 14 rows, far apart and close together."""
    draw = np.random.default_rng(3)
    levels = [700, 697, 690, 660, 655, 610, 600, 590, 560, 500, 420, 300, 120, 3]
    found = []
    for number, version in enumerate([GREEDY, GREEDY, SAMPLED]):
        results = []
        for row, level in enumerate(levels):
            correct = max(0, int(level + draw.normal(0, 6) - 20 * number))
            results.append(result(f"m{row}/x", correct, version, day=number + 1))
        found.append(
            write(tmp_path / f"2026-01-0{number + 1}-abcdef{number}", *results)
        )
    return found


def names(paths):
    return ",".join(map(str, paths))


# --- the reader


def test_a_folder_is_a_row_for_each_result(folders):
    results, problems = read_leaderboard(names(folders))
    assert (len(results), problems) == (42, [])
    assert {*COLUMNS, "score", "environment"} <= {*results.columns}
    first = results.iloc[0]
    assert first.decoding == "greedy"
    assert first.score == pytest.approx(100 * first.correct / QUESTIONS)
    assert {*results[results.transformers == SAMPLED].decoding} == {"sampled"}


def test_a_bad_file_is_one_line_and_the_rest_goes_on(tmp_path):
    folder = write(tmp_path / "own", result())
    unfinished = result("a/unfinished")
    unfinished["train_info"]["metrics"].pop()
    cancelled = result("a/cancelled")
    cancelled["train_info"]["status"] = "cancelled"
    foreign = result("a/other-benchmark")
    foreign["train_info"]["metrics"][-1]["test accuracy"] = 0.123
    missing = result("a/missing")
    del missing["meta_info"]
    write(folder / "more", unfinished, cancelled, foreign, missing)
    for path in (folder / "more").iterdir():
        path.rename(folder / f"bad-{path.name}")
    (folder / "broken.json").write_text("{")
    (folder / "list.json").write_text("[1, 2]")
    (folder / "binary.json").write_bytes(b"\xff\xfe\x00")
    (folder / "notes.txt").write_text("no result")
    results, problems = read_leaderboard(str(folder))
    assert [*results.row] == ["lora/rank32"]
    assert len(problems) == 7
    assert all("\n" not in problem and len(problem) < 400 for problem in problems)
    with pytest.raises(UserError, match="no result files"):
        read_leaderboard(str(folder / "more"))
    with pytest.raises(UserError, match="no such folder"):
        read_leaderboard(str(folder / "absent"))


def test_an_older_file_and_one_that_names_its_decoding(tmp_path):
    old = result("a/old")
    old["train_info"]["cuda_memory_max"] = old["train_info"].pop(
        "accelerator_memory_max"
    )
    said = result("a/said", version=SAMPLED)
    said["run_info"]["train_config"]["generation_kwargs"]["do_sample"] = False
    full = result("a/full")
    full["run_info"]["peft_config"] = None
    results, problems = read_leaderboard(str(write(tmp_path / "own", old, said, full)))
    assert not problems
    by_row = results.set_index("row")
    assert by_row.memory_bytes["a/old"] == 22_000_000_000
    assert by_row.decoding["a/said"] == "greedy"
    assert by_row.method["a/full"] == "full"


def test_settings_are_equal_but_for_new_keys_order_and_versions(tmp_path):
    first = write(tmp_path / "first", result(), result("b/x", r=8), result("c/x"))
    changed = result("c/x", day=2)
    changed["run_info"]["train_config"]["optimizer_kwargs"]["lr"] = 1e-3
    reordered = ["v_proj", "q_proj"]
    second = write(
        tmp_path / "second",
        result(day=2, target_modules=reordered, new_key=16),
        result("b/x", day=2, r=16),
        changed,
    )
    results, _ = read_leaderboard(f"{first},{second}")
    same = results.groupby("row").settings.nunique() == 1
    assert dict(same) == {"lora/rank32": True, "b/x": False, "c/x": False}


def test_a_result_is_counted_once(tmp_path):
    first = write(tmp_path / "first", result(), result("b/x"))
    second = write(tmp_path / "second", result(), result("b/x", 610, day=2))
    third = write(tmp_path / "third", result("d/x", day=3), result("d/x", 611, day=4))
    results, problems = read_leaderboard(names([first, second, third]))
    assert [*results.set] == ["first", "first", "second", "third"]
    assert problems == [
        "second: 1 results are those of an earlier folder",
        "third: d/x is there twice",
    ]


def test_a_folder_of_both_ways_of_decoding_is_two_sets(tmp_path):
    rows = [result(f"{v}{i}/x", 600 + i, v) for v in (GREEDY, SAMPLED) for i in (1, 2)]
    results, _ = read_leaderboard(str(write(tmp_path / "own", *rows)))
    assert [one.name for one in boards(results)] == ["own (greedy)", "own (sampled)"]


# --- (a) a re-run


def frame(scores, sets=("first", "second")):
    """Scores by row and set as the reader's columns; NaN for none."""
    rows = [
        {"row": f"r{row}", "settings": "same", "environment": name, "score": score}
        for row, of_row in enumerate(scores)
        for name, score in zip(sets, of_row, strict=True)
    ]
    return pd.DataFrame(rows).dropna()


def test_two_sets_give_half_the_variance_of_their_differences():
    scores = np.random.default_rng(0).normal(50, 1, (12, 2))
    found = rerun_variance(frame(scores))
    assert found.value == pytest.approx(np.var(scores[:, 1] - scores[:, 0], ddof=1) / 2)
    assert (found.freedom, found.rows) == (11, 12)


def test_a_shift_of_a_set_is_no_variance_and_a_changed_row_is_another_row():
    scores = np.random.default_rng(0).normal(50, 1, (12, 2))
    shifted = frame(scores + np.array([0.0, -5.0]))
    expected = rerun_variance(frame(scores))
    assert rerun_variance(shifted).value == pytest.approx(expected.value)
    moved = frame([*scores, [50.0, 10.0]])
    moved.loc[moved.index[-1], "settings"] = "changed"
    assert rerun_variance(moved).value == pytest.approx(expected.value)
    assert rerun_variance(frame(scores[:, :1], sets=("first",))) is None
    assert rerun_variance(frame([[50.0, 51.0]])) is None  # one row: all of it a shift


def test_sets_that_overlap_in_parts_are_fitted_together():
    draw = np.random.default_rng(1)
    scores = draw.normal(50, 2, (30, 1)) + draw.normal(0, 0.7, (30, 4)) + [0, 1, -2, 3]
    scores[draw.random(scores.shape) < 0.5] = np.nan
    found = rerun_variance(frame(scores, sets="abcd"))
    rows = frame(scores, sets="abcd").to_dict("records")
    again = board_again.two_way_variance([row | {"id": row["row"]} for row in rows])
    assert (found.value, found.freedom) == pytest.approx(again)
    assert 0.4 < found.value**0.5 < 1.0


def test_each_way_of_decoding_has_its_own_variance(folders):
    results, _ = read_leaderboard(names(folders))
    greedy, _, sampled = boards(results)
    assert greedy.variances["upper"].freedom == 8
    assert sampled.variances == {"upper": None, "lower": None}
    assert not sampled.answers["rerun"].decided.any()
    assert sampled.answers["rerun_any_decoding"].decided.any()
    assert sampled.rows.rerun_half.isna().all()


# --- (b) other questions


def test_other_questions_are_the_two_sample_binomial():
    correct = np.array([700.0, 640.0, 0.0, 0.0])
    found = question_p(correct, QUESTIONS)
    table = [[700, QUESTIONS - 700], [640, QUESTIONS - 640]]
    expected = stats.chi2_contingency(table, correction=False).pvalue
    assert found[0] == pytest.approx(expected)
    assert found[-1] == 1.0  # two rows without any answer
    narrower = question_p(correct, QUESTIONS, correlation=0.5)
    assert stats.norm.isf(narrower[0] / 2) == pytest.approx(
        2**0.5 * stats.norm.isf(found[0] / 2)
    )


def test_wilsons_interval():
    low, high = wilson_interval(np.array([0.0, 659.0]), QUESTIONS, 0.95)
    for index, count in enumerate((0, 659)):
        expected = stats.binomtest(count, QUESTIONS).proportion_ci(0.95, "wilson")
        assert low[index] == pytest.approx(100 * expected.low, abs=1e-9)
        assert high[index] == pytest.approx(100 * expected.high)


# --- decisions


@pytest.mark.parametrize("seed", range(20))
def test_two_rows_share_a_letter_if_and_only_if_they_are_not_decided(seed):
    draw = np.random.default_rng(seed)
    rows = int(draw.integers(2, 14))
    first, second = pair_indices(rows)
    decided = draw.random(len(first)) < draw.random()
    letters = letter_groups(rows, decided)
    for left, right, apart in zip(first, second, decided, strict=True):
        assert apart == (not {*letters[left]} & {*letters[right]})
    # no letter's rows are all within another's
    groups = [
        {row for row in range(rows) if letter in letters[row]}
        for letter in {*"".join(letters)}
    ]
    assert not any(one < other for one in groups for other in groups)


def test_letters_beyond_the_alphabet_stay_apart():
    rows = 60
    letters = letter_groups(rows, np.ones(len(pair_indices(rows)[0]), dtype=bool))
    assert len({*letters}) == rows
    assert letters[-1] == "(60)"


def test_a_second_computation_decides_the_same(folders):
    results = board_again.results_of(folders)
    package = board_again.package_decisions(folders)
    assert len(package) == 3
    for name, decided in package.items():
        assert decided == board_again.decisions(results, name)
    assert all(decided[1] for decided in package.values())


def test_holms_family_is_all_pairs_of_a_set(folders):
    """One pair at p = 0.04 is decided alone, and not among many."""
    p = np.array([0.04, *[0.9] * 9])
    assert decided_pairs(p[:1]).all()
    assert not decided_pairs(p).any()
    results, _ = read_leaderboard(names(folders))
    one = board(results, folders[0].name)
    assert len(one.answers["questions"].decided) == 14 * 13 / 2


@pytest.mark.parametrize("question", ["rerun", "questions"])
def test_simulated_boards_without_differences_show_none(question):
    """At most 5% of boards may; of the 1,000 on the page it is below 1%. Were it 15%, 4
    of these 80 at most would be a case of one in a hundred."""
    assert simulated_boards.false_share(80, 5, question) <= 0.05
    found = simulated_boards.found_share(6, 5, question, spread=4.0)
    assert found > {"rerun": 0.4, "questions": 0.1}[question]


def test_the_assumed_correlation_is_no_test():
    """It stands beside the answer, since it decides pairs of equal rows too often."""
    assert simulated_boards.false_share(40, 5, "correlated") > 0.1


# --- shifts and seeds


def test_a_shift_is_paired_over_rows_of_equal_settings(folders):
    results, _ = read_leaderboard(names(folders))
    first, last = folders[0].name, folders[2].name
    found = shift(results, first, last)
    scores = results.pivot_table(index="row", columns="set", values="score")
    expected = stats.ttest_rel(scores[last], scores[first])
    interval = expected.confidence_interval(0.95)
    assert found.rows == 14
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))
    assert found.fell == (scores[last] < scores[first]).sum()
    results.loc[results.set == last, "settings"] = "changed"
    assert shift(results, first, last) is None


def test_the_detectable_difference_is_found_at_80_percent():
    seeds, rows, sd = 5, 10, 1.5
    difference = detectable_difference(sd, seeds, rows)
    draw = np.random.default_rng(0)
    runs = draw.normal(0, sd, (4000, rows, seeds))
    runs[:, 0] += difference
    means = runs.mean(axis=2)
    pooled = runs.var(axis=2, ddof=1).mean(axis=1)
    t = (means[:, 0] - means[:, 1]) / np.sqrt(2 * pooled / seeds)
    critical = stats.t.isf(0.05 / 45 / 2, rows * (seeds - 1))
    assert (t > critical).mean() == pytest.approx(0.8, abs=0.02)


def test_more_seeds_find_smaller_differences(folders):
    results, _ = read_leaderboard(names(folders))
    steps = power_by_seeds(boards(results)[0].rows)
    for fewer, more in itertools.pairwise(steps):
        assert more.hours > fewer.hours
        assert all(np.array(more.differences) < fewer.differences)
        assert all(np.array(more.pairs) >= fewer.pairs)
    assert steps[0].hours == pytest.approx(3 * 10 * 1000 / 3600)


# --- what is published


@pytest.mark.usefixtures("undrawn")
def test_the_page_is_what_the_published_numbers_give():
    command = "vera-bench table leaderboard=published refresh=true"
    docs = ROOT / "docs"
    text = page.page_text(read_published())
    assert (docs / "leaderboard.md").read_text() == text, command
    assert (docs / "leaderboard.svg").is_file()
    prose = re.sub(r"^\|.*$|```.*?```|<!--.*?-->", "", text, flags=re.M | re.S)
    assert len(prose.split()) < 800
    assert "nan" not in text


def test_the_published_numbers_survive_a_refresh():
    results = read_published()
    files = page.printed_files(results)
    assert files[PUBLISHED] == PUBLISHED.read_text()
    assert files[others_rows.PRINTED] == others_rows.PRINTED.read_text()


def test_the_upper_rows_alone_would_be_another_family():
    """Of peft's July results, with the counts as they were read by hand."""
    (july,) = [one for one in boards(read_published()) if "51c2ff666" in one.name]
    assert (july.top_count, july.top_pair_count) == (24, 276)
    assert (july.decided_top_alone_count(), july.decided_top_count("questions")) == (
        3,
        0,
    )


def test_others_rows_are_two_complete_sets():
    """The anchors of this project's greedy GSM8K are January's."""
    text = others_rows.PRINTED.read_text()
    rows = text.partition(others_rows.BEGIN)[2].partition(others_rows.END)[0]
    assert rows.count("- columns: [gsm8k]") >= 2
    months = {"January 2026": "greedy", "July 2026": "sampled"}
    for month, decoding in months.items():
        assert re.search(rf"{month} \(\w+\): .* {decoding} answers", rows)
    for row, score in (("vera", "37.6"), ("lora", "49.1"), ("dora_r32", "48.0")):
        assert re.search(
            rf"row: {row}, .*\n.*by: in January 2026, values: \[{score}\]", rows
        )
    page_of_others = others_pages()["others.md"]
    assert "49.4" not in page_of_others


# --- the command


def test_the_command_prints_and_writes(folders, tmp_path, capsys):
    (folders[0] / "broken.json").write_text("{")
    output = tmp_path / "out"
    words = [f"leaderboard={names(folders)}", f"output={output}", "save=true"]
    assert main(words) == 0
    printed = capsys.readouterr()
    assert "Decided pairs" in printed.out
    assert "How many seeds" in printed.out
    assert printed.err.count("left out: ") == 1
    written = {path.name for path in (output / "leaderboard").iterdir()}
    assert {"table.md", "results.csv", "leaderboard.md", "leaderboard.svg"} <= written
    assert {f"leaderboard_{cost}.png" for cost in ("memory", "seconds")} <= written
    saved = pd.read_csv(output / "leaderboard" / "results.csv")
    assert len(saved) == 42
    assert main([*words[:1], "format=csv"]) == 0
    tidy = pd.read_csv(io.StringIO(capsys.readouterr().out))
    assert {"score", "(a) re-run", "(b) questions"} <= {*tidy.column}


@pytest.mark.parametrize("is_published", [True, False])
def test_a_note_below_a_table_has_at_most_200_characters(is_published, folders):
    results = read_published()
    if not is_published:  # a set alone, whose variances are unknown
        results, _ = read_leaderboard(str(folders[0]))
    every_board = boards(results)
    power = power_by_seeds(every_board[-1].rows)
    tables = leaderboard_tables(every_board, shifts(results), power)
    notes = [note for table in tables for note in table.notes]
    assert any("of an unknown size" in note for note in notes) is not is_published
    assert [note for note in notes if len(note) > 200] == []


@pytest.mark.parametrize(
    "word", ["table2", "model=minilm", "against=lora", "columns=seconds", "seeds=3"]
)
def test_what_is_for_records_is_refused(folders, word):
    with pytest.raises(UserError, match=r"leaderboard= reads result files"):
        main([word, f"leaderboard={folders[0]}"])


def test_one_result_alone_has_nothing_to_be_compared_with(tmp_path):
    with pytest.raises(UserError, match="nothing to be compared with"):
        main([f"leaderboard={write(tmp_path / 'own', result())}"])


def test_a_refresh_writes_the_projects_files(folders, tmp_path, monkeypatch, capsys):
    """On copies."""
    for path in (PUBLISHED, others_rows.PRINTED):
        shutil.copy(path, tmp_path / path.name)
    monkeypatch.setattr(page, "PUBLISHED", tmp_path / PUBLISHED.name)
    monkeypatch.setattr(page, "PRINTED", tmp_path / others_rows.PRINTED.name)
    monkeypatch.setattr("analysis.leaderboard.command.ROOT", tmp_path)
    assert main([f"leaderboard={names(folders)}", "refresh=true"]) == 0
    assert capsys.readouterr().err.count("wrote") == 4
    assert len(pd.read_csv(tmp_path / PUBLISHED.name)) == 42
    made = (tmp_path / "docs" / "leaderboard.md").read_text()
    assert "January 2026 (abcdef2)" in made


@pytest.mark.usefixtures("process")
def test_transformers_samples_where_a_configuration_is_silent():
    """The cause of the fall, as the example shows it."""
    script = ROOT / "examples" / "sampled_by_default.py"
    command = [sys.executable, "-W", "ignore", str(script)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    silent, said = done.stdout.splitlines()
    assert silent == "do_sample is not set: 5 distinct texts of 5 seeds"
    assert said == "{'do_sample': False}: 1 distinct texts of 5 seeds"
