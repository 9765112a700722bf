"""Writes the records as one table, with one row for each run, for pandas, R or a
spreadsheet.

vera-bench records out=runs.parquet
    also .csv and .json
vera-bench records task=mrpc method=vera
    as CSV on the screen

The columns are those of analysis.frame.runs (kind is result, trial, stopped or failed;
left_out says why a run is in no cell), and the run's configuration under config. The
origin of a published run is its study.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from analysis.command import Selection, open_selection
from analysis.frame import runs
from analysis.render import to_csv
from runs.command.errors import UserError, check_new_file
from runs.command.parser import entry_point, read_command_line, setting
from runs.record.files import write_atomically
from runs.record.ledger import Ledger

#: Columns of `runs` that hold more than one value, and are left out.
NESTED = ["settings", "measurement", "sources", "texts", "judged", "lm_eval"]
#: The endings of the files that can be written.
FILE_ENDINGS = (".parquet", ".csv", ".json")


@dataclass(frozen=True)
class Settings(Selection):
    """Which runs are written, and where."""

    out: str | None = setting(
        None,
        f"the file, by its ending: {', '.join(FILE_ENDINGS)} (null: CSV on the screen); "
        "it must not be there yet",
    )


def flat_runs(ledger: Ledger) -> pd.DataFrame:
    """The runs of a ledger as a frame whose values are numbers, texts and flags alone.

    Its columns are those of `frame.runs` without NESTED, with deviations joined to one
    text, and a column config.GROUP.KEY for each setting of the runs' configurations
    (their recipes are left out)."""
    frame = runs(ledger).drop(columns=NESTED)
    frame["deviations"] = frame.deviations.map("; ".join, na_action="ignore")
    frame["left_out"] = frame.left_out.replace("", "no")  # it is in a cell
    # a flag instead of a text, which a run has that predicts one class
    frame["one_class"] = [isinstance(share, str) for share in frame.one_class]
    configurations = list[dict[str, object]]()
    for record in ledger:
        configuration: dict[str, object] = {**record["config"]}
        configuration.pop("recipe", None)
        configurations.append(configuration)
    config = pd.json_normalize(configurations).add_prefix("config.")
    config = config.map(
        lambda value: str(value) if isinstance(value, list | dict) else value
    )
    return frame.join(config.convert_dtypes()).convert_dtypes()


def main(arguments: list[str]) -> int:
    settings = read_command_line(arguments, Settings).settings
    path = Path(settings.out) if settings.out else None
    if path and path.suffix not in FILE_ENDINGS:
        raise UserError(f"out={path}: a file that ends in {', '.join(FILE_ENDINGS)}")
    if path:
        check_new_file(path)
    ledger = open_selection(settings)
    if not ledger.records:
        raise UserError(f"no records in {settings.output}/records yet (make demo)")
    frame = flat_runs(ledger)
    if path is None:
        sys.stdout.write(to_csv(frame))
        return 0
    if path.suffix == ".parquet":
        frame.to_parquet(path)
    elif path.suffix == ".csv":
        write_atomically(path, to_csv(frame))
    else:
        write_atomically(path, frame.to_json(orient="records"))
    print(f"Runs: {path} ({len(frame):,} rows, {len(frame.columns)} columns)")
    return 0


if __name__ == "__main__":
    entry_point(main)
