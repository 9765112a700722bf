"""Steps a second of 1, 2, 4 and 8 processes that train on one device at once: what several runs on it bring,
without NVIDIA's MPS, or with it where it serves this machine (docs/gpu.md).

A step is LoRA's on a batch of SST-2, which keeps a large GPU busy for a part of the time only. All processes
are started first; then some of them train, while the others wait."""

import os
import subprocess
import sys
import time
from pathlib import Path

from gpu_check.report import Report
from gpu_check.timing import SHAPES, Steps, run_of

SECONDS = {True: 8.0, False: 2.0}


def run(report: Report, home: Path) -> None:
    series(report, ("MPS was on" if serves() else "without MPS") if report.on_gpu else "")


def series(report: Report, how: str) -> None:
    """Measures each number of processes once. how: in words, what serves them."""
    counts = (1, 2, 4, 8) if report.on_gpu else (1, 2)
    command = [sys.executable, "-W", "ignore", "-m", "gpu_check.crowd", report.device]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    workers = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env)
        for _ in range(counts[-1])
    ]
    try:
        for worker in workers:
            ask(worker)
        each = {count: rates_of(workers[:count], SECONDS[report.on_gpu]) for count in counts}
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
    rates = {count: sum(values) for count, values in each.items()}
    for count, values in each.items():
        name = f"{count} at once{how and ', '}{how}"
        report.measured(name, f"{rates[count]:.1f} steps/s in all, {min(values):.1f} the slowest")
    best = max(rates, key=lambda count: rates[count])
    report.measured(
        f"several at once{how and ', '}{how}",
        f"{best} bring {rates[best] / rates[1]:.2f} times the steps of one",
        how=how,
        rates=rates,
        each=each,
    )


def serves() -> bool:
    """Whether MPS serves this machine already."""
    return os.path.exists(
        os.path.join(os.environ.get("CUDA_MPS_PIPE_DIRECTORY", "/tmp/nvidia-mps"), "control")
    )


def rates_of(workers: list[subprocess.Popen[str]], seconds: float) -> list[float]:
    """Steps a second of each, from when all of them go."""
    for worker in workers:
        print(seconds, file=worker.stdin, flush=True)
    return [float(ask(worker)) for worker in workers]


def ask(worker: "subprocess.Popen[str]") -> str:
    answer = worker.stdout.readline() if worker.stdout else ""
    if not answer:
        raise AssertionError(f"a process ended with exit code {worker.wait()}")
    return answer.strip()


def work(device: str) -> None:
    """A process of the crowd: says that it is there, and trains for as long as it is told."""
    steps = Steps(run_of("lora", "fp32", device))
    rows, length = SHAPES[device == "cuda"]["SST-2"][0]
    for _ in range(10):
        steps(rows, length)
    print("ready", flush=True)
    for line in sys.stdin:
        count, began = 0, time.monotonic()
        while time.monotonic() - began < float(line):
            steps(rows, length)
            count += 1
        print(count / (time.monotonic() - began), flush=True)


if __name__ == "__main__":
    work(sys.argv[1])
