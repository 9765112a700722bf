"""Runs experiments.

python -m runs model=roberta_base task=rte method=vera seed=3      one run
python -m runs task=rte,mrpc method=vera,lora seed=0,1,2           a sweep: every combination
python -m runs paper=table2_base                                   a preset: a whole table of the paper
python -m runs paper=table2_base method=vera seed=0                part of it
python -m runs --cfg task=cola                                     the configuration, without running
"""

import json

from runs.config import GROUPS, choices, expand, known_keys
from runs.errors import UserError, entry_point
from runs.sweep import check_ids, sweep


def main(arguments: list[str]) -> int:
    if {"-h", "--help"} & set(arguments):
        print(__doc__)
        for group in GROUPS:
            print(f"{group + '=':<9}{', '.join(choices(group))}")
        print("\nKeys (see conf/config.yaml):\n  " + "\n  ".join(k for k in known_keys() if k not in GROUPS))
        return 0
    words = [word for word in arguments if word not in ("-m", "--multirun", "--cfg")]
    flags = [word for word in words if word.startswith("-")]
    if flags:
        raise UserError(f"no option {flags[0]}. Known: -m, --cfg, --help")
    runs = expand(words)
    if "--cfg" in arguments:
        for run in runs:
            print(json.dumps(run.config, indent=2))
        return 0
    check_ids(runs)
    outcome = sweep(runs)
    return outcome.exit_code


if __name__ == "__main__":
    entry_point(main)
