"""The training loop of every model, task and method.

The configuration sets the effective batch; micro-batches follow. Accelerate handles
devices and precision."""

import contextlib
import dataclasses
import hashlib
import math
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object
from torch import Tensor

import tasks
import vera
from runs.command.errors import Stop, StoppedError, process_rank
from runs.record.cell import complete_scores, dev_halves, kept_epoch
from runs.record.items import METRIC_OF_ITEMS, pack
from runs.record.schema import Code, Forgetting, Texts
from runs.record.steps import StepPlan
from runs.run.definition import Run, check_dev_rows, epoch_batches
from runs.run.provenance import (
    changed_conditions,
    code_sources,
    code_state,
    conditions_of_attempt,
    write_configuration,
)
from runs.training import determinism
from runs.training.answer_dev import sampled_scores
from runs.training.batches import batches_of
from runs.training.checkpoint import (
    Checkpoint,
    State,
    check_gradient,
    make_optimizer,
    optimizer_groups,
    set_rates,
)
from runs.training.context import (
    Context,
    Outputs,
    Report,
    count_notes,
    large_share_notes,
    seed_process,
    trained_parameters,
)
from runs.training.decode import decode_epochs, rehearse
from runs.training.effect import effect_note, estimate_effect
from runs.training.files import CHECKPOINT, Attempt
from runs.training.leaks import refuse_leaked_start
from runs.training.objective import make_objective
from runs.training.progress import progress_event
from runs.training.reward import NO_SIGNAL
from tasks.exact import ExactTask


class Training(Context):
    """A run that trains: a context with an optimizer, a schedule and a state."""

    # --- set up

    def __init__(
        self,
        run: Run,
        run_id: str,
        report: Report,
        attempt: Attempt | None = None,
        stop: Stop | None = None,
    ) -> None:
        """Loads everything. attempt: by default a new one; under torchrun all processes
        get the one that the first process has made."""
        if not process_rank():
            write_configuration(run, run_id)
        self.attempt = attempt or Attempt(run.config["output"], run_id)
        super().__init__(run, run_id, report, folder=self.attempt.folder)
        determinism.check_dtypes(self.raw_model, self.config)
        # The earlier run may have trained on the problems that this one is judged on.
        if self.config["init_from"] and isinstance(self.task, ExactTask):
            refuse_leaked_start(run, self.task)
        self.stop = stop or Stop()
        # Read now, since files may be edited during the run.
        self.code: Code = code_state().copy()
        family = tasks.family(self.config["task"])
        self.code["sources"] = code_sources(self.method, family)
        # `measure_forgetting` compares with it after training. Computed now, before a
        # checkpoint changes the values that a method trains in place.
        self.text_loss_before = self.base_text_loss()
        self.forgetting: Forgetting | None = None
        self.parameters = trained_parameters(self.raw_model)
        # Adapter and head have rates of their own. There are no groups where nothing
        # trains (method=none).
        self.groups = optimizer_groups(self.method, self.raw_model, self.settings)
        trains = bool(self.groups)
        optimizer = make_optimizer(self.groups, self.settings, self.accelerator.device)
        # The method works on raw_model, without the wrapper of data parallel.
        self.model, self.optimizer = self.accelerator.prepare(self.raw_model, optimizer)
        device = self.accelerator.device
        self.checkpoint = Checkpoint(
            self.folder / CHECKPOINT, run_id, self.parameters, optimizer, device
        )
        self.lengths = self.task.lengths("train")
        check_dev_rows(len(self.task.lengths("dev")))
        self.plan = StepPlan.of_run(self.settings, len(self.lengths), trains)
        set_rates(optimizer, self.settings, step=0, total=self.plan.total_steps)
        # AdaLoRA distributes its ranks over the steps, so it needs their number.
        self.method.before_training(self.raw_model, self.plan.total_steps)
        #: Notes that the command shows at the start, besides the run's log.
        self.problems = count_notes(self.method, self.raw_model)
        self.notes = [
            *self.problems,
            *large_share_notes(self.method, self.raw_model),
            *determinism.nondeterminism_notes(run, device),
        ]
        self.state = State(
            self.config["keep"],
            self.config["adapter_precision"],
            conditions=conditions_of_attempt(
                self.code, self.accelerator, self.config["micro_batch"]
            ),
        )
        self.objective = make_objective(self, trains)
        #: The steps whose loss has not been read from the device yet: the step's number,
        #: its loss, and the rows or tokens that the loss is a mean over.
        self.pending_losses: list[tuple[int, Tensor, float]] = []
        # Reading a loss waits for the GPU, so on a single one the next step is sent there
        # before. Several processes wait for each other at every loss anyway.
        is_one_gpu = device.type == "cuda" and self.accelerator.num_processes == 1
        self.max_pending_losses = 1 if is_one_gpu else 0
        self.saved_at = time.monotonic()  # when the last checkpoint was written

    # --- the run

    def train_and_decode(self) -> Texts | None:
        """Trains and evaluates, then decodes. Returns the record's `texts`, or None if
        the task has none to decode."""
        for note in self.notes:
            print(f"note: {note}", flush=True)
        if not self._resume():
            # A model that cannot decode fails here, and not after hours of training.
            if self.task.decodes:
                rehearse(self)
            self._estimate_reach()
        self.stop.is_deferred = True
        try:
            self._train_epochs()
        except StoppedError:
            self._save()
            raise
        self.stop.is_deferred = False
        # Everything is saved, and decoding may take as long as training.
        self.stop.check()
        if self.state.has_diverged:  # its texts would be no result
            return None
        # now: decoding replaces the last epoch's values by the best epoch's
        self.forgetting = self.measure_forgetting(self.text_loss_before)
        if not self.task.decodes:
            return None
        return decode_epochs(
            self, self.state.curve["epoch"], self.best_evaluation(), self.attempt
        )

    def _estimate_reach(self) -> None:
        """Estimates what the run can change, if it is a language model in one process.
        A new head moves far whatever the adapter does, and data parallel would wait
        for the gradients of the other processes."""
        is_one_process = self.accelerator.num_processes == 1
        if self.plan.total_steps and is_one_process and not self.task.num_labels:
            self.report({"phase": "estimating the reach"})
            self.state.reach = estimate_effect(
                self,
                self.objective,
                self.optimizer.param_groups,
                self.plan.total_steps,
            )
            self.optimizer.zero_grad()
            if note := effect_note(self.state.reach):
                print(f"note: {note}", flush=True)

    def _train_epochs(self) -> None:
        """Trains and evaluates epoch by epoch, from the state's step to the last one."""
        device = self.accelerator.device
        phase = "training, first step"
        if self.state.step:
            phase = f"training, resumed at step {self.state.step}"
        if determinism.is_slow_in_bf16(device.type, self.settings["precision"]):
            phase += ", slow in bf16 on this CPU"
        self.report({"phase": phase, "problems": self.problems})
        while self.state.epoch < self.plan.epochs and not self.state.has_diverged:
            for rows in self._remaining_batches():
                # Before the next step and not right after the last one: a run that was
                # stopped in between is evaluated when it is resumed.
                if self.plan.evaluates_after_step(self.state.step):
                    self._evaluate_once()
                if self.state.has_diverged:
                    break
                self._one_step(rows)
                if self.state.has_diverged:
                    break
                self.stop.check()
                seconds_since_save = time.monotonic() - self.saved_at
                if seconds_since_save > 60 * self.config["checkpoint_minutes"]:
                    self._save()
            self._read_losses()
            evaluates_now = self.plan.evaluates_after_epoch(self.state.epoch)
            if evaluates_now and not self.state.has_diverged:
                self.evaluate_and_keep()
            if not self.state.has_diverged:
                self.state.epoch += 1
            # So a run that is killed in the next epoch does not repeat this evaluation.
            self._save()
        # Where nothing trains (method=none), the pretrained model is evaluated.
        if not self.plan.total_steps:
            self.evaluate_and_keep()

    def _remaining_batches(self) -> list[list[int]]:
        """The batches of the current epoch that have not been trained on, as indices of
        rows. train.max_steps may end the run in the middle of an epoch, which is then
        evaluated like a complete one."""
        # Batches depend on seed and epoch alone, so a checkpoint does not keep them.
        batches = epoch_batches(
            self.lengths,
            self.settings["effective_batch"],
            self.config["data_seed"],
            self.state.epoch,
            self.task.block,
        )
        first_batch = self.state.step - self.state.epoch * self.plan.steps_per_epoch
        remaining_steps = self.plan.total_steps - self.state.step
        return batches[first_batch : first_batch + remaining_steps]

    def _evaluate_once(self) -> None:
        """Evaluates, unless the curve has this step already, as in a resumed run."""
        self._read_losses()
        steps = self.state.curve["step"]
        is_evaluated = bool(steps) and steps[-1] == self.state.step
        if not is_evaluated and not self.state.has_diverged:
            self.evaluate_and_keep()

    def _one_step(self, rows: list[int]) -> None:
        """Trains one step. On a single GPU it does not wait for the step's end: the loss
        is read after the next step has been sent there, so a loss that is not finite
        ends the run a step late."""
        state = self.state
        start_s = time.monotonic()
        loss = self.step(rows)
        # Counted in two parts: reading the losses reports the seconds so far, and takes
        # some itself.
        step_end_s = time.monotonic()
        state.seconds["train"] += step_end_s - start_s
        # A batch's loss is a mean over rows or tokens; the mean over several batches
        # weighs each by their number.
        self.pending_losses.append((state.step, loss, self.task.weight("train", rows)))
        if self.task.unit == "img":
            state.units += len(rows)
        else:
            state.units += sum(self.lengths[row] for row in rows)
        self._read_losses(keep=self.max_pending_losses)
        state.seconds["train"] += time.monotonic() - step_end_s

    def _read_losses(self, keep: int = 0) -> None:
        """Adds the pending losses to the state, except the last `keep` ones, and
        reports progress."""
        state = self.state
        while len(self.pending_losses) > keep and not state.has_diverged:
            step, loss_share, weight = self.pending_losses.pop(0)
            # each process has a share of the loss
            value = float(sum(gather_object([float(loss_share)])))
            if step == 1:
                print("the first step is done", flush=True)
            if not math.isfinite(value):
                state.diverge(
                    f"loss became {value} at epoch {state.epoch + 1}, step {step}"
                )
                return
            state.loss_sum += value * weight
            state.rows += weight
            self._report_progress(value)

    # --- a step

    def step(self, rows: list[int]) -> Tensor:
        """Takes one optimizer step on an effective batch. Returns what this process's
        rows add to the batch's mean loss, ()."""
        process_count = self.accelerator.num_processes
        items = self.objective.begin(rows, self.state.step)
        own_items = items[self.accelerator.process_index :: process_count]
        size = self.config["micro_batch"] or len(items)
        micro_batches = batches_of(own_items, size)
        # A process without rows still runs a backward pass (weight 0); otherwise the
        # others would wait for it.
        is_without_rows = not micro_batches
        if is_without_rows:
            micro_batches = [items[:1]]
        # Each process and each step draws its own dropout, also after a resume.
        if process_count > 1:
            seed_process(
                self.config["seed"], self.state.step, self.accelerator.process_index
            )
        device = self.accelerator.device
        # Apple's GPUs have no float64.
        loss_dtype = torch.float32 if device.type == "mps" else torch.float64
        loss_share = torch.zeros((), dtype=loss_dtype, device=device)
        # Between two optimizer steps merged weights serve every micro-batch.
        with vera.unchanged(self.raw_model):
            for number, micro_batch in enumerate(micro_batches):
                weight = 0.0
                if not is_without_rows:
                    weight = self.objective.share(micro_batch, items)
                is_last = number == len(micro_batches) - 1
                # Data parallel divides by the number of processes.
                loss = self._gradient(micro_batch, weight * process_count, is_last)
                loss_share += loss.to(loss_share.dtype) * weight
        step = self.state.step + 1
        total = self.plan.total_steps
        # Where all rewards are equal, a gradient of 0 is no mistake.
        if self.objective.has_signal:
            check_gradient(self.method, self.raw_model, self.optimizer, step, total)
        if self.settings["clip"] is not None:
            self.accelerator.clip_grad_norm_(
                self.parameters.values(), self.settings["clip"]
            )
        self.optimizer.step()
        # fp16's scaler skips a step whose gradients overflowed.
        if not self.accelerator.optimizer_step_was_skipped:
            self.method.after_step(self.raw_model, step)
        self.optimizer.zero_grad()
        self.state.step = step
        self.state.add_metrics(self.objective.finish())
        set_rates(self.optimizer, self.settings, step, total)
        return loss_share

    def _gradient(
        self, micro_batch: Sequence[Any], scale: float, is_last: bool
    ) -> Tensor:
        """Adds the gradient of a micro-batch's loss, times `scale`; returns the loss
        without that factor, ().

        scale: includes the number of processes, over which data parallel averages.
        is_last: whether this is the step's last micro-batch, the only one whose backward
        pass exchanges gradients between the processes."""
        gradient_exchange = contextlib.nullcontext()
        if not is_last:
            gradient_exchange = self.accelerator.no_sync(self.model)
        with gradient_exchange:
            with self.accelerator.autocast():
                loss = self.objective.loss(self.model, micro_batch)
                penalty = self.method.penalty(self.raw_model)
                loss = loss if penalty is None else loss + penalty
            self.accelerator.backward(loss * scale)
        return loss.detach()

    # --- an evaluation

    def evaluate_and_keep(self) -> None:
        """Evaluates, adds a point to the curve, and writes the files that are kept."""
        state = self.state
        start_s = time.monotonic()
        self.report({"phase": "evaluating"})
        dev_loss, outputs = self.evaluate()
        if not math.isfinite(dev_loss):
            state.diverge(f"dev loss became {dev_loss} at step {state.step}")
            return
        predictions = self.task.predict(outputs)
        labels = self.task.labels("dev")
        point = self._point_of_curve(dev_loss, predictions, labels)
        if point.get("frac_reward_zero_std") == 1:
            print(f"note: {NO_SIGNAL}", flush=True)
        if self.task.answers_dev:
            # The greedy answer and one sample, the columns of a run without task.pass_at,
            # so that both runs get one hash.
            predictions = np.ascontiguousarray(predictions[:, :2])
        # A hash is enough to see whether another run predicts the same for every row.
        state.add_point(point, hashlib.sha256(predictions.tobytes()).hexdigest()[:16])
        self._keep_right_rows(predictions, labels)
        losses = f"train loss {point['train_loss']:.4f}, dev loss {dev_loss:.4f}"
        metric = f"{self.metric.name} {self.metric.text(point['metric'])}"
        print(f"epoch {point['epoch']:g}: {losses}, {metric}", flush=True)
        self._write_kept_files(outputs)
        state.seconds["evaluate"] += time.monotonic() - start_s
        if self.plan.total_steps:
            self._report_progress(point["train_loss"], "evaluated")
        if self.tracker:
            self.tracker.send_epochs(state.curve, self.metric.name)

    def _point_of_curve(
        self, dev_loss: float, predictions: Outputs, labels: Outputs
    ) -> dict[str, Any]:
        """The values of an evaluation, by the name of their column in the curve."""
        state = self.state
        score = self.task.score
        point: dict[str, Any] = {
            "epoch": round(state.step / self.plan.steps_per_epoch, 4),
            "step": state.step,
            "train_loss": state.loss_sum / max(state.rows, 1),
            "dev_loss": dev_loss,
            "metric": score(predictions, labels),
        }
        # Each half is scored by itself, too: crossfit chooses an epoch on one and
        # reports it on the other.
        half_a, half_b = dev_halves(len(labels))
        point["metric_select"] = score(predictions[half_a], labels[half_a])
        point["metric_report"] = score(predictions[half_b], labels[half_b])
        point["lr"] = [group["lr"] for group in self.optimizer.param_groups]
        point |= state.mean_metrics()
        if self.task.answers_dev:
            point |= sampled_scores(predictions, self.config["task"].get("pass_at"))
        return point

    def best_evaluation(self) -> int:
        """Index of the best evaluation so far."""
        return self.metric.index_of_best(complete_scores(self.state.curve["metric"]))

    @property
    def latest_is_best(self) -> bool:
        """Whether the last evaluation is the best one so far."""
        return self.best_evaluation() == len(self.state.curve["epoch"]) - 1

    def _keep_right_rows(self, predictions: Outputs, labels: Outputs) -> None:
        """Keeps which dev rows are right, at the best evaluation so far and the last.
        Only where the metric is an accuracy; both arrays are then (rows,)."""
        if self.metric.name != METRIC_OF_ITEMS:
            return
        bits = pack(predictions == labels)
        if bits is None:  # too many rows for a record
            return
        self.state.right["last"] = bits
        if self.latest_is_best:
            self.state.right["best"] = bits

    def _write_kept_files(self, outputs: Outputs) -> None:
        """After an evaluation, writes the adapter if `keep` asks for it, and what these
        outputs of the dev rows predict.

        For a task that decodes, this writes only the best epoch's adapter, which is
        decoded with; `decode_epochs` writes the adapter that `keep` asks for."""
        keep = self.config["keep"]
        is_best = self.latest_is_best
        is_kept = keep in ("last", "both") or (keep == "best" and is_best)
        if self.task.decodes:
            # Texts are decoded with the trained values, whatever precision is kept.
            if is_best:
                self.write_adapter(self.best_file, "fp32")
        elif is_kept:
            self.write_adapter(self.folder / "adapter.safetensors")
            if is_best and keep == "both":
                self.write_adapter(self.best_file)
        # predictions.csv is of one epoch; the last one's replaces those before
        if is_best or kept_epoch(keep, self.task.reported) == "last":
            self.write_predictions(outputs)

    # --- checkpoints

    def _save(self) -> None:
        """Writes the checkpoint, in the main process."""
        self._read_losses()
        self.saved_at = time.monotonic()
        scaler = self.accelerator.scaler
        self.state.scaler = scaler.state_dict() if scaler else None
        if self.accelerator.is_main_process:
            method_state = self.method.training_state(self.raw_model)
            self.checkpoint.save(dataclasses.asdict(self.state), method_state)

    def _resume(self) -> bool:
        """Continues from an earlier attempt's checkpoint. Returns whether there is one."""
        saved = self.checkpoint.load()
        if saved is None:
            return False
        state, method_state = saved
        conditions_now = self.state.conditions
        self.state = State(**state)
        self.state.check_settings(self.config, self.checkpoint.path)
        self.method.load_training_state(self.raw_model, method_state)
        set_rates(self.optimizer, self.settings, self.state.step, self.plan.total_steps)
        if self.accelerator.scaler:
            self.accelerator.scaler.load_state_dict(self.state.scaler)
        note = f"at step {self.state.step} of {self.plan.total_steps}"
        changed = changed_conditions(self.state.conditions, conditions_now)
        if changed:
            note += f": {changed}"
            self.state.resumed.append(note)
        self.state.conditions = conditions_now
        print(f"resumed {note}", flush=True)
        return True

    # --- progress

    def _report_progress(self, loss: float, phase: str = "training") -> None:
        """Reports how far the run has come, with the loss of the last step."""
        event = progress_event(
            self.state, self.plan, self.task, self.metric, self.best_evaluation()
        )
        self.report({"phase": phase, "loss": loss, **event})
