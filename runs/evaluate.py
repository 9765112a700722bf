"""Checks a finished run: puts its adapter and head on a fresh base model and evaluates them again.

python -m runs.evaluate RUN                 a run id (or its beginning), as in outputs/records
python -m runs.evaluate RUN output=FOLDER
"""

import warnings
from typing import TYPE_CHECKING

import numpy as np

from runs.config import Run
from runs.errors import UserError, entry_point
from runs.record import Record, read_ledger, record_path, run_folder

if TYPE_CHECKING:
    from runs.train import Training


def main(arguments: list[str]) -> int:
    wrong = [word for word in arguments if "=" in word and not word.startswith("output=")]
    if wrong:
        raise UserError(f"{wrong[0]}: this command knows output=FOLDER only")
    names = [word for word in arguments if "=" not in word]
    if len(names) != 1 or {"-h", "--help"} & set(arguments):
        print(__doc__)
        return 0 if {"-h", "--help"} & set(arguments) else 2
    output = next((w.partition("=")[2] for w in arguments if w.startswith("output=")), "outputs")
    record = find(names[0], output)
    metric, recorded = record["result"]["metric"], _kept_result(record)
    again = evaluate(record, output)
    verdict = "the same" if np.isclose(again, recorded, atol=1e-9) else "NOT the same"
    print(
        f"{record['label']['row']} on {record['label']['task']}, seed {record['cell']['seed']}: {metric} {100 * again:.2f}, "
        f"recorded {100 * recorded:.2f}: {verdict}"
    )
    return 0 if verdict == "the same" else 1


def evaluate(record: Record, output: str) -> float:
    """The metric on the dev set of a run's adapter and head, read from their files."""
    training = restore(record, output)
    _, predictions = training.evaluate()
    return training.task.score(predictions, training.task.labels("dev"))


def restore(record: Record, output: str) -> "Training":
    """A finished run's task and model, with its kept adapter and head on a fresh base model.

    Raises UserError where the run kept none, AdapterError where a file is damaged or does not fit.
    """
    import vera
    from runs.train import Training

    folder = run_folder(output, record["id"])
    needed = [name for name in ("adapter", "head") if record["parameters"][name]]
    for name in needed:
        if not (folder / f"{name}.safetensors").is_file():
            again = f"delete {record_path(output, record['id'])} and run it again with keep=best"
            raise UserError(f"{folder}/{name}.safetensors is not there: the run kept none. To have it, {again}")
    cell = record["cell"]
    run = Run(cell["row"], cell["model"], cell["task"], cell["seed"], record["recipe"]["name"], cell["paper"], record["config"])
    training = Training(run, record["id"], lambda event: None, start=False)
    if "adapter" in needed:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what copying a transformers model touches
            vera.load(training.raw_model, folder / "adapter.safetensors")
    if "head" in needed:
        vera.load_head(training.raw_model, folder / "head.safetensors")
    return training


def _kept_result(record: Record) -> float:
    """The whole dev set's metric at the epoch whose adapter was kept."""
    curve, config, result = record["curve"], record["config"], record["result"]
    epoch = -1 if config["keep"] in ("last", "both") else curve["epoch"].index(result["best_epoch"])
    return float(curve["metric"][epoch])


def find(name: str, output: str) -> Record:
    found = [record for record in read_ledger(output) if record["id"].startswith(name)]
    if len(found) != 1:
        raise UserError(f"{len(found) or 'no'} records begin with {name!r} in {output}/records")
    if found[0]["status"] != "done":
        raise UserError(f"run {found[0]['id']} is {found[0]['status']}: {found[0]['error']}")
    return found[0]


if __name__ == "__main__":
    entry_point(main)
