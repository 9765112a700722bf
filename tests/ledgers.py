"""Records and ledgers, made up, for the tests of analysis/."""

from runs.record import Ledger


def record(row="vera", task="rte", seed=0, best=0.8, last=0.79, model="roberta_base", status="done", lr=1e-2, deviations=()):
    """A record as runs/ writes it, with what tables read."""
    both = {"best": best, "best_epoch": 2.0, "last": last}
    other = {"best": best - 0.05, "best_epoch": 1.0, "last": last}
    return {
        "schema": 2,
        "id": f"{model}-{row}-{task}-{seed}-{lr}",
        "status": status,
        "cell": {"paper": None, "row": row, "model": model, "task": task, "seed": seed},
        "label": {"row": {"vera": "VeRA r=1024", "lora": "LoRA r=8"}.get(row, row), "model": "M", "task": task},
        "config": {
            "train": {"lr": lr},
            "method": {"kind": row},
            "task": {"name": task, "data_dir": f"/somewhere/{seed}"},
            "seed": seed,
        },
        "recipe": {"name": "r"},
        "model": "hash",
        "data": {"content": "hash", "train_rows": 10, "dev_rows": 5},
        "parameters": {"adapter": 43008, "head": 10, "formula": 43008},
        "result": {"metric": "accuracy", "select": "paper", **both, "protocols": {"paper": both, "unbiased": other}},
        "cost": {
            "train_seconds": 10.0,
            "evaluate_seconds": 1.0,
            "adapter_bytes": 172032,
            "tokens_per_second": 5,
            "peak_memory_bytes": 1,
        },
        "deviations": list(deviations),
    }


def ledger(*records) -> Ledger:
    return Ledger({r["id"]: r for r in records}, {r["id"]: "ours" for r in records})
