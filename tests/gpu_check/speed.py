"""Milliseconds of a training step at table 2's shapes, by row and precision: as a clock has them, and as the
device is busy. Where the first is far above the second, the host is what is waited for.

Each row's pace stands in the findings as the plan reads it (runs/forecast/pace.py)."""

from functools import partial
from pathlib import Path

import torch

from gpu_check.report import Report, steady
from gpu_check.timing import SHAPES, Steps, run_of
from runs import probe
from runs.forecast.pace import pace_key

ROWS = ("vera", "lora", "bitfit", "full", "adapter_drop_300k", "adapter_drop_900k")
PRECISIONS = ("fp32", "tf32", "bf16")


def run(report: Report, home: Path) -> None:
    for precision in PRECISIONS:
        if precision == "tf32" and not report.on_gpu:
            report.absent("steps in tf32")
            continue
        for row in ROWS if report.on_gpu else ROWS[:4]:
            with report.guarded(f"{row}, {precision}"):
                timed(report, row, precision)
    if not report.on_gpu:
        report.absent("milliseconds for which the device is busy")


def timed(report: Report, row: str, precision: str) -> None:
    run = run_of(row, precision, report.device)
    steps = Steps(run)
    seconds, busy, words = {}, {}, []
    for task, shapes in SHAPES[report.on_gpu].items():
        for rows, length in shapes:
            tokens = rows * length
            seconds[tokens] = steady(partial(steps, rows, length), 20 if report.on_gpu else 2, steps.wait)
            words.append(f"{task} {rows} x {length} {seconds[tokens] * 1e3:.1f} ms")
            if report.on_gpu:
                busy[tokens] = device_seconds(steps, rows, length)
                words[-1] += f" (device {busy[tokens] * 1e3:.1f})"
    key = {name: value for name, value in pace_key(run).items() if name != "machine"}
    pace = probe.pace(seconds)
    kept = {"card": report.header["machine"]["name"], "key": key, "step": pace.step, "token": pace.token}
    report.measured(f"{precision}, {row}", ", ".join(words), seconds=seconds, device_seconds=busy, pace=kept)
    steps.accelerator.free_memory()
    if report.on_gpu:
        del steps
        torch.cuda.empty_cache()


def device_seconds(steps: Steps, rows: int, length: int, times: int = 3) -> float:
    """For how long a step's kernels keep the device busy."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        for _ in range(times):
            steps(rows, length)
        steps.wait()
    return sum(event.self_device_time_total for event in seen.key_averages()) / 1e6 / times
