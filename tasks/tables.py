"""Tables of texts and labels: CSV, TSV, JSONL and parquet files, and data sets of the
hub."""

import csv
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tasks.base import DataError, Settings, first_line
from tasks.files import open_text, read_parquet, validated

#: The number of a row's line in its file, and the row's values by column.
Row = tuple[int, dict[str, Any]]


class DataTable(NamedTuple):
    """The rows of a file or of a hub split. place: its path or name, for messages."""

    place: Path | str
    rows: list[Row]


def read_table(path: Path) -> Iterator[Row]:
    """Rows of a CSV, TSV, JSONL or parquet file. Raises DataError with the line that is
    wrong."""
    if path.suffix == ".parquet":
        yield from read_parquet(path)
    elif path.suffix in (".csv", ".tsv"):
        yield from read_csv(path, TSV if path.suffix == ".tsv" else {})
    elif path.suffix in (".jsonl", ".json"):
        with open_text(path) as file:
            for line, text in enumerate(file, 1):
                yield line, validated(dict[str, Any], text, f"{path} line {line}")
    else:
        raise DataError(
            f"{path}: the name should end in .csv, .tsv, .jsonl or .parquet"
        )


#: Benchmarks write TSV without quoting: a lone quotation mark is text.
TSV = {"delimiter": "\t", "quoting": csv.QUOTE_NONE}
#: Python's own limit, 131,072 characters, is shorter than some texts.
LONGEST_FIELD = 10_000_000


def read_csv(
    path: Path, form: Mapping[str, Any], header: Sequence[str] | None = None
) -> Iterator[Row]:
    """Rows of a CSV file. form: of csv.reader. header: the columns where the file names
    none. Raises DataError for a row with another number of columns than the header."""
    csv.field_size_limit(LONGEST_FIELD)
    with open_text(path) as file:
        reader = csv.DictReader(file, header, strict=True, **form)
        try:
            for row in reader:
                if None in row or None in row.values():
                    fault = _other_number_of_columns(row, is_tsv=form == TSV)
                    raise DataError(f"{path} line {reader.line_num}: {fault}")
                yield reader.line_num, row
        except csv.Error as error:
            raise DataError(f"{path} line {reader.reader.line_num}: {error}") from None


def _other_number_of_columns(row: Mapping[Any, Any], is_tsv: bool) -> str:
    """What is wrong with a row of csv.DictReader that has other columns than the
    header: further values stand under None, and missing ones are None."""
    columns = [name for name in row if name is not None]
    further = row.get(None, [])
    count = len(further) + sum(row[name] is not None for name in columns)
    fault = f"{count} of {len(columns)} columns"
    if further:
        fault = f"{count} columns instead of {len(columns)}"
    if is_tsv:
        fault += ". A .tsv has no quoting, a .csv has"
    elif further:
        fault += ". Put a text with a comma into double quotes"
    return fault


def read_hub(settings: Settings, split: str) -> DataTable:
    """A split of the hub's data set. Raises DataError where it cannot be had."""
    from datasets import load_dataset

    place = f"{settings['hub']}:{split}"
    try:
        rows = load_dataset(
            settings["hub"],
            settings.get("hub_config"),
            split=split,
            revision=settings.get("revision"),
        )
        return DataTable(place, list(enumerate(rows, 1)))
    except (OSError, ValueError, RuntimeError) as error:
        raise DataError(
            f"{place}: {first_line(error)}. "
            "Or give files: task.train_file= and task.dev_file="
        ) from None
