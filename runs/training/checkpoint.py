"""The training checkpoint: one safetensors file, written atomically. A killed run that continues from it ends
with the same record.

Tensors: the trainable parameters, the optimizer's state, torch's generators. The header's metadata is JSON:
the state of training with the curve so far, and Python's and numpy's generators. No pickle. A checksum covers
all of it, since nothing in the record would show that a run continued from a damaged file."""

import hashlib
import json
import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from vera.checked_file import system_error


def save(
    path: Path,
    run_id: str,
    parameters: dict[str, nn.Parameter],
    optimizer: Optimizer,
    state: dict[str, Any],
    method_state: dict[str, Tensor],
) -> None:
    """Writes a checkpoint. parameters: the trainable ones, by name. state: plain values. method_state: the
    method's own tensors. `load` returns the last two."""
    tensors: dict[str, Tensor] = {f"parameter/{name}": p.detach() for name, p in parameters.items()}
    for index, values in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer/{index}/{name}": value for name, value in values.items()}
    tensors |= {f"method/{name}": value for name, value in method_state.items()}
    tensors["generator/cpu"] = torch.get_rng_state()
    for device in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        tensors[f"generator/cuda/{device}"] = torch.cuda.get_rng_state(device)
    version, words, position, has_gauss, cached = tuple(np.random.get_state(legacy=True))
    header = {
        "run_id": run_id,
        "state": state,
        "python": random.getstate(),
        "numpy": [version, np.asarray(words).tolist(), position, has_gauss, cached],
    }
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        text = json.dumps(header)
        save_file(
            {k: v.contiguous() for k, v in tensors.items()},
            partial,
            {"header": text, "sha256": _digest(text, tensors)},
        )
        with open(partial, "rb") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
    except SafetensorError as error:
        raise system_error(path, error) from None
    finally:
        partial.unlink(missing_ok=True)


def _digest(header: str, tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256(header.encode())
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def load(
    path: Path, run_id: str, parameters: dict[str, nn.Parameter], optimizer: Optimizer
) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
    """Restores parameters, optimizer and generators, and returns the state and the method's. Without a usable
    checkpoint it returns None and changes nothing."""
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
        if _digest(metadata["header"], tensors) != metadata["sha256"]:
            raise ValueError("its checksum is another")
        header = json.loads(metadata["header"])
        if header["run_id"] != run_id or {f"parameter/{name}" for name in parameters} - set(tensors):
            raise ValueError("of another run")
        python, numpy_state = header["python"], header["numpy"]
        state: dict[str, Any] = header["state"]
    except (SafetensorError, ValueError, KeyError, TypeError, OSError, RecursionError) as error:
        print(f"the checkpoint {path} is not usable ({error}): starting over", flush=True)
        return None
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(tensors[f"parameter/{name}"])
    moments: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith("optimizer/"):
            _, index, key = name.split("/")
            moments.setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict({"state": moments, "param_groups": optimizer.state_dict()["param_groups"]})
    torch.set_rng_state(tensors["generator/cpu"])
    for name, tensor in tensors.items():
        if name.startswith("generator/cuda/") and torch.cuda.is_available():
            torch.cuda.set_rng_state(tensor, int(name.rpartition("/")[2]))
    random.setstate((python[0], tuple(python[1]), python[2]))
    np.random.set_state((numpy_state[0], np.array(numpy_state[1], dtype=np.uint32), *numpy_state[2:]))
    return state, {
        name.removeprefix("method/"): value for name, value in tensors.items() if name.startswith("method/")
    }
