"""Tunes learning rates: a grid for each cell, judged on held-out training rows, never on a dev or test set.

python -m runs.tune model=minilm task=mrpc method=vera              the grid of conf/tune.yaml, seed 0
python -m runs.tune task=rte,mrpc method=vera,lora seed=0,1         four cells, one after another, two seeds a
                                                                    trial
python -m runs.tune experiment=table2_base method=vera              the cells of a preset
python -m runs.tune method=lora grid='{method.rank: [4, 8]}'        another key in the grid, or another list
python -m runs.tune method=lora train.lr=1e-3                       a key with a value is not searched
python -m runs.tune task.holdout=0.3                                the share of held-out training rows (0.2)

The overrides are those of python -m runs. Each trial is one run for each seed; their records enter no table.
The same command continues a search, and repeats failed trials; of two at once the second waits where both
search one cell. outputs/tune/CELL holds trials.csv.
"""

import os
import re
from dataclasses import dataclass

from runs.alone import Lock, alone
from runs.command import COMPOSING, Common, as_word, entry_point, read, setting
from runs.config import WHERE
from runs.errors import UserError
from runs.identity import check_ids
from runs.preflight import preflight
from runs.run import with_starts
from runs.sweep.attempt import start_fork_server
from runs.tune.cells import cells
from runs.tune.report import best_point, report, shared_recipes
from runs.tune.trials import search


@dataclass(frozen=True)
class Settings(Common):
    """Settings of the command."""

    grid: str = setting("{}", "a mapping of keys to lists that are searched, over those of conf/tune.yaml")


def main(arguments: list[str]) -> int:
    line = read(arguments, Settings, overrides="the cells, as for python -m runs", options=COMPOSING)
    if "LOCAL_RANK" in os.environ:
        raise UserError("a search is one process: python -m runs.tune, without torchrun")
    # Trials are never tracked, so tracking=off changes nothing
    overrides = [word for word in line.overrides if word != "tracking=off"]
    if other := next((word for word in overrides if re.split("[.=]", word.lstrip("+~"))[0] in WHERE), None):
        why = "a search does its trials here, one after another, and W&B hears of none"
        raise UserError(f"{other} is for python -m runs: {why}")
    debug = [f"debug={as_word(line.settings.debug)}"] if "debug" in line.given else []
    of_search = cells([*overrides, *debug], line.settings.grid, line.config_dir)
    runs = [run for cell in of_search for run in cell.runs]
    if not runs[0].config["debug"]:
        start_fork_server()
    tasks = preflight(with_starts(runs))
    check_ids(runs, [run_id for cell in of_search for ids in cell.ids.values() for run_id in ids])
    failed, reports, best = [], [], []
    for cell in of_search:
        task = tasks[cell.first.task]
        with alone(Lock(cell.folder / "lock"), f"searching {cell.name}"):
            failed += search(cell)
            reports.append(report(cell, task))
        best += [(cell, point) for point in best_point(cell, task)]
    reports += filter(None, [shared_recipes(best)])
    print("".join(f"\n{text}\n" for text in reports))
    for text in failed:
        print(f"failed, and tried again by the same command: {text}")
    return 1 if failed else 0


if __name__ == "__main__":
    entry_point(main)
