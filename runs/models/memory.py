"""Checks that a model fits into a device's free memory."""

import contextlib
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runs.errors import UserError
from runs.record.text import megabytes

if TYPE_CHECKING:
    import torch

#: Bytes of a 4-bit value with its share of the block scales, which are quantised too (QLoRA, Dettmers et al.
#: 2023).
NF4_BYTES = (4 + 8 / 64 + 32 / (64 * 256)) / 8
#: Parts of the names of matrices that are not quantised: embeddings, and the output layer.
NOT_QUANTISED = ("embed", "lm_head", "wte", "wpe", "shared")


def check_memory(folder: Path, config: Mapping[str, Any], device: "torch.device") -> None:
    """Raises UserError, before it is loaded, for a model that cannot fit into the device's free memory.

    Counts the weights and, where all of them are trained, their gradients and moments; the memory of
    activations is not known yet."""
    from safetensors import safe_open

    quantise, size = config["model"].get("quantise"), {"whole": 0.0, "nf4": 0.0}
    for path in folder.glob("model*.safetensors"):
        try:
            with safe_open(path, "np") as file:
                shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118 - no mapping
        except Exception:  # a damaged file gets its message when it is loaded
            return
        for name, shape in shapes.items():
            whole = len(shape) != 2 or any(part in name for part in NOT_QUANTISED)
            size["whole"] += 4 * math.prod(shape)
            size["nf4"] += (4 if whole else NF4_BYTES) * math.prod(shape)
    everything = config["method"]["kind"] == "full"
    needed, free = size[quantise or "whole"] * (4 if everything else 1), free_memory(device)
    if needed > free:
        alone = f"weights alone{' in 4 bit' if quantise else ''}"
        what = "weights, gradients and AdamW's moments" if everything else alone
        fits = not quantise and not everything and size["nf4"] < free
        smaller = f" model.quantise=nf4 takes {megabytes(size['nf4'])}." if fits else ""
        raise UserError(
            f"{config['model']['label']}: its {what} take {megabytes(needed)}, and {megabytes(free)} are free"
            f" on {device.type}.{smaller} Choose a smaller model, or another device (device=)"
        )


def free_memory(device: "torch.device") -> float:
    """Bytes that are free on a device; on a CPU, within the container's limit."""
    if device.type == "cuda":
        import torch

        return float(torch.cuda.mem_get_info(device)[0])
    import psutil

    free = float(psutil.virtual_memory().available)
    with contextlib.suppress(OSError, ValueError, KeyError):  # "max": no limit
        limit, taken = (int((CGROUP / f"memory.{name}").read_text()) for name in ("max", "current"))
        stat = dict(line.split() for line in (CGROUP / "memory.stat").read_text().splitlines())
        # The page cache counts as taken, and can be dropped
        free = min(free, max(limit - taken + int(stat["file"]), 0))
    return free


CGROUP = Path("/sys/fs/cgroup")
