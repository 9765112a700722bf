"""The records that a command line names."""

import gc
import sys
from pathlib import Path

from runs.command.errors import UserError
from runs.record.folder import RecordFolder
from runs.record.kept_rows import MakesRows
from runs.record.ledger import Ledger, read_ledger
from runs.record.schema import Record

#: So many of the newest records are searched for a run of a task.
SEARCHED_RECORDS = 200


def open_ledger(
    output: str | Path,
    published: bool = True,
    make_row: MakesRows | None = None,
) -> Ledger:
    """`read_ledger`, whose arguments these are. Prints the ledger's problems to stderr,
    such as files that are no records."""
    ledger = read_ledger(output, published, make_row)
    # records stay until the command ends: garbage collection need not search them
    gc.freeze()
    for problem in ledger.problems:
        print(f"left out: {problem}", file=sys.stderr)
    return ledger


def find_record(ledger: Ledger, name: str, output: str | Path) -> Record:
    """The record whose id begins with `name`: of this machine, else a published one.
    Raises UserError where there is none, or several."""
    ids = [run_id for run_id in ledger.records if name and run_id.startswith(name)]
    own_ids = [run_id for run_id in ids if ledger.origin[run_id] == "ours"]
    ids = own_ids or ids
    if len(ids) == 1:
        return ledger.whole_record(ids[0])
    if ids:
        advice = f" ({', '.join(sorted(ids)[:3])}, ...): give more of the id"
    else:
        advice = _advice_on_task(name, output)
    count = len(ids) or "no"
    raise UserError(
        f"{count} records begin with {name!r} in {output}/records or published{advice}"
    )


def _advice_on_task(name: str, output: str | Path) -> str:
    """A sentence with the newest run of a task, for someone who typed the task's name in
    place of a run's id; "" where no recent run is of a task of that name."""
    for record in RecordFolder(output).newest(SEARCHED_RECORDS):
        label = record["label"]
        names = (label["task"], record["cell"]["task"])
        if name not in names or record["status"] != "done":
            continue
        description = label["row"]
        fold = record["config"]["task"].get("fold")
        if fold is not None:
            description += f", task.fold={fold}"
        run_id = record["id"]
        return f". {name!r} is a task. Its newest run here is {run_id} ({description})"
    return ""
