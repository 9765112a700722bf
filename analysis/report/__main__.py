"""Writes one HTML page from the records: findings, verdicts, tables, figures, statistics, and a view of
each cell.

    python -m analysis.report       (make report)

The page is OUTPUT/report.html. It holds its data, styles and script, and needs neither a server nor a
network. The words and numbers of its tables are those of analysis.tables; its verdicts and statistics are
over your runs and the published ones together."""

from pathlib import Path

from analysis.command import open_ledger
from analysis.report import page
from runs.command import OfRecords, entry_point, read
from runs.record import write_atomically
from runs.record.text import megabytes


class Settings(OfRecords):
    """None of its own."""


def main(arguments: list[str]) -> int:
    output = read(arguments, Settings).settings.output
    ledger = open_ledger(output)
    path = Path(output) / "report.html"
    write_atomically(path, page(ledger))
    print(f"Report: {path} ({len(ledger.records)} records, {megabytes(path.stat().st_size)})")
    return 0


if __name__ == "__main__":
    entry_point(main)
