"""`vera-bench table leaderboard=...`: prints the boards, and writes them."""

import sys
from pathlib import Path

from analysis.leaderboard import page
from analysis.leaderboard.board import boards, power_by_seeds, shifts
from analysis.leaderboard.reader import read_leaderboard
from analysis.leaderboard.tables import leaderboard_tables
from analysis.render import render, to_csv
from runs.command.errors import UserError
from runs.record.files import write_atomically
from runs.record.ledger import INSTALLED, ROOT


def show_leaderboard(source: str, form: str, folder: Path | None, refresh: bool) -> int:
    """Prints all tables of a leaderboard, and writes files if it is told to. Returns the
    exit code.

    Args:
        source: see `read_leaderboard`.
        form: md, latex or csv.
        folder: where tables, pictures, the page and the results go; None: nowhere.
        refresh: whether to write the project's own page and printed numbers.
    """
    results, problems = read_leaderboard(source)
    for problem in problems:
        print(f"left out: {problem}", file=sys.stderr)
    # The power table and the pictures are of the last set, which is the newest of the
    # published ones.
    every_board = boards(results)
    power = power_by_seeds(every_board[-1].rows) if every_board else []
    tables = leaderboard_tables(every_board, shifts(results), power)
    if not tables:
        raise UserError(f"{source}: one result alone has nothing to be compared with")
    text = render(tables, form)
    print(text)
    files = dict[Path, str]()
    if folder is not None:
        ending = {"md": "md", "latex": "tex", "csv": "csv"}[form]
        files[folder / f"table.{ending}"] = text + "\n"
        files[folder / "results.csv"] = to_csv(results)
        files |= page.page_files(results, folder)
        page.save_pictures(every_board[-1], folder)
    if refresh:
        if INSTALLED:
            raise UserError(
                "refresh=true writes files of a clone, and this is an installed package"
            )
        files |= page.page_files(results, ROOT / "docs")
        files |= page.printed_files(results)
    for path, content in files.items():
        write_atomically(path, content)
        print(f"wrote {path}", file=sys.stderr)
    return 0
