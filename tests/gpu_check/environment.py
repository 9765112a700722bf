"""What torch makes of this machine, and how each precision computes."""

from pathlib import Path

import torch
from gpu_check.report import Report

from runs import gpus
from runs.config import expand
from runs.training.context import flags, set_flags


def run(report: Report, home: Path) -> None:
    shown = ", ".join(
        f"{key} {value}" for key, value in report.header["machine"].items() if value is not None
    )
    report.measured("machine", f"torch {torch.__version__}, {shown}")
    report.absent("torch and the driver see the same cards")
    if report.on_gpu:
        with report.guarded("torch and the driver see the same cards"):
            cards(report)
    device = torch.device(report.device)
    for precision in ("fp32", "tf32", "bf16"):
        words = ["model=roberta_base", "task=rte", "method=vera", "seed=0", f"train.precision={precision}"]
        set_flags(expand(words)[0], device)
        allowed = precision == "tf32"
        tf32 = (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32)
        report.check(
            f"{precision}: {'' if allowed else 'no '}TF32 in products, convolutions; determinism is strict",
            tf32 == (allowed, allowed) and torch.get_deterministic_debug_mode() == 2,
            str(flags(device)),
        )


def cards(report: Report) -> None:
    """Compares UUIDs; of slices (MIG) their number, since torch names the card that they are of."""
    driver = [uuid.lower() for uuid in gpus.visible()]
    seen = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    same = [f"gpu-{one.uuid}".lower() for one in seen] == driver
    report.check(
        "torch and the driver see the same cards",
        bool(seen) and (same or any(uuid.startswith("mig") for uuid in driver)),
        f"{len(seen)} of {', '.join(sorted({one.name for one in seen}))}; driver {gpus.driver()}",
    )
