"""Columns beside a table's own: what inference costs more, the difference to another row, and forgetting."""

import math
import re
import statistics

import pytest
from ledgers import instructed, ledger, seeds, texts
from running import ROOT
from scipy import stats

from analysis import tables
from analysis.facts import PEFT_STAYS, added_flops
from analysis.frame import runs
from analysis.render import Number
from analysis.tables.__main__ import main
from runs.errors import UserError
from runs.record import write_record

pytestmark = pytest.mark.properties


@pytest.mark.parametrize(
    ("method", "flops"),
    [
        ({"kind": "lora"}, 0.0),
        ({"kind": "full"}, 0.0),
        ({"kind": "adapter"}, 2 * 512 * 100),
        ({"kind": "peft", "config_class": "LoraConfig"}, 0.0),
        ({"kind": "peft", "config_class": "LilyConfig"}, math.nan),
        ({"kind": "my_own"}, math.nan),
    ],
    ids=str,
)
def test_what_inference_costs_more(method, flops):
    record = {"config": {"method": method}, "parameters": {"adapter": 100}}
    record["config"]["model"] = {}
    assert added_flops(record) == pytest.approx(flops, nan_ok=True)


def test_an_adapter_that_blocks_share_is_computed_in_each():
    method, model = {"kind": "adapter", "share": True}, {"architecture": {"num_hidden_layers": 12}}
    record = {"config": {"method": method, "model": model}, "parameters": {"adapter": 100}}
    assert added_flops(record) == 12 * 2 * 512 * 100
    assert math.isnan(added_flops(record | {"config": {"method": method, "model": {}}}))


def test_classes_of_peft_merge_as_the_page_of_methods_says():
    page = (ROOT / "docs" / "methods.md").read_text().partition("## Classes of peft")[2]
    letters = dict(re.findall(r"^\| (\w+Config) +\| \S+ +\| (\S+)", page, re.M))  # on RoBERTa
    assert len(letters) > 40
    assert {name for name, of in letters.items() if of[0] == "T" and of[1] != "M"} == PEFT_STAYS


def test_a_column_with_the_name_of_a_tables_own_stands_beside_it():
    (table, *_) = tables.make("table3", ledger(*(texts("vera", seed) for seed in range(3))), columns=["bleu"])
    (row,) = [row for row in table.texts if row[:2] == ["VeRA r=1024", "ours"]]
    assert row[table.header.index("BLEU")] == "68.0 +-0.0"
    assert row[table.header.index("bleu")] == "68"


# --- against another row


def test_each_row_has_its_mean_difference_to_another_with_students_interval(tmp_path):
    x, y = (0.80, 0.83, 0.79, 0.81), (0.78, 0.82, 0.80, 0.75)
    of = [*seeds("vera", bests=x, model="minilm"), *seeds("lora", bests=(*y, 0.9), model="minilm")]
    (table,) = (t for t in tables.make("table2", ledger(*of), against="lora") if t.model == "minilm")
    entries = {row[0]: row[table.header.index("against lora")] for row in table.rows}
    differences = [100 * (a - b) for a, b in zip(x, y, strict=True)]
    assert entries["LoRA r=8"] == "-"
    assert entries["VeRA r=1024"].value == pytest.approx(statistics.fmean(differences))
    half = stats.t.ppf(0.975, 3) * statistics.stdev(differences) / 2
    assert entries["VeRA r=1024"].spread == pytest.approx(half)
    # Over two tasks: the mean of their differences
    more = [
        *seeds("vera", "mrpc", (0.9, 0.9), model="minilm"),
        *seeds("lora", "mrpc", (0.8, 0.7), model="minilm"),
    ]
    (table,) = (t for t in tables.make("table2", ledger(*of, *more), against="lora") if t.model == "minilm")
    entries = {row[0]: row[table.header.index("against lora")] for row in table.rows}
    assert entries["VeRA r=1024"].value == pytest.approx((statistics.fmean(differences) + 15.0) / 2)
    # In a table without that row, too
    unique = seeds("vera_unique", bests=(0.9, 0.9, 0.9, 0.9), model="minilm")
    table, _ = tables.make("table7", ledger(*of, *unique), against="lora")
    assert all(isinstance(row[table.header.index("against lora")], Number) for row in table.rows)
    for one in of:
        write_record(tmp_path, one)
    with pytest.raises(UserError, match=r"no row 'lorra'.*Did you mean lora"):
        main(["table2", "against=lorra", f"output={tmp_path}", "published=false"])


# --- forgetting


def forgets(after, before=3.0, sha256="a", text="shipped"):
    return {"text": text, "sha256": sha256, "tokens": 617, "before": before, "after": after}


def told(seed=0, forgetting=None, row="vera"):
    """A run of table 3; forgetting: of its record."""
    found = texts(row, seed)
    found["result"] |= {"forgetting": forgetting} if forgetting else {}
    return found


def forgotten(table):
    """The column of a table by method and source."""
    at = table.header.index("forgetting")
    return {(row[0], row[1]): row[at] for row in table.texts}


def test_table_3_has_the_median_change_and_its_spread_and_says_what_the_base_model_had():
    afters = [3.1, 3.4, 3.2]
    ours = [told(seed=s, forgetting=forgets(after)) for s, after in enumerate(afters)]
    table = tables.make("table3", ledger(*ours, told(row="full")))[0]
    assert table.header[-3:] == ["CIDEr", "forgetting", "status"]
    found = forgotten(table)
    assert found["VeRA r=1024", "ours"] == f"+0.200 +-{statistics.stdev([0.1, 0.4, 0.2]):.3f}"
    assert found["full", "ours"] == "-"  # an older record
    assert {text for (_, source), text in found.items() if source in ("paper", "difference")} == {""}
    (note,) = [note for note in table.notes if note.startswith("forgetting")]
    assert "(shipped, 617 tokens), after the last epoch less that of the base model (3.000)" in note
    (row,) = [row for row in table.rows if row[0] == "VeRA r=1024"]
    assert row[table.header.index("forgetting")].ids == tuple(r["id"] for r in ours)


@pytest.mark.parametrize("model", ["llama_7b", "smollm2"])
def test_table_4_has_it_before_a_judge_has_seen_the_answers(model):
    ours = instructed(model=model)
    ours["result"]["forgetting"] = forgets(2.5)
    table = next(t for t in tables.make("table4", ledger(ours), seeds=1) if t.model == model)
    assert forgotten(table)["VeRA r=1024", "ours"] == "-0.500"
    assert table.header[-1] == "status"


def test_seeds_that_lack_it_and_other_texts_are_not_mixed_in():
    ours = [told(seed=0, forgetting=forgets(3.1)), told(seed=1)]
    ours += [told(0, forgets(9.0, sha256="b", text="b.txt"), "full")]
    ours += [told(s, forgets(3.3, before=3.1), "lora") for s in range(2)]
    ours += [told(0, forgets(None), "bitfit")]
    table = tables.make("table3", ledger(*ours))[0]
    found = forgotten(table)
    assert found["VeRA r=1024", "ours"] == "+0.100 (1/2)"
    assert found["full", "ours"] == found["bitfit", "ours"] == "-"
    assert found["LoRA r=8", "ours"] == "+0.200 +-0.000"
    assert "forgetting on another text, not shown: full." in table.notes
    assert any("(3.000 to 3.100)" in note for note in table.notes)


def test_a_change_that_is_not_finite_is_none():
    frame = runs(
        ledger(told(seed=0, forgetting=forgets(None)), told(seed=1, forgetting=forgets(3.5)), told(seed=2))
    )
    assert frame.forgetting.tolist() == pytest.approx([math.nan, 0.5, math.nan], nan_ok=True)
