"""What a fault campaign compares, and its page."""

import contextlib
import datetime
from collections import Counter
from pathlib import Path

from running import comparable

from runs.record import FINISHED, read_record, records_folder

State = tuple[dict[str, dict], dict[str, object]]


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
    files: dict[str, object] = {}
    for path in sorted(output.glob("runs/*/**/*")):
        content: object = path.read_bytes() if path.is_file() else "a folder"
        if path.suffix == ".yaml":  # which name the output folder
            content = sorted(path.read_text().replace(str(output), "OUTPUT").splitlines())
        if path.name != "log.txt":
            files[str(path.relative_to(output))] = content
    return {run_id: comparable(record) for run_id, record in finished(output).items()}, files


def differences(expected: State, output: Path) -> list[str]:
    """What of a folder is not as expected, in words; and what is left over."""
    (records, files), words = state_of(output), list[str]()
    for run_id, record in expected[0].items():
        if records.get(run_id) != record:
            keys = [key for key in record if records.get(run_id, {}).get(key) != record[key]]
            words.append(f"the record of run {run_id} differs in {', '.join(keys)}")
    for file in sorted(expected[1].keys() | files.keys()):
        if files.get(file) != expected[1].get(file):
            known = (
                "differs"
                if file in files and file in expected[1]
                else "is left over"
                if file in files
                else "is missing"
            )
            words.append(f"{file} {known}")
    return words + [f"{path.relative_to(output)} is left over" for path in sorted(output.glob("records/.*"))]


def page(
    kills: Counter, others: Counter, problems: list[str], commands: int, seed: int, seconds: float
) -> str:
    """docs/chaos.md, from what a campaign has counted."""
    who, phases = sorted({who for who, _ in kills}), sorted({phase for _, phase in kills})
    rows = [["a run was", *who], ["---", *["---:"] * len(who)]]
    rows += [[phase, *(str(kills[name, phase] or "") for name in who)] for phase in phases]
    rows.append(["all", *(str(sum(kills[name, phase] for phase in phases)) for name in who)])
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    verdict = "\n".join(f"- {words}" for words in problems) or (
        "Every record, adapter, head and text equals that of the undisturbed sweep, and nothing is left over."
    )
    disturbed = "\n".join(f"- {words}: {count}" for words, count in sorted(others.items()))
    return f"""# A fault campaign

`make chaos` (tests/chaos.py; `N=` for more kills) disturbs sweeps of 12 tiny runs: VeRA, LoRA, AdaLoRA and
full fine-tuning of a BERT with dropout, and VeRA and LoRA of a GPT-2 that decodes texts. Each kill is aimed
at a phase of a run; one whose phase never came would be a problem below. Commands have one run at a time or
two. In the end everything is compared with an undisturbed sweep: records except times, costs and paths; files
byte for byte.

Measured on {datetime.date.today()}, 2 CPU cores, seed {seed}: {kills.total()} kills, {commands} commands, in
{seconds / 60:.0f} minutes.

## Verdict

{verdict}

## Kills

{table}

run: the run's process. server: what runs are forked from. command: what a user has started. everything:
all of them at once. stopped: the run's process is stopped there (SIGSTOP), another command, which no lock
keeps off, does its runs, and then the stopped one goes on.

## Other disturbances

{disturbed}
"""
