"""The one training loop, for every model, task and method.

Accelerate brings device, precision and data parallel; the effective batch is the key, and micro-batches,
devices and accumulation follow from it."""

import contextlib
import hashlib
import math
import os
import random
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

# Read once, when CUDA starts: cuBLAS deterministic
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs, gather_object
from torch import nn

import tasks
import vera
from runs import checkpoint, models
from runs.begun import clear, read_tries
from runs.claims import Claim
from runs.config import Run
from runs.decode import decode, rehearse
from runs.errors import UserError
from runs.features import compute
from runs.identity import data_content, hash_of, model_content
from runs.provenance import code_state, machine, versions
from runs.record import (
    COMPUTED,
    READS_LENGTH_GROUPED,
    SCHEMA,
    Metric,
    Record,
    cell_id,
    crossfit,
    from_recipe,
    lora_scaling,
    row_label,
    run_folder,
    write_record,
)
from runs.sources import sources
from runs.starts import start_file, start_id

Report = Callable[[dict[str, Any]], None]

#: What a record says of VeRA's A and B, by method.redrawn.
DRAWS = {
    False: (
        "one draw of A and B for all seeds: the spread over seeds leaves out what another draw would change"
    ),
    True: "A and B are drawn anew for each seed: the spread over seeds holds what another draw changes",
}


class StoppedError(Exception):
    """The run was asked to stop, and has saved what it needs to go on."""


@dataclass
class Stop:
    """Whether the run is asked to stop (SIGTERM: a time limit is near), and whether it listens: between
    steps, and while it evaluates. Elsewhere there is nothing to save, and its process may end at once."""

    wanted: bool = False
    listens: bool = False

    def check(self) -> None:
        """Raises StoppedError where it is wanted."""
        if self.wanted:
            raise StoppedError


@dataclass
class Built:
    """Task, model and method of a run, adapted and on the CPU."""

    task: tasks.Task
    model: Any
    method: vera.Method


def build(run: Run, device: torch.device, start: bool = True) -> Built:
    """Seeds everything, then builds: the head's and LoRA's initial values come from the seed (transformers
    11965).

    start: fill the adapter from the run or file that init_from names. device: where a 4-bit model is loaded.
    """
    config = run.config
    method = vera.make_method(**run.method)
    task = tasks.load(config["task"])
    folder, modality = models.fetch(config["model"]), config["model"]["modality"]
    models.check_memory(folder, config, device)
    seed_everything(config["seed"])
    compute = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(config["train"]["precision"], torch.float32)
    quantise = compute if config["model"].get("quantise") else None
    model, tokenizer = models.load(
        folder, task.num_labels, task.problem, config["model"].get("settings"), modality, quantise, device
    )
    if modality == "image":
        task.prepare(tokenizer, 0)
    else:  # RoBERTa's positions begin after its padding index.
        positions = getattr(model.config, "max_position_embeddings", 512) - 2 * (
            "roberta" in model.config.model_type
        )
        task.prepare(
            tokenizer, min(config["train"]["max_length"], positions, tokenizer.model_max_length), positions
        )
    method.adapt(model)
    if start and config["init_from"]:
        vera.start_from(model, start_file(run))
    return Built(task, model, method)


def seed_everything(seed: int) -> None:
    """Python's, numpy's and torch's generators, and deterministic kernels where torch has them."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    # Use_deterministic_algorithms does the same, and imports the compiler: 2 s
    torch.set_deterministic_debug_mode("warn")
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined] # a debugging aid that costs time
    torch.backends.cudnn.benchmark = False


def epoch_batches(
    lengths: Sequence[int], size: int, seed: int, epoch: int, block: int = 8
) -> list[list[int]]:
    """The rows of each effective batch of an epoch: a pure function, so that a resumed run sees the same
    batches.

    block: within so many batches rows are sorted by length (see tasks.Task); which rows meet still changes
    from epoch to epoch."""
    generator = np.random.Generator(np.random.Philox(key=[seed, epoch]))
    order = generator.permutation(len(lengths)).tolist()
    batches = []
    for start in range(0, len(order), size * block):
        part = order[start : start + size * block]
        if block > 1:
            part.sort(key=lambda row: lengths[row])
        batches += [part[i : i + size] for i in range(0, len(part), size)]
    return [batches[i] for i in generator.permutation(len(batches))]


def optimizer_groups(method: vera.Method, model: nn.Module, train: dict[str, Any]) -> list[dict[str, Any]]:
    """Named groups "adapter" and "head" with their learning rates; biases and LayerNorms apart, without
    weight decay (unless train.decay_all)."""
    norms = {
        id(p) for m in model.modules() if isinstance(m, nn.LayerNorm) for p in m.parameters(recurse=False)
    }
    groups = []
    for name, parameters in method.parameter_groups(model).items():
        rate = train["lr_head"] if name == "head" else train["lr"]
        free = (
            {n for n, p in parameters.items() if n.endswith("bias") or id(p) in norms}
            if not train["decay_all"]
            else set()
        )
        for suffix, decay, members in (
            ("", train["weight_decay"], [p for n, p in parameters.items() if n not in free]),
            (" (no decay)", 0.0, [p for n, p in parameters.items() if n in free]),
        ):
            if members:
                groups.append({"name": name + suffix, "lr": rate, "weight_decay": decay, "params": members})
    return groups


def rate_factor(step: int, kind: str, warmup: int, total: int) -> float:
    """What the learning rates are multiplied by: from 0 to 1 over the warm-up, then linear or cosine to 0, or
    constant.

    transformers' own (get_scheduler), to the bit; its import takes four seconds, since peft and bitsandbytes
    come along."""
    if step < warmup:
        return step / warmup
    span = max(1, total - warmup)
    cosine = 0.5 * (1 + math.cos(math.pi * ((step - warmup) / span)))
    return {"linear": max(0.0, (total - step) / span), "cosine": cosine, "constant": 1.0}[kind]


class Training:
    """One run: what the loop needs, and what it has learnt so far (`state`, which a checkpoint keeps)."""

    def __init__(
        self,
        run: Run,
        run_id: str,
        report: Report,
        start: bool = True,
        claim: Claim | None = None,
        stop: Stop | None = None,
    ) -> None:
        self.run, self.run_id, self.report = run, run_id, report
        self.claim, self.stop = claim, stop or Stop()
        self.tries = read_tries(run.config["output"], run_id, run.config)
        self.config, self.settings = run.config, run.config["train"]
        self.folder = run_folder(self.config["output"], run_id)
        self.folder.mkdir(parents=True, exist_ok=True)
        device = self.config["device"]
        if device == "cuda" and not torch.cuda.is_available():
            raise UserError(
                f"device={device}: torch sees no CUDA device here. device=auto takes what there is"
            )
        precision = {"fp32": "no"}.get(self.settings["precision"], self.settings["precision"])
        # Accelerate keeps its settings for the whole process; the next run here may want another precision.
        AcceleratorState._reset_state()
        # AdapterDrop leaves other adapters without a gradient in each batch.
        unused = DistributedDataParallelKwargs(find_unused_parameters=bool(run.method.get("drop_per_batch")))
        self.accelerator = Accelerator(
            mixed_precision=precision, cpu=device == "cpu", kwargs_handlers=[unused]
        )
        report({"phase": "loading"})
        built = build(run, self.accelerator.device, start)
        self.task, self.metric, self.method = built.task, Metric.of_task(built.task), built.method
        self.code = code_state() | {"sources": sources(self.method, tasks.family(self.config["task"]))}
        self.raw_model = built.model
        if self.config.get("gradient_checkpointing"):
            self._checkpoint_gradients()
        self.groups = optimizer_groups(self.method, self.raw_model, self.settings)
        self.parameters = {n: p for n, p in self.raw_model.named_parameters() if p.requires_grad}
        # Where nothing trains (method=none), the model is judged as it is.
        groups = self.groups or [
            {"name": "nothing", "lr": 0.0, "weight_decay": 0.0, "params": [nn.Parameter(torch.zeros(0))]}
        ]
        optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.999), eps=self.settings["adam_eps"])
        # Where the head alone trains, its inputs may not change from epoch to epoch.
        self.raw_model.to(self.accelerator.device)
        self.features = compute(self) if start and run.method["kind"] == "head" else None
        self.trained: nn.Module = self.features.head if self.features else self.raw_model
        self.model, self.optimizer = self.accelerator.prepare(self.trained, optimizer)
        self.lengths = self.task.lengths("train")
        if len(self.task.lengths("dev")) < 2:
            raise UserError(
                "the dev set has 1 row: two are needed, since an epoch is also chosen on each half of it"
            )
        self.steps_per_epoch = math.ceil(len(self.lengths) / self.settings["effective_batch"])
        total = self.steps_per_epoch * self.settings["epochs"] if self.groups else 0
        self.total_steps = min(total, self.settings["max_steps"] or total)
        self.epochs = math.ceil(self.total_steps / self.steps_per_epoch)
        warmup = self.settings["warmup_steps"]
        warmup = math.ceil(self.settings["warmup_ratio"] * self.total_steps) if warmup is None else warmup
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(
            optimizer,
            partial(rate_factor, kind=self.settings["schedule"], warmup=warmup, total=self.total_steps),
        )
        self.method.before_training(self.raw_model, self.total_steps)
        self.notes = large_share(self.method, self.raw_model)
        self.predictions: Any = None  # of the last epoch
        self.state: dict[str, Any] = {
            "keep": self.config["keep"],
            "epoch": 0,
            "step": 0,
            "loss_sum": 0.0,
            "rows": 0,  # or a language model's tokens: what loss_sum is a sum over
            "curve": {
                key: []
                for key in (
                    "epoch",
                    "step",
                    "train_loss",
                    "dev_loss",
                    "metric",
                    "metric_select",
                    "metric_report",
                    "lr",
                )
            },
            "predictions": [],
            "seconds": {"train": 0.0, "evaluate": 0.0, "decode": 0.0},
            "units": 0,  # tokens or images
            "status": "done",
            "error": None,
        }

    # --- training

    def go(self) -> Record:
        """Trains, evaluates each epoch, and returns the record."""
        for note in self.notes:
            print(f"note: {note}", flush=True)
        path = self.folder / "checkpoint.safetensors"
        resumed = checkpoint.load(path, self.run_id, self.parameters, self.optimizer.optimizer)
        if resumed:
            state, method_state = resumed
            self.state |= state
            begun = self.state["keep"]
            # Or the file on disk would be another epoch's than the record says
            if begun != self.config["keep"]:
                anew = f"go on with that, or delete {path} to begin anew"
                raise UserError(f"keep={self.config['keep']}: this run was begun with keep={begun}: {anew}")
            self.method.load_training_state(self.raw_model, method_state)
            self.scheduler.last_epoch = self.state["step"]
            for group, rate in zip(self.optimizer.param_groups, self._rates(), strict=True):
                group["lr"] = rate
            if self.accelerator.scaler:
                self.accelerator.scaler.load_state_dict(self.state["scaler"])
            print(f"resumed at step {self.state['step']} of {self.total_steps}", flush=True)
            self.report({"phase": f"resuming at step {self.state['step']} of {self.total_steps}"})
        elif self.task.decodes:
            rehearse(self)
        self.stop.listens = True
        try:
            self._epochs(path)
        except StoppedError:
            self._save(path)
            raise
        self.stop.listens = False
        self.stop.check()
        texts = decode(self) if self.task.decodes and self.state["status"] == "done" else None
        return self.finish(texts)

    def _epochs(self, path: Path) -> None:
        """Trains and evaluates, epoch by epoch, from where `state` stands to the end."""
        self.report({"phase": "training, first step"})
        saved = time.monotonic()
        while self.state["epoch"] < self.epochs and self.state["status"] == "done":
            epoch = self.state["epoch"]
            size, seed = self.settings["effective_batch"], self.config["data_seed"]
            batches = epoch_batches(self.lengths, size, seed, epoch, self.task.block)
            coming = batches[self.state["step"] - epoch * self.steps_per_epoch :]
            self.task.begin_epoch(epoch, [self._mine(rows) for rows in coming])
            for rows in coming:
                started = time.monotonic()
                loss = self.step(rows)
                self.state["step"] += 1
                if self.state["step"] == 1:
                    print("the first step is done", flush=True)
                self.state["seconds"]["train"] += time.monotonic() - started
                if not math.isfinite(loss):
                    self.state |= {
                        "status": "diverged",
                        "error": f"loss became {loss} at epoch {epoch + 1}, step {self.state['step']}",
                    }
                    break
                weight = self.task.weight("train", rows)
                self.state["loss_sum"] += loss * weight
                self.state["rows"] += weight
                self._progress(loss)
                self.stop.check()
                if self.state["step"] == self.total_steps:
                    break
                if time.monotonic() - saved > 60 * self.config["checkpoint_minutes"]:
                    self._save(path)
                    saved = time.monotonic()
            if self.state["status"] == "done" and self._evaluates(epoch):
                self.end_epoch()
            elif self.state["status"] == "done":
                self.state["epoch"] += 1
            self._save(path)
            saved = time.monotonic()
        if not self.total_steps:
            self.end_epoch()

    def step(self, rows: list[int]) -> float:
        """One optimizer step on an effective batch; its mean loss. The gradient is that of the whole batch's
        mean."""
        world, mine = self.accelerator.num_processes, self._mine(rows)
        size = self.config["micro_batch"] or len(rows)
        parts = [mine[i : i + size] for i in range(0, len(mine), size)]
        # Every process must take part in the last backward, or the others wait for it: an empty share weighs
        # nothing.
        empty = not parts
        parts = parts or [rows[:1]]
        self.model.train()
        total, whole = 0.0, self.task.weight("train", rows)
        for i, part in enumerate(parts):
            last = i == len(parts) - 1
            with contextlib.nullcontext() if last else self.accelerator.no_sync(self.model):
                batch = self._inputs("train", part)
                with self.accelerator.autocast():
                    loss = self.task.loss(self.model, batch)
                    penalty = self.method.penalty(self.raw_model)
                    loss = loss if penalty is None else loss + penalty
                weight = 0.0 if empty else self.task.weight("train", part) / whole
                self.accelerator.backward(loss * (weight * world))  # data parallel averages over processes
            total += float(loss.detach()) * weight
            self.state["units"] += self.task.units(batch)
        if self.settings["clip"] is not None:
            self.accelerator.clip_grad_norm_(self.parameters.values(), self.settings["clip"])
        self.optimizer.step()
        self.scheduler.step()
        if not self.accelerator.optimizer_step_was_skipped:  # by fp16's scaler, where gradients overflowed
            self.method.after_step(self.raw_model, self.state["step"] + 1)
        self.optimizer.zero_grad()
        return sum(gather_object([total]))

    def end_epoch(self) -> None:
        """Evaluates, adds a point to the curve, and keeps the adapter of the best epoch so far."""
        started = time.monotonic()
        self.report({"phase": "evaluating"})
        dev_loss, predictions = self.evaluate()
        if not math.isfinite(dev_loss):
            self.state |= {
                "status": "diverged",
                "error": f"dev loss became {dev_loss} at step {self.state['step']}",
            }
            return
        self.predictions, labels = predictions, self.task.labels("dev")
        halves = dev_halves(len(labels))
        curve, state = self.state["curve"], self.state
        point = {
            "epoch": round(state["step"] / self.steps_per_epoch, 4),
            "step": state["step"],
            "train_loss": state["loss_sum"] / max(state["rows"], 1),
            "dev_loss": dev_loss,
            "metric": self.task.score(predictions, labels),
            "metric_select": self.task.score(predictions[halves[0]], labels[halves[0]]),
            "metric_report": self.task.score(predictions[halves[1]], labels[halves[1]]),
            "lr": [group["lr"] for group in self.optimizer.param_groups],
        }
        for key, value in point.items():
            curve[key].append(value)
        losses = f"train loss {point['train_loss']:.4f}, dev loss {dev_loss:.4f}"
        metric = f"{self.metric.name} {self.metric.text(point['metric'])}"
        print(f"epoch {point['epoch']:g}: {losses}, {metric}", flush=True)
        state["predictions"].append(hashlib.sha256(predictions.tobytes()).hexdigest()[:16])
        state |= {"epoch": state["epoch"] + 1, "loss_sum": 0.0, "rows": 0}
        self._keep()
        state["seconds"]["evaluate"] += time.monotonic() - started
        if self.total_steps:
            self._progress(point["train_loss"], evaluated=True)

    @torch.no_grad()
    def evaluate(self) -> tuple[float, Any]:
        """Mean loss and predictions over the dev rows, in their order; processes share the work."""
        self.model.eval()
        lengths = self.task.lengths("dev")
        order = sorted(range(len(lengths)), key=lambda row: lengths[row])
        size = self.config["eval_batch"]
        parts = [order[i : i + size] for i in range(0, len(order), size)]
        loss_sum, outputs = 0.0, dict[int, Any]()
        for part in parts[self.accelerator.process_index :: self.accelerator.num_processes]:
            self.stop.check()
            with self.accelerator.autocast():
                loss, answers = self.task.answers(self.trained, self._inputs("dev", part))
            loss_sum += loss * self.task.weight("dev", part)
            outputs |= dict(zip(part, answers, strict=True))
        everything = dict(pair for share in gather_object([list(outputs.items())]) for pair in share)
        answers = np.stack([everything[row] for row in range(len(lengths))])
        return sum(gather_object([loss_sum])) / self.task.weight(
            "dev", range(len(lengths))
        ), self.task.predict(answers)

    # --- the end

    def finish(self, texts: dict[str, Any] | None) -> Record:
        """The record, from the state. texts: what was decoded, and its scores."""
        config, state, curve = self.config, self.state, self.state["curve"]
        parts = {
            name: sum(p.numel() for p in ps.values())
            for name, ps in self.method.parameter_groups(self.raw_model).items()
        }
        adapter = self.folder / "adapter.safetensors"
        trainable_bytes = sum(
            p.numel() * p.element_size() for p in self.method.adapter_parameters(self.raw_model).values()
        )
        frozen = sum(tensor.numel() for tensor in vera.frozen_extra(self.raw_model).values())
        seconds, device = dict(state["seconds"]), self.accelerator.device
        if self.features:  # computed by each start of the run, and counted once
            seconds["train"] += self.features.seconds["train"]
            seconds["evaluate"] += self.features.seconds["dev"]
        train_rows, dev_rows = len(self.lengths), len(self.task.lengths("dev"))
        cuda = device.type == "cuda"
        pace = {"tok": "tokens", "img": "images"}[self.task.unit]
        decoded = {"decode_seconds": round(seconds["decode"], 3)} if texts else {}
        record = {
            "schema": SCHEMA,
            "id": self.run_id,
            "status": state["status"],
            "error": state["error"],
            "tries": self.tries["ended"],
            "cell": {
                "paper": self.run.paper,
                "row": self.run.row,
                "model": self.run.model,
                "task": config["task"]["name"],
                "seed": config["seed"],
            },
            "label": {
                "row": row_label(config),
                "model": config["model"]["label"],
                "task": config["task"]["label"],
            },
            "start": {"from": config["init_from"], "id": start_id(self.run)} if config["init_from"] else None,
            "config": config,
            "config_hash": hash_of(config)[:16],
            "recipe": {
                "name": self.run.recipe,
                "source": config["recipe"].get("source"),
                "chosen": config["recipe"].get("chosen", {}),
            },
            "seeds": {
                "training": config["seed"],
                "data": config["data_seed"],
                "projection": config["method"].get("projection_seed"),
                **(
                    {"projection_note": DRAWS[config["method"]["redrawn"]]}
                    if "redrawn" in config["method"]
                    else {}
                ),
            },
            "code": self.code,
            "versions": versions(),
            "device": machine(device),
            "determinism": {
                "deterministic_algorithms": torch.are_deterministic_algorithms_enabled(),
                "threads": torch.get_num_threads(),
                "processes": self.accelerator.num_processes,
            },
            "model": model_content(config["model"]),
            "protocol": tasks.protocol(config["task"]),
            "data": {
                "content": data_content(config["task"]),
                "train_rows": train_rows,
                "dev_rows": dev_rows,
                **({"selection": self.task.selection} if self.task.selection else {}),
                **({"unreadable": self.task.unreadable} if self.task.unreadable else {}),
            },
            "parameters": {
                **parts,
                "frozen_extra": frozen,
                "total": sum(p.numel() for p in self.raw_model.parameters()),
                "formula": self.method.count(self.raw_model),
            },
            "groups": [
                {
                    "name": g["name"],
                    "lr": g["initial_lr"],
                    "weight_decay": g["weight_decay"],
                    "parameters": sum(p.numel() for p in g["params"]),
                }
                for g in (self.optimizer.param_groups if self.groups else [])
            ],
            "effective_batch": self.settings["effective_batch"],
            "micro_batch": config["micro_batch"],
            "steps": state["step"],
            "curve": curve,
            "result": summarise(curve, dev_rows, self.metric, self.task.reported, config["select"]),
            "texts": texts,
            "cost": {
                "train_seconds": round(seconds["train"], 3),
                "evaluate_seconds": round(seconds["evaluate"], 3),
                **decoded,
                f"{pace}_per_second": round(state["units"] / max(seconds["train"], 1e-9), 1),
                "peak_memory_bytes": torch.cuda.max_memory_allocated(device) if cuda else peak_memory(),
                "adapter_bytes": adapter.stat().st_size if adapter.is_file() else trainable_bytes,
            },
            "predictions": {
                "best": state["predictions"][self.best()] if state["predictions"] else None,
                "last": state["predictions"][-1] if state["predictions"] else None,
            },
            "deviations": deviations(self.run, self.task.notes) + self.notes + self.tries["deviations"],
        }
        return record | {"cell_id": cell_id(record)}

    # --- small helpers

    def _checkpoint_gradients(self) -> None:
        model = self.raw_model
        # Before 5.24
        enable = (
            getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
        )
        try:
            enable({"use_reentrant": False})
        except (ValueError, AttributeError):
            raise UserError(
                f"gradient_checkpointing=true: a {type(model).__name__} cannot do that, set it to false"
            ) from None

    def _mine(self, rows: list[int]) -> list[int]:
        """This process's share of an effective batch."""
        return rows[self.accelerator.process_index :: self.accelerator.num_processes]

    def _inputs(self, split: str, rows: Sequence[int]) -> dict[str, Any]:
        """What the trained part of the model takes: the batch, or the head's inputs."""
        return self.features.batch(self, split, rows) if self.features else self.batch(split, rows)

    def batch(self, split: str, rows: Sequence[int]) -> dict[str, Any]:
        """A batch on the device."""
        arrays = self.task.collate(split, rows)
        return {key: torch.from_numpy(value).to(self.accelerator.device) for key, value in arrays.items()}

    def _rates(self) -> list[float]:
        step = self.state["step"]
        scheduler: Any = self.scheduler
        return [base * f(step) for base, f in zip(scheduler.base_lrs, scheduler.lr_lambdas, strict=True)]

    def _save(self, path: Path) -> None:
        scaler = self.accelerator.scaler
        self.state["scaler"] = scaler.state_dict() if scaler else None
        if self.accelerator.is_main_process:
            self.check_owner()
            method_state = self.method.training_state(self.raw_model)
            checkpoint.save(
                path, self.run_id, self.parameters, self.optimizer.optimizer, self.state, method_state
            )

    def check_owner(self) -> None:
        """Raises LostClaimError where another executor has taken the run over: it writes these files now."""
        if self.claim:
            self.claim.check()

    def best(self) -> int:
        """Index of the epoch that is best so far."""
        return self.metric.best(self.state["curve"]["metric"])

    @property
    def best_file(self) -> Path:
        """The best epoch's adapter, beside the last one's (keep=both) or, in full precision, until its texts
        are decoded."""
        return self.folder / "adapter_best.safetensors"

    def _keep(self) -> None:
        """Writes the adapter, after an epoch, where it is one to keep. What decodes texts keeps the rest at
        its end."""
        keep, is_best = self.config["keep"], self.best() == len(self.state["curve"]["epoch"]) - 1
        if is_best and self.task.decodes:
            self.write(self.best_file, "fp32")
        elif not self.task.decodes and (keep in ("last", "both") or (is_best and keep == "best")):
            self.write(self.folder / "adapter.safetensors")
            if is_best and keep == "both":
                self.write(self.best_file)

    def write(self, adapter: Path, precision: str | None = None) -> None:
        """Writes the adapter as it is now, and the head beside it. precision: adapter_precision, unless
        another is given."""
        if not self.accelerator.is_main_process:
            return
        self.check_owner()
        if self.method.adapter_parameters(self.raw_model):
            dtypes = {"fp32": None, "fp16": torch.float16, "bf16": torch.bfloat16}
            vera.save(
                self.raw_model, self.method, adapter, dtypes[precision or self.config["adapter_precision"]]
            )
        if self.task.num_labels:
            vera.save_head(self.raw_model, self.folder / "head.safetensors")

    def _evaluates(self, epoch: int) -> bool:
        """Whether an epoch, counted from 0, ends in an evaluation."""
        return (epoch + 1) % self.settings["evaluate_every"] == 0 or epoch + 1 == self.epochs

    def _seconds_left(self) -> float:
        """At the pace so far. Until the first evaluation, a row of it is taken for a third of one that is
        trained on."""
        state = self.state
        per_step, metrics = state["seconds"]["train"] / max(state["step"], 1), state["curve"]["metric"]
        per_evaluation = per_step / self.settings["effective_batch"] * len(self.task.lengths("dev")) / 3
        if metrics:
            per_evaluation = state["seconds"]["evaluate"] / len(metrics)
        evaluations = sum(map(self._evaluates, range(state["epoch"], self.epochs)))
        return per_step * (self.total_steps - state["step"]) + per_evaluation * evaluations

    def _progress(self, loss: float, evaluated: bool = False) -> None:
        state, metrics = self.state, self.state["curve"]["metric"]
        best = self.best()
        self.report(
            {
                "phase": "evaluated" if evaluated else "training",
                "epoch": math.ceil(state["step"] / self.steps_per_epoch),
                "epochs": self.settings["epochs"],
                "step": state["step"],
                "steps": self.total_steps,
                "loss": loss,
                "metric_name": self.metric.name,
                "scale": self.metric.scale,
                "metric": metrics[-1] if metrics else None,
                "best": metrics[best] if metrics else None,
                "pace": state["units"] / max(state["seconds"]["train"], 1e-9),
                "unit": self.task.unit,
                "seconds_left": self._seconds_left(),
                "texts": len(getattr(self.task, "items", ())),  # to be decoded after it
            }
        )


def dev_halves(rows: int) -> tuple[Any, Any]:
    """Two halves of the dev rows, A and B, for cross-fitted selection: the same for every run, whatever its
    seed."""
    order = np.random.Generator(np.random.Philox(key=[0, rows])).permutation(rows)
    return np.sort(order[: rows // 2]), np.sort(order[rows // 2 :])


def summarise(
    curve: dict[str, list[Any]], dev_rows: int, metric: Metric, reported: str, select: str
) -> dict[str, Any]:
    """The result by both protocols; `best` and `last` are the configured one's, best_epoch is the one that is
    kept.

    paper: the best epoch on the dev set, reported on the same rows, which flatters. crossfit: see
    runs.record.crossfit. reported: which of the two numbers the table of the task has."""
    direction = {"higher_is_better": metric.higher_is_better, "scale": metric.scale}
    of_table = {"metric": metric.name, **direction, "reported": reported, "select": select}
    if not curve["metric"]:
        return {**of_table, "best": None, "best_epoch": None, "last": None}
    chosen = metric.best(curve["metric"])
    paper = {
        "best": curve["metric"][chosen],
        "best_epoch": curve["epoch"][chosen],
        "last": curve["metric"][-1],
    }
    protocols = {"paper": paper, "crossfit": crossfit(curve, dev_rows, metric) or {}}
    of = protocols[select]
    told = {"best": of.get("best"), "best_epoch": paper["best_epoch"], "last": of.get("last")}
    return {**of_table, **told, "protocols": protocols}


def deviations(run: Run, notes: list[str]) -> list[str]:
    """What differs from the recipe, in words."""
    recipe, train, task = run.config["recipe"], run.config["train"], run.config["task"]["name"]
    words = list(notes)
    if run.method["kind"] == "none":  # which no setting of the training touches
        return words
    if run.recipe == "defaults":
        words.append("no recipe for this method and model: the harness's defaults")
    settings = {**train, **run.config["method"]}
    for key in sorted({*recipe, *recipe.get("by_task", {})} & set(settings)):
        by_task = recipe.get("by_task", {}).get(key, {})
        if key not in recipe and task not in by_task:
            continue
        wanted = by_task.get(task, recipe.get(key))
        if key == "alpha" and lora_scaling(run.config) == "proportional":
            alpha = row_label(run.config).rpartition(", ")[2]
            words.append(f"alpha follows the rank ({alpha}), the recipe's is constant {wanted}")
        elif settings[key] != wanted:
            words.append(f"{key} {settings[key]} instead of the recipe's {wanted}")
    if run.config["task"]["family"] in READS_LENGTH_GROUPED:
        grouped, wanted = (
            run.config["task"].get("length_grouped", True),
            from_recipe(run.config, "length_grouped", True),
        )
        if grouped != wanted:
            kinds, whose = (
                {True: "of like lengths", False: "random"},
                "harness" if run.recipe == "defaults" else "recipe",
            )
            words.append(f"batches are {kinds[grouped]}; the {whose}'s are {kinds[wanted]}")
    # Said above or by the row, or of no weight.
    told = {
        *recipe,
        *recipe.get("by_task", {}),
        "label",
        "max_steps",
        "config_class",
        "config",
        "scaling",
        *COMPUTED,
    }
    words += [
        f"{line} given" for line in run.changed if line.partition("=")[0].rpartition(".")[2] not in told
    ]
    if train["max_steps"] is not None:
        words.append(f"stopped after {train['max_steps']} steps")
    return words


#: A method that trains a larger share of the model is none that a table of small adapters should hold without
#: a word.
LARGE_SHARE = 0.05


def large_share(method: vera.Method, model: nn.Module) -> list[str]:
    """A sentence where a method other than full fine-tuning trains much of the model (head apart)."""
    trained = sum(p.numel() for p in method.adapter_parameters(model).values())
    # 4 bit: two a byte
    share = trained / sum(p.numel() * (1 if p.is_floating_point() else 2) for p in model.parameters())
    if method.kind == "full" or share <= LARGE_SHARE:
        return []
    return [f"trains {100 * share:.1f}% of the model's parameters ({trained:,}), as no small adapter does"]


def peak_memory() -> int:
    """The largest resident size of this process so far, in bytes."""
    with contextlib.suppress(
        OSError
    ):  # Linux: getrusage would count what came before exec, in the process that started this one
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def train(
    run: Run, run_id: str, report: Report, claim: Claim | None = None, stop: Stop | None = None
) -> Record:
    """Does one run and writes its record; the checkpoint goes once the record is there.

    Raises StoppedError where `stop` asks for it, and LostClaimError where another executor has the run.
    """
    training = Training(run, run_id, report, claim=claim, stop=stop)
    record = training.go()
    draws = training.task.pictures and record["status"] == "done"
    if draws and training.predictions is None:  # resumed after the last epoch
        training.predictions = training.evaluate()[1]
    if training.accelerator.is_main_process:
        if draws:
            try:
                training.task.illustrate(training.folder, training.predictions)
            except Exception as error:  # a picture is not worth a run
                print(
                    f"the pictures of its predictions were not drawn ({type(error).__name__}: {error})",
                    flush=True,
                )
        both = run.config["keep"] == "both" and training.task.decodes
        if both and record["status"] == "done" and run.config["adapter_precision"] != "fp32":
            # The model carries it since it was decoded. In its place it would be decoded again, rounded,
            # after a kill.
            training.write(training.folder / "adapter_best_rounded.safetensors")
        if claim:
            claim.write(run.config["output"], record)
        else:
            write_record(run.config["output"], record)
        clear(run.config["output"], run_id, run.config["keep"])
    training.accelerator.wait_for_everyone()
    training.accelerator.free_memory()
    return record
