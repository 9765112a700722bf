"""Shows the wrong answers of a finished run whose texts were read for an answer (maths,
commonsense, your own). For a run with a head it shows the dev rows with the largest
loss.

vera-bench mistakes RUN
    RUN is a run id, or its beginning, as in outputs/records
vera-bench mistakes RUN limit=5 part=gsm8k
    five rows of one part
vera-bench mistakes RUN whole=true
    prompts and texts as they are

The number of a row is its line in last_VARIANT.jsonl in the run's folder, which holds
the right answers, too. With a head, the rows are those of predictions.csv there.
"""

import json
import shutil
from dataclasses import dataclass
from typing import Any

from pydantic import PositiveInt

from runs.command.errors import UserError
from runs.command.parser import OfRecords, entry_point, one_of, read, setting
from runs.evaluate import find, kept_file
from runs.record.cell import number_of_texts, scored
from runs.record.schema import Record
from runs.record.spreadsheet import read_csv
from runs.record.text import describe, one_line, plural, printable
from runs.training import predictions

#: What a line of the file says of a test item (ExactTask.write in tasks/exact.py).
KEYS = ("part", "prompt", "text", "expected", "read", "right", "reason")


@dataclass(frozen=True)
class Settings(OfRecords):
    """Which mistakes are shown, and how."""

    limit: PositiveInt = setting(20, "the most rows that are shown")
    part: str | None = setting(
        None, "of this test set, or of rows with this label, alone"
    )
    whole: bool = setting(
        False, "prompts and texts as they are, not cut to the terminal's width"
    )


def main(arguments: list[str]) -> int:
    line = read(arguments, Settings, names="RUN")
    settings, record = line.settings, find(line.names[0], line.settings.output)
    head = record["parameters"]["head"] and not record.get("texts")
    if head or predictions.NAME in record.get("files", {}):
        return worst(record, settings)
    rows = answers(record, settings.output)
    if settings.part:
        one_of(
            "part",
            settings.part,
            [*dict.fromkeys(row["part"] for row in rows.values())],
        )
        rows = {
            number: row for number, row in rows.items() if row["part"] == settings.part
        }
    wrong = {number: row for number, row in rows.items() if not row["right"]}
    width = shutil.get_terminal_size().columns - 1
    for number, row in [*wrong.items()][: settings.limit]:
        found = "no answer" if row["read"] is None else f"answer {row['read']}"
        print(
            one_line(
                f"row {number}, {row['part']}: {found}, expected {row['expected']}: {row['reason']}"
            )
        )
        for key in ("prompt", "text"):
            text = printable(row[key])
            print(
                text if settings.whole else _cut(f"    {key}: {one_line(text)}", width)
            )
    unread = sum(row["read"] is None for row in wrong.values())
    more = (
        f"; the first {settings.limit} are shown" if len(wrong) > settings.limit else ""
    )
    print(
        f"{len(wrong):,} of {plural(len(rows), 'answer')} are wrong, {unread:,} texts without one{more}"
    )
    return 0


def answers(record: Record, output: str) -> dict[int, dict[str, Any]]:
    """The last epoch's texts as they were read, by line. Raises UserError for a run
    whose texts were not read for an answer, or whose file is missing, changed or
    damaged."""
    run = record["id"]
    if number_of_texts(record) != "exact_match":
        raise UserError(
            f"run {run} has no answers: {record['label']['task']} reads none from decoded texts"
        )
    path = kept_file(f"last_{scored(record)['variant']}.jsonl", record, output)
    try:
        lines = [
            json.loads(text)
            for text in path.read_text(encoding="utf-8").split("\n")
            if text
        ]
        return {
            number: {key: row[key] for key in KEYS}
            for number, row in enumerate(lines, 1)
        }
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise UserError(
            f"{path} cannot be read ({describe(error)}): vera-bench evaluate {run}"
        ) from None


def worst(record: Record, settings: Settings) -> int:
    """Prints the dev rows of a run with a head, by their loss. Raises UserError as
    `answers` does."""
    path, label = (
        kept_file(predictions.NAME, record, settings.output),
        predictions.LABEL,
    )
    try:
        rows = sorted(read_csv(path), key=predictions.loss, reverse=True)
    except (OSError, ValueError, LookupError, TypeError) as error:
        again = f"vera-bench rerun={record['id']} redo=true writes it again"
        raise UserError(f"{path} cannot be read ({describe(error)}): {again}") from None
    if settings.part is not None:
        one_of("part", settings.part, sorted({row[label] for row in rows}))
        rows = [row for row in rows if row[label] == settings.part]
    width = shutil.get_terminal_size().columns - 1
    for row in rows[: settings.limit]:
        print(one_line(printable(predictions.sentence(row))))
        for key, text in (
            (key, printable(row[key])) for key in predictions.TEXTS if key in row
        ):
            print(
                text if settings.whole else _cut(f"    {key}: {one_line(text)}", width)
            )
    wrong, of = (
        sum(row[label] != row[predictions.PREDICTED] for row in rows),
        plural(len(rows), "dev row"),
    )
    of = (
        f"{wrong:,} of {of} are wrong"
        if predictions.CHANCE.format(rows[0][label]) in rows[0]
        else of
    )
    print(
        f"{of}{f'; the {settings.limit} with the largest loss are shown' * (len(rows) > settings.limit)}"
    )
    return 0


def _cut(text: str, width: int) -> str:
    """A text without its middle, where it is longer than a line."""
    half = (width - 5) // 2
    return text if len(text) <= width else f"{text[:half]} ... {text[-half:]}"


if __name__ == "__main__":
    entry_point(main)
