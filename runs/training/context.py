"""A run's task, model, method and device: enough to evaluate, decode, export. The loop
adds an optimizer."""

import math
import os
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import (
    DistributedDataParallelKwargs,
    GradientAccumulationPlugin,
    gather_object,
)
from torch import Tensor, nn

import tasks
import vera
from runs import models
from runs.command.errors import Stop, UserError
from runs.machine.gpus import uses_cuda
from runs.record.cell import ReportedMetric
from runs.record.configuration import Configuration
from runs.record.files import write_atomically
from runs.record.ledger import run_folder
from runs.record.schema import Forgetting
from runs.record.spreadsheet import csv_text
from runs.record.text import count_problem
from runs.run.definition import Run
from runs.run.identity import start_file
from runs.run.methods import method_of_settings
from runs.tracking.tracker import Tracker
from runs.training import predictions
from runs.training.answer_dev import answer_dev_rows
from runs.training.batches import batches_of
from runs.training.determinism import set_flags, train_in_float32
from tasks.exact import ExactTask
from vera.sites import head_parameters

#: Takes an event of a run, such as {"phase": "loading"}, to show it.
Report = Callable[[dict[str, Any]], None]
#: What a model answers for rows, (rows, ...).
Outputs = np.ndarray[Any, Any]
#: torch's dtype of each setting in half precision; fp32 is not among them.
HALF_DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}


class Context:
    """A run's task, model, method, accelerator and folder.

    config: the run's configuration. settings: its part `train`. raw_model: the adapted
    model on the device, without the wrapper of data parallel. folder: where files are
    written. report: called with the events to be shown."""

    tracker: Tracker | None = None

    def __init__(
        self,
        run: Run,
        run_id: str,
        report: Report,
        start: bool = True,
        folder: Path | None = None,
        task: tasks.Task | None = None,
    ) -> None:
        """Loads everything.

        Args:
            start: whether to fill the adapter from the run or file that init_from
                names.
            folder: where files are written; by default the run's folder.
            task: a task to use in place of the run's, for other rows.
        """
        self.run = run
        self.run_id = run_id
        self.report = report
        self.stop = Stop()
        self.config = run.config
        self.settings = run.config["train"]
        self.folder = folder or run_folder(self.config["output"], run_id)
        self.accelerator = make_accelerator(run)
        # a process may do one run after another
        if self.accelerator.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.accelerator.device)
        report({"phase": "loading"})
        self.task, self.raw_model, self.method = load_adapted_model(
            run, self.accelerator.device, start, task
        )
        # Training by reward is judged by answers, not by the likelihood of given ones.
        if "reward" in self.config:
            cast(ExactTask, self.task).use_exact_match_as_metric()
        # With train.objective=demonstrations random tokens follow each row's answer.
        if self.settings.get("objective") == "demonstrations":
            cast(ExactTask, self.task).add_filler_tokens(self.config["seed"])
        self.metric = ReportedMetric(
            self.task.metric, self.task.higher_is_better, self.task.scale
        )
        self.raw_model.to(self.accelerator.device)

    def batch(self, split: str, rows: Sequence[int]) -> dict[str, Tensor]:
        """These rows of a split as a batch on the device."""
        return on_device(self.task.collate(split, rows), self.accelerator.device)

    @torch.no_grad()
    def evaluate(self) -> tuple[float, Outputs]:
        """The mean loss of the dev rows, and their outputs (rows, ...) in their order, as
        Task.predict takes them. For a task that answers dev rows (Task.answers_dev) the
        outputs are those of `answer_dev_rows` instead. Processes share the work."""
        self.raw_model.eval()
        lengths = self.task.lengths("dev")
        # by length, which saves padding
        order = sorted(range(len(lengths)), key=lambda row: lengths[row])
        size = self.config["eval_batch"]
        batches = batches_of(order, size)
        own_number = self.accelerator.process_index
        own_batches = batches[own_number :: self.accelerator.num_processes]
        loss_sum = 0.0
        row_outputs = list[tuple[int, Outputs]]()
        with vera.unchanged(self.raw_model), self.accelerator.autocast():
            for rows in own_batches:
                self.stop.check()
                loss, outputs = self.task.answers(
                    self.raw_model, self.batch("dev", rows)
                )
                loss_sum += loss * self.task.weight("dev", rows)
                row_outputs += zip(rows, outputs, strict=True)
        # accelerate joins the processes' lists
        outputs_by_row = dict(gather_object(row_outputs))
        total_weight = self.task.weight("dev", range(len(lengths)))
        mean_loss = sum(gather_object([loss_sum])) / total_weight
        if self.task.answers_dev:
            return mean_loss, answer_dev_rows(
                self.raw_model,
                cast(ExactTask, self.task),
                self.accelerator,
                self.config,
                self.stop.check,
            )
        outputs_in_order = [outputs_by_row[row] for row in range(len(lengths))]
        return mean_loss, np.stack(outputs_in_order)

    @property
    def best_file(self) -> Path:
        """The file of the best epoch's adapter. With keep=both it lies beside the last
        epoch's; a task that decodes has it in full precision."""
        return self.folder / "adapter_best.safetensors"

    def score(self) -> float:
        """The dev score of the model with its current values."""
        _, outputs = self.evaluate()
        return self.task.score(self.task.predict(outputs), self.task.labels("dev"))

    def write_adapter(self, file: Path, precision: str | None = None) -> None:
        """Writes the adapter's values to this file, and the head's to head.safetensors
        in the run's folder. precision: of the adapter's values; by default the run's
        adapter_precision."""
        if not self.accelerator.is_main_process:
            return
        if self.method.adapter_parameters(self.raw_model):
            # None in fp32: the values are saved as they are
            dtype = HALF_DTYPES.get(precision or self.config["adapter_precision"])
            vera.save(self.raw_model, self.method, file, dtype)
        if self.task.num_labels:
            head = self.folder / "head.safetensors"
            vera.save_head(
                self.raw_model,
                head,
                getattr(self.task, "classes", None),
                self.task.scaling,
            )

    def write_predictions(self, outputs: Outputs) -> None:
        """Writes what the outputs of the dev rows predict to predictions.csv, if the
        model has a head."""
        if self.task.num_labels and self.accelerator.is_main_process:
            table = predictions.prediction_table(
                self.task, self.task.about("dev"), outputs, self.task.labels("dev")
            )
            write_atomically(self.folder / predictions.FILE_NAME, csv_text(table))

    def text_loss(self) -> float | None:
        """The model's current cross-entropy on the task's fixed text
        (tasks/forgetting.py), in nats a token; None where it is not finite."""
        self.report({"phase": "reading the fixed text"})
        self.raw_model.eval()
        with (
            torch.no_grad(),
            vera.unchanged(self.raw_model),
            self.accelerator.autocast(),
        ):
            loss = float(self.task.fixed_text.loss(self.raw_model))
        return loss if math.isfinite(loss) else None

    def base_text_loss(self) -> float | None:
        """`text_loss` of the base model, which is the model with its adapter switched
        off. Call it before training: values that a method trains in place cannot be
        switched off. None for a task without a fixed text."""
        if not self.task.fixed_text:
            return None
        # peft's switch also freezes the adapter, and afterwards unfreezes every adapter,
        # so what trains is restored below.
        trains = [
            (parameter, parameter.requires_grad)
            for parameter in self.raw_model.parameters()
        ]
        vera.disable(self.raw_model)
        try:
            return self.text_loss()
        finally:
            vera.disable(self.raw_model, False)
            for parameter, requires_grad in trains:
                parameter.requires_grad_(requires_grad)

    def measure_forgetting(self, before: float | None) -> Forgetting | None:
        """The record's `forgetting`, with the model's current values. before: what
        `base_text_loss` returned. None for a task without a fixed text."""
        if not self.task.fixed_text:
            return None
        text = self.task.fixed_text.for_record()  # its name, hash and tokens
        after = self.text_loss()
        change = "not a finite number"
        if before is not None and after is not None:
            losses = f"{before:.4f} before, {after:.4f} after"
            change = f"{after - before:+.4f} nats a token ({losses})"
        print(
            f"forgetting: {change}, on {text['tokens']} tokens of the text "
            f"{text['text']}",
            flush=True,
        )
        return {
            "text": text["text"],
            "sha256": text["sha256"],
            "tokens": text["tokens"],
            "before": before,
            "after": after,
        }


def trained_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters of a model that train, by name."""
    parameters = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            parameters[name] = parameter
    return parameters


def on_device(
    arrays: Mapping[str, np.ndarray[Any, Any]], device: torch.device
) -> dict[str, Tensor]:
    """A batch's arrays as tensors. To a GPU they travel from page-locked memory, while
    the host goes on."""
    tensors = {key: torch.from_numpy(array) for key, array in arrays.items()}
    if device.type != "cuda":
        return {key: tensor.to(device) for key, tensor in tensors.items()}
    return {
        key: tensor.pin_memory().to(device, non_blocking=True)
        for key, tensor in tensors.items()
    }


# --- how it is built


def make_accelerator(run: Run) -> Accelerator:
    """The accelerator with a run's device, precision and data parallel; torch's flags
    are set, too. Raises UserError for a device that is not available, or that does not
    compute in this precision."""
    device = run.config["device"]
    precision = run.config["train"]["precision"]
    on_gpu = uses_cuda(device)
    if precision == "tf32" and not on_gpu:
        raise UserError(
            "train.precision=tf32: only a GPU computes so. Here it would be fp32"
        )
    on_cpu = device == "cpu" or not (on_gpu or torch.backends.mps.is_available())
    if precision == "fp16" and on_cpu:
        raise UserError(
            "train.precision=fp16: a CPU computes fp32 all the same. bf16 is for both"
        )
    # Accelerate's settings hold for the whole process; a run before may have had
    # others. torchrun's processes keep the part that joins them.
    AcceleratorState._reset_state(reset_partial_state="LOCAL_RANK" not in os.environ)
    # AdapterDrop leaves other adapters without a gradient in each batch. Frozen values,
    # A and B included, are the same on every process, so none are broadcast.
    parallel = DistributedDataParallelKwargs(
        find_unused_parameters=bool(run.method.get("drop_per_batch")),
        broadcast_buffers=False,
    )
    accelerator = Accelerator(
        mixed_precision=precision if precision in ("bf16", "fp16") else "no",
        cpu=device == "cpu",
        # Otherwise a variable of the environment could divide every loss.
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
        kwargs_handlers=[parallel],
    )
    set_flags(run, accelerator.device)
    return accelerator


def load_adapted_model(
    run: Run, device: torch.device, start: bool = True, task: tasks.Task | None = None
) -> tuple[tasks.Task, Any, vera.Method]:
    """A run's task, its adapted model (on the CPU, or in 4 bit on `device`) and its
    method.

    Seeds all generators first: the initial values of the head and of LoRA come from the
    seed (transformers issue 11965).

    start: whether to fill the adapter from the run or file that init_from names. False
    is for a caller that fills it from the files of a finished run. The initial values
    then come from another seed: from the same one, a value that the files lack would be
    what it was in training, and nobody would notice. task: in place of the run's."""
    config = run.config
    method = method_of_settings(run.method)
    task = task or tasks.load(config["task"])
    seed = config["seed"]
    # Without training no file holds the head, so it has to be drawn from the run's seed.
    if not start and method.kind != "none":
        seed += 1
    model, preprocessor = load_base(config, device, seed, task.num_labels, task.problem)
    if config["model"]["modality"] == "image":
        task.prepare(preprocessor, max_length=0)  # images have no tokens to truncate
    else:
        # 512 is a common size, for a configuration that names none
        table_size = getattr(model.config, "max_position_embeddings", 512)
        positions = table_size - _first_position(model)
        max_length = min(
            config["train"]["max_length"], positions, preprocessor.model_max_length
        )
        if isinstance(task, ExactTask):
            task.chat_variables = config["model"].get("chat") or {}
        task.prepare(preprocessor, max_length, positions)
    if task.scaling:
        # Raises AdapterError where the head has no bias to take the labels' mean.
        vera.output_layer(model)
    method.adapt(model)
    if method.kind != "full":  # which trains all values in the model's own dtype
        train_in_float32(model)
    if config.get("gradient_checkpointing"):
        checkpoint_gradients(model)
    if start and config["init_from"]:
        vera.start_from(model, start_file(run))
    return task, model, method


def load_base(
    config: Configuration,
    device: torch.device,
    seed: int,
    num_labels: int = 0,
    problem: str = "",
) -> tuple[Any, Any]:
    """A configuration's model before a method adapts it (on the CPU, or in 4 bit on
    `device`), and its tokenizer or image preprocessing.

    seed: what all generators are seeded with before it is loaded. num_labels, problem:
    of the new head, as `models.load` takes them; 0 for a language model."""
    model = config["model"]
    folder = models.fetch(model)
    models.check_memory(folder, config, device)
    seed_everything(seed)
    dtype = models.dtype_of(config)
    nf4_compute_dtype = None
    if model.get("quantise"):
        # 4-bit layers compute in autocast's dtype, or else in that of the other weights.
        autocast_dtype = HALF_DTYPES.get(config["train"]["precision"])
        weights_dtype = HALF_DTYPES.get(dtype, torch.float32)
        nf4_compute_dtype = autocast_dtype or weights_dtype
    return models.load(
        folder,
        num_labels,
        problem,
        settings=model.get("settings"),
        modality=model["modality"],
        nf4_compute_dtype=nf4_compute_dtype,
        device=device,
        dtype=dtype,
    )


def _first_position(model: Any) -> int:
    """The index of a text's first token in the model's table of positions: in RoBERTa,
    MPNet and CamemBERT the one after the padding index, elsewhere 0."""
    for name, module in model.named_modules():
        if name.endswith("position_embeddings"):
            padding = getattr(module, "padding_idx", None)
            return 0 if padding is None else padding + 1
    return 0


def seed_everything(seed: int) -> None:
    """Seeds the generators of Python, numpy and torch."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def seed_process(seed: int, step: int, process: int) -> None:
    """Seeds torch's generators in one of several processes, for a step, so that each
    draws its own numbers. process: the number of the process, from 0."""
    sequence = np.random.SeedSequence([seed, step, process])
    (state,) = sequence.generate_state(1, np.uint64)
    torch.manual_seed(int(state >> 1))  # torch takes 63 bits


def checkpoint_gradients(model: nn.Module) -> None:
    """Makes the model recompute activations in the backward pass. Raises UserError
    where it cannot."""
    transformer: Any = model
    try:
        # transformers 5.24 renamed the method
        if hasattr(transformer, "activation_checkpointing_enable"):
            enable = transformer.activation_checkpointing_enable
        else:
            enable = transformer.gradient_checkpointing_enable
        enable({"use_reentrant": False})
    except (ValueError, AttributeError):
        kind = type(model).__name__
        raise UserError(
            f"gradient_checkpointing=true: a {kind} cannot do that, set it to false"
        ) from None


#: A method that trains a larger share of the model is no small adapter, and its record
#: says so.
LARGE_SHARE = 0.05


def number_of_parameters(model: nn.Module) -> int:
    """How many parameters a model has. 4-bit weights are stored in bytes, which hold two
    each."""
    count = 0
    for parameter in model.parameters():
        values_of_element = 1 if parameter.is_floating_point() else 2
        count += parameter.numel() * values_of_element
    return count


def count_notes(method: vera.Method, model: nn.Module) -> list[str]:
    """A note if another number of parameters trains (without the head) than the
    method's count() says, for example because a random basis was not frozen."""
    head = head_parameters(model).keys()
    trained_count = 0
    for name, parameter in trained_parameters(model).items():
        if name not in head:
            trained_count += parameter.numel()
    expected_count = method.count(model)
    if expected_count == trained_count:
        return []
    return [count_problem(expected_count, trained_count)]


def large_share_notes(method: vera.Method, model: nn.Module) -> list[str]:
    """A note if what a method other than full fine-tuning trains, the head not counted,
    is more than LARGE_SHARE of the model."""
    trained = sum(p.numel() for p in method.adapter_parameters(model).values())
    share = trained / number_of_parameters(model)
    if method.kind == "full" or share <= LARGE_SHARE:
        return []
    return [
        f"trains {100 * share:.1f}% of the model's parameters ({trained:,}), as no small adapter does"
    ]
