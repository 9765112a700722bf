"""The training checkpoint: one safetensors file, written atomically, from which a killed run goes on to the
same record.

Tensors: the trainable parameters, the optimizer's state, torch's generators. The header's metadata is JSON:
the step, Python's and numpy's generators, and the curve so far. Never pickle. A checksum over
all of it: a run that went on from a damaged file would end with a record like any other."""

import errno
import hashlib
import json
import os
import random
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from runs.errors import DeviceError
from runs.record import temporary


@dataclass(frozen=True)
class Checkpoint:
    """The checkpoint of a run: its path, the trainable parameters by name, the optimizer, and the device,
    whose generator is kept, and no other GPU's."""

    path: Path
    run_id: str
    parameters: dict[str, nn.Parameter]
    optimizer: Optimizer
    device: torch.device

    def save(self, state: dict[str, Any], method_state: dict[str, Tensor]) -> None:
        """Writes it. `state` (plain values) and `method_state` (what the method has gathered) are returned by
        `load`."""
        tensors: dict[str, Tensor] = {f"parameter/{name}": p.detach() for name, p in self.parameters.items()}
        for index, values in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer/{index}/{name}": value for name, value in values.items()}
        tensors |= {f"method/{name}": value for name, value in method_state.items()}
        tensors["generator/cpu"] = torch.get_rng_state()
        if self.device.type == "cuda":
            tensors["generator/cuda"] = torch.cuda.get_rng_state(self.device)
        elif self.device.type == "mps":
            tensors["generator/mps"] = torch.mps.get_rng_state()
        # Once: the file and its checksum are made from the same copy.
        tensors = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
        version, words, position, has_gauss, cached = tuple(np.random.get_state(legacy=True))
        header = {
            "run_id": self.run_id,
            "device": self.device.type,
            "state": state,
            "python": random.getstate(),
            "numpy": [version, np.asarray(words).tolist(), position, has_gauss, cached],
        }
        text = json.dumps(header)
        with temporary(self.path) as partial:
            try:
                save_file(tensors, partial, {"header": text, "sha256": _digest(text, tensors)})
            except SafetensorError as error:
                # The operating system's own error is in its words: a full disk is known by its number
                number = re.search(r"\(os error (\d+)\)", str(error))
                raise OSError(int(number[1]) if number else errno.EIO, str(error), str(self.path)) from None
            with open(partial, "rb") as file:
                os.fsync(file.fileno())
            os.replace(partial, self.path)

    def load(self) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
        """Puts everything back and returns the state and the method's; None, with nothing changed, without a
        usable file. Raises DeviceError where the run was begun on a device of another type: its numbers would
        be neither one's nor the other's."""
        if not self.path.is_file():
            return None
        try:
            with safe_open(self.path, framework="pt") as file:
                metadata = file.metadata()
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
            if _digest(metadata["header"], tensors) != metadata["sha256"]:
                raise ValueError("its checksum is another")
            header = json.loads(metadata["header"])
            names = {f"parameter/{name}" for name in self.parameters}
            if header["run_id"] != self.run_id or names - set(tensors):
                raise ValueError("of another run")
            python, numpy_state = header["python"], header["numpy"]
            state: dict[str, Any] = header["state"]
            if header["device"] != self.device.type:
                begun = f"this run was begun on {header['device']} and cannot go on on {self.device.type}"
                raise DeviceError(f"{begun}: go on there, or delete {self.path}")
        except (SafetensorError, ValueError, KeyError, TypeError, OSError, RecursionError) as error:
            print(f"the checkpoint {self.path} is not usable ({error}): starting over", flush=True)
            return None
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(tensors[f"parameter/{name}"])
        moments: dict[int, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            if name.startswith("optimizer/"):
                _, index, key = name.split("/")
                moments.setdefault(int(index), {})[key] = tensor
        self.optimizer.load_state_dict(
            {"state": moments, "param_groups": self.optimizer.state_dict()["param_groups"]}
        )
        torch.set_rng_state(tensors["generator/cpu"])
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(tensors["generator/cuda"], self.device)
        elif self.device.type == "mps" and "generator/mps" in tensors:  # older checkpoints lack it
            torch.mps.set_rng_state(tensors["generator/mps"])
        random.setstate((python[0], tuple(python[1]), python[2]))
        np.random.set_state((numpy_state[0], np.array(numpy_state[1], dtype=np.uint32), *numpy_state[2:]))
        return state, {
            name.removeprefix("method/"): value
            for name, value in tensors.items()
            if name.startswith("method/")
        }


def _digest(header: str, tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256(header.encode())
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
