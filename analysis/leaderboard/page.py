"""docs/leaderboard.md, its picture, and the printed numbers that it is made of."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import yaml

from analysis.figures.figure import save_figure, svg
from analysis.leaderboard.board import (
    CORRELATION,
    TOP_SCORE,
    Board,
    Shift,
    boards,
    power_by_seeds,
    shifts,
)
from analysis.leaderboard.inference import UPPER_SCORE
from analysis.leaderboard.others_rows import PRINTED, with_rows
from analysis.leaderboard.picture import pareto_figures, score_figure
from analysis.leaderboard.reader import COLUMNS, PUBLISHED, QUESTIONS
from analysis.leaderboard.tables import (
    board_table,
    decided_table,
    seeds_table,
    shift_table,
)
from analysis.render import Entry, Table, markdown_grid, to_csv
from runs.record.templates import template_environment, without_gaps

URL = "https://github.com/huggingface/peft/tree/main/method_comparison/MetaMathQA"
SIMULATION = PUBLISHED.with_name("leaderboard_simulation.yaml")


#: What the template calls.
TABLES = {
    "decided_table": decided_table,
    "board_table": board_table,
    "shift_table": shift_table,
    "seeds_table": seeds_table,
    "power_by_seeds": power_by_seeds,
}
#: What the template writes as they are.
NUMBERS = {
    "url": URL,
    "questions": QUESTIONS,
    "top_scores": f"{TOP_SCORE:.0f}",
    "upper_scores": f"{UPPER_SCORE:.0f}",
    "correlation": CORRELATION,
}


def page_text(results: pd.DataFrame) -> str:
    """The page as Markdown: every board, of which it shows the last one's best rows."""
    every_board = boards(results)
    environment = template_environment(Path(__file__).parent)
    environment.filters["markdown"] = untitled_markdown
    environment.filters["thousands"] = "{:,}".format
    environment.globals |= TABLES | NUMBERS
    every_shift = shifts(results)
    text = environment.get_template("page.md").render(
        boards=every_board,
        latest=every_board[-1],
        labels={board.name: board.label for board in every_board},
        shifts=every_shift,
        falls=fall_by_sampling(every_shift, results),
        simulation=yaml.safe_load(SIMULATION.read_text()),
        sources=sources_table(every_board),
    )
    return without_gaps(text)


def untitled_markdown(table: Table) -> str:
    """A table as Markdown, with its notes below and without its title."""
    return "\n".join(
        [*markdown_grid(table.header, table.texts), "", *table.notes]
    ).rstrip()


def fall_by_sampling(
    every_shift: Sequence[Shift], results: pd.DataFrame
) -> list[Shift]:
    """The shift from a set with greedy answers to one with sampled answers: of several
    the one over the most rows, alone in a list. The list, over which the template loops,
    is empty where there is none."""
    decoding = results.groupby("set").decoding.first()
    falls = list[Shift]()
    for shift in every_shift:
        if decoding[shift.before] == "greedy" and decoding[shift.after] == "sampled":
            falls.append(shift)
    return sorted(falls, key=lambda shift: -shift.rows)[:1]


def sources_table(every_board: Sequence[Board]) -> Table:
    """A line for each set: its folder, when its rows were run, and how."""
    lines = []
    for board in every_board:
        rows = board.rows
        dates = rows.date.str[:10]
        line: dict[str, Entry] = {"set": board.label, "folder": board.name}
        line["rows"] = str(len(rows))
        line["run"] = f"{dates.min()} to {dates.max()}"
        line["transformers"] = ", ".join(sorted({*rows.transformers}))
        line["answers"] = board.decoding
        lines.append(line)
    return Table.of("Sets", lines)


# --- files


def page_files(results: pd.DataFrame, folder: Path) -> dict[Path, str]:
    """The page and the picture that it shows, by their paths in a folder."""
    return {
        folder / "leaderboard.md": page_text(results),
        folder / "leaderboard.svg": svg(score_figure(boards(results)[-1])),
    }


def save_pictures(board: Board, folder: Path) -> list[Path]:
    """Writes the pictures of score by each cost, as PDF, PNG and CSV. Returns the
    files."""
    return [
        path for figure in pareto_figures(board) for path in save_figure(figure, folder)
    ]


def printed_files(results: pd.DataFrame) -> dict[Path, str]:
    """The texts of leaderboard.csv and others.yaml in analysis/printed, by path."""
    return {
        PUBLISHED: to_csv(results[COLUMNS]),
        PRINTED: with_rows(PRINTED.read_text(), results),
    }
