"""In which precision a run computes, and whether it repeats: torch's flags, which hold
for the whole process, what they cannot do, what a record says about them, and the dtype
of what trains beside base weights in half precision (model.dtype)."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from runs import models
from runs.command.errors import UserError
from runs.record.configuration import Configuration
from runs.record.schema import Determinism
from runs.run.definition import Run
from vera.methods.adapted import trained_in_place
from vera.sites import is_linear

#: The classes of peft that allocate ranks by torch.kthvalue.
RANK_ALLOCATORS = ("AdaLoraConfig", "AdamssConfig")


def set_flags(run: Run, device: torch.device) -> None:
    """Sets torch's flags for a run.

    fp32 is float32 in convolutions, too, where torch's default is TF32 (10 bits of
    mantissa instead of 23). Strict determinism: an operation without a deterministic
    kernel is an error. Where torch merely warns, it also leaves attention's gradient to
    kernels that add in any order."""
    precision = run.config["train"]["precision"]
    torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    torch.backends.cudnn.allow_tf32 = precision == "tf32"
    torch.backends.cudnn.benchmark = False
    # use_deterministic_algorithms does the same, and imports the compiler: 2 s
    torch.set_deterministic_debug_mode(
        "warn" if nondeterminism_notes(run, device) else "error"
    )
    # A debugging aid that costs time.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def nondeterminism_notes(run: Run, device: torch.device) -> list[str]:
    """Notes on what a run computes without a deterministic kernel; empty if it has one
    for everything."""
    if device.type != "cuda":
        return []
    reasons = list[str]()
    model_type = models.architecture_of(run.config["model"]).get("model_type", "")
    if run.method.get("config_class") in RANK_ALLOCATORS:
        reasons.append("ranks are allocated by torch.kthvalue")
    # A model interpolates its positions for images of another size than its table's.
    # DINOv2's table is of larger images than it usually gets.
    is_dinov2 = model_type.startswith("dinov2")
    interpolates = run.config["task"].get("image_size") or is_dinov2
    if run.method["kind"] == "full" and interpolates:
        reasons.append(
            "position embeddings are trained through a bicubic interpolation"
        )
    return [f"another run may differ in the last bits: {reason}" for reason in reasons]


def is_slow_in_bf16(device_type: str, precision: str) -> bool:
    """Whether a run computes in bf16 on a CPU whose vector instructions end at AVX2, which
    has none for bfloat16. A product of matrices took 48 times as long there as in
    float32."""
    if device_type != "cpu" or precision != "bf16":
        return False
    return torch.backends.cpu.get_cpu_capability() == "AVX2"


def determinism(device: torch.device) -> Determinism:
    """How the process computes now, for the record's `determinism`."""
    current: Determinism = {
        "deterministic_algorithms": torch.are_deterministic_algorithms_enabled(),
        "strict": torch.get_deterministic_debug_mode() == 2,  # 2 is "error"
        "threads": torch.get_num_threads(),
    }
    if device.type != "cuda":
        return current
    cuda: Any = torch.backends.cuda
    kernels = {
        "flash": cuda.flash_sdp_enabled(),
        "memory-efficient": cuda.mem_efficient_sdp_enabled(),
        "cudnn": cuda.cudnn_sdp_enabled(),
    }
    current["tf32_matmul"] = cuda.matmul.allow_tf32
    current["tf32_conv"] = torch.backends.cudnn.allow_tf32
    current["fused_attention"] = [
        name for name, is_enabled in kernels.items() if is_enabled
    ]
    return current


def train_in_float32(model: nn.Module) -> None:
    """Makes what trains float32 where it was loaded in half precision: the head, and
    values that a method trains in place, such as biases. In half precision small steps
    would round to nothing. What a method adds is float32 already."""
    for module in model.modules():
        parameters = [*module.parameters(recurse=False)]
        trained = [parameter for parameter in parameters if parameter.requires_grad]
        if trained and not is_linear(module):
            # such as a norm, which computes in one dtype: its frozen values change too
            _make_float32(parameters)
        else:
            _make_float32(trained)


def _make_float32(parameters: Iterable[nn.Parameter]) -> None:
    """Makes floats of lower precision float32; others stay as they are."""
    for parameter in parameters:
        if parameter.is_floating_point():
            dtype = torch.promote_types(parameter.dtype, torch.float32)
            parameter.data = parameter.data.to(dtype)


def check_dtypes(model: nn.Module, config: Configuration) -> None:
    """Raises UserError where base weights in half precision would meet values of their
    own layer in float32: only autocast computes with both."""
    dtype = models.dtype_of(config)
    method = config["method"]
    has_autocast = config["train"]["precision"] == dtype
    # full fine-tuning leaves all values in the model's dtype
    if dtype == "fp32" or has_autocast or method["kind"] == "full":
        return
    names = trained_in_place(model)
    if names:
        raise UserError(
            f"model.dtype={dtype}: {method['label']} trains values of the model itself "
            f"({names[0]}), in float32 beside such weights. That takes autocast: "
            f"train.precision={dtype}"
        )
