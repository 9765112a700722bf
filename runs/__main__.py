"""Runs experiments.

python -m runs model=roberta_base task=rte method=vera seed=3      one run
python -m runs task=rte,mrpc method=vera,lora seed=0,1,2           a sweep: every combination
python -m runs paper=table2_base                                   a preset: a whole table of the paper
python -m runs paper=table2_base method=vera seed=0                part of it
python -m runs paper=table2_base launcher=local                    one process a device (or slurm, ray: see
                                                                   the README)
python -m runs paper=table2_base method=vera redo=true             again, although there are records: the old
                                                                   ones go aside
python -m runs --cfg task=cola                                     the configuration, without running
python -m runs --help task=text                                    the keys of a task, model or method
"""

import json
from dataclasses import fields

from runs import launch
from runs.config import GROUPS, choices, expand, settings, with_starts
from runs.errors import UserError, entry_point
from runs.sweep import check_ids, sweep
from runs.tracking import agent_note


def main(arguments: list[str]) -> int:
    if {"-h", "--help"} & set(arguments):
        print(__doc__)
        for group in GROUPS:
            print(f"{group + '=':<9}{', '.join(choices(group))}")
        picked = tuple(word for word in arguments if word.partition("=")[0] in GROUPS)
        of = " ".join(picked) or "the default choices"
        print(f"\nKeys and values of {of} (--help task=rte: of others; the files of conf/ say what each is):")
        print("  " + "\n  ".join(settings(picked)))
        print(f"\nWhere and how (conf/launch.yaml): {', '.join(f.name for f in fields(launch.Launch))}")
        return 0
    words = [word for word in arguments if word not in ("-m", "--multirun", "--cfg")]
    flags = [word for word in words if word.startswith("-")]
    if flags:
        raise UserError(
            f"no option {flags[0]}. Known: -m, --cfg, --help; settings are words, such as output=FOLDER"
        )
    how, hydra, words = launch.take(words)
    runs = expand(words)
    if "--cfg" in arguments:
        for run in runs:
            print(json.dumps(run.config, indent=2))
        return 0
    again = runs if how.redo else []  # not those that others start from, unless they were asked for
    runs = with_starts(runs)
    check_ids(runs)
    if note := agent_note(runs):
        print(note)
    outcome = sweep(runs, launch=how, words=hydra, again=again)
    return outcome.exit_code


if __name__ == "__main__":
    entry_point(main)
