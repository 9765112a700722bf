"""What training changes: the optimizer with its rates, and the state; and the
checkpoint of both.

That is one safetensors file, written atomically, from which a killed run goes on to the
same record.

Tensors: the trainable parameters, the optimizer's state, torch's generators. The
header's metadata is JSON: the step, Python's and numpy's generators, and the curve so
far. Never pickle. A checksum over all of it: a run that went on from a damaged file
would end with a record like any other."""

import errno
import hashlib
import itertools
import json
import os
import random
import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim import Optimizer

import vera
from runs.command.errors import DeviceError
from runs.record.ledger import temporary
from runs.run.methods import patterns_of
from runs.training.reach import rate_factor, warmup_of

#: The columns of a curve: a row for each evaluation.
CURVE = (
    "epoch",
    "step",
    "train_loss",
    "dev_loss",
    "metric",
    "metric_select",
    "metric_report",
    "lr",
)


@dataclass
class State:
    """The state of training, as plain values that a checkpoint keeps beside the
    tensors."""

    keep: str  # this and the next as the configuration had them when the run began
    adapter_precision: str = "fp32"
    epoch: int = 0  # the current one, from 0
    step: int = 0
    loss_sum: float = 0.0  # since the last evaluation
    rows: float = 0  # that loss_sum is over; for language models, tokens
    curve: dict[str, list[Any]] = field(
        default_factory=lambda: {key: [] for key in CURVE}
    )
    #: What the objective has measured: in the last step, and the sums since the last
    #: evaluation with the number of steps.
    metrics: dict[str, float] = field(default_factory=dict)
    metric_sums: dict[str, float] = field(default_factory=dict)
    metric_steps: int = 0
    reach: dict[str, Any] = field(default_factory=dict)  # of estimate_effect
    predictions: list[str] = field(default_factory=list)  # a hash of each evaluation's
    # which rows were right, at the best epoch so far and the last (runs/record/items.py)
    right: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(
        default_factory=lambda: {"train": 0.0, "evaluate": 0.0}
    )
    units: int = 0  # tokens or images
    status: str = "done"
    error: str | None = None
    scaler: dict[str, Any] | None = None  # fp16's
    # of the attempt that trains now
    conditions: dict[str, Any] = field(default_factory=dict)
    # where an attempt had others than the one before
    resumed: list[str] = field(default_factory=list)

    def add_point(self, point: Mapping[str, Any], predictions: str) -> None:
        """Adds an evaluation to the curve, with the hash of its predictions."""
        for key, value in point.items():
            self.curve.setdefault(key, []).append(value)
        self.predictions.append(predictions)
        self.loss_sum, self.rows = 0.0, 0
        self.metric_sums, self.metric_steps = {}, 0

    def add_metrics(self, metrics: dict[str, float]) -> None:
        """Adds what the objective has measured in a step."""
        self.metrics = metrics
        self.metric_steps += 1
        for name, value in metrics.items():
            self.metric_sums[name] = self.metric_sums.get(name, 0.0) + value

    def mean_metrics(self) -> dict[str, float]:
        """The means of the objective's metrics since the last evaluation."""
        return {
            name: total / self.metric_steps for name, total in self.metric_sums.items()
        }

    def diverge(self, why: str) -> None:
        """Ends the run as diverged, which is a result: another attempt would end the
        same way."""
        self.status, self.error = "diverged", why


# --- the checkpoint


@dataclass(frozen=True)
class Checkpoint:
    """A run's checkpoint: path, trained parameters by name, optimizer, device (whose
    generator it has)."""

    path: Path
    run_id: str
    parameters: dict[str, nn.Parameter]
    optimizer: Optimizer
    device: torch.device

    def save(self, state: dict[str, Any], method_state: dict[str, Tensor]) -> None:
        """Writes it. `load` returns `state` (plain values) and `method_state` (what the
        method gathered)."""
        tensors: dict[str, Tensor] = {
            f"parameter/{name}": p.detach() for name, p in self.parameters.items()
        }
        for index, values in self.optimizer.state_dict()["state"].items():
            tensors |= {
                f"optimizer/{index}/{name}": value for name, value in values.items()
            }
        tensors |= {f"method/{name}": value for name, value in method_state.items()}
        tensors["generator/cpu"] = torch.get_rng_state()
        if self.device.type != "cpu":
            tensors[f"generator/{self.device.type}"] = torch.get_device_module(
                self.device
            ).get_rng_state()
        # Once: the file and its checksum are made from the same copy
        tensors = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
        version, words, position, has_gauss, cached = tuple(
            np.random.get_state(legacy=True)
        )
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
                save_file(
                    tensors,
                    partial,
                    {"header": text, "sha256": digest_of(text, tensors)},
                )
            except SafetensorError as error:
                # The operating system's own error is in its words: a full disk is known
                # by its number
                number = re.search(r"\(os error (\d+)\)", str(error))
                raise OSError(
                    int(number[1]) if number else errno.EIO, str(error), str(self.path)
                ) from None
            with open(partial, "rb") as file:
                os.fsync(file.fileno())
            os.replace(partial, self.path)

    def load(self) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
        """Puts everything back and returns the state and the method's; None, with
        nothing changed, without a usable file. Raises DeviceError where it was begun on
        another type of device."""
        if not self.path.is_file():
            return None
        try:
            with safe_open(self.path, framework="pt") as file:
                metadata = file.metadata()
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
            if digest_of(metadata["header"], tensors) != metadata["sha256"]:
                raise ValueError("its checksum is another")
            header, parts = (
                json.loads(metadata["header"]),
                defaultdict[str, dict[str, Tensor]](dict),
            )
            for path, tensor in tensors.items():
                part, _, name = path.partition("/")
                parts[part][name] = tensor
            if (
                header["run_id"] != self.run_id
                or self.parameters.keys() - parts["parameter"].keys()
            ):
                raise ValueError("of another run")
            python, numpy_state = header["python"], header["numpy"]
            state: dict[str, Any] = header["state"]
            if header["device"] != self.device.type:
                begun = f"this run was begun on {header['device']} and cannot go on on {self.device.type}"
                raise DeviceError(f"{begun}: go on there, or delete {self.path}")
        except (
            SafetensorError,
            ValueError,
            KeyError,
            TypeError,
            OSError,
            RecursionError,
        ) as error:
            print(
                f"the checkpoint {self.path} is not usable ({error}): starting over",
                flush=True,
            )
            return None
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(parts["parameter"][name])
        moments: dict[int, dict[str, Tensor]] = {}
        for name, tensor in parts["optimizer"].items():
            index, _, key = name.partition("/")
            moments.setdefault(int(index), {})[key] = tensor
        self.optimizer.load_state_dict(self.optimizer.state_dict() | {"state": moments})
        torch.set_rng_state(parts["generator"]["cpu"])
        if self.device.type != "cpu":
            torch.get_device_module(self.device).set_rng_state(
                parts["generator"][self.device.type]
            )
        random.setstate((python[0], tuple(python[1]), python[2]))
        np.random.set_state(
            (
                numpy_state[0],
                np.array(numpy_state[1], dtype=np.uint32),
                *numpy_state[2:],
            )
        )
        return state, parts["method"]


def digest_of(header: str, tensors: dict[str, Tensor]) -> str:
    """SHA-256 of a text and of tensors on the CPU, with their names."""
    digest = hashlib.sha256(header.encode())
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(
            tensors[name].contiguous().reshape(-1).view(torch.uint8).numpy().data
        )
    return digest.hexdigest()


# --- the optimizer and its rates


def optimizer_groups(
    method: vera.Method, model: nn.Module, train: dict[str, Any]
) -> list[dict[str, Any]]:
    """The optimizer's groups "adapter" and "head" with their rates. Parameters of
    train.lr_by or decay_by, and biases and LayerNorms (no weight decay, but for
    decay_all or decay_by), are groups of their own."""
    norms = [module for module in model.modules() if isinstance(module, nn.LayerNorm)]
    of_norms = {id(p) for module in norms for p in module.parameters(recurse=False)}
    rates, decays = train.get("lr_by") or {}, train.get("decay_by") or {}
    named = method.parameter_groups(model)
    names = [name for parameters in named.values() for name in parameters]
    pattern_of, decay_by = (
        patterns_of(names, rates),
        patterns_of(names, decays, "decay_by"),
    )
    groups = []
    for name, parameters in named.items():
        decay_of = dict[str, float]()
        if not train["decay_all"]:
            decay_of = {
                n: 0.0
                for n, p in parameters.items()
                if n.endswith("bias") or id(p) in of_norms
            }
        decay_of |= {n: decays[decay_by[n]] for n in parameters if n in decay_by}
        keys = {n: (pattern_of.get(n), decay_of.get(n)) for n in parameters}
        for pattern, decay in itertools.product(
            (None, *rates), dict.fromkeys((None, *decay_of.values()))
        ):
            of = [p for n, p in parameters.items() if keys[n] == (pattern, decay)]
            title = name if pattern is None else f"{name} {pattern}"
            title += (
                f" (decay {decay:g})"
                if decay
                else ""
                if decay is None
                else " (no decay)"
            )
            rate = (
                train["lr_head" if name == "head" else "lr"]
                if pattern is None
                else rates[pattern]
            )
            value = train["weight_decay"] if decay is None else decay
            groups += (
                [{"name": title, "lr": rate, "weight_decay": value, "params": of}]
                if of
                else []
            )
    return groups


def make_optimizer(
    groups: list[dict[str, Any]], train: dict[str, Any], device: torch.device
) -> torch.optim.Optimizer:
    """AdamW on these groups, whose parameters are on the device; on an empty one where
    nothing trains."""
    nothing = {
        "name": "nothing",
        "lr": 0.0,
        "weight_decay": 0.0,
        "params": [nn.Parameter(torch.zeros(0))],
    }
    # A kernel for many tensors, instead of several for each. In fp16 it would skip a
    # step by itself, unseen by accelerate, and a method's after_step would take
    # gradients that overflowed
    fused = bool(groups) and device.type == "cuda" and train["precision"] != "fp16"
    betas, eps = (0.9, train["adam_beta2"]), train["adam_eps"]
    return torch.optim.AdamW(
        groups or [nothing], betas=betas, eps=eps, fused=fused or None
    )


def set_rates(optimizer: Any, train: dict[str, Any], step: int, total: int) -> None:
    """Sets the learning rates for a step, from 0: the warm-up, then the schedule.
    total: all steps."""
    warmup = warmup_of(train, total)
    for group in optimizer.param_groups:
        rate = group.setdefault("initial_lr", group["lr"])
        group["lr"] = rate * rate_factor(step, train["schedule"], warmup, total)


#: The step at which a gradient is looked for: earlier a token may be in no batch, or a
#: head still 0.
WITHOUT_GRADIENT = 20


def check_gradient(
    method: vera.Method, model: nn.Module, optimizer: Any, step: int, total: int
) -> None:
    """Raises AdapterError where no gradient has reached what a method adds or
    unfreezes, now or before: its run would be the head's alone. It looks at one step;
    total: all steps. Of peft's classes it is known."""
    if step != min(WITHOUT_GRADIENT, total) or method.kind == "peft":
        return
    trained = method.adapter_parameters(model)
    seen = [p.grad for p in trained.values()] + [
        optimizer.state[p].get("exp_avg") for p in trained.values()
    ]
    if trained and not any(
        tensor is not None and bool(tensor.any()) for tensor in seen
    ):
        raise vera.AdapterError(
            f"no gradient has reached what {type(method).__name__} trains (such as {next(iter(trained))})."
            " It has to be used in forward, and of a product not all factors may start at 0"
        )
