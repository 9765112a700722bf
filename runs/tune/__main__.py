"""Tunes learning rates: a grid for each cell, judged on rows held out from training data, never on a dev or
test set.

python -m runs.tune model=minilm task=mrpc method=vera              the grid of conf/tune.yaml, seed 0
python -m runs.tune task=rte,mrpc method=vera,lora seed=0,1         four cells, one after another, two seeds a
                                                                    trial
python -m runs.tune experiment=table2_base method=vera                   the cells of a preset
python -m runs.tune method=lora grid='{method.rank: [4, 8]}'        more of a grid, or another list for a key
                                                                    of it
python -m runs.tune method=lora train.lr=1e-3                       what a word sets is not searched
python -m runs.tune task.holdout=0.3                                the share of the training rows that is
                                                                    held out (0.2)

The words are those of python -m runs. Each trial is a run a seed, with a record, which enters no table. The
same command goes on where it was, and tries failed trials again. output/tune/STUDY holds the journal and
trials.csv.
"""

import os
import re
from dataclasses import dataclass

from runs.command import COMPOSING, Common, entry_point, read, setting
from runs.config import WHERE, as_word, with_starts
from runs.errors import UserError
from runs.record import Metric
from runs.sweep.attempt import start_fork_server
from runs.sweep.jobs import check_ids
from runs.sweep.preflight import preflight
from runs.tune.cells import cells
from runs.tune.report import report
from runs.tune.study import open_study, search


@dataclass(frozen=True)
class Settings(Common):
    """What a search can be given beside the cells."""

    grid: str = setting("{}", "a mapping of keys to lists that are searched, over those of conf/tune.yaml")


def main(arguments: list[str]) -> int:
    line = read(arguments, Settings, overrides="the cells, as for python -m runs", passes=COMPOSING)
    if "LOCAL_RANK" in os.environ:
        raise UserError("a search is one process: python -m runs.tune, without torchrun")
    # W&B hears of no trial, so tracking=off asks for what is done anyway.
    words = [word for word in line.overrides if word != "tracking=off"]
    if other := next((word for word in words if re.split("[.=]", word.lstrip("+~"))[0] in WHERE), None):
        raise UserError(
            f"{other} is for python -m runs: a search does its trials here, one after another, and W&B hears"
            " of none"
        )
    debug = [f"debug={as_word(line.settings.debug)}"] if "debug" in line.given else []
    found = cells([*words, *debug], line.settings.grid, line.options)
    runs = with_starts([run for cell in found for trial in cell.trials.values() for run in trial])
    if not runs[0].config["debug"]:
        start_fork_server()
    of_name = preflight(runs)
    check_ids(
        [run for cell in found for of_trial in cell.trials.values() for run in of_trial],
        [run_id for cell in found for of_trial in cell.ids.values() for run_id in of_trial],
    )
    failed, reports = [], []
    for cell in found:
        task = of_name[cell.first.task]
        study = open_study(cell, Metric.of_task(task))
        failed += search(cell, study)
        reports.append(report(cell, study, task))
    print("".join(f"\n{text}\n" for text in reports))
    for text in failed:
        print(f"failed, and tried again by the same command: {text}")
    return 1 if failed else 0


if __name__ == "__main__":
    entry_point(main)
