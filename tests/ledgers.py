"""Records as runs/ writes them, and ledgers of them, for the tests of analysis/."""

from runs.record import Ledger

LABELS = {"vera": "VeRA r=1024", "lora": "LoRA r=8", "roberta_base": "RoBERTa-base", "minilm": "MiniLM", "rte": "RTE"}


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
    """One record: the dev metric at its best epoch, the second, and at its last, the third; or `values` of all epochs, the
    best of which is selected (none: it diverged or failed before the first). Selection's half lies 0.02 above, the other half
    0.02 below."""
    if values is None:
        values, place = [best - 0.2, best, last], 1
    else:
        values = list(values)
        place = values.index(max(values)) if values else 0
    protocols = {}
    if values:
        epoch = place + 1.0
        protocols = {
            "paper": {"best": values[place], "best_epoch": epoch, "last": values[-1]},
            "unbiased": {"best": values[place] - 0.02, "best_epoch": epoch, "last": values[-1] - 0.02},
        }
    epochs = [i + 1.0 for i in range(len(values))]
    made = {
        "schema": 2,
        "id": f"{model}-{row}-{task}-{seed}-{lr}-{status}",
        "status": status,
        "error": None,
        "tries": [],
        "cell": {"paper": "table2_base", "row": row, "model": model, "task": task, "seed": seed},
        "label": {"row": LABELS.get(row, row), "model": LABELS.get(model, model), "task": LABELS.get(task, task)},
        "start": None,
        "config": {
            "model": {"name": model, "path": f"/somebody/models/{model}"},
            "task": {"name": task, "family": "glue", "data_dir": f"/somebody/{seed}/glue"},
            "method": {"kind": row, "rank": 8},
            "train": {"lr": lr, "epochs": len(values)},
            "seed": seed,
        },
        "recipe": {"name": "r", "source": "s"},
        "seeds": {"training": seed, "projection": 0},
        "code": {"commit": "0123abc", "dirty": False},
        "versions": {"torch": "2.9"},
        "device": {"type": "cpu", "name": "a CPU"},
        "model": "hash",
        "data": {"content": "hash", "train_rows": 10, "dev_rows": 5},
        "parameters": {"adapter": 43008, "head": 10, "formula": 43008},
        "curve": {
            "epoch": epochs,
            "train_loss": [1 / e for e in epochs],
            "dev_loss": [1.5 / e for e in epochs],
            "metric": values,
        },
        "result": {"metric": "accuracy", "select": "paper", "protocols": protocols},
        "cost": {
            "train_seconds": 10.0,
            "evaluate_seconds": 1.0,
            "adapter_bytes": 172032,
            "tokens_per_second": 5,
            "peak_memory_bytes": 10**9,
        },
        "deviations": list(deviations),
    }
    return made | changes


def ledger(*records, problems=(), measures=()) -> Ledger:
    by_id, origin = {r["id"]: r for r in records}, {r["id"]: "ours" for r in records}
    return Ledger(by_id, origin, list(problems), {m["id"]: m for m in measures})


def seeds(row="vera", task="rte", bests=(0.78, 0.79, 0.80, 0.77, 0.787), **changes):
    """A record for each best value; it is reached at the second of three epochs."""
    return [record(row, task, seed, best, best - 0.01, **changes) for seed, best in enumerate(bests)]
