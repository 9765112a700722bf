"""Columns beside a table's own: the cost score (PEFT-Bench's printed table from its numbers, and by hand),
and forgetting."""

import math
import re
import statistics

import pytest
from ledgers import ledger, of_metric, record, seeds
from running import ROOT
from scipy import stats

from analysis import tables
from analysis.facts import PEFT_STAYS, added_flops
from analysis.frame import runs
from analysis.tables.__main__ import main
from analysis.tables.columns import PUBLISHED, Costs, pscp
from runs.errors import UserError
from runs.record import write_record

#: Table 3 of PEFT-Bench: the mean metric, parameters, TFLOPs beyond the base model's and GB, and the PSCP.
PRINTED = {
    "IA3": (74.7, 196_608, 8.69 - 8.38, 28.41, 55.62),
    "Prompt Tuning": (50.0, 409_600, 10.05 - 8.38, 42.47, 29.49),
    "Prefix Tuning": (45.9, 34_177_536, 8.39 - 8.38, 27.61, 33.18),
    "P-Tuning": (51.7, 53_130_752, 10.06 - 8.38, 34.53, 29.26),
    "LoRA": (80.1, 14_680_064, 0.0, 27.75, 60.08),
    "LNTuning": (77.8, 266_240, 0.0, 27.43, 60.19),
}


@pytest.mark.parametrize("method", PRINTED)
def test_the_papers_table_comes_of_its_numbers(method):
    points, parameters, tera, giga, printed = PRINTED[method]
    assert pscp(points, Costs(parameters, tera * 1e12, giga * 1e9), PUBLISHED) == pytest.approx(
        printed, abs=0.006
    )


def of_kind(row, kind, parameters, memory, bests=(0.8, 0.82, 0.81, 0.8, 0.8), **changes):
    found = seeds(row, bests=bests, model="minilm", **changes)
    for one in found:
        one["config"]["method"] = {"kind": kind, "rank": 8}
        one["parameters"] |= {"adapter": parameters, "total": 20_000_000 + parameters}
        one["cost"]["peak_memory_bytes"] = memory
    return found


def column(table):
    at = table.header.index("cost score")
    return {row[0]: row[at] for row in table.texts if row[0]}


ROWS = [
    *of_kind("vera", "vera", 7_680, 10**9),
    *of_kind("adapter_p", "adapter", 76_128, 2 * 10**9, bests=(0.9, 0.9, 0.8)),
    *of_kind("vera", "vera", 7_680, 3 * 10**9, bests=(0.7, 0.7, 0.7, 0.7, 0.7), task="mrpc"),
]


def scored(records, cost="paper", name="table2"):
    """The table of MiniLM with its cost scores."""
    return next(t for t in tables.make(name, records, cost=cost) if t.model == "minilm")


def test_a_table_has_it_over_the_tasks_that_all_rows_have():
    table = scored(ledger(*ROWS))
    assert table.header[-2:] == ["cost score", "status"]
    vera = 80.0 / ((1 + 7_680 / 5e8) * (1 + 1 / 94))
    adapter = 90.0 / ((1 + 76_128 / 5e8) * (1 + 2 * 512 * 76_128 / 10e12) * (1 + 2 / 94))
    assert column(table) == {"VeRA r=1024": f"{vera:.1f}", "adapter_p": f"{adapter:.1f}"}
    told = "PSCP of PEFT-Bench over RTE (the tasks that every row here has); its constants are 5e+08"
    assert f"cost score: {told}" in table.notes[-1]
    (row,) = [row for row in table.rows if row[0] == "VeRA r=1024"]
    assert set(row[table.header.index("cost score")].ids) == {r["id"] for r in ROWS[:5]}
    published = ledger(*ROWS)
    published.origin.update(dict.fromkeys(published.origin, "study"))
    assert column(scored(published)) == column(table)
    assert "cost score" not in scored(published, "none").header


def test_the_constants_of_the_model_and_the_means_over_several_tasks():
    table, total = scored(ledger(*ROWS), "model"), 20_000_000 + 7_680
    vera = 80.0 / ((1 + 7_680 / total) * (1 + 1 / 2))
    adapter = 90.0 / ((1 + 76_128 / total) * (1 + 76_128 / total) * (1 + 1))
    assert column(table) == {"VeRA r=1024": f"{vera:.1f}", "adapter_p": f"{adapter:.1f}"}
    assert table.notes[-1].endswith("and 2 GB.")
    table = scored(ledger(*(r for r in ROWS if r["cell"]["row"] == "vera")))
    wanted = statistics.fmean([80.0, 70.0]) / ((1 + 7_680 / 5e8) * (1 + 2 / 94))
    assert column(table)["VeRA r=1024"] == f"{wanted:.1f}"
    assert "over MRPC, RTE;" in table.notes[-1]


def test_a_row_of_ours_below_the_papers_has_one_too():
    """Tables 6 and 7 name a setting once, in the paper's row."""
    made = [r for row in ("vera", "vera_only_d") for r in seeds(row, model="roberta_large")]
    for one in made:
        one["parameters"] |= {"total": 355_000_000}
        one["config"]["method"] |= {"kind": "vera"}
    (table,) = (t for t in tables.make("table6", ledger(*made), cost="paper") if "scaling" in t.title)
    at = table.header.index("cost score")
    ours = [row[at] for row in table.texts if row[1] == "ours"]
    assert len(ours) == 2
    assert all(float(score) > 70 for score in ours)


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


def test_what_is_not_known_is_a_dash():
    rows = of_kind("vera", "vera", 7_680, 10**9)
    rows += of_kind("mine", "my_own", 100, 10**9) + of_kind("lora", "lora", 73_728, None)
    for one in rows[-5:]:
        del one["cost"]["peak_memory_bytes"]
    found = column(scored(ledger(*rows)))
    assert (found["mine"], found["LoRA r=8"]) == ("-", "-")
    assert found["VeRA r=1024"] not in ("-", "")


def test_a_perplexity_has_none_and_the_note_says_so():
    one = record("vera", "alpaca", values=[5.0], model="smollm2")
    one["config"]["task"]["family"] = "instruct"
    one["result"] |= of_metric("perplexity")
    (table,) = tables.make("", ledger(one), cost="model")
    assert column(table) == {"VeRA r=1024": "-"}
    assert table.notes[-1].startswith("cost score: no row has one (the metric is no percentage")


@pytest.mark.parametrize("name", ["table1", "table8", "demo"])
def test_a_table_without_it_is_refused_in_one_line(name, tmp_path):
    with pytest.raises(UserError, match=f"^cost=model: {name} has no row with a cost score$"):
        main([name, "cost=model", f"output={tmp_path}"])
    with pytest.raises(UserError, match=r"^cost=true: should be one of none, paper, model"):
        main(["table2", "cost=true", f"output={tmp_path}"])


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
    for one in of:
        write_record(tmp_path, one)
    with pytest.raises(UserError, match=r"no row 'lorra'.*Did you mean lora"):
        main(["table2", "against=lorra", f"output={tmp_path}", "published=false"])


# --- forgetting


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


def forgotten(table):
    """The column of a table by method and source."""
    at = table.header.index("forgetting")
    return {(row[0], row[1]): row[at] for row in table.texts}


def test_table_3_has_the_median_change_and_its_spread_and_says_what_the_base_model_had():
    afters = [3.1, 3.4, 3.2]
    ours = [told(seed=s, forgetting=forgets(after)) for s, after in enumerate(afters)]
    table = tables.make("table3", ledger(*ours, told("full")))[0]
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
    ours = [told("vera", 0, forgetting=forgets(2.5), task="alpaca", model=model)]
    table = next(t for t in tables.make("table4", ledger(*ours), seeds=1) if t.model == model)
    assert forgotten(table)["VeRA r=1024", "ours"] == "-0.500"
    assert table.header[-1] == "status"


def test_seeds_that_lack_it_and_other_texts_are_not_mixed_in():
    ours = [told(seed=0, forgetting=forgets(3.1)), told(seed=1)]
    ours += [told("full", 0, forgetting=forgets(9.0, sha256="b", text="b.txt"))]
    ours += [told("lora", s, forgetting=forgets(3.3, before=3.1)) for s in range(2)]
    ours += [told("bitfit", 0, forgetting=forgets(None))]
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
