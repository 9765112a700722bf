"""What training changes: the optimizer with its rates, and the state; and the
checkpoint of both.

The checkpoint is one safetensors file, written atomically, from which a killed run
continues to the same record. Its tensors are the trainable parameters, the state of the
optimizer and torch's generators. The metadata of its header is JSON: the step, the
generators of Python and numpy, and the curve so far. Nothing is pickled. A checksum
covers all of it, since a run that continued from a damaged file would end with a record
like any other."""

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
from typing import Any, TypedDict, cast

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim import Optimizer

import vera
from runs.command.errors import DeviceError, UserError
from runs.record.configuration import Configuration, TrainConfig
from runs.record.files import replacing
from runs.record.schema import CURVE_COLUMNS, Curve, Reach, RightRows, Status
from runs.record.steps import count_warmup_steps, rate_factor
from runs.run.methods import patterns_by_name
from runs.run.provenance import Conditions

#: Plain values, as JSON has them.
Plain = dict[str, Any]
#: What reading a damaged checkpoint may raise.
READING_ERRORS = (
    SafetensorError,
    ValueError,
    KeyError,
    TypeError,
    OSError,
    RecursionError,
)


def empty_curve() -> Curve:
    """The columns of every curve, before the first evaluation."""
    return cast(Curve, {column: [] for column in CURVE_COLUMNS})


@dataclass
class State:
    """The state of training, as plain values that a checkpoint keeps beside the
    tensors."""

    # keep and adapter_precision are the settings with which the run began
    keep: str
    adapter_precision: str = "fp32"
    epoch: int = 0  # the current one, from 0
    step: int = 0  # how many steps have been done
    loss_sum: float = 0.0  # since the last evaluation
    rows: float = 0  # how many rows (language models: tokens) loss_sum is over
    curve: Curve = field(default_factory=empty_curve)
    #: What the objective has measured: in the last step (metrics), and added up over
    #: the steps since the last evaluation (metric_sums, metric_steps).
    metrics: dict[str, float] = field(default_factory=dict)
    metric_sums: dict[str, float] = field(default_factory=dict)
    metric_steps: int = 0
    reach: Reach | None = None  # what estimate_effect returned
    predictions: list[str] = field(default_factory=list)  # a hash of each evaluation's
    # which rows were right, at the best epoch so far and the last (runs/record/items.py)
    right: RightRows = field(default_factory=RightRows)
    seconds: dict[str, float] = field(
        default_factory=lambda: {"train": 0.0, "evaluate": 0.0}
    )
    units: int = 0  # tokens or images
    status: Status = "done"  # from the start, unless the run diverges
    error: str | None = None  # why the run diverged
    scaler: dict[str, Any] | None = None  # fp16's
    # the software, hardware and micro-batch of the attempt that trains now
    conditions: Conditions = field(default_factory=dict)
    # the steps at which an attempt went on under other conditions, in words
    resumed: list[str] = field(default_factory=list)

    def add_point(self, point: Mapping[str, object], predictions_hash: str) -> None:
        """Adds an evaluation to the curve, and starts the sums since the last one anew.
        point: the value of each column."""
        columns = cast(dict[str, list[object]], self.curve)
        for column, value in point.items():
            columns.setdefault(column, []).append(value)
        self.predictions.append(predictions_hash)
        self.loss_sum = 0.0
        self.rows = 0
        self.metric_sums = {}
        self.metric_steps = 0

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

    def check_settings(self, config: Configuration, checkpoint: Path) -> None:
        """Raises UserError if a resumed run would write its adapter otherwise than when it
        began: of another epoch (keep=best or last), or in another precision. What the
        first part of the run has kept cannot be changed anymore.

        checkpoint: its file, for the message."""
        settings_at_start = {
            "keep": self.keep,
            "adapter_precision": self.adapter_precision,
        }
        settings_now = {
            "keep": config["keep"],
            "adapter_precision": config["adapter_precision"],
        }
        for key, setting in settings_now.items():
            at_start = settings_at_start[key]
            if at_start != setting:
                raise UserError(
                    f"{key}={setting}: this run was begun with {key}={at_start}: go on "
                    f"with that, or delete {checkpoint} to begin anew"
                )

    @property
    def has_diverged(self) -> bool:
        """Whether the run has ended as diverged."""
        return self.status == "diverged"

    def diverge(self, reason: str) -> None:
        """Ends the run as diverged, which is a result: another attempt would end the
        same way."""
        self.status = "diverged"
        self.error = reason


# --- the checkpoint


@dataclass(frozen=True)
class Checkpoint:
    """A run's checkpoint.

    Attributes:
        path: of the file.
        parameters: those that train, by name.
        device: the run's. The checkpoint has its generator, beside that of the CPU.
    """

    path: Path
    run_id: str
    parameters: dict[str, nn.Parameter]
    optimizer: Optimizer
    device: torch.device

    def save(self, state: Plain, method_state: dict[str, Tensor]) -> None:
        """Writes the checkpoint. `load` returns both arguments again.

        Args:
            state: the training's state as plain values.
            method_state: the tensors of `Method.training_state`.
        """
        tensors = self._tensors(method_state)
        content = {
            "run_id": self.run_id,
            "device": self.device.type,
            "state": state,
            "python": random.getstate(),
            "numpy": _numpy_state(),
        }
        header = json.dumps(content)
        metadata = {"header": header, "sha256": checkpoint_sha256(header, tensors)}
        with replacing(self.path) as partial:
            try:
                save_file(tensors, partial, metadata)
            except SafetensorError as error:
                # callers know a full disk by its OSError
                raise self._os_error(error) from None
            with open(partial, "rb") as file:
                os.fsync(file.fileno())

    def _tensors(self, method_state: dict[str, Tensor]) -> dict[str, Tensor]:
        """All that training changes, on the CPU, by PART/NAME such as
        generator/cpu."""
        tensors = dict[str, Tensor]()
        for name, parameter in self.parameters.items():
            tensors[f"parameter/{name}"] = parameter.detach()
        for index, moments in self.optimizer.state_dict()["state"].items():
            for name, tensor in moments.items():
                tensors[f"optimizer/{index}/{name}"] = tensor
        for name, tensor in method_state.items():
            tensors[f"method/{name}"] = tensor
        tensors["generator/cpu"] = torch.get_rng_state()
        if self.device.type != "cpu":
            device_module = torch.get_device_module(self.device)
            tensors[f"generator/{self.device.type}"] = device_module.get_rng_state()
        # here, so that the file and its checksum are made from the same copies
        return {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}

    def _os_error(self, error: SafetensorError) -> OSError:
        """The operating system's error, such as that of a full disk, whose number
        safetensors quotes; EIO where it quotes none."""
        match = re.search(r"\(os error (\d+)\)", str(error))
        number = int(match[1]) if match else errno.EIO
        return OSError(number, str(error), str(self.path))

    def load(self) -> tuple[Plain, dict[str, Tensor]] | None:
        """Restores the parameters, the optimizer and all generators.

        Returns:
            The state and the method's state, as `save` took them; None if there is no
            usable file, and then nothing has changed.

        Raises:
            DeviceError: if the run was begun on another type of device.
        """
        if not self.path.is_file():
            return None
        try:
            header, parts = self._read()
            numpy_state = header["numpy"]
            python_version, python_words, next_gaussian = header["python"]
            state: Plain = header["state"]
        except READING_ERRORS as error:
            print(
                f"the checkpoint {self.path} is not usable ({error}): starting over",
                flush=True,
            )
            return None
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(parts["parameter"][name])
        self._load_moments(parts["optimizer"])
        torch.set_rng_state(parts["generator"]["cpu"])
        if self.device.type != "cpu":
            device_module = torch.get_device_module(self.device)
            device_module.set_rng_state(parts["generator"][self.device.type])
        # JSON has made lists of the tuple and the array that these functions take
        random.setstate((python_version, tuple(python_words), next_gaussian))
        kind, words, *position = numpy_state
        np.random.set_state((kind, np.array(words, dtype=np.uint32), *position))
        return state, parts["method"]

    def _read(self) -> tuple[Plain, dict[str, dict[str, Tensor]]]:
        """The header, and the tensors by PART and then by NAME (see `_tensors`). Raises
        ValueError for a damaged file and one of another run, and DeviceError as `load`
        does."""
        with safe_open(self.path, framework="pt") as file:
            metadata = file.metadata()
            names = file.keys()
            tensors = {name: file.get_tensor(name) for name in names}
        if checkpoint_sha256(metadata["header"], tensors) != metadata["sha256"]:
            raise ValueError("its checksum is another")
        header: Plain = json.loads(metadata["header"])
        parts = defaultdict[str, dict[str, Tensor]](dict)
        for path, tensor in tensors.items():
            part, _, name = path.partition("/")
            parts[part][name] = tensor
        missing_parameters = self.parameters.keys() - parts["parameter"].keys()
        if header["run_id"] != self.run_id or missing_parameters:
            raise ValueError("of another run")
        if header["device"] != self.device.type:
            raise DeviceError(
                f"this run was begun on {header['device']} and cannot go on on "
                f"{self.device.type}: go on there, or delete {self.path}"
            )
        return header, parts

    def _load_moments(self, tensors: dict[str, Tensor]) -> None:
        """Puts the optimizer's state back. tensors: by INDEX/NAME, such as
        0/exp_avg."""
        moments = defaultdict[int, dict[str, Tensor]](dict)
        for name, tensor in tensors.items():
            index, _, key = name.partition("/")
            moments[int(index)][key] = tensor
        state = {**self.optimizer.state_dict(), "state": dict(moments)}
        self.optimizer.load_state_dict(state)


def _numpy_state() -> list[object]:
    """The state of numpy's generator as plain values."""
    kind, words, *position = tuple(np.random.get_state(legacy=True))
    return [kind, np.asarray(words).tolist(), *position]


def checkpoint_sha256(header: str, tensors: dict[str, Tensor]) -> str:
    """SHA-256 of a text and of tensors on the CPU, with their names."""
    digest = hashlib.sha256(header.encode())
    for name in sorted(tensors):
        digest.update(name.encode())
        flat = tensors[name].contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()


# --- the optimizer and its rates


class ParameterGroup(TypedDict):
    """A group of parameters, as torch's optimizers take them."""

    name: str
    lr: float
    weight_decay: float
    params: list[nn.Parameter]


def optimizer_groups(
    method: vera.Method, model: nn.Module, train: TrainConfig
) -> list[ParameterGroup]:
    """The optimizer's groups "adapter" and "head" with their rates. Parameters of
    train.lr_by or decay_by, and biases and LayerNorms (no weight decay, except with
    decay_all or decay_by), have groups of their own."""
    rates = train.get("lr_by") or {}
    groups: list[ParameterGroup] = []
    parameters_by_part = method.parameter_groups(model)
    names = [name for named in parameters_by_part.values() for name in named]
    pattern_by_name = patterns_by_name(names, rates)
    decay_by_name = _weight_decays(parameters_by_part, model, train)
    for part, parameters in parameters_by_part.items():
        base_rate = train["lr_head"] if part == "head" else train["lr"]
        # The parameters by their pattern in lr_by and their weight decay. None stands for
        # the part's own rate, and for train.weight_decay.
        members = defaultdict[tuple[str | None, float | None], list[nn.Parameter]](list)
        decays: list[float | None] = [None]
        for name, parameter in parameters.items():
            decay = decay_by_name.get(name)
            if decay not in decays:
                decays.append(decay)
            members[pattern_by_name.get(name), decay].append(parameter)
        # in the order of the settings, which records show
        for pattern, decay in itertools.product((None, *rates), decays):
            if not members[pattern, decay]:
                continue
            group: ParameterGroup = {
                "name": _group_title(part, pattern, decay),
                "lr": base_rate if pattern is None else rates[pattern],
                "weight_decay": train["weight_decay"] if decay is None else decay,
                "params": members[pattern, decay],
            }
            groups.append(group)
    return groups


def _weight_decays(
    parameters_by_part: Mapping[str, Mapping[str, nn.Parameter]],
    model: nn.Module,
    train: TrainConfig,
) -> dict[str, float]:
    """The weight decay of each parameter whose decay is not train.weight_decay, by name:
    that of train.decay_by, or else 0 for biases and LayerNorms without decay_all."""
    # by identity: a norm is known by its module, and not by the name of its parameters
    in_norms = set[int]()
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            in_norms |= {id(tensor) for tensor in module.parameters(recurse=False)}
    decays = train.get("decay_by") or {}
    names = [name for named in parameters_by_part.values() for name in named]
    pattern_by_name = patterns_by_name(names, decays, "decay_by")
    decay_by_name = dict[str, float]()
    for parameters in parameters_by_part.values():
        for name, parameter in parameters.items():
            is_exempt = name.endswith("bias") or id(parameter) in in_norms
            if name in pattern_by_name:
                decay_by_name[name] = decays[pattern_by_name[name]]
            elif is_exempt and not train["decay_all"]:
                decay_by_name[name] = 0.0
    return decay_by_name


def _group_title(part: str, pattern: str | None, decay: float | None) -> str:
    """A group's name in records, such as "adapter lambda_b (no decay)". pattern: of
    train.lr_by; None for the part's own rate. decay: None for train.weight_decay."""
    title = part if pattern is None else f"{part} {pattern}"
    if decay is None:
        return title
    if decay == 0:
        return f"{title} (no decay)"
    return f"{title} (decay {decay:g})"


def make_optimizer(
    groups: list[ParameterGroup], train: TrainConfig, device: torch.device
) -> Optimizer:
    """AdamW on these groups, whose parameters are on the device. Without groups, where
    nothing trains, it has an empty parameter, since torch refuses an optimizer with
    none."""
    placeholder: ParameterGroup = {
        "name": "nothing",
        "lr": 0.0,
        "weight_decay": 0.0,
        "params": [nn.Parameter(torch.zeros(0))],
    }
    # One kernel for many tensors, instead of several for each. In fp16 it would skip an
    # overflowed step without accelerate's knowledge, and a method's after_step would use
    # those gradients.
    is_fused = bool(groups) and device.type == "cuda" and train["precision"] != "fp16"
    return torch.optim.AdamW(
        [dict(group) for group in groups or [placeholder]],
        betas=(0.9, train["adam_beta2"]),
        eps=train["adam_eps"],
        fused=True if is_fused else None,  # None: torch chooses another kind
    )


def set_rates(optimizer: Optimizer, train: TrainConfig, step: int, total: int) -> None:
    """Sets the learning rates for a step: the warm-up, then the schedule. step:
    counted from 0. total: the number of all steps."""
    warmup = count_warmup_steps(train, total)
    for group in optimizer.param_groups:
        # the first call keeps the group's full rate
        rate = group.setdefault("initial_lr", group["lr"])
        group["lr"] = rate * rate_factor(step, train["schedule"], warmup, total)


#: The step at which a gradient is looked for. At an earlier one it may be missing for a
#: good reason: a token was in no batch yet, or a head is still 0.
GRADIENT_CHECK_STEP = 20


def check_gradient(
    method: vera.Method, model: nn.Module, optimizer: Optimizer, step: int, total: int
) -> None:
    """Checks, at one step of the run, that a gradient has reached anything that a method
    adds or unfreezes. peft's classes need no such check.

    Args:
        step: the step whose gradients have just been computed, counted from 1.
        total: the number of all steps.

    Raises:
        AdapterError: if no gradient has reached it so far: the run would train its
            head alone.
    """
    if step != min(GRADIENT_CHECK_STEP, total) or method.kind == "peft":
        return
    trained = method.adapter_parameters(model)
    if not trained:
        return
    for parameter in trained.values():
        # Adam's average over earlier steps; None before the first one
        mean_gradient = optimizer.state[parameter].get("exp_avg")
        for gradient in (parameter.grad, mean_gradient):
            if gradient is not None and bool(gradient.any()):
                return
    raise vera.AdapterError(
        f"no gradient has reached what {type(method).__name__} trains (such as "
        f"{next(iter(trained))}). It has to be used in forward, and of a product not "
        "all factors may start at 0"
    )
