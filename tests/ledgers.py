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

#: Exact counts of the paper's rows: another count would be a row of another size, which
#: is not compared.
COUNTS = yaml.safe_load(
    (Path(__file__).parent.parent / "conf" / "counts.yaml").read_text()
)
LABELS = {"vera": "VeRA r=1024", "lora": "LoRA r=8", "rte": "RTE"}
LABELS |= {"roberta_base": "RoBERTa-base", "minilm": "MiniLM"}


def count(model, row):
    """Trained parameters without the head: the paper's row's, or those of VeRA on
    RoBERTa-base where it has no such row."""
    if row in ("head", "none"):
        return 0
    name = row.removesuffix("_mnli")
    for of in COUNTS:
        if of["model"] == model and name in (
            of["method"],
            f"{of['method']}_r{of['settings'].get('rank')}",
        ):
            return of["count"]
    return 43008


def of_metric(name):
    """What a result says of its metric, and of the epoch that tables report: of a
    perplexity the last."""
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
    """One record: the dev metric at its best epoch, the second, and at its last, the
    third; or `values` of all epochs, the best of which is selected (none: it diverged
    or failed before the first). Half A of dev lies 0.02 above and half B 0.02 below, of
    5 rows each: the cross-fitted number is the same. `halves` makes them say something
    else."""
    place = 1 if values is None else values.index(max(values)) if values else 0
    values = [best - 0.2, best, last] if values is None else list(values)
    numbers = dict.fromkeys(("best", "best_epoch", "last"))
    if values:
        numbers = {"best": values[place], "best_epoch": place + 1.0, "last": values[-1]}
    epochs = [i + 1.0 for i in range(len(values))]
    made = {
        "schema": SCHEMA,
        "id": f"{model}-{row}-{task}-{seed}-{lr}-{status}",
        "status": status,
    }
    made |= {"error": None, "tries": [], "start": None, "deviations": list(deviations)}
    made["cell"] = {
        "paper": "table2_base",
        "row": row,
        "model": model,
        "task": task,
        "seed": seed,
    }
    made["label"] = {
        of: LABELS.get(made["cell"][of], made["cell"][of])
        for of in ("row", "model", "task")
    }
    made["config"] = {
        "keep": "best",
        "model": {"name": model, "path": f"/somebody/models/{model}"},
    }
    made["config"]["task"] = {
        "name": task,
        "family": "glue",
        "data_dir": f"/somebody/{seed}/glue",
    }
    made["config"] |= {"method": {"kind": row, "rank": 8}, "seed": seed}
    made["config"]["train"] = {"lr": lr, "epochs": len(values) or 3, "max_steps": None}
    made |= {
        "recipe": {"name": "r", "source": "s"},
        "seeds": {"training": seed, "projection": 0},
    }
    made |= {
        "code": {"commit": "0123abc", "dirty": False},
        "versions": {"torch": "2.9"},
    }
    made |= {"device": {"type": "cpu", "name": "a CPU"}, "determinism": {"threads": 1}}
    made |= {
        "model": "hash",
        "data": {"content": "hash", "train_rows": 10, "dev_rows": 10},
    }
    made["parameters"] = {
        "adapter": count(model, row),
        "head": 10,
        "formula": count(model, row),
    }
    made |= {"effective_batch": 32, "steps": len(values)}
    made["curve"] = {"epoch": epochs, "train_loss": [1 / e for e in epochs]}
    made["curve"] |= {"dev_loss": [1.5 / e for e in epochs], "metric": values}
    made["curve"]["metric_select"] = [value + 0.02 for value in values]
    made["curve"]["metric_report"] = [value - 0.02 for value in values]
    made["result"] = {**of_metric("accuracy"), "select": "paper", **numbers}
    made["result"]["protocols"] = {"paper": numbers} if values else {}
    made["cost"] = {
        "train_seconds": 10.0,
        "evaluate_seconds": 1.0,
        "adapter_bytes": 172032,
    }
    made["cost"] |= {"tokens_per_second": 5, "peak_memory_bytes": 10**9}
    return made | changes


def halves(made, a, b):
    """The same record with these values on the halves A and B of dev, of 5 rows each,
    at its epochs; the whole is their mean."""
    made["curve"] |= {"metric_select": list(a), "metric_report": list(b)}
    made["curve"]["metric"] = [
        (one + other) / 2 for one, other in zip(a, b, strict=True)
    ]
    metrics = made["curve"]["metric"]
    place = metrics.index(max(metrics))
    made["result"]["protocols"] = {
        "paper": {
            "best": metrics[place],
            "best_epoch": made["curve"]["epoch"][place],
            "last": metrics[-1],
        }
    }
    return made


SCORES = {"bleu": 68.0, "nist": 8.5, "meteor": 46.0, "rouge_l": 71.0, "cider": 2.4}


def texts(
    row="lora",
    seed=0,
    add=0.0,
    best_epoch=5.0,
    status="done",
    model="gpt2_medium",
    **without,
):
    """A record of E2E: last and best epoch, two length penalties, an eighth of a point
    apart."""
    found = record(row, "e2e", seed, best=3.2, last=3.3, model=model, status=status)
    entries = []
    for i, (which, variant) in enumerate(
        (w, v) for w in ("last", "best") for v in ("0.9", "0.8")
    ):
        scores = {
            key: value + add + 0.125 * i for key, value in SCORES.items()
        } | without
        entries.append(
            {
                "which": which,
                "epoch": 5.0 if which == "last" else best_epoch,
                "variant": variant,
                **scores,
            }
        )
    done = status == "done"
    found["curve"] = {"epoch": [1.0, 2.0, 3.0, 4.0, 5.0] if done else [1.0]}
    found["texts"] = (
        {"split": "test", "items": 630, "scores": entries} if done else None
    )
    return found


def exact(
    row="lora", seed=0, task="gsm8k", model="llama3_2_3b", unread=0.0, beams=1, **parts
):
    """A record of a task with exact answers: the percentage of each part, of the last
    and the best epoch."""
    found = record(row, task, seed, best=2.1, last=2.0, model=model)
    family = "commonsense" if task == "commonsense" else "maths"
    found["config"]["task"] |= {
        "family": family,
        "train_on_inputs": True,
        "beams": beams,
    }
    found["result"] |= of_metric("perplexity")
    parts = parts or {task: 40.0 + seed}
    scores = {
        "exact_match": statistics.fmean(parts.values()),
        "parts": parts,
        "unread": unread,
    }
    entries = [
        {"which": w, "epoch": 3.0, "variant": "greedy", **scores}
        for w in ("last", "best")
    ]
    return found | {"texts": {"split": "test", "items": 100, "scores": entries}}


def shot(row, task, seed, last, shots=10, model="vit_base", name=None, **changes):
    made = record(row, task, seed, last + 0.05, last, model=model, **changes)
    made["config"]["task"] |= {
        "family": "images",
        "shots": shots,
        "draw_seed": seed,
        "workers": seed,
    }
    made["config"]["task"]["cache_dir"] = f"/c/{seed}"
    made["label"]["task"] = name or task
    made["result"]["reported"] = "last"
    return made


def instructed(
    row="vera",
    seed=0,
    model="llama_7b",
    train_rows=None,
    scores=(),
    bench="mt_bench",
    **changes,
):
    """A record of instruction tuning, judged with a mean by each judge."""
    found = record(row, "alpaca", seed, best=3.2, last=3.3, model=model, **changes)
    found["id"] += f"-{train_rows}"
    found["config"]["task"] |= {"family": "instruct", "train_rows": train_rows}
    found["result"]["reported"] = "last"
    found["config"]["method"]["rank"] = {"vera": 1024, "lora": 64, "vera_r64": 64}.get(
        row
    )
    found |= {"steps": 100, "device": {"name": "Own GPU"}, "judged": []}
    made = {
        "answer_tokens": 1024,
        "top_p": 1.0,
        "top_k": 50,
        "batch": 8,
        "without_room": 0,
    }
    for judge, mean in scores:
        of = {
            "bench": bench,
            "judge": judge,
            "mean": mean,
            "low": mean - 0.5,
            "high": mean + 0.5,
            "n": 160,
        }
        of |= {
            "n_valid": 159,
            "turns": {"1": mean + 0.25, "2": mean - 0.25},
            "answering": made,
        }
        found["judged"].append(of)
    return found


def ledger(*records, problems=(), measures=()) -> Ledger:
    by_id, origin = {r["id"]: r for r in records}, {r["id"]: "ours" for r in records}
    return Ledger(by_id, origin, list(problems), {m["id"]: m for m in measures})


def seeds(row="vera", task="rte", bests=(0.78, 0.79, 0.80, 0.77, 0.787), **changes):
    """A record for each best value; it is reached at the second of three epochs."""
    return [
        record(row, task, seed, best, best - 0.01, **changes)
        for seed, best in enumerate(bests)
    ]


def apart(*tasks, decimals=1):
    """Ours less the paper's, +- half of the 95% interval, as a table prints it; of
    several tasks, of their mean. Each of them: the values of 5 seeds, and the paper's
    number with its spread or None. By Welch's formula and scipy's t."""
    factor = 1.4342  # of the variance of a mean of 5
    gap = statistics.fmean(
        statistics.median(values) - printed for values, printed, _ in tasks
    )
    variances = [statistics.variance(values) for values, *_ in tasks]
    if all(spread is not None for *_, spread in tasks):
        variances += [spread**2 for *_, spread in tasks]
    parts = [factor * variance / 5 / len(tasks) ** 2 for variance in variances]
    df = sum(parts) ** 2 / sum(part**2 / 4 for part in parts)
    return f"{gap:+.{decimals}f} +-{scipy.stats.t.ppf(0.975, df) * math.sqrt(sum(parts)):.{decimals}f}"


def made(name, *records, **how):
    """The parts of a table of some records."""
    return tables.tables_of_runs(name, runs(ledger(*records)), **how)


def cells_of(records, seeds=5, value="value"):
    """The cells of some records by model, row and task."""
    of = cells(runs(ledger(*records)), value, seeds)
    return {(cell.model, cell.row, cell.task): cell for cell in of.itertuples()}


def lines(table, source=None):
    """A table's lines as text, by column; of one source alone."""
    found = [dict(zip(table.header, row, strict=True)) for row in table.texts]
    return [line for line in found if source in (None, line.get("source"))]


def notes(table):
    """A table's notes as one text."""
    return " ".join(table.notes)


def asked(record, task="gsm8k", after=0.5, before=0.25, **more):
    """The record with a result of a task of lm-eval."""
    of = {
        "metric": "exact_match",
        "filter": "strict-match",
        "stderr": 0.01,
        "higher_is_better": True,
    }
    entry = {
        "task": task,
        "asked": "0" * 16,
        "lm_eval": "0.4.13",
        "version": 3.0,
        "shots": 5,
        "limit": None,
    }
    entry |= {
        "rows": 9,
        "settings": {},
        "samples": "",
        "metrics": [of | {"value": after}],
    }
    entry |= {"before": {"samples": "", "metrics": [of | {"value": before}]}, **more}
    return {**record, "result": {**record["result"], "lm_eval": [entry]}}
