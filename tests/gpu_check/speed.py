"""Milliseconds of a training step at table 2's shapes, by row and precision: as a clock has them, and as the
device is busy. Where the first is far above the second, the host is what is waited for.

tflops: what the largest step reaches, in TFLOP/s, for a line of conf/cards.yaml."""

from functools import partial
from pathlib import Path

import torch

from gpu_check.report import Report, steady
from gpu_check.timing import SHAPES, Steps, run_of
from runs import meta

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
    rows, length = shapes[-1]
    counted = meta.flops(run, rows, length, 0)
    tflops = counted[1] / seconds[rows * length] / 1e12 if counted else None
    words.append(f"{tflops:.1f} TFLOP/s")
    report.measured(
        f"{precision}, {row}", ", ".join(words), seconds=seconds, device_seconds=busy, tflops=tflops
    )
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
