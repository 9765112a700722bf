"""The flags of torch that decide how a run computes: how exactly, and whether it repeats itself to the bit.

They hold for the whole process. A record tells them as they were."""

from typing import Any

import torch

from runs import models
from runs.run import Run

#: Of peft's methods, those that allocate ranks by torch.kthvalue.
ALLOCATES = ("AdaLoraConfig", "AdamssConfig")


def set_flags(run: Run, device: torch.device) -> None:
    """Sets them for a run.

    fp32 is float32 in convolutions, too, where torch's default is TF32 (10 bits of mantissa instead of 23).
    Strict determinism: an operation without a deterministic kernel is an error. Where torch merely warns, it
    also leaves attention's gradient to kernels that add in any order."""
    precision = run.config["train"]["precision"]
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision == "tf32"
    torch.backends.cudnn.benchmark = False
    # use_deterministic_algorithms does the same, and imports the compiler: 2 s
    torch.set_deterministic_debug_mode("warn" if not_deterministic(run, device) else "error")
    # A debugging aid that costs time.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def not_deterministic(run: Run, device: torch.device) -> list[str]:
    """Notes on what a run computes without a deterministic kernel; empty where it has one for everything."""
    if device.type != "cuda":
        return []
    reasons, kind = [], (models.architecture_of(run.config["model"]) or {}).get("model_type", "")
    if run.method.get("config_class") in ALLOCATES:
        reasons.append("ranks are allocated by torch.kthvalue")
    # For another image size than the model's own, and of DINOv2 at its usual one, too: its table is of larger
    # images
    interpolates = run.config["task"].get("image_size") or kind.startswith("dinov2")
    if run.method["kind"] == "full" and interpolates:
        reasons.append("position embeddings are trained through a bicubic interpolation")
    return [f"another run may differ in the last bits: {reason}" for reason in reasons]


def flags(device: torch.device) -> dict[str, Any]:
    """How the process computes now, for the record. fused_attention: the kernels that attention may take."""
    found = {
        "deterministic_algorithms": torch.are_deterministic_algorithms_enabled(),
        "strict": torch.get_deterministic_debug_mode() == 2,
    }
    if device.type != "cuda":
        return found
    cuda: Any = torch.backends.cuda
    attention = {
        "flash": cuda.flash_sdp_enabled(),
        "memory-efficient": cuda.mem_efficient_sdp_enabled(),
        "cudnn": cuda.cudnn_sdp_enabled(),
    }
    return {
        **found,
        "tf32_matmul": cuda.matmul.allow_tf32,
        "tf32_conv": torch.backends.cudnn.allow_tf32,
        "fused_attention": [name for name, on in attention.items() if on],
    }
