"""What happens where memory ends: it is told from a device that fails, and a run goes on with less of a batch
at once."""

import json
import subprocess
from pathlib import Path

import torch

from gpu_check import material
from gpu_check.report import Report
from runs.training.failures import cause_of

#: Bytes that a run's process may take: a batch of 32 rows takes some 2 GB, one of 4 rows a quarter of one.
ROOM = 900_000_000
WIDTH = 65536


def run(report: Report, home: Path) -> None:
    with report.guarded("memory that ends is known as that"):
        more_than_there_is(report)
    with report.guarded("a run whose memory ends halves its micro-batch and finishes"):
        halved(report, home)
    # Last: this process's own handles are made in a full card
    if report.on_gpu:
        with report.guarded("cuBLAS, which finds no memory for itself, is known as that"):
            full_card(report)
    else:
        report.absent("cuBLAS, which finds no memory for itself, is known as that")


def more_than_there_is(report: Report) -> None:
    try:
        torch.empty(2**46, dtype=torch.uint8, device=report.device)
    except Exception as error:
        cause, words = cause_of(error)[0], (str(error).splitlines() or [""])[0][:80]
        report.check("memory that ends is known as that", cause == "memory", f"{cause}: {words}")
    else:
        report.check("memory that ends is known as that", False, "70 TB were given")


def halved(report: Report, home: Path) -> None:
    name = "a run whose memory ends halves its micro-batch and finishes"
    words = [*material.text(home, intermediate_size=WIDTH), "method=vera", "method.rank=8", "train.epochs=1"]
    words = [w for w in words if not w.startswith("train.effective_batch")]
    words += ["train.effective_batch=32", f"device={report.device}", f"output={home}/halved", "eval_batch=4"]
    room = {"GPU_CHECK_ROOM": str(ROOM), "GPU_CHECK_DEVICE": report.device, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        material.command(words),
        cwd=material.ROOT,
        env=material.environment(home, Path(__file__).parent / "shim", **room),
        capture_output=True,
        text=True,
        timeout=150,
    )
    records = [json.loads(path.read_bytes()) for path in (home / "halved" / "records").glob("*.json")]
    if not records or records[0]["status"] != "done":
        report.check(name, False, (done.stdout + done.stderr)[-400:].strip().replace("\n", " | "))
        return
    (record,) = records
    size, told = record["micro_batch"], "; ".join(d for d in record["deviations"] if "memory" in d)
    good = size < 32 and record["effective_batch"] == 32 and "micro-batch" in told
    report.check(name, good, told, micro_batch=size)


def full_card(report: Report) -> None:
    """Takes all of the card, and then multiplies for the first time in this process."""
    a = torch.randn(64, 64, device="cuda")
    taken, size = [], 2**30
    while size >= 2**20:
        try:
            taken.append(torch.empty(size, dtype=torch.uint8, device="cuda"))
        except torch.OutOfMemoryError:
            size //= 2
    try:
        a @ a
        torch.cuda.synchronize()
    except Exception as error:
        cause, words = cause_of(error)[0], (str(error).splitlines() or [""])[0][:120]
        report.check("cuBLAS, which finds no memory for itself, is known as that", cause == "memory", words)
    else:
        report.measured(
            "cuBLAS, which finds no memory for itself, is known as that",
            f"not seen: it had some left beside {sum(t.numel() for t in taken) / 1e9:.1f} GB",
        )
