"""Checks a finished run: puts its adapter and head on a fresh base model and evaluates them again.

python -m runs.evaluate RUN                 a run id (or its beginning), as in outputs/records
python -m runs.evaluate RUN output=FOLDER
"""

import numpy as np

from runs.config import Run
from runs.errors import UserError, entry_point
from runs.record import Record, read_ledger, run_folder


def main(arguments: list[str]) -> int:
    names = [word for word in arguments if "=" not in word]
    if len(names) != 1 or {"-h", "--help"} & set(arguments):
        print(__doc__)
        return 0 if {"-h", "--help"} & set(arguments) else 2
    output = next((w.partition("=")[2] for w in arguments if w.startswith("output=")), "outputs")
    record = _find(names[0], output)
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
    import vera
    from runs.train import Training

    folder = run_folder(output, record["id"])
    for name in ("adapter", "head"):
        if not (folder / f"{name}.safetensors").is_file() and (name == "head" or record["parameters"]["adapter"]):
            raise UserError(f"{folder}/{name}.safetensors is not there: the run kept none (keep={record['config']['keep']})")
    cell = record["cell"]
    run = Run(cell["row"], cell["model"], cell["task"], cell["seed"], record["recipe"]["name"], cell["paper"], record["config"])
    training = Training(run, record["id"], lambda event: None)
    if record["parameters"]["adapter"]:
        vera.load(training.raw_model, folder / "adapter.safetensors")
    vera.load_head(training.raw_model, folder / "head.safetensors")
    _, predictions = training.evaluate()
    return training.task.score(predictions, training.task.labels("dev"))


def _kept_result(record: Record) -> float:
    """The whole dev set's metric at the epoch whose adapter was kept."""
    curve, config, result = record["curve"], record["config"], record["result"]
    epoch = -1 if config["keep"] == "last" else curve["epoch"].index(result["best_epoch"])
    return float(curve["metric"][epoch])


def _find(name: str, output: str) -> Record:
    found = [record for record in read_ledger(output) if record["id"].startswith(name)]
    if len(found) != 1:
        raise UserError(f"{len(found) or 'no'} records begin with {name!r} in {output}/records")
    if found[0]["status"] != "done":
        raise UserError(f"run {found[0]['id']} is {found[0]['status']}: {found[0]['error']}")
    return found[0]


if __name__ == "__main__":
    entry_point(main)
