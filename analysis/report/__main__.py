"""Writes one HTML page from the records: verdicts, tables, figures, statistics, and a view of each cell.

    python -m analysis.report [--output outputs]       (make report)

The page is OUTPUT/report.html. It holds its data, styles and script, and asks for nothing else: no server, no
network. The words and numbers of its tables are those of analysis.tables and analysis.stats; report.html
beside this file is its frame.
"""

from pathlib import Path

from analysis.command import Parser, entry_point, open_ledger
from analysis.report import page
from runs.record import records_folder, write_atomically
from runs.record.text import megabytes


def main(arguments: list[str]) -> int:
    parser = Parser("report", __doc__, "the folder that holds records/; the page goes there")
    options = parser.read(arguments)
    ledger = open_ledger(options.output)
    path = Path(options.output) / "report.html"
    changed = {
        file.stem: file.stat().st_mtime
        for file in records_folder(options.output).glob("*.json")
        if file.is_file()
    }
    write_atomically(path, page(ledger, changed))
    print(f"Report: {path} ({len(ledger.records)} records, {megabytes(path.stat().st_size)})")
    return 0


if __name__ == "__main__":
    entry_point(main)
