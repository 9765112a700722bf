"""What the first page of the results answers besides the findings, and the command that
prints the findings."""

from dataclasses import replace
from pathlib import Path

import pytest
from ledgers import ledger
from small import minilm_records_by_row

from analysis import tables
from analysis.findings import claims_table, main, tables_by_task
from analysis.frame import runs
from analysis.inference import Verdict
from analysis.paired import paired_differences
from analysis.render import p_value
from analysis.results.answers import (
    SmallAdapter,
    SmallAdapters,
    costs_of,
    single_task,
    small_adapters,
)
from analysis.results.claims import Comparison, Finding, claims
from analysis.results.findings import findings
from analysis.results.pages import PublishedStudy, all_runs, overview, readme_block
from analysis.results.study_rows import rows_over_tasks, study_rows
from analysis.results.templates import interval_text, signed
from runs.command.errors import UserError
from runs.record.ledger import PUBLISHED, ROOT, read_study

pytestmark = pytest.mark.properties

TASKS = ("mrpc", "sst2")
#: Of three seeds of a row, and of another one above it.
SCORES, HIGHER = (0.70, 0.71, 0.72), (0.73, 0.73, 0.76)
#: Ten rows of about one size, and one that is far below.
PEERS = {f"lora_r{rank}": 0.70 + rank / 1000 for rank in range(1, 11)}


def of_rows(*tasks, **scores):
    made = []
    for task in tasks:
        made += minilm_records_by_row(task, **scores)
    return ledger(*made)


def near_lora(of_ledger):
    compared = findings(runs(of_ledger))
    return next(item for item in compared if item.opponent == "LoRA")


def records_with_costs(device="cpu"):
    """VeRA takes one and a half times as long as LoRA on MRPC, half as long on SST-2."""
    of_ledger = of_rows(*TASKS, vera=(0.8, 0.81), lora=(0.8, 0.82))
    for record in of_ledger:
        is_vera = record["cell"]["row"] == "vera"
        on_mrpc = record["cell"]["task"] == "mrpc"
        seconds = (15 if on_mrpc else 5) if is_vera else 10
        size = 100 if is_vera else 400
        cost = {"train_seconds": seconds, "adapter_bytes": size}
        record["cost"] = {**record["cost"], **cost}
        name = device if is_vera else "cpu"
        record["device"] = {**record["device"], "name": name}
    return of_ledger


def test_costs_are_medians_over_pairs_of_one_kind_of_processor():
    of_ledger = records_with_costs()
    costs = costs_of(near_lora(of_ledger), runs(of_ledger))
    assert sorted(costs.time_ratios.values()) == [0.5, 1.5]
    assert costs.median_time_ratio == 1.0
    assert [costs.time_ratios[task] for task in costs.extreme_tasks] == [0.5, 1.5]
    assert costs.size_range == (0.25, 0.25)


def test_costs_of_different_processors_are_unknown():
    of_ledger = records_with_costs(device="another")
    assert costs_of(near_lora(of_ledger), runs(of_ledger)) is None


def test_one_task_has_the_numbers_that_its_table_prints_and_both_ps():
    """The table compares two rows with LoRA, so p (Holm) is larger than p."""
    of_ledger = of_rows("mrpc", vera=SCORES, lora=HIGHER, full=(0.5, 0.91, 0.75))
    frame = runs(of_ledger)
    example = single_task(near_lora(of_ledger), frame)
    (table,) = tables._difference_tables(frame, "lora", "ours")
    (line,) = [line for line in table.texts if line[0].startswith("VeRA")]
    assert line[2:] == [
        str(example.pairs),
        signed(example.mean),
        interval_text(example.interval),
        p_value(example.p),
        p_value(example.holm),
    ]
    assert (example.pairs, example.comparisons) == (3, 2)
    assert example.p < example.holm
    text = readme_block(findings(frame), example)
    assert f"p {line[5]}), a mean over 3 pairs of runs" in " ".join(text.split())
    assert f"For two rows (Holm): {line[6]}" in " ".join(text.split())
    page = overview(findings(frame), example=example)
    assert f"Holm's correction, which is {line[6]} here" in page


@pytest.mark.parametrize(("task", "is_said"), [("mrpc", True), ("sst2", False)])
def test_a_question_that_was_asked_later_is_said_to_be(task, is_said):
    """Of MRPC on MiniLM, whose study's page tells how its seeds were chosen."""
    of_ledger = of_rows(task, vera=SCORES, lora=HIGHER, full=(0.5, 0.91, 0.75))
    frame = runs(of_ledger).assign(model="minilm")
    made = findings(frame)
    example = single_task(next(item for item in made if item.opponent == "LoRA"), frame)
    block = " ".join(readme_block(made, example).split())
    assert (
        "a planned test; we [added seeds later](docs/results/glue_minilm.md)" in block
    ) == is_said
    page = overview(made, example=example)
    assert ("added seeds after seeing" in page) == is_said
    assert "They do not cover other dev rows, another A and B" in page


def test_the_page_on_statistics_has_the_p_of_each_selection():
    """Of VeRA and LoRA on MRPC, by the published runs."""
    frame = runs(read_study(PUBLISHED / "glue_minilm"))
    frame = frame[frame.task == "mrpc"]
    two_rows = frame[frame.row.isin(["vera", "lora"])]
    selections = {
        "row=lora": (frame, "lora", "vera"),
        "row=vera": (frame, "vera", "lora"),
        "method=vera,lora": (two_rows, "vera", "lora"),
    }
    texts = []
    for words, (selected, row, other_row) in selections.items():
        lines = paired_differences(selected, row)
        (line,) = lines[lines.other == other_row].itertuples()
        assert p_value(line.p) == "0.035"
        texts.append(f"{p_value(line.holm)} with `{words}`")
    page = " ".join((ROOT / "docs/stats.md").read_text().split())
    assert (
        f"{texts[0]}, {texts[1]} and {texts[2]}, all from the same p of 0.035" in page
    )


def test_one_task_with_one_comparison_has_one_p():
    of_ledger = of_rows("mrpc", vera=SCORES, lora=HIGHER)
    frame = runs(of_ledger)
    example = single_task(near_lora(of_ledger), frame)
    assert example.p == example.holm
    text = readme_block(findings(frame), example) + overview(findings(frame))
    assert "Holm)" not in text
    assert "Which p" not in text


def test_rows_of_about_veras_size_are_ordered_by_their_means():
    scores = {row: (mean, mean + 0.01) for row, mean in PEERS.items()}
    of_ledger = of_rows(*TASKS, vera=(0.7, 0.71), **scores)
    for record in of_ledger:
        # the highest row is too large to be one of them
        large = record["cell"]["row"] == "lora_r10"
        record["parameters"]["adapter"] = 9_000 if large else 1_000
    frame = runs(of_ledger)
    rows = study_rows(frame)
    compared = rows_over_tasks(rows.poolable)
    small = small_adapters(compared, rows.cells)
    assert small.vera_parameters == 1_000
    assert small.parameters == (1_000, 1_000)
    means = [row.difference.mean for row in small.rows]
    assert len(means) == 9
    assert means == sorted(means, reverse=True)
    assert means[0] == pytest.approx(0.9)
    assert len(small.top) == 3
    assert small.unpooled == ()
    without_highest = replace(compared, means=compared.means.drop("lora_r9"))
    assert small_adapters(without_highest, rows.cells).unpooled == ("lora_r9",)
    assert small_adapters(None, rows.cells) is None


def test_a_row_is_above_or_below_only_after_correction():
    class Difference:
        mean = 1.0

    def row(p, sign=1):
        difference = Difference()
        difference.mean = float(sign)
        return SmallAdapter("a", 1, difference, p)

    rows_of_both = SmallAdapters((), 1, (row(0.01), row(0.2), row(0.01, sign=-1)))
    assert [len(rows_of_both.above), len(rows_of_both.below)] == [1, 1]


# --- the command


def test_the_table_of_claims_has_the_difference_and_the_verdict():
    compared = findings(runs(of_rows("mrpc", vera=(0.7, 0.71), lora=(0.72, 0.73))))
    table = claims_table(compared)
    columns = ["model-task combinations", "difference", "95% CI", "verdict"]
    assert table.header == ["claim", *columns]
    assert table.texts[0][:3] == ["1. VeRA is as good as LoRA", "1", "-2.0"]
    assert table.notes[-1].startswith("A verdict is of one claim over all its tasks")
    assert max(map(len, table.notes)) <= 200


def test_a_claim_task_by_task_ends_with_its_mean_and_names_what_is_left_out():
    of_ledger = of_rows(*TASKS, vera=(0.8, 0.81), lora=(0.82, 0.85))
    published = of_rows("cola", vera=(0.7, 0.71)).records
    of_ledger.records |= published
    of_ledger.origin |= dict.fromkeys(published, "a study")
    by_task, exclusions = tables_by_task(findings(runs(of_ledger)), 1)
    assert [line[1:3] for line in by_task.texts] == [["2", "-3.0"]] * 2 + [["", "-3.0"]]
    assert [line[2] for line in exclusions.texts] == ["no own run of lora"]


def test_your_own_run_of_one_row_is_not_in_a_claims_list_of_what_is_left_out():
    """Two rows without a common seed are an attempt at the claim, and are named."""
    of_ledger = of_rows(*TASKS, vera=(0.8, 0.81), lora=(0.82, 0.85))
    of_ledger.records |= of_rows("cola", vera=(0.7, 0.71)).records
    (by_task,) = tables_by_task(findings(runs(of_ledger)), 1)
    assert by_task.texts[-1][0] == "mean"
    of_lora = of_rows("cola", lora=(0.8, 0.81, 0.82, 0.83)).records
    of_ledger.records |= dict([*of_lora.items()][2:])
    _, exclusions = tables_by_task(findings(runs(of_ledger)), 1)
    assert [line[::2] for line in exclusions.texts] == [
        ["ours", "no pair of one seed on the same data"]
    ]


def test_a_claim_keeps_its_number_whichever_runs_are_selected():
    compared = findings(runs(of_rows("mrpc", vera=(0.7, 0.71), full=(0.72, 0.73))))
    table = claims_table(compared)
    name = "3. VeRA is as good as full fine-tuning"
    assert [line[0] for line in table.texts] == [name]
    (by_task, *_) = tables_by_task(compared, 3)
    assert by_task.title.startswith(name)


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (0, "claim=0: there are 15"),
        (16, "claim=16: there are 15"),
        (9, r"claim=9 \(shared .*\): no finding on these runs. There are: 1$"),
    ],
)
def test_a_claim_that_is_not_there_is_refused_with_those_that_are(number, message):
    compared = findings(runs(of_rows("mrpc", vera=(0.7,), lora=(0.72,))))
    with pytest.raises(UserError, match=message):
        tables_by_task(compared, number)


def test_a_claim_that_is_measured_without_pairs_shows_what_was_measured():
    claim = claims()[14]
    fit = Comparison(
        claim,
        model="",
        task="",
        model_label="",
        task_label="matrices",
        family="",
        sides=(),
        verdict=Verdict.CONTRADICTED,
        numbers={"equal": 4, "counts": 10},
    )
    finding = Finding(claim, "", (fit,), Verdict.CONTRADICTED)
    (table,) = tables_by_task([finding], 15)
    assert table.title == "15. equal fits of random matrices: contradicted"
    measured = ["matrices", "-", "equal at 4 of 10 counts", "contradicted"]
    assert table.texts == [measured]
    assert table.notes == ["This claim is measured without pairs of runs."]


def test_without_two_rows_the_command_says_what_to_run(tmp_path):
    with pytest.raises(UserError, match=r"no two rows .*make demo"):
        main([f"output={tmp_path}", "published=false"])


def test_a_study_without_records_changes_no_column():
    studies = [
        PublishedStudy(Path(name), runs(of_ledger), of_ledger)
        for name, of_ledger in (
            ("a", of_rows("mrpc", vera=SCORES, lora=HIGHER)),
            ("empty", ledger()),
        )
    ]
    assert all_runs(studies).dtypes.equals(all_runs(studies[:1]).dtypes)
