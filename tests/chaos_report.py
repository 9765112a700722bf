"""What tests/chaos.py counts, compares and writes down."""

import contextlib
import datetime
import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from running import comparable

from runs.record import FINISHED, read_record, records_folder
from runs.sweep.leases import leases_folder

#: How a stopped executor may end up without another one having its run.
LATE = "not taken over in time"
#: The records and the files of a folder, by run and by name.
State = tuple[dict[str, dict], dict[str, object]]


@dataclass
class Tally:
    """What happened."""

    kills: Counter = field(default_factory=Counter)  # by target and phase
    disturbances: Counter = field(default_factory=Counter)
    takeovers: set = field(default_factory=set)
    stops: list = field(default_factory=list)
    commands: int = 0
    endings: Counter = field(default_factory=Counter)
    problems: list = field(default_factory=list)

    def problem(self, words: str) -> None:
        print(f"PROBLEM: {words}", flush=True)
        self.problems.append(words)


def finished(output: Path) -> dict[str, dict]:
    """The finished records of a folder, by run; damaged ones count as none."""
    found = {}
    for path in records_folder(output).glob("[!.]*.json"):
        with contextlib.suppress(ValueError):
            record = read_record(path)
            if record["status"] in FINISHED:
                found[path.stem] = record
    return found


def state_of(output: Path) -> State:
    """What has to be equal: the records without times and places, and the files of each run (adapters and
    heads as they are, decoded texts by item), but for its log."""
    records = {run_id: comparable(record) for run_id, record in finished(output).items()}
    files: dict[str, object] = {}
    for path in sorted(output.glob("runs/*/*")):
        if path.name == "log.txt":
            continue
        content: object = path.read_bytes()
        if path.suffix == ".yaml":  # which name the output folder, and the overrides in their order
            content = sorted(path.read_text().replace(str(output), "OUTPUT").splitlines())
        elif path.suffix == ".jsonl":
            head, *lines = map(json.loads, path.read_text().splitlines())
            content = head, {line["item"]: line["texts"] for line in lines}
        files[f"{path.parent.name}/{path.name}"] = content
    return records, files


def differences(expected: State, output: Path) -> list[str]:
    """What of a folder is not as expected, in words; and what is left over."""
    (records, files), words = state_of(output), list[str]()
    for run_id, record in expected[0].items():
        if run_id not in records:
            words.append(f"no record of run {run_id}")
        elif records[run_id] != record:
            keys = [key for key in record if records[run_id].get(key) != record[key]]
            words.append(f"the record of run {run_id} differs in {', '.join(keys)}")
    for file in sorted(expected[1].keys() | files.keys()):
        if file not in files or file not in expected[1]:
            words.append(f"{file} is {'missing' if file not in files else 'left over'}")
        elif files[file] != expected[1][file]:
            words.append(f"{file} differs")
    left = {*leases_folder(output).glob("*"), *output.rglob(".*")}
    return words + [f"{path.relative_to(output)} is left over" for path in sorted(left)]


def page(tally: Tally, targets: list[str], runs: int, seed: int, seconds: float) -> str:
    """docs/chaos.md, from what this campaign has counted."""
    phases = sorted({phase for _, phase in tally.kills})
    rows = [[phase, *(tally.kills[target, phase] for target in targets)] for phase in phases]
    rows = [[*row, sum(row[1:])] for row in rows]
    rows.append(["all", *(sum(row[i] for row in rows) for i in range(1, len(targets) + 2))])
    table = [
        ["the run or its executor was", *targets, "all"],
        ["---"] + ["---:"] * (len(targets) + 1),
        *rows,
    ]
    lines = [f"| {' | '.join(str(cell or '') for cell in row)} |" for row in table]
    refused = Counter(tally.stops)
    verdict = (
        "Every record, adapter, head and text equals that of the undisturbed sweep. None is missing or"
        " half-written.\nNo checkpoint, lease or partial file is left over."
        if not tally.problems
        else "These differed:\n\n" + "\n".join(f"- {words}" for words in tally.problems)
    )
    kinds = sorted(tally.disturbances.items())
    disturbed = "\n".join(f"- {kind}: {count}" for kind, count in kinds if count)
    return f"""# A fault campaign

`make chaos` (tests/chaos.py; `N=` for more kills) disturbs a sweep of {runs} tiny runs: VeRA, LoRA, AdaLoRA
and full fine-tuning of a BERT with dropout, and VeRA and LoRA of a GPT-2 that decodes texts. It starts the
sweep's commands again and again, kills their processes with SIGKILL at random times, and damages their files.
The launchers are serial, and local with two runs on a device. At the end it runs the plain command once more
and compares everything with an undisturbed sweep: records except times, costs and paths; adapters and heads
byte for byte; texts.

Measured on {datetime.date.today()}, 2 CPU cores, seed {seed}: {tally.kills.total()} kills, {tally.commands}
commands, in {seconds / 60:.0f} minutes.

## Verdict

{verdict}

## Kills

{chr(10).join(lines)}

run: the process of a run. executor: the process that starts runs and holds their leases (with launcher=serial
it is the command itself). command: the process that supervises executors. server: the process that the runs'
processes are forked from. everything: all processes at once. The campaign widens windows of microseconds (a
file is written and not yet renamed) to hundredths of a second.

## Other disturbances

{disturbed}

Executors took over a run of a silent owner {len(tally.takeovers)} times. Executors that were stopped for
longer than their lease: {len(tally.stops)}. Refused when they continued, because another one had taken over:
{refused["refused"]}. Continued before another one came, or after their run had ended: {refused[LATE]}.
"""
