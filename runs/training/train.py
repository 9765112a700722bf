"""One run, from its start to its record."""

from runs.record import Record
from runs.tracking import Tracker, Tracking
from runs.training.loop import Training
from runs.training.provenance import made_with
from runs.training.result import build_record


def train(training: Training, tracking: Tracking | None = None) -> Record:
    """Does one run, writes its record, and moves the attempt's files into the run's folder. Where another
    attempt has finished the run before, its record and files stay, and this one's are removed. tracking:
    whether W&B shows the run. Raises StoppedError where `training.stop` asks for it."""
    config, accelerator, task = training.config, training.accelerator, training.task
    own = made_with(training.code, accelerator.device)
    training.tracker = Tracker(tracking, training.run, training.run_id, own)
    try:
        record = build_record(training, training.go())
        done = record["status"] == "done"
        if done and task.pictures:
            _illustrate(training)
        if accelerator.is_main_process:
            both = config["keep"] == "both" and task.decodes
            if done and both and config["adapter_precision"] != "fp32":
                # The model has the best epoch's values since decoding. The file in full precision stays until
                # the record is there: a killed run would decode from it again, and rounded values give other
                # texts.
                training.write(training.folder / "adapter_best_rounded.safetensors")
            training.attempt.finish(record)
        accelerator.wait_for_everyone()
        accelerator.free_memory()
    except BaseException as error:
        training.tracker.finish(None, error)
        raise
    training.tracker.finish(record)
    return record


def _illustrate(training: Training) -> None:
    """Has the task draw pictures of the last epoch's predictions."""
    if training.predictions is None:  # of a run that was resumed after its last epoch
        training.predictions = training.evaluate(training.trained, training.inputs)[1]
    if not training.accelerator.is_main_process:
        return
    try:
        training.task.illustrate(training.folder, training.predictions)
    except Exception as error:  # a run is worth more than its pictures
        print(f"the pictures of its predictions were not drawn ({type(error).__name__}: {error})", flush=True)
