"""What happens where memory ends: it is told from a device that fails, and a run goes on with less of a batch
at once."""

import json
import subprocess
from pathlib import Path

import torch
from gpu_check import material
from gpu_check.report import Report

from runs.training.train import cause_of

#: Bytes that a run's process may take: a batch of 32 rows takes some 2 GB, one of 4 rows a quarter of one.
ROOM = 900_000_000


def run(report: Report, home: Path) -> None:
    name = "memory that ends is known as that"
    with report.guarded(name):
        try:
            torch.empty(2**46, dtype=torch.uint8, device=report.device)
            report.check(name, False, "70 TB were given")
        except Exception as error:
            cause, words = cause_of(error)[0], (str(error).splitlines() or [""])[0][:80]
            report.check(name, cause == "memory", f"{cause}: {words}")
    name = "a run whose memory ends halves its micro-batch and finishes"
    with report.guarded(name):
        halved(report, name, home)


def halved(report: Report, name: str, home: Path) -> None:
    words = [*material.text(home, intermediate_size=65536), "method=vera", "method.rank=8", "train.epochs=1"]
    words += ["train.effective_batch=32", f"device={report.device}", f"output={home}/halved", "eval_batch=4"]
    room = {"GPU_CHECK_ROOM": str(ROOM), "GPU_CHECK_DEVICE": report.device, "OMP_NUM_THREADS": "1"}
    places = (Path(__file__).parent / "shim",)
    done = subprocess.run(**material.command(words, home, *places, **room), capture_output=True, timeout=150)
    records = [json.loads(path.read_bytes()) for path in (home / "halved" / "records").glob("*.json")]
    if not records or records[0]["status"] != "done":
        raise AssertionError((done.stdout + done.stderr).decode()[-400:].strip().replace("\n", " | "))
    size, told = records[0]["micro_batch"], "; ".join(d for d in records[0]["deviations"] if "memory" in d)
    good = size < 32 and records[0]["effective_batch"] == 32 and "micro-batch" in told
    report.check(name, good, told, micro_batch=size)
