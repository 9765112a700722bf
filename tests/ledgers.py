"""Records as runs/ writes them, and ledgers of them, for the tests of analysis/; and
what a table should say of them."""

import math
import statistics
from pathlib import Path

import scipy.stats
import yaml

from analysis import tables
from analysis.frame import cells, runs
from runs.record.ledger import Ledger
from runs.record.schema import SCHEMA

#: Exact parameter counts of the paper's rows. A record with another count would be a row
#: of another size, which is not compared with the paper's.
COUNTS = yaml.safe_load(
    (Path(__file__).parent.parent / "conf" / "counts.yaml").read_text()
)
#: The label of a row, model or task, where it differs from the name.
LABELS = {
    "vera": "VeRA r=1024",
    "lora": "LoRA r=8",
    "rte": "RTE",
    "roberta_base": "RoBERTa-base",
    "minilm": "MiniLM",
}
#: The count of VeRA on RoBERTa-base, for rows that the paper does not have.
OTHER_COUNT = 43008


def parameter_count(model, row):
    """Trained parameters without the head: those of the paper's row, or OTHER_COUNT where
    it has no such row."""
    if row in ("head", "none"):
        return 0
    name = row.removesuffix("_mnli")
    for entry in COUNTS:
        name_with_rank = f"{entry['method']}_r{entry['settings'].get('rank')}"
        if entry["model"] == model and name in (entry["method"], name_with_rank):
            return entry["count"]
    return OTHER_COUNT


def metric_fields(name):
    """A result's fields about its metric and the epoch that tables report: the last one for
    a perplexity."""
    if name == "perplexity":
        return {
            "metric": name,
            "higher_is_better": False,
            "scale": 1.0,
            "reported": "last",
        }
    return {
        "metric": name,
        "higher_is_better": True,
        "scale": 100.0,
        "reported": "best",
    }


def record(
    row="vera",
    task="rte",
    seed=0,
    best=0.8,
    last=0.79,
    model="roberta_base",
    status="done",
    lr=1e-2,
    deviations=(),
    values=None,
    **changes,
):
    """One record.

    Args:
        best, last: the dev metric at its best epoch, which is the second of three, and at
            the last one.
        values: the dev metric of all epochs in place of these; the best is selected. None
            of them for a run that diverged or failed before the first epoch ended.
        changes: further fields, or others in place of those here.

    Half A of the dev rows lies 0.02 above the metric and half B 0.02 below, so that the
    cross-fitted number is the metric itself. `with_halves` gives them other values."""
    if values is None:
        values = [best - 0.2, best, last]
        best_index = 1
    else:
        values = list(values)
        best_index = values.index(max(values)) if values else 0
    selected = dict.fromkeys(("best", "best_epoch", "last"))
    protocols = {}
    if values:
        selected = {
            "best": values[best_index],
            "best_epoch": best_index + 1.0,
            "last": values[-1],
        }
        protocols = {"paper": selected}
    epochs = [i + 1.0 for i in range(len(values))]
    names = {"row": row, "model": model, "task": task}
    return {
        "schema": SCHEMA,
        "id": f"{model}-{row}-{task}-{seed}-{lr}-{status}",
        "status": status,
        "error": None,
        "tries": [],
        "start": None,
        "deviations": list(deviations),
        "cell": {
            "paper": "table2_base",
            "row": row,
            "model": model,
            "task": task,
            "seed": seed,
        },
        "label": {key: LABELS.get(name, name) for key, name in names.items()},
        "config": {
            "keep": "best",
            "model": {"name": model, "path": f"/somebody/models/{model}"},
            "task": {
                "name": task,
                "family": "glue",
                "data_dir": f"/somebody/{seed}/glue",
            },
            "method": {"kind": row, "rank": 8},
            "seed": seed,
            "train": {"lr": lr, "epochs": len(values) or 3, "max_steps": None},
        },
        "recipe": {"name": "r", "source": "s"},
        "seeds": {"training": seed, "projection": 0},
        "code": {"commit": "0123abc", "dirty": False},
        "versions": {"torch": "2.9"},
        "device": {"type": "cpu", "name": "a CPU"},
        "determinism": {"threads": 1},
        "model": "hash",
        "data": {"content": "hash", "train_rows": 10, "dev_rows": 10},
        "parameters": {
            "adapter": parameter_count(model, row),
            "head": 10,
            "formula": parameter_count(model, row),
        },
        "effective_batch": 32,
        "steps": len(values),
        "curve": {
            "epoch": epochs,
            "train_loss": [1 / epoch for epoch in epochs],
            "dev_loss": [1.5 / epoch for epoch in epochs],
            "metric": values,
            "metric_select": [value + 0.02 for value in values],
            "metric_report": [value - 0.02 for value in values],
        },
        "result": {
            **metric_fields("accuracy"),
            "select": "paper",
            **selected,
            "protocols": protocols,
        },
        "cost": {
            "train_seconds": 10.0,
            "evaluate_seconds": 1.0,
            "adapter_bytes": 172032,
            "tokens_per_second": 5,
            "peak_memory_bytes": 10**9,
        },
        **changes,
    }


def with_halves(record, half_a, half_b):
    """Gives a record these metrics on the halves A and B of the dev rows, one for each
    epoch, and their mean on all dev rows. Changes the record and returns it."""
    metrics = [(a + b) / 2 for a, b in zip(half_a, half_b, strict=True)]
    record["curve"] |= {
        "metric_select": list(half_a),
        "metric_report": list(half_b),
        "metric": metrics,
    }
    best_index = metrics.index(max(metrics))
    record["result"]["protocols"] = {
        "paper": {
            "best": metrics[best_index],
            "best_epoch": record["curve"]["epoch"][best_index],
            "last": metrics[-1],
        }
    }
    return record


SCORES = {"bleu": 68.0, "nist": 8.5, "meteor": 46.0, "rouge_l": 71.0, "cider": 2.4}


def text_record(
    row="lora",
    seed=0,
    add=0.0,
    best_epoch=5.0,
    status="done",
    model="gpt2_medium",
    **other_scores,
):
    """A record of E2E, with scores of the last and the best epoch for two length penalties.
    These four are an eighth of a point apart.

    add: what is added to each of SCORES. other_scores: in place of some of them."""
    made = record(row, "e2e", seed, best=3.2, last=3.3, model=model, status=status)
    is_done = status == "done"
    made["curve"] = {"epoch": [1.0, 2.0, 3.0, 4.0, 5.0] if is_done else [1.0]}
    made["texts"] = None
    if not is_done:
        return made
    entries = []
    for which, epoch in (("last", 5.0), ("best", best_epoch)):
        for variant in ("0.9", "0.8"):
            shift = add + 0.125 * len(entries)
            scores = {key: score + shift for key, score in SCORES.items()}
            entry = {"which": which, "epoch": epoch, "variant": variant}
            entries.append(entry | scores | other_scores)
    made["texts"] = {"split": "test", "items": 630, "scores": entries}
    return made


def exact_record(
    row="lora", seed=0, task="gsm8k", model="llama3_2_3b", unread=0.0, beams=1, **parts
):
    """A record of a task with exact answers, with the same scores for the last and the best
    epoch. parts: the percentage of each test set."""
    made = record(row, task, seed, best=2.1, last=2.0, model=model)
    made["config"]["task"] |= {
        "family": "commonsense" if task == "commonsense" else "maths",
        "train_on_inputs": True,
        "beams": beams,
    }
    made["result"] |= metric_fields("perplexity")
    parts = parts or {task: 40.0 + seed}
    scores = {
        "exact_match": statistics.fmean(parts.values()),
        "parts": parts,
        "unread": unread,
    }
    entries = [
        {"which": which, "epoch": 3.0, "variant": "greedy", **scores}
        for which in ("last", "best")
    ]
    return made | {"texts": {"split": "test", "items": 100, "scores": entries}}


def image_record(
    row, task, seed, last, shots=10, model="vit_base", name=None, **changes
):
    """A record of image classification. last: the accuracy of the last epoch, 0.05 below the
    best. name: the task's label."""
    made = record(row, task, seed, last + 0.05, last, model=model, **changes)
    made["config"]["task"] |= {
        "family": "images",
        "shots": shots,
        "draw_seed": seed,
        "workers": seed,
        "cache_dir": f"/c/{seed}",
    }
    made["label"]["task"] = name or task
    made["result"]["reported"] = "last"
    return made


def instruction_record(
    row="vera",
    seed=0,
    model="llama_7b",
    train_rows=None,
    scores=(),
    bench="mt_bench",
    **changes,
):
    """A record of instruction tuning. scores: (judge, mean) of each judge of its answers."""
    made = record(row, "alpaca", seed, best=3.2, last=3.3, model=model, **changes)
    made["id"] += f"-{train_rows}"
    made["config"]["task"] |= {"family": "instruct", "train_rows": train_rows}
    made["result"]["reported"] = "last"
    ranks = {"vera": 1024, "lora": 64, "vera_r64": 64}
    made["config"]["method"]["rank"] = ranks.get(row)
    made |= {"steps": 100, "device": {"name": "Own GPU"}, "judged": []}
    for judge, mean in scores:
        judged = {
            "bench": bench,
            "judge": judge,
            "mean": mean,
            "low": mean - 0.5,
            "high": mean + 0.5,
            "n": 160,
            "n_valid": 159,
            "turns": {"1": mean + 0.25, "2": mean - 0.25},
            "answering": {
                "answer_tokens": 1024,
                "top_p": 1.0,
                "top_k": 50,
                "batch": 8,
                "without_room": 0,
            },
        }
        made["judged"].append(judged)
    return made


def ledger(*records, problems=(), measures=()) -> Ledger:
    """A ledger of these records, all of them our own."""
    return Ledger(
        records={record["id"]: record for record in records},
        origin={record["id"]: "ours" for record in records},
        problems=list(problems),
        measures={measure["id"]: measure for measure in measures},
    )


def seed_records(
    row="vera", task="rte", bests=(0.78, 0.79, 0.80, 0.77, 0.787), **changes
):
    """A record for each best value, with seeds from 0. The value is reached at the second of
    three epochs."""
    return [
        record(row, task, seed, best, best - 0.01, **changes)
        for seed, best in enumerate(bests)
    ]


def expected_difference(*tasks, decimals=1):
    """Our mean minus the paper's over tasks, +- half of the 95% interval, as a table prints
    it: computed here by Welch's formula and scipy's t.

    tasks: of each, the values of 5 seeds, and the paper's number with its spread or
    None."""
    factor = 1.4342  # of the variance of a mean of 5
    gap = statistics.fmean(
        statistics.median(values) - printed for values, printed, _ in tasks
    )
    variances = [statistics.variance(values) for values, *_ in tasks]
    if all(spread is not None for *_, spread in tasks):
        variances += [spread**2 for *_, spread in tasks]
    parts = [factor * variance / 5 / len(tasks) ** 2 for variance in variances]
    freedom = sum(parts) ** 2 / sum(part**2 / 4 for part in parts)
    half_width = scipy.stats.t.ppf(0.975, freedom) * math.sqrt(sum(parts))
    return f"{gap:+.{decimals}f} +-{half_width:.{decimals}f}"


def made_tables(name, *records, **options):
    """The tables that a table's name stands for, of some records."""
    return tables.tables_of_runs(name, runs(ledger(*records)), **options)


def cells_of(records, seeds=5, value="value"):
    """The cells of some records by (model, row, task)."""
    all_cells = cells(runs(ledger(*records)), value, seeds)
    return {(cell.model, cell.row, cell.task): cell for cell in all_cells.itertuples()}


def lines(table, source=None):
    """A table's lines, each as texts by column. source: only the lines of this source, such
    as "ours"; None for all."""
    all_lines = [dict(zip(table.header, row, strict=True)) for row in table.texts]
    return [line for line in all_lines if source in (None, line.get("source"))]


def notes(table):
    """A table's notes as one text."""
    return " ".join(table.notes)


def with_lm_eval(record, task="gsm8k", after=0.5, before=0.25, **changes):
    """A copy of a record with a result of one of lm-eval's tasks. after, before: the scores
    of the trained model and of its base model. changes: other fields of the result."""

    def metrics(value):
        return [
            {
                "metric": "exact_match",
                "filter": "strict-match",
                "stderr": 0.01,
                "higher_is_better": True,
                "value": value,
            }
        ]

    entry = {
        "task": task,
        "asked": "0" * 16,
        "lm_eval": "0.4.13",
        "version": 3.0,
        "shots": 5,
        "limit": None,
        "rows": 9,
        "settings": {},
        "samples": "",
        "metrics": metrics(after),
        "before": {"samples": "", "metrics": metrics(before)},
        **changes,
    }
    return {**record, "result": {**record["result"], "lm_eval": [entry]}}
