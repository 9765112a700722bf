"""Columns beside a table's own: the difference to another row, and forgetting."""

import statistics

import pytest
from ledgers import ledger, lines, seeds, texts
from scipy import stats

from analysis import tables
from analysis.render import Number
from analysis.tables.__main__ import main
from runs.errors import UserError
from runs.record import write_record

pytestmark = pytest.mark.properties


def test_a_column_with_the_name_of_a_tables_own_stands_beside_it():
    (table, *_) = tables.make("table3", ledger(*(texts("vera", seed) for seed in range(3))), columns=["bleu"])
    (row,) = [row for row in table.texts if row[:2] == ["VeRA r=1024", "ours"]]
    assert row[table.header.index("BLEU")] == "68.0 +-0.0"
    assert row[table.header.index("bleu")] == "68"


# --- against another row


def against(name, *records):
    """The differences to LoRA in a table of MiniLM, by method."""
    (table,) = (t for t in tables.make(name, ledger(*records), against="lora") if t.model == "minilm")
    return {row[0]: row[table.header.index("against lora")] for row in table.rows}


def test_each_row_has_its_mean_difference_to_another_with_students_interval(tmp_path):
    def of(x, y, task="rte"):
        return [*seeds("vera", task, x, model="minilm"), *seeds("lora", task, y, model="minilm")]

    x, y = (0.80, 0.83, 0.79, 0.81), (0.78, 0.82, 0.80, 0.75)
    records, differences = of(x, (*y, 0.9)), [100 * (a - b) for a, b in zip(x, y, strict=True)]
    found = against("table2", *records)
    assert (found["LoRA r=8"], found["VeRA r=1024"].value) == (
        "-",
        pytest.approx(statistics.fmean(differences)),
    )
    half = stats.t.ppf(0.975, 3) * statistics.stdev(differences) / 2
    assert found["VeRA r=1024"].spread == pytest.approx(half)
    # A seed that was measured on other data is no pair
    unlike = seeds("vera", bests=(*x, 0.9), model="minilm")
    unlike[4]["data"] = unlike[4]["data"] | {"dev_rows": 20}
    assert against("table2", *unlike, *records[4:])["VeRA r=1024"].value == found["VeRA r=1024"].value
    # Over two tasks: the mean of their differences
    two = against("table2", *records, *of((0.9, 0.9), (0.8, 0.7), "mrpc"))
    assert two["VeRA r=1024"].value == pytest.approx((statistics.fmean(differences) + 15.0) / 2)
    # In a table without that row, too
    unique = seeds("vera_unique", bests=(0.9, 0.9, 0.9, 0.9), model="minilm")
    assert all(isinstance(entry, Number) for entry in against("table7", *records, *unique).values())
    for one in records:
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
    """The column of a table by method."""
    return {line["method"]: line["forgetting"] for line in lines(table, "ours")}


def test_table_3_has_the_median_change_and_its_spread_and_says_what_the_base_model_had():
    afters = [3.1, 3.4, 3.2]
    ours = [told(seed=s, forgetting=forgets(after)) for s, after in enumerate(afters)]
    table = tables.make("table3", ledger(*ours, told(row="full")))[0]
    assert table.header[-3:] == ["CIDEr", "forgetting", "status"]
    spread = statistics.stdev([0.1, 0.4, 0.2])  # the other one is an older record
    assert forgotten(table) == {"VeRA r=1024": f"+0.200 +-{spread:.3f}", "full": "-"}
    assert {one["forgetting"] for of in ("paper", "difference") for one in lines(table, of)} == {""}
    (note,) = [note for note in table.notes if note.startswith("forgetting")]
    assert "(shipped, 617 tokens), after the last epoch less that of the base model (3.000)" in note
    (row,) = [row for row in table.rows if row[0] == "VeRA r=1024"]
    assert row[table.header.index("forgetting")].ids == tuple(r["id"] for r in ours)


def test_seeds_that_lack_it_and_other_texts_are_not_mixed_in():
    ours = [told(seed=0, forgetting=forgets(3.1)), told(seed=1)]
    ours += [told(0, forgets(9.0, sha256="b", text="b.txt"), "full")]
    ours += [told(s, forgets(3.3, before=3.1), "lora") for s in range(2)]
    ours += [told(0, forgets(None), "bitfit")]
    table = tables.make("table3", ledger(*ours))[0]
    found = forgotten(table)
    assert (found["VeRA r=1024"], found["LoRA r=8"]) == ("+0.100 (1/2)", "+0.200 +-0.000")
    assert found["full"] == found["bitfit"] == "-"
    assert "forgetting on another text, not shown: full." in table.notes
    assert any("(3.000 to 3.100)" in note for note in table.notes)
