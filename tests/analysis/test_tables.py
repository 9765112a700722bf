"""Tables from records: medians, what is missing, and what may not be compared; and
their forms."""

import csv
import gc
import hashlib
import io
import math
import re
import statistics
import weakref
from collections import namedtuple
from typing import get_type_hints

import numpy as np
import pandas as pd
import pytest
import scipy.stats
from ledgers import (
    exact_record,
    expected_difference,
    image_record,
    instruction_record,
    ledger,
    lines,
    made_tables,
    notes,
    record,
    seed_records,
    text_record,
    with_lm_eval,
)

from analysis import tables
from analysis.command import open_rows, own_and_published
from analysis.facts import FACTS, FACTS_OF_FINISHED_RUNS, Fact
from analysis.frame import COST_CONDITIONS, mark_left_out, reported_cells, runs
from analysis.others import reports_of_others
from analysis.render import TIDY, Number, Table, render
from analysis.tables import formulas
from analysis.tables.__main__ import Settings, main
from analysis.tables.specs import specs
from runs.command.errors import UserError
from runs.record import ledger as ledger_module
from runs.record.ledger import (
    read_study,
    run_folder,
    study_folders,
    write_record,
    write_study,
)
from runs.record.schema import Cost
from runs.sweep.display import result_words

pytestmark = pytest.mark.properties

GLUE = ["sst2", "mrpc", "cola", "qnli", "rte", "stsb"]
VALUES = [80.0, 75.0, 90.0, 70.0, 85.0]


def complete(row="vera", values=(0.80, 0.75, 0.90, 0.70, 0.85), **changes):
    return [
        record(row, task, seed, v, **changes)
        for task in GLUE
        for seed, v in enumerate(values)
    ]


def part(name, *records, model="roberta_base", **how):
    """The part of a table that is of one model."""
    (table,) = made_tables(name, *records, models=[model], **how)
    return table


def first(name, *records, source="ours", **how):
    """The first line of a source there."""
    return lines(part(name, *records, **how), source)[0]


# --- tables 2, 6 and 7


def test_a_complete_row_stands_beside_the_papers_with_median_spread_and_difference():
    base = part("table2", *complete())
    (ours,), (difference,) = lines(base, "ours"), lines(base, "difference")
    assert ours["RTE"] == f"80.0 +-{statistics.stdev(VALUES):.1f}"
    assert (ours["method"], ours["params"], ours["Avg"]) == (
        "VeRA r=1024",
        "43,008",
        "80.0",
    )
    printed = {"SST-2": (94.6, 0.1), "MRPC": (89.5, 0.5), "CoLA": (65.6, 0.8)}
    printed |= {"QNLI": (91.8, 0.2), "RTE": (78.7, 0.7), "STS-B": (90.7, 0.2)}
    assert [difference[task] for task in printed] == [
        expected_difference((VALUES, *of)) for of in printed.values()
    ]
    assert difference["Avg"] == expected_difference(
        *((VALUES, *of) for of in printed.values())
    )
    # The average is the mean over tasks of the medians over seeds
    bests = [(0.5 + 0.05 * i, 0.6, 0.9, 0.1, 0.7) for i in range(6)]
    unlike = [
        one
        for task, of in zip(GLUE, bests, strict=True)
        for one in seed_records("vera", task, of)
    ]
    assert (
        first("table2", *unlike)["Avg"]
        == f"{statistics.mean([60.0, 60.0, 60.0, 65.0, 70.0, 70.0]):.1f}"
    )


def test_our_row_from_mnli_is_compared_with_the_papers():
    """On the three tasks that the paper's started there; the average is over these and
    plain LoRA's other three."""
    from_mnli = [
        record("lora_mnli", task, s, 0.9)
        for task in ("mrpc", "rte", "stsb")
        for s in range(5)
    ]
    table = part("table2", *complete("lora"), *from_mnli)
    plain, last = lines(table, "difference")  # LoRA's started elsewhere
    assert [plain[task] for task in ("RTE", "MRPC", "STS-B", "Avg")] == ["-"] * 4
    assert lines(table, "paper, * from MNLI")[0]["RTE"] == "86.6 +-0.7*"
    ours, equal = lines(table, "ours")[1], [90.0] * 5
    assert (ours["method"], ours["CoLA"], ours["Avg"], last["CoLA"]) == (
        "lora_mnli",
        "-",
        "85.0",
        "-",
    )
    of_plain = ((VALUES, 95.1, 0.2), (VALUES, 63.4, 1.2), (VALUES, 93.3, 0.3))
    assert last["Avg"] == expected_difference(
        *of_plain, (equal, 89.7, 0.7), (equal, 86.6, 0.7), (equal, 91.5, 0.2)
    )
    assert first("table2", *from_mnli)["Avg"] == "-"


def test_seeds_that_answer_one_class_are_told():
    def answers(record, rows):  # the hash of these predictions, as a run keeps it
        kept = hashlib.sha256(np.array(rows).tobytes()).hexdigest()[:16]
        return record | {"predictions": {"best": kept, "last": kept}}

    how = {"model": "minilm", "values": [0.665]}
    of = [record(row, "mrpc", s, **how) for row in ("lora", "vera") for s in range(2)]
    # after one epoch, where no curve can show it
    alike = [answers(one, [1] * 10) for one in of]
    small = answers(record("head", "mrpc", model="minilm", values=[0.335]), [0] * 10)
    found = notes(part("table2", *alike, small, model="minilm"))
    told = (
        "collapsed: 4 runs on mrpc predict one class (66.5% of dev, the larger class): "
        "lora, seed 0, 1; vera, seed 0, 1"
    )
    assert told in found
    assert (
        "collapsed: 1 run on mrpc predicts one class (33.5% of dev): head, seed 0"
        in found
    )
    assert result_words(alike[0]).endswith(
        "last 66.5, predicts one class for every row (66.5% of dev)"
    )
    assert "one class" not in result_words(answers(of[0], [1] * 9 + [0]))


def test_a_run_that_predicts_one_class_says_which(tmp_path):
    made = record("head", "mrpc", model="minilm", values=[0.473])
    hashed = hashlib.sha256(np.array([2] * 10).tobytes()).hexdigest()[:16]
    made |= {"predictions": {"best": hashed, "last": hashed}}
    folder = run_folder(tmp_path, made["id"])
    folder.mkdir(parents=True)
    predicted = folder / "predictions.csv"
    predicted.write_text("row,predicted\n1,refund\n2,refund\n")
    words = ", predicts 'refund' for every row (47.3% of dev)"
    assert result_words(made, tmp_path).endswith(words)
    # the file is of another epoch, or there is none
    words = ", predicts one class for every row (47.3% of dev)"
    predicted.write_text("row,predicted\n1,refund\n2,billing\n")
    assert result_words(made, tmp_path).endswith(words)
    predicted.unlink()
    assert result_words(made, tmp_path).endswith(words)


def test_other_models_have_the_ablations_that_ran():
    pair = ("vera", "vera_unique")
    small = [
        record(row, task, 0, 0.8, model="minilm")
        for row in pair
        for task in ("cola", "sst2")
    ]
    plain = record("vera", "rte", 0, 0.8, model="minilm")  # table 2's, and no ablation
    _, own = made_tables("table7", *small, plain, record("vera", "rte", model="other"))
    assert own.header == ["setting", "source", "SST-2", "CoLA", "status"]
    expected = [[f"{name} A, B", "ours", "80.0 (1/5)"] for name in ("shared", "unique")]
    assert [row[:3] for row in own.texts] == expected


def test_table_5_shows_other_models_and_sets():
    records = []
    for task, value, more in (
        ("mine", 0.7, {"shots": 5, "name": "my birds"}),
        ("digits", 0.9, {}),
    ):
        records += [
            image_record("lora", task, s, value, model="dinov2_small", **more)
            for s in range(5)
        ]
    small = part("table5", *records, model="dinov2_small")
    assert small.header[3:5] == ["digits", "my birds"]
    assert lines(small, "ours")[0]["my birds"] == "70.0 +-0.0"
    assert "mine: 5 images a class" in notes(small)


# --- table 3


def e2e(*records, **how):
    return part("table3", *records, model="gpt2_medium", **how)


def test_another_way_of_decoding_has_a_line_and_a_seed_that_lacks_it_is_no_zero():
    fewer = text_record("vera", 1)
    fewer["texts"]["scores"] = [
        e for e in fewer["texts"]["scores"] if e["variant"] == "0.9"
    ]
    medium = e2e(text_record("vera"), fewer)
    assert lines(medium, "ours")[0]["BLEU"] == "68.0 +-0.0 (2/3)"
    assert lines(medium, "ours, length penalty 0.8")[0]["BLEU"] == "68.1 (1/3)"
    medium = e2e(text_record("vera", best_epoch=4.0))
    assert lines(medium, "ours, best epoch")[0]["BLEU"] == "68.2 (1/3)"
    (best,) = lines(
        e2e(text_record("vera", best_epoch=4.0), text_record("vera", 1)),
        "ours, best epoch",
    )
    assert best["BLEU"] == "68.2 +-0.0 (2/3)"  # of one seed the best epoch is the last
    assert lines(medium, "ours")[0]["status"] == "ours, 1 of 3 seeds"
    assert not lines(medium, "difference")


def test_scores_without_java_are_gaps_with_a_reason_and_a_diverged_seed_counts_as_nothing():
    missing = dict.fromkeys(("meteor", "rouge_l", "cider"))
    missing |= {"unavailable": {"meteor": "no java on this machine"}}
    records = [
        text_record("vera", 0),
        text_record("vera", 1, **missing),
        text_record("vera", 2, status="diverged"),
    ]
    medium = e2e(*records)
    (ours,), (difference,) = lines(medium, "ours"), lines(medium, "difference")
    assert ours["BLEU"] == f"68.0 +-{statistics.stdev([68, 68, 0]):.1f}"
    assert ours["METEOR"] == f"23.0 +-{statistics.stdev([46, 0]):.1f} (2/3)"
    assert "1 diverged" in ours["status"]
    assert "no java on this machine" in notes(medium)
    # of two of three seeds
    assert (difference["BLEU"], difference["METEOR"]) == ("-2.1", "-")


def test_runs_that_decoded_nothing_do_not_hide_those_that_did():
    silent = [
        text_record("vera", s) | {"texts": None, "id": f"silent {s}"} for s in range(3)
    ]
    for r in silent:
        r["config"]["task"]["decode"] = "none"
    medium = e2e(text_record("vera"), *silent, select="crossfit")
    assert lines(medium, "ours")[0]["BLEU"] == "68.0 (1/3)"
    assert "select= changes nothing here" in notes(medium)


# --- tables 4, 12 and 13


def llama(name, *records, **how):
    return part(name, *records, model="llama_7b", **how)


def test_mt_bench_stands_beside_the_papers_with_the_difference_of_a_gpt_4():
    table = llama(
        "table4", instruction_record(scores=[("gpt-4-0613", 5.0), ("gpt-4o-mini", 7.0)])
    )
    ours, difference, other = [row for row in table.texts if row[1] != "paper"]
    assert ours[:5] == ["VeRA r=1024", "ours", "1,589,248", "5.00", "4.50 to 5.50"]
    assert ours[5:] == ["5.25 / 4.75", "159 of 160", "gpt-4-0613", "ours"]
    assert difference[1:4] == ["difference", "", "+0.23"]  # to 4.77
    assert other[:5] == ["", "ours", "", "7.00", "6.50 to 7.50"]
    assert other[5:] == ["7.25 / 6.75", "159 of 160", "gpt-4o-mini", "ours"]
    assert "Only GPT-4's scores are compared" in notes(table)
    silent = instruction_record(scores=[("gpt-4", 5.0)])
    silent["judged"][0] |= {
        "mean": None,
        "low": None,
        "n_valid": 0,
        "turns": {"1": None, "2": None},
    }
    line = lines(llama("table4", silent), "ours")[0]
    assert [*line.values()][3:8] == ["-", "-", "- / -", "0 of 160", "gpt-4"]


def test_answers_of_another_way_are_told():
    ours = instruction_record(scores=[("gpt-4", 5.0)])
    ours["judged"][0]["answering"] |= {
        "answer_tokens": 64,
        "top_p": 0.9,
        "top_k": None,
        "without_room": 3,
    }
    lora = instruction_record("lora", scores=[("gpt-4", 5.0)])
    lora["judged"][0]["answering"] |= {"top_p": 0.8}
    note = notes(llama("table4", ours, lora))
    assert re.search(r"top_p 0\.8 instead of FastChat's 1\.0 \(LoRA[^,]*\)", note)
    for told in (
        "answer_tokens 64 instead of FastChat's 1024",
        "top_p 0.9 instead of",
        "without_room 3",
    ):
        assert told in note
    # each with the rows that it is of
    assert "top_k None instead of FastChat's 50 (VeRA" in note


def test_several_seeds_are_a_median_and_what_is_not_judged_is_said():
    records = [
        instruction_record(seed=seed, scores=[("gpt-4", mean)])
        for seed, mean in enumerate((5.0, 6.0, 4.0))
    ]
    (line,) = lines(llama("table4", *records, seeds=3), "ours")
    shown = [line[of] for of in ("score", "95%", "valid", "status")]
    assert shown == ["5.00 +-1.00", "-", "477 of 480", "ours"]
    assert not re.search(
        "Only GPT-4's|not judged", notes(llama("table4", *records, seeds=3))
    )
    records[1]["judged"] = []
    table = llama("table4", *records, seeds=3)
    (line,) = lines(table, "ours")
    assert (line["score"], line["status"]) == ("4.50 +-0.71 (2/3)", "ours, incomplete")
    (score,) = table.tidy().query("column == 'score' and source == 'ours'").itertuples()
    assert (score.n, score.ids) == (2, f"{records[0]['id']} {records[2]['id']}")
    assert not lines(table, "difference")
    # where one would do
    assert lines(llama("table4", *records), "ours")[0]["score"] == "4.50 +-0.71 (2/3)"
    table = llama(
        "table4",
        instruction_record("none"),
        instruction_record(status="diverged", seed=1),
        seeds=1,
    )
    states = {line["method"]: line["status"] for line in lines(table, "ours")}
    assert states == {"none": "ours, not judged by MT-Bench", "VeRA r=1024": "diverged"}
    assert "vera-bench judge ID" in notes(table)


def test_a_part_of_the_rows_is_table_13s_and_not_table_4s():
    part = instruction_record(
        "vera_r256", train_rows=10000, scores=[("gpt-4", 7.0)], bench="vicuna_bench"
    )
    lora = instruction_record("lora", scores=[("gpt-4", 5.0)])
    four, thirteen = (llama(name, part, lora) for name in ("table4", "table13"))
    assert [line["method"] for line in lines(four, "ours")] == ["LoRA r=8"]
    # to 7.48
    assert [row[3] for row in thirteen.texts if row[1] != "paper"] == ["7.00", "-0.48"]
    assert [line["params"] for line in lines(thirteen, "paper")] == [
        "159.9M (610MB)",
        "1.4M (5.4MB)",
    ]
    fewer = instruction_record(
        "lora", train_rows=64, scores=[("gpt-4", 6.0)], bench="vicuna_bench"
    )
    assert lines(llama("table13", fewer), "ours")[0]["score"] == "6.00"
    # Another model is there with all of its rows, once Vicuna-bench has judged it
    waiting, judged = (
        instruction_record(row, scores=[("gpt-4", 5.0)], model="own", bench=bench)
        for row, bench in (("lora", "mt_bench"), ("vera", "vicuna_bench"))
    )
    assert [table.model for table in made_tables("table13", waiting)] == ["llama_7b"]
    _, own = made_tables("table13", waiting, judged)
    assert [row[-1] for row in own.texts] == [
        "ours, not judged by Vicuna-bench",
        "ours",
    ]


# --- the demo, and tables without records


def test_the_demo_has_a_table_for_each_size_of_the_data():
    runs = [
        record(row, "reviews", seed, model="minilm")
        for row in ("vera", "head")
        for seed in range(3)
    ]
    larger = [record(row, "reviews", model="minilm") for row in ("vera", "head")]
    for one in larger:
        one["id"] += "2000"
        one["config"]["task"]["dev_rows"] = one["data"]["dev_rows"] = 2000
    found = made_tables("demo", *runs, *larger)
    title = "reviews (MiniLM, 10 training and {} dev rows): dev accuracy, medians over seeds"
    assert [table.title for table in found] == [
        title.format(rows) for rows in (10, "2,000")
    ]
    assert [len(table.texts) for table in found] == [2, 2]


def test_the_demo_marks_a_rate_at_an_end_of_its_grid():
    def trial(row, seed, **rates):
        one = record(row, "reviews", seed, model="minilm")
        one["config"]["task"]["holdout"] = 0.25
        one["config"]["train"] |= rates
        return one | {"id": f"{one['id']}-{rates}"}

    runs = [
        record(row, "reviews", model="minilm")
        for row in ("vera", "lora", "head", "full")
    ]
    for one, rate in zip(runs, (1e-2, 1e-2, 1e-3, 1e-2), strict=True):
        one["config"]["train"] |= {"lr": rate, "lr_head": 1e-3}
    trials = [
        trial("vera", s, lr=lr, lr_head=1e-3)
        for s in (0, 1)
        for lr in (1e-3, 1e-2, 1e-1)
    ]
    trials += [trial("lora", 0, lr=lr, lr_head=1e-3) for lr in (1e-3, 1e-2)]
    trials += [trial("head", 0, lr=1e-3, lr_head=lr) for lr in (1e-3, 1e-2)]
    (table,) = made_tables("demo", *runs, *trials, seeds=1)
    assert {row[0] for row in table.texts} == {
        "VeRA r=1024",
        "LoRA r=8 ^",
        "head ^",
        "full",
    }
    assert "^: its best rate is the lowest or highest of the grid" in notes(table)
    (table,) = made_tables("demo", *runs, seeds=1)
    assert not any(
        "^" in text for text in (*(row[0] for row in table.texts), notes(table))
    )


@pytest.mark.parametrize(("lr", "shown"), [("3e-2", "0.03"), ("3 epochs", "3 epochs")])
def test_a_recipe_that_is_not_the_papers_is_told(lr, shown, monkeypatch):
    whole = formulas._recipe_file
    other = {"gpt2_medium": {"lr": lr}}
    monkeypatch.setattr(
        formulas, "_recipe_file", lambda row, of: whole(row, of) | other.get(of, {})
    )
    (table,) = made_tables("table10")
    (line,) = [row for row in table.texts if row[0] == "learning rate"]
    assert line == ["learning rate", shown, "0.02", "DIFFERS: 0.1, 0.02"]


def test_what_lm_eval_measured_before_and_after_training():
    """Over the seeds that have it; what was not asked alike has a column of its own."""
    two, other, lacks = (
        [exact_record(seed=seed) for seed in (0, 1)],
        exact_record(seed=2),
        exact_record(seed=3),
    )
    found = [
        *map(with_lm_eval, two, ("gsm8k", "gsm8k"), (0.5, 0.75)),
        with_lm_eval(other, asked="1" * 16),
    ]
    (table,) = tables.tables_of_ledger("lm_eval", ledger(*found, lacks))
    old, new = (
        f"gsm8k exact_match,strict-match, 5 shots, {of}" for of in ("0000", "1111")
    )
    after, before, gain = (
        dict(zip(table.header, row, strict=True)) for row in table.rows
    )
    shown = ["0.6250 +-0.1768 (2/4)", "0.2500 +-0.0000 (2/4)", "+0.3750 +-0.1768 (2/4)"]
    assert [str(of[old]) for of in (after, before, gain)] == shown
    assert [str(of[new]) for of in (after, gain)] == ["0.5000 (1/4)", "+0.2500 (1/4)"]
    assert after[new].ids == (other["id"],)


# --- from a number to its records, and its forms


def test_csv_is_one_frame_of_numbers_for_the_whole_command():
    """Also of several tables: one header, a row a number, each part in a column of its
    own."""
    of = made_tables(
        "table2", *complete(), *seed_records("vera", "cola", (0.7, 0.8), model="minilm")
    )
    read = pd.read_csv(io.StringIO(render(of, "csv")))
    assert list(read) == TIDY
    assert read.table.nunique() == 3
    (line,) = read[(read.source == "ours") & (read.column == "RTE")].to_dict("records")
    assert (line["value"], line["n"], line["wanted"], line["verdict"]) == (
        80.0,
        5,
        5,
        "inconclusive",
    )
    assert line["spread"] == pytest.approx(statistics.stdev([80, 75, 90, 70, 85]))
    assert len(line["ids"].split()) == 5
    (line,) = read[(read.source == "difference") & (read.column == "RTE")].to_dict(
        "records"
    )
    assert (line["row"], round(line["value"], 9)) == ("VeRA r=1024", 1.3)
    (line,) = read[read.table.str.contains("minilm") & (read.column == "CoLA")].to_dict(
        "records"
    )
    assert (line["value"], line["n"], line["wanted"], line["status"]) == (
        75.0,
        2,
        5,
        "ours, incomplete",
    )
    assert pd.api.types.is_numeric_dtype(read.value)


def test_a_column_of_any_number_of_a_run_is_added_by_one_line(
    tmp_path, capsys, monkeypatch
):
    """As docs/tables.md says."""
    fact = Fact(lambda record: record["cost"].get("energy_wh"), "median")
    for columns in (FACTS_OF_FINISHED_RUNS, FACTS):
        monkeypatch.setitem(columns, "energy_wh", fact)
    row = namedtuple("RunRow", [*FACTS, "settings"])
    for module in ("frame", "command", "rows"):
        monkeypatch.setattr(f"analysis.{module}.RunRow", row)
    for seed, energy in enumerate((10.0, 30.0, 20.0)):
        one = record("vera", "rte", seed)
        one["cost"]["energy_wh"] = energy
        write_record(tmp_path, one)
    own = ["table2", "published=false", f"output={tmp_path}"]
    assert main([*own, "columns=energy_wh,peak_memory_bytes"]) == 0
    printed = capsys.readouterr().out
    assert "| energy_wh | peak_memory_bytes |" in printed
    assert "|        20 |            1.0 GB |" in printed
    with pytest.raises(
        UserError, match=r"no column 'energy_w'.*Did you mean energy_wh"
    ):
        main([*own, "columns=energy_w"])


@pytest.mark.parametrize("cost", ["seconds", *Cost.__annotations__])
def test_a_cost_of_rows_on_two_devices_is_not_shown(cost, tmp_path, capsys):
    """A cost that the schema gains is in this table, too. An adapter's size is the
    same on every device."""
    for row in ("vera", "lora"):
        measured = record(row, "rte")
        for key, kind in get_type_hints(Cost).items():
            measured["cost"].setdefault(key, 2_000.0 if kind is float else 2_000)
        if row == "lora":
            measured["device"] = {"type": "cpu", "name": "another CPU"}
        write_record(tmp_path, measured)
    main(["table2", "published=false", f"output={tmp_path}", f"columns={cost}"])
    printed = capsys.readouterr().out
    row_of_lora = next(line for line in printed.splitlines() if "LoRA r=8" in line)
    is_missing = row_of_lora.split("|")[-3].strip() == "-"
    assert is_missing == (cost != "adapter_bytes")
    assert (f"{cost}: shown for the largest group" in printed) == is_missing


def test_a_cost_that_no_run_of_a_table_has_is_a_dash(tmp_path, capsys):
    """Runs on texts have no images, and those on images no tokens."""
    for seed in range(3):
        write_record(tmp_path, record("vera", "rte", seed))
    own = ["table2", "published=false", f"output={tmp_path}"]
    main([*own, "columns=images_per_second,tokens_per_second"])
    printed = capsys.readouterr().out
    assert "| images_per_second | tokens_per_second |" in printed
    assert "|                 - |                 5 |" in printed


class CountedRecord(dict):
    """A record that can be referred to weakly."""


def test_a_table_keeps_no_record(tmp_path, capsys, monkeypatch):
    """Not its own ones, and not one that is published, too."""
    write_record(tmp_path, record("vera", "mrpc", 0, 0.5, model="minilm"))
    write_record(tmp_path, record("lora", "mrpc", 0, 0.6, model="minilm"))
    theirs = record("vera", "mrpc", 0, 0.7, model="minilm")
    monkeypatch.setattr(ledger_module, "PUBLISHED", tmp_path / "studies")
    write_study(tmp_path / "studies" / "a_study", [theirs])
    references = []
    read_whole = ledger_module.read_record

    def read_counted(*arguments):
        whole = CountedRecord(read_whole(*arguments))
        references.append(weakref.ref(whole))
        return whole

    monkeypatch.setattr(ledger_module, "read_record", read_counted)
    settings = Settings(output=str(tmp_path))
    ledger_of_rows = open_rows(settings)
    gc.collect()
    assert len(references) >= 3
    assert [reference() for reference in references] == [None] * len(references)
    own_runs, published = own_and_published(ledger_of_rows)
    assert own_runs.value.tolist() == [60, 50]
    assert published.value.tolist() == [70]
    assert "another result" in capsys.readouterr().err


def test_every_table_with_records_has_a_specification():
    assert {*specs()} == {"", *tables.TABLES} - {*tables.WITHOUT_RECORDS}


def test_latex_is_booktabs():
    """A tabular of as many columns as it says, between its rules, each row ended; what
    is no row is a comment."""
    text = render([part("table2", *complete())], "latex")
    body = [line for line in text.splitlines() if not line.startswith("%")]
    columns = re.fullmatch(r"\\begin\{tabular\}\{(l r*|lr*)\}", body[0])[1]
    rules = [r"\toprule", r"\midrule", r"\bottomrule", r"\end{tabular}"]
    assert [body[i] for i in (1, 3, -2, -1)] == rules
    for row in [body[2], *body[4:-2]]:
        assert row.endswith(r" \\")
        assert len(re.findall(r"(?<!\\)&", row)) == len(columns) - 1
    assert r"80.0 $\pm$7.9" in text


# --- against another row


def against(name, *records):
    """The lines that against=lora adds to a table of MiniLM, by their texts."""
    *_, table = tables.tables_of_ledger(
        name, ledger(*records), against="lora", models=["minilm"]
    )
    assert table.title == "minilm: each method minus LoRA r=8"
    return {
        (row[0], row[1]): dict(zip(table.header, row, strict=True))
        for row in table.rows
    }


def two_rows(x, y, task="rte"):
    """Runs of VeRA and of LoRA on MiniLM."""
    return [
        *seed_records("vera", task, x, model="minilm"),
        *seed_records("lora", task, y, model="minilm"),
    ]


def test_each_row_minus_another_has_students_mean_interval_and_p():
    x, y = (0.80, 0.83, 0.79, 0.81), (0.78, 0.82, 0.80, 0.75)
    differences = [100 * (a - b) for a, b in zip(x, y, strict=True)]
    found = against("table2", *two_rows(x, (*y, 0.9)))
    ((name, task), line), *more = found.items()
    assert (name, task, more) == ("VeRA r=1024 minus LoRA r=8", "rte", [])
    assert line["pairs"].value == 4
    assert line["mean"].value == pytest.approx(statistics.fmean(differences))
    test = scipy.stats.ttest_1samp(differences, 0)
    interval = line["95% CI"]
    assert (interval.value, interval.high) == pytest.approx(test.confidence_interval())
    assert line["p"].value == line["p (Holm)"].value == pytest.approx(test.pvalue)


def test_over_several_tasks_each_counts_once():
    records = two_rows((0.80, 0.83), (0.78, 0.82))
    records += two_rows((0.9, 0.9, 0.7), (0.8, 0.7, 0.6), "mrpc")
    found = against("table2", *records)
    assert [task for _, task in found] == ["rte", "mrpc", "all 2"]
    *each, whole = found.values()
    means = [line["mean"].value for line in each]
    assert means == pytest.approx([1.5, 40 / 3])
    assert whole["mean"].value == pytest.approx(statistics.fmean(means))
    low, high = scipy.stats.ttest_1samp(means, 0).confidence_interval()
    interval = whole["95% CI"]
    assert (interval.value, interval.high) == pytest.approx((low, high))


def test_a_row_that_is_not_in_the_table_can_be_compared_with():
    records = two_rows((0.80, 0.83), (0.78, 0.82))
    unique = seed_records("vera_unique", bests=(0.9, 0.9), model="minilm")
    names = [name for name, _ in against("table7", *records, *unique)]
    assert names == ["VeRA r=1024 minus LoRA r=8", "vera_unique minus LoRA r=8"]


def test_a_row_without_records_is_not_compared_with(tmp_path):
    for one in two_rows((0.8,), (0.7,)):
        write_record(tmp_path, one)
    with pytest.raises(UserError, match=r"no row 'lorra'.*Did you mean lora"):
        main(["table2", "against=lorra", f"output={tmp_path}", "published=false"])
    message = r"against=lora: method=vera leaves this row out. Type method=vera,lora$"
    with pytest.raises(UserError, match=message):
        main(["table2", "method=vera", "against=lora", f"output={tmp_path}"])


# --- what may stand in one column


def test_scores_that_were_measured_differently_are_never_in_one_column(published):
    """Of every table, by the runs of each number: one way of measuring a task, and one
    device, precision and data size of a cost."""
    costs = {"s/run": "seconds", "minutes": "seconds", "GB": "peak_memory_bytes"}
    measurement = published.set_index("id").measurement
    about = published.set_index("id")[["task", *COST_CONDITIONS]]
    for name in ("", *tables.TABLES):
        if name in tables.WITHOUT_RECORDS:
            continue
        for table in tables.tables_of_runs(name, published):
            for place, column in enumerate(table.header):
                entries = [row[place] for row in table.rows]
                numbers = [of for of in entries if isinstance(of, Number) and of.ids]
                if column in costs:
                    tasks = [about.loc[[*of.ids]] for of in numbers]
                    assert len({(*map(tuple, unique(of)),) for of in tasks}) < 2
                elif column in table.tasks:
                    ids = [run for of in numbers for run in of.ids]
                    ways = {str(measurement[run]) for run in ids}
                    assert len(ways) < 2, (name, table.title, column, ways)


def unique(frame):
    """The distinct rows of a frame, in one order."""
    return sorted(frame.drop_duplicates().itertuples(index=False), key=str)


@pytest.fixture(scope="module")
def published():
    """The runs that the project has published."""
    ledgers = [read_study(folder) for folder in study_folders()]
    frames = [runs(one) for one in ledgers]
    return mark_left_out(pd.concat(frames, ignore_index=True).drop_duplicates("id"))


def test_two_ways_of_measuring_are_two_columns_beside_the_papers_number():
    """The paper's number stands in both, and the average has neither."""
    small = [record("lora", "rte", seed, 0.7) for seed in range(5)]
    for one in small:
        one["data"] = one["data"] | {"train_rows": 1000}
        one["config"]["task"] |= {"train_rows": 1000}
    table = part("table2", *complete(), *small, *complete("full"))
    columns = [column for column in table.header if column.startswith("RTE")]
    assert columns == ["RTE, 10 training rows", "RTE, 1,000 training rows"]
    printed = lines(table, "paper")[-1]
    assert printed[columns[0]] == printed[columns[1]] == "78.7 +-0.7"
    by_method = {line["method"]: line for line in lines(table, "ours")}
    assert by_method["VeRA r=1024"][columns[1]] == "-"
    assert by_method["LoRA r=8"][columns[0]] == "-"
    assert by_method["LoRA r=8"][columns[1]] == "70.0 +-0.0"
    assert by_method["LoRA r=8"]["Avg"] == "-"
    found = notes(table)
    assert "trained on 1,000 rows and evaluated on 10 (lora on rte)" in found


def test_a_row_that_was_measured_in_two_ways_stands_in_both_columns():
    """Beside the paper's number stands the one nearest to the recipe, alone."""
    small = [
        record(row, "rte", seed, best, deviations=["1,000 rows"])
        for row, best in (("vera", 0.6), ("lora", 0.7))
        for seed in range(5)
    ]
    for one in small:
        one["data"] = one["data"] | {"train_rows": 1000}
        one["config"]["task"] |= {"train_rows": 1000}
        one["id"] += "-small"
    table = part("table2", *complete(), *small)
    small_column = "RTE, 1,000 training rows"
    whole_column = "RTE, 10 training rows"
    by_method = {line["method"]: line for line in lines(table, "ours")}
    row = by_method["VeRA r=1024"]
    assert row[small_column].startswith("60.0")
    assert row[whole_column] == lines(part("table2", *complete()), "ours")[0]["RTE"]
    assert row["Avg"] != "-"
    (difference,) = lines(table, "difference")
    assert difference[small_column] == "-"
    assert difference[whole_column] != "-"
    assert by_method["LoRA r=8"][small_column].startswith("70.0")
    assert by_method["LoRA r=8"][whole_column] in ("-", "missing")
    assert "other settings" not in notes(table)


def test_a_cost_is_shown_for_rows_that_share_what_it_depends_on():
    made = [record(row, task) for row in ("vera", "lora") for task in ("rte", "cola")]
    for number, one in enumerate(made):
        one["cost"]["train_seconds"] = 10.0 * number
    extra = record("full", "rte")
    (table,) = tables.tables_of_ledger("", ledger(*made, extra))
    shown = {row[0]: row[table.header.index("s/run")] for row in table.texts}
    # With evaluation, the mean of both tasks.
    assert shown == {"VeRA r=1024": "6.0", "LoRA r=8": "26", "full": "-"}
    assert "s/run: shown for the largest group of rows with the same tasks" in notes(
        table
    )
    (table,) = tables.tables_of_ledger("", ledger(*made))
    assert "s/run: shown" not in notes(table)


# --- forgetting


def test_forgetting_is_the_median_change_of_the_seeds_that_measured_it_on_one_text():
    def of(row, seed=0, after=math.nan, before=3.0, sha256="a", text="shipped"):
        one, values = (
            text_record(row, seed),
            {"before": before, "after": None if after < 0 else after},
        )
        if not math.isnan(after):
            one["result"]["forgetting"] = {
                "text": text,
                "sha256": sha256,
                "tokens": 617,
                **values,
            }
        return one

    ours = [of("vera", seed, after) for seed, after in enumerate((3.1, 3.4, 3.2))]
    ours += [of("lora", seed, 3.3, before=3.1) for seed in range(2)]
    # the other one is an older record
    ours += [of("vera_only_d", 0, 3.1), of("vera_only_d", 1)]
    ours += [of("full", 0, 9.0, sha256="b", text="b.txt"), of("bitfit", 0, -1)]
    table = tables.tables_of_ledger("table3", ledger(*ours))[0]
    assert table.header[-3:] == ["CIDEr", "forgetting", "status"]
    spread = statistics.stdev([0.1, 0.4, 0.2])
    assert {line["method"]: line["forgetting"] for line in lines(table, "ours")} == {
        "VeRA r=1024": f"+0.200 +-{spread:.3f}",
        "LoRA r=8": "+0.200 +-0.000",
        "vera_only_d": "+0.100 (1/2)",
        "full": "-",
        "bitfit": "-",
    }
    assert {
        one["forgetting"] for of in ("paper", "difference") for one in lines(table, of)
    } == {""}
    about = "after the last epoch minus the base model's (3.000 to 3.100)"
    assert about in notes(table)
    assert "The text is shipped (617 tokens)." in table.notes
    assert "forgetting on another text, not shown: full." in table.notes
    (row,) = [row for row in table.rows if row[0] == "VeRA r=1024"]
    assert row[table.header.index("forgetting")].ids == tuple(r["id"] for r in ours[:3])


# --- text of a stranger

LINES = "one\n\\input{/etc/passwd}\r| two\u2028three\t\x0bfour"
FLAT = "one \\input{/etc/passwd} | two three four"


@pytest.mark.parametrize("form", ["md", "latex"])
def test_a_label_or_deviation_with_line_breaks_stays_in_its_row_or_comment(form):
    records = [
        record(seed=seed, deviations=[LINES], model="minilm") for seed in range(5)
    ]
    for r in records:
        r["label"] = {"row": LINES, "model": LINES, "task": LINES}
    plain = [
        r | {"deviations": ["x"], "label": {"row": "x", "model": "m", "task": "t"}}
        for r in records
    ]
    table, other = (
        part("table2", *found, model="minilm") for found in (records, plain)
    )
    text = render([table], form)
    assert len(text.splitlines()) == len(render([other], form).splitlines())
    assert (
        FLAT
        if form == "md"
        else r"one \textbackslash input\{/etc/passwd\} | two three four"
    ) in text
    assert not any(line.startswith("\\input") for line in text.splitlines())


def test_a_label_keeps_its_cell_in_every_form_and_a_spreadsheet_runs_none():
    labels = ["a|b", "4-bit LoRA, r=8", "VeRA (2)", "[0, 0.1] draw"]
    table = Table(
        "t",
        ["method", "params"],
        [[label, Number(7680, form="count")] for label in labels],
    )
    markdown = render([table]).splitlines()
    assert r"| a\|b" in markdown[4]
    assert len({len(line) for line in markdown[2:8]}) == 1
    read = list(csv.reader(io.StringIO(render([table], "csv"))))
    assert [(line[3], line[7]) for line in read[1:]] == [
        (label, "7680") for label in labels
    ]
    assert r"\\" + "\n{[}0, 0.1] draw" in render([table], "latex")
    table = Table("t", ["a_b"], [["*x"], [" [a] <b>"], [r"50% & +-1 {x} \y ~"]])
    text = render([table], "latex")
    assert r"50\% \& $\pm$1 \{x\} \textbackslash y \textasciitilde" in text
    assert "\n{*}x " in text
    assert "{[}a] $<$b$>$ " in text
    evil = [
        "=cmd|' /C calc'!A0",
        "+1+cmd",
        "-2+3+cmd|' /C calc'!A0",
        "@SUM(1+1)",
        "  =1+1",
        "\t=1+1",
        "-e1",
    ]
    table = Table(
        "=t", ["@method", "=b"], [[label, Number(-0.3, sign=True)] for label in evil]
    )
    header, *read = csv.reader(io.StringIO(render([table], "csv")))
    assert header == TIDY
    assert {(line[0], line[3][0], line[5], line[7]) for line in read} == {
        ("'=t", "'", "'=b", "-0.3")
    }


# --- exact answers


def test_exact_answers_have_a_column_for_each_part_and_an_average_of_all():
    parts = dict.fromkeys(specs()["commonsense"][0].columns, 60.0) | {"boolq": 68.0}
    del parts["commonsense"]
    whole = exact_record("lora", 0, "commonsense", "llama_7b", beams=4, **parts)
    few = exact_record(
        "vera", 0, "commonsense", "llama_7b", beams=4, unread=12.0, boolq=70.0
    )
    table = part("commonsense", whole, few, model="llama_7b")
    shown = [
        [line[key] for key in ("BoolQ", "OBQA", "Avg", "unread")]
        for line in lines(table, "ours")
    ]
    assert shown == [
        ["68.0 (1)", "60.0 (1)", "61.0 (1)", "0.0"],
        ["70.0 (1)", "-", "missing", "12.0"],
    ]
    assert (
        lines(table, "ours")[0]["status"] == "ours, loss on prompt and answer, 4 beams"
    )
    # Texts that were decoded in another way are in columns of their own.
    greedy = exact_record("full", 0, "commonsense", "llama_7b", beams=1, boolq=50.0)
    table = part("commonsense", whole, few, greedy, model="llama_7b")
    assert "BoolQ, beams=1" in table.header


def test_a_diverged_seed_has_no_right_answer_and_others_stand_beside():
    diverged = exact_record("vera", 2) | {"status": "diverged", "texts": None}
    records = [
        exact_record("vera", 0),
        exact_record("vera", 1),
        diverged,
        exact_record("mine", 0, "sums", "smollm2", sums=9.0),
    ]
    maths, small = (
        of
        for of in tables.tables_of_runs("maths", runs(ledger(*records)), others="true")
        if of.ids
    )
    (ours,) = lines(maths, "ours")
    assert ours["GSM8K"] == f"40.0 +-{statistics.stdev([40, 41, 0]):.1f} (3) 1d"
    assert (small.header[3], lines(small)[0]["sums"]) == ("sums", "9.0 (1)")
    theirs = reports_of_others().query("model == 'llama3_2_3b' and column == 'gsm8k'")
    assert len(lines(maths, "others")) == theirs.row.nunique()


@pytest.mark.parametrize(
    ("record", "name", "shown"),
    [(text_record(), "BLEU", "68.0"), (exact_record(), "exact match", "40.0%")],
)
def test_a_runs_number_is_the_score_of_its_texts(record, name, shown):
    (cell,) = reported_cells(runs(ledger(record))).itertuples()
    value = float(shown.rstrip("%"))
    assert (cell.median, cell.name, cell.lower_is_better, cell.digits) == (
        value,
        f"{name}, last epoch",
        False,
        1,
    )
    assert result_words(record).endswith(f"{name} {shown} on test")
    plain = made_tables("", record)[0]
    is_named = cell.name.lower() in notes(plain).lower()
    assert (lines(plain)[0][record["cell"]["task"]], is_named) == (
        f"{value} (1)",
        True,
    )
