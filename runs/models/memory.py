"""How much memory a model takes whatever the batch is, and whether it fits."""

import contextlib
import math
from pathlib import Path
from typing import TYPE_CHECKING

from runs.command.errors import UserError
from runs.record.configuration import Configuration
from runs.record.text import megabytes

if TYPE_CHECKING:
    import torch

#: Bytes of a 4-bit value with its share of the quantised block scales (QLoRA, Dettmers
#: et al. 2023).
NF4_BYTES = (4 + 8 / 64 + 32 / (64 * 256)) / 8
#: Bytes of a value, by model.dtype.
BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}
#: The precisions of two bytes.
HALF = ("bf16", "fp16")


def check_memory(folder: Path, config: Configuration, device: "torch.device") -> None:
    """Raises UserError, before it is loaded, for a model that cannot fit into the
    device's free memory."""
    from safetensors import SafetensorError, safe_open

    count = 0
    for path in folder.glob("model*.safetensors"):
        # A damaged file gets its message when it is loaded
        with (
            contextlib.suppress(SafetensorError, OSError),
            safe_open(path, "np") as file,
        ):
            for name in file.keys():  # noqa: SIM118 - it is no mapping
                count += math.prod(file.get_slice(name).get_shape())
    content, bytes_of_value = memory_of_weights(config)
    needed, free = count * bytes_of_value, free_memory(device)
    if needed <= free:
        return
    label = config["model"]["label"]
    choices = [*_smaller_weights(config), "a smaller model"]
    raise UserError(
        f"{label}: its {content} take {megabytes(needed)}, and {megabytes(free)} are "
        f"free on {device.type}. Choose {', '.join(choices)}, or another device "
        "(device=)"
    )


def _smaller_weights(config: Configuration) -> list[str]:
    """The overrides with which a model's weights take less memory."""
    model = config["model"]
    if model["modality"] != "text generation" or model.get("quantise"):
        return []
    overrides = []
    if dtype_of(config) == "fp32":
        overrides.append("model.dtype=bf16")
    if config["method"]["kind"] != "full":
        overrides.append("model.quantise=nf4")
    return overrides


def dtype_of(config: Configuration) -> str:
    """model.dtype of a configuration, which may be from before there was that key."""
    return str(config["model"].get("dtype") or "fp32")


def memory_of_weights(config: Configuration) -> tuple[str, float]:
    """What of a model is held in memory whatever the batch is, in words, and its bytes
    for each value of the model. Where all is trained there are gradients and two
    moments beside the weights; activations are not counted."""
    bytes_of_value = bytes_of_weight(config)
    if config["method"]["kind"] == "full":
        return "weights, gradients and AdamW's moments", 4 * bytes_of_value
    return "weights alone", bytes_of_value


def bytes_of_weight(config: Configuration) -> float:
    """The bytes of a base weight."""
    if config["model"].get("quantise"):
        return NF4_BYTES
    return BYTES[dtype_of(config)]


def computing_precision(config: Configuration) -> str:
    """The precision of most products: that of base weights of two bytes, which each
    layer computes in; else train.precision."""
    dtype = dtype_of(config)
    if dtype in HALF:
        return dtype
    # records need not have the key
    return str(config["train"].get("precision", "fp32"))


def free_memory(device: "torch.device") -> float:
    """Bytes that are free on a device."""
    import psutil
    import torch

    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return float(free)
    return float(psutil.virtual_memory().available)
