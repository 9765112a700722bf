"""Forgetting in tables 3 and 4: the numbers by hand, what lacks them, and what is not compared."""

import statistics

import pytest
from ledgers import ledger, record

from analysis import tables
from analysis.forgetting import change


def forgets(after, before=3.0, sha256="a", text="shipped"):
    return {"text": text, "sha256": sha256, "tokens": 617, "before": before, "after": after}


def told(row="vera", seed=0, forgetting=None, task="e2e", model="gpt2_medium", **changes):
    """A run of table 3 or 4; forgetting: of its record."""
    found = record(row, task, seed, model=model, **changes)
    found["result"]["reported"] = "last"
    if task == "e2e" and found["status"] == "done":
        entry = {"which": "last", "epoch": 3.0, "variant": "0.9", "bleu": 68.0, "nist": 8.5, "meteor": 46.0}
        entry |= {"rouge_l": 70.0, "cider": 2.4}
        found["texts"] = {"split": "test", "items": 630, "scores": [entry]}
    if task == "alpaca":
        found["config"]["task"]["family"] = "instruct"
        found["judged"] = []
    if forgetting:
        found["result"]["forgetting"] = forgetting
    return found


def column(table):
    """The column of a table by method and source."""
    at = table.header.index("forgetting")
    return {(row[0], row[1]): row[at] for row in table.texts}


def test_table_3_has_the_median_change_and_its_spread_and_says_what_the_base_model_had():
    afters = [3.1, 3.4, 3.2]
    ours = [told(seed=s, forgetting=forgets(after)) for s, after in enumerate(afters)]
    table = tables.table3(ledger(*ours, told("full")), "paper")[0]
    assert table.header[-3:] == ["CIDEr", "forgetting", "status"]
    found = column(table)
    assert found["VeRA r=1024", "ours"] == f"+0.200 +-{statistics.stdev([0.1, 0.4, 0.2]):.3f}"
    assert found["full", "ours"] == "-"  # an older record
    assert {text for (_, source), text in found.items() if source in ("paper", "difference")} == {""}
    (note,) = [note for note in table.notes if note.startswith("forgetting")]
    assert "(shipped, 617 tokens), after the last epoch less that of the base model (3.000)" in note
    row, at = [r[0] for r in table.texts].index("VeRA r=1024"), table.header.index("forgetting")
    assert table.runs[row, at] == tuple(r["id"] for r in ours)


def test_without_a_record_that_has_it_the_table_is_as_it_was():
    table = tables.table3(ledger(told(), told("full")), "paper")[0]
    assert "forgetting" not in table.header
    assert not any("forgetting" in note for note in table.notes)


@pytest.mark.parametrize("model", ["llama_7b", "smollm2"])
def test_table_4_has_it_before_a_judge_has_seen_the_answers(model):
    ours = [told("vera", 0, forgetting=forgets(2.5), task="alpaca", model=model)]
    table = next(t for t in tables.table4(ledger(*ours), "paper", 1) if t.model == model)
    assert column(table)["VeRA r=1024", "ours"] == "-0.500"
    assert table.header[-1] == "status"


def test_seeds_that_lack_it_and_other_texts_are_not_mixed_in():
    ours = [told(seed=0, forgetting=forgets(3.1)), told(seed=1)]
    ours += [told("full", 0, forgetting=forgets(9.0, sha256="b", text="b.txt"))]
    ours += [told("lora", s, forgetting=forgets(3.3, before=3.1)) for s in range(2)]
    ours += [told("bitfit", 0, forgetting=forgets(None))]
    table = tables.table3(ledger(*ours), "paper")[0]
    found = column(table)
    assert found["VeRA r=1024", "ours"] == "+0.100 (1/2)"
    assert found["full", "ours"] == found["bitfit", "ours"] == "-"
    assert found["LoRA r=8", "ours"] == "+0.200 +-0.000"
    assert "forgetting on another text, not shown: full." in table.notes
    assert any("(3.000 to 3.100)" in note for note in table.notes)


def test_a_change_that_is_not_finite_is_none():
    assert change(told(forgetting=forgets(None))) is None
    assert change(told(forgetting=forgets(3.5))) == 0.5
    assert change(told()) is None


@pytest.mark.parametrize("form", ["md", "latex", "csv"])
def test_in_every_format(form):
    ours = [told(seed=s, forgetting=forgets(3.1 + s / 10)) for s in range(3)]
    text = tables.table3(ledger(*ours), "paper")[0].render(form, True)
    assert ("+0.200,0.100," if form == "csv" else "+0.200") in text
