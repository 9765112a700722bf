"""One run, from its start to its record."""

from runs.begun import clear
from runs.claims import Claim
from runs.config import Run
from runs.record import Record, write_record
from runs.training.context import Report, Stop
from runs.training.loop import Training


def train(
    run: Run, run_id: str, report: Report, claim: Claim | None = None, stop: Stop | None = None
) -> Record:
    """Does one run and writes its record; the checkpoint goes once the record is there.

    Raises StoppedError where `stop` asks for it, and LostClaimError where another executor has the run.
    """
    training = Training(run, run_id, report, claim, stop)
    record = training.go()
    draws = training.task.pictures and record["status"] == "done"
    if draws and training.predictions is None:  # resumed after the last epoch
        training.predictions = training.evaluate(training.trained, training.inputs)[1]
    if training.accelerator.is_main_process:
        if draws:
            try:
                training.task.illustrate(training.folder, training.predictions)
            except Exception as error:  # a picture is not worth a run
                why = f"{type(error).__name__}: {error}"
                print(f"the pictures of its predictions were not drawn ({why})", flush=True)
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
