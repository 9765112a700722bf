"""What torch makes of this machine, and how each precision computes."""

from pathlib import Path
from typing import Any

import torch

from gpu_check.report import Report
from runs import gpus
from runs.config import expand
from runs.training.flags import flags, set_flags

#: The largest relative error of a product of float32 numbers with 23 bits of mantissa; with TF32's 10 it is
#: some 3e-4.
EXACT = 1e-5


def run(report: Report, home: Path) -> None:
    machine = report.header["machine"]
    shown = ", ".join(f"{key} {value}" for key, value in machine.items() if value is not None)
    report.measured("machine", f"torch {torch.__version__}, {shown}")
    if report.on_gpu:
        with report.guarded("torch and the driver see the same cards"):
            cards(report)
    else:
        report.absent("torch and the driver see the same cards")
    device = torch.device(report.device)
    for precision in ("fp32", "tf32", "bf16"):
        (own,) = expand(
            ["model=roberta_base", "task=rte", "method=vera", "seed=0", f"train.precision={precision}"]
        )
        set_flags(own, device)
        allowed = precision == "tf32"
        tf32 = (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32)
        report.check(
            f"{precision}: {'' if allowed else 'no '}TF32 in products, convolutions; determinism is strict",
            tf32 == (allowed, allowed) and torch.get_deterministic_debug_mode() == 2,
            str(flags(device)),
        )
        if report.on_gpu and precision != "bf16":
            for name, error in errors(device).items():
                if precision == "fp32":
                    report.check(f"fp32: a {name} is exact to float32", error < EXACT, f"error {error:.1e}")
                else:  # some cards have no TF32, and cuDNN may not choose it
                    report.measured(f"tf32: a {name}", f"error {error:.1e}", error=error)
    if not report.on_gpu:
        report.absent("fp32: a product and a convolution are exact to float32")


def cards(report: Report) -> None:
    """Compares UUIDs; of slices (MIG) their number, since torch names the card that they are of."""
    driver = gpus.visible()
    seen = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    torchs = [f"GPU-{one.uuid}" for one in seen]
    sliced = any(uuid.startswith("MIG") for uuid in driver)
    report.check(
        "torch and the driver see the same cards",
        bool(seen) and (sliced or [u.lower() for u in torchs] == [u.lower() for u in driver]),
        f"{len(seen)} of {', '.join(sorted({one.name for one in seen}))}; driver {gpus.driver()}",
    )
    free, total = torch.cuda.mem_get_info()
    report.measured("memory", f"{free / 1e9:.1f} of {total / 1e9:.1f} GB are free", free=free, total=total)


def errors(device: torch.device) -> dict[str, float]:
    """Of a product and a convolution of float32 numbers, relative to float64 on the CPU."""
    generator = torch.Generator().manual_seed(0)

    def error(function: Any, *inputs: torch.Tensor) -> float:
        exact = function(*(x.double() for x in inputs))
        here = function(*(x.to(device) for x in inputs)).cpu().double()
        return float((here - exact).norm() / exact.norm())

    a, b = (torch.randn(512, 512, generator=generator) for _ in range(2))
    images, kernel = (
        torch.randn(8, 3, 64, 64, generator=generator),
        torch.randn(64, 3, 16, 16, generator=generator),
    )
    return {
        "product": error(torch.matmul, a, b),
        "convolution": error(lambda x, w: torch.nn.functional.conv2d(x, w, stride=16), images, kernel),
    }
