"""Ray: workers as tasks of a cluster, or of this machine. They end with the command."""

import contextlib
import importlib.util
from collections.abc import Iterator
from typing import Any, Literal

from runs.command.errors import UserError
from runs.launchers.contract import ByWorkers, CountWorkers, Worker
from runs.machine.processes import last_line, process_environment

#: Nothing passes through Ray's store, so a Ray of our own gets the smallest one.
STORE_BYTES = 75 * 2**20
#: Seconds that workers have to end after the last run.
ENDING_S = 60


class Ray(ByWorkers):
    """Tasks of Ray.

    init: arguments of ray.init, such as {address: auto}. remote: of ray.remote, such as
    {num_gpus: 1}."""

    name: Literal["ray"] = "ray"
    init: dict[str, Any] | None = None
    remote: dict[str, Any] | None = None

    def check(self) -> None:
        """Raises UserError where Ray is not installed."""
        if importlib.util.find_spec("ray") is None:
            install = "pip install 'vera-bench[ray]'"
            raise UserError(f"launcher=ray is not installed: {install}")

    @contextlib.contextmanager
    def start(self, worker: Worker) -> Iterator[CountWorkers]:
        """Starts the workers as tasks, on the cluster that `init` names or on this machine.
        Raises UserError where a task fails or Ray refuses."""
        import ray

        variables = {"PYTHONPATH": process_environment()["PYTHONPATH"]}
        arguments: dict[str, Any] = {"runtime_env": {"env_vars": variables}}
        if not (self.init or {}).get("address"):
            arguments["object_store_memory"] = STORE_BYTES
        try:
            ray.init(**arguments | (self.init or {}))
            # a task of Ray is a function: the worker becomes its first argument
            task = ray.remote(**self.remote or {"num_cpus": 1})(type(worker).__call__)
            tasks = [task.remote(worker, number) for number in range(worker.workers)]
        except Exception as error:
            raise UserError(f"Ray: {last_line(error)}") from None

        def count_workers(seconds: float = 0) -> int:
            """How many tasks are alive after waiting up to `seconds` for all to end."""
            nonlocal tasks
            if tasks:
                count = len(tasks)
                ended, tasks = ray.wait(tasks, num_returns=count, timeout=seconds)
                ray.get(ended)  # raises the error of a task that has failed
            return len(tasks)

        try:
            yield count_workers
            # Ray's shutdown below would kill workers that are about to end.
            count_workers(ENDING_S if worker.all_done() else 0)
        except ray.exceptions.RayError as error:
            raise UserError(f"Ray: {last_line(error)}") from None
        finally:
            ray.shutdown()
