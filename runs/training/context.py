"""The task, model, method and accelerator of a run: enough to evaluate, decode and export. The loop adds an
optimizer."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object
from torch import Tensor, nn

import vera
from runs.errors import Stop
from runs.record import Metric, run_folder
from runs.run import Run
from runs.tracking import Tracker
from runs.training.build import build, make_accelerator

Report = Callable[[dict[str, Any]], None]
#: A function from a split and its rows to a batch of what the trained part of the model takes.
Inputs = Callable[[str, Sequence[int]], dict[str, Any]]
#: What adapter_precision may be.
DTYPES = {"fp32": None, "fp16": torch.float16, "bf16": torch.bfloat16}


def on_device(arrays: Mapping[str, np.ndarray[Any, Any]], device: torch.device) -> dict[str, Tensor]:
    """A batch's arrays as tensors. To a GPU they travel from page-locked memory, while the host goes on."""
    tensors = {key: torch.from_numpy(array) for key, array in arrays.items()}
    if device.type != "cuda":
        return {key: tensor.to(device) for key, tensor in tensors.items()}
    return {key: tensor.pin_memory().to(device, non_blocking=True) for key, tensor in tensors.items()}


class Context:
    """A run's task, model, method, accelerator and folder.

    raw_model: the adapted model on the device, which data parallel does not wrap. report: called with the
    events that are shown while the run is on.
    """

    tracker: Tracker | None = None

    def __init__(
        self, run: Run, run_id: str, report: Report, start: bool = True, folder: Path | None = None
    ) -> None:
        """start: fill the adapter from the run or file that init_from names. folder: for the files that are
        written; by default the run's."""
        self.run, self.run_id, self.report, self.stop = run, run_id, report, Stop()
        self.config, self.settings = run.config, run.config["train"]
        self.folder = folder or run_folder(self.config["output"], run_id)
        self.accelerator = make_accelerator(run)
        if self.accelerator.device.type == "cuda":  # a process may do one run after another
            torch.cuda.reset_peak_memory_stats(self.accelerator.device)
        report({"phase": "loading"})
        self.task, self.raw_model, self.method = build(run, self.accelerator.device, start)
        self.metric = Metric.of_task(self.task)
        self.raw_model.to(self.accelerator.device)

    def batch(self, split: str, rows: Sequence[int]) -> dict[str, Any]:
        """A batch on the device."""
        return on_device(self.task.collate(split, rows), self.accelerator.device)

    @torch.no_grad()
    def evaluate(self, part: nn.Module | None = None, inputs: Inputs | None = None) -> tuple[float, Any]:
        """Mean loss and predictions over the dev rows, in their order; processes share the work.

        part, inputs: the module that is evaluated and its inputs, such as a head and features; by default the
        whole model on batches."""
        model, inputs = self.raw_model if part is None else part, inputs or self.batch
        model.eval()
        lengths = self.task.lengths("dev")
        order = sorted(range(len(lengths)), key=lambda row: lengths[row])
        size = self.config["eval_batch"]
        parts = [order[i : i + size] for i in range(0, len(order), size)]
        loss_sum, outputs = 0.0, dict[int, Any]()
        with vera.unchanged(self.raw_model), self.accelerator.autocast():
            for rows in parts[self.accelerator.process_index :: self.accelerator.num_processes]:
                self.stop.check()
                loss, answers = self.task.answers(model, inputs("dev", rows))
                loss_sum += loss * self.task.weight("dev", rows)
                outputs |= dict(zip(rows, answers, strict=True))
        everything = dict(pair for share in gather_object([list(outputs.items())]) for pair in share)
        answers = np.stack([everything[row] for row in range(len(lengths))])
        whole = self.task.weight("dev", range(len(lengths)))
        return sum(gather_object([loss_sum])) / whole, self.task.predict(answers)

    @property
    def best_file(self) -> Path:
        """The file of the best epoch's adapter: beside the last epoch's (keep=both), or in full precision
        until its texts are decoded."""
        return self.folder / "adapter_best.safetensors"

    def score(self) -> float:
        """The metric of the model's current values."""
        return self.task.score(self.evaluate()[1], self.task.labels("dev"))

    def write(self, adapter: Path, precision: str | None = None) -> None:
        """Writes the adapter's current values, and the head's beside them. precision: by default the run's
        adapter_precision."""
        if not self.accelerator.is_main_process:
            return
        if self.method.adapter_parameters(self.raw_model):
            dtype = DTYPES[precision or self.config["adapter_precision"]]
            vera.save(self.raw_model, self.method, adapter, dtype)
        if self.task.num_labels:
            head = self.folder / "head.safetensors"
            vera.save_head(self.raw_model, head, getattr(self.task, "classes", None))
