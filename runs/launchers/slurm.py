"""Slurm: an array of jobs, through submitit. A job that reaches its time limit goes
back into the queue."""

import contextlib
import io
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import ConfigDict

from runs.command.errors import UserError
from runs.launchers.contract import ByScript, CountWorkers, Worker
from runs.machine.processes import last_line, output_of, process_environment

#: How often a job may go back into the queue, where conf/launcher/slurm.yaml is not
#: used and the settings do not say.
MAX_REQUEUES = 1000


class Slurm(ByScript):
    """An array of Slurm jobs. Keys that are not declared here are submitit's.

    dry_run: whether the sbatch script is printed, and nothing submitted."""

    model_config = ConfigDict(extra="allow")
    remarks: ClassVar[tuple[str, ...]] = (
        "--wckey=submitit is the label of submitit, which writes this script. A cluster",
        "that has no such keys ignores it. If yours checks them, set another one with",
        "+launcher.additional_parameters.wckey=NAME",
    )

    name: Literal["slurm"] = "slurm"

    def check(self) -> None:
        """Raises UserError where Slurm does not answer."""
        try:
            output_of("squeue", "--noheader")
        except (OSError, subprocess.SubprocessError) as error:
            reason = last_line(getattr(error, "stderr", None) or error)
            raise UserError(
                f"launcher=slurm: no Slurm here ({reason}). Log in where sbatch works, "
                "or add launcher.dry_run=true to read the script"
            ) from None

    @contextlib.contextmanager
    def start(self, worker: Worker) -> Iterator[CountWorkers]:
        """Submits an array of jobs, unless an earlier command's jobs for this sweep are
        still there. Jobs go on without this command. Raises UserError where Slurm
        refuses."""
        jobs = _Jobs(worker.folder.name)  # the sweep's name, which its jobs have
        if not jobs.count():
            self._submit(worker)
            jobs.last_count = worker.workers  # until squeue gives another number
        try:
            yield jobs.count
        finally:
            if worker.all_done():
                jobs.cancel_pending()
            elif jobs.count():
                print(
                    f"{jobs.last_count} jobs go on without this command. "
                    f"To end them: scancel --name={jobs.name}",
                    file=sys.stderr,
                )

    def _submit(self, worker: Worker) -> None:
        """Submits one array with a job for each worker."""
        # sbatch passes this process's environment on to the jobs
        os.environ["PYTHONPATH"] = process_environment()["PYTHONPATH"]
        try:
            executor = self._executor(worker.folder)
            # sbatch's message is in the error below
            with contextlib.redirect_stderr(io.StringIO()):
                executor.map_array(worker, range(worker.workers))
        except Exception as error:
            raise UserError(f"Slurm takes no job: {last_line(error)}") from None

    def script(self, folder: Path, workers: int) -> str:
        """See ByScript: the script that sbatch would get. Raises UserError for a setting
        that submitit does not take."""
        try:
            executor = self._executor(folder, needs_slurm=False)
        except Exception as error:
            raise UserError(f"launcher=slurm: {last_line(error)}") from None
        if workers > 1:  # as submitit's map_array does
            executor.parameters["map_count"] = workers
        command = executor._submitit_command_str
        return str(executor._make_submission_file_text(command, ""))

    def _executor(self, folder: Path, needs_slurm: bool = True) -> Any:
        """submitit's executor with these settings. folder: of the sweep, whose name the
        jobs get. needs_slurm: False to only write the script, on any machine."""
        import submitit

        class Executor(submitit.SlurmExecutor):
            @classmethod
            def affinity(cls) -> int:
                """submitit refuses an executor of affinity -1, which is what it finds on a
                machine without Slurm."""
                return int(super().affinity()) if needs_slurm else 1

        settings = dict(self.model_extra or {})
        requeues = settings.pop("max_num_timeout", MAX_REQUEUES)
        executor = Executor(folder / "submitit" / "%j", max_num_timeout=requeues)
        parameters = {"name": folder.name, "tasks_per_node": 1}
        for key, value in settings.items():
            if value is not None:
                parameters[key] = value
        # under the names that sbatch uses
        executor.update_parameters(**executor._convert_parameters(parameters))
        return executor


class _Jobs:
    """The jobs of a sweep in Slurm's queue, by their name."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.last_count = 0

    def count(self) -> int:
        """How many are in the queue, waiting or running; the last known number where Slurm
        does not answer, which happens when its controller is busy. sacct would miss killed
        jobs on a cluster without accounting."""
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            flags = ("--noheader", "--array", f"--name={self.name}", "--format=%T")
            self.last_count = len(output_of("squeue", *flags).split())
        return self.last_count

    def cancel_pending(self) -> None:
        """Takes jobs that have not begun out of the queue."""
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            output_of("scancel", f"--name={self.name}", "--state=PENDING")
