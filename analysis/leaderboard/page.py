"""docs/leaderboard.md, its picture, and the printed numbers that it is made of."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2
import pandas as pd
import yaml

from analysis.figures.figure import save, svg
from analysis.leaderboard.board import (
    CORRELATION,
    TOP_SCORES,
    Board,
    Shift,
    boards,
    power_by_seeds,
    shifts,
)
from analysis.leaderboard.inference import UPPER_SCORES
from analysis.leaderboard.others_rows import PRINTED, with_rows
from analysis.leaderboard.picture import pareto_figures, score_figure
from analysis.leaderboard.reader import COLUMNS, PUBLISHED, QUESTIONS
from analysis.leaderboard.tables import (
    LETTERS,
    board_table,
    decided_table,
    seeds_table,
    shift_table,
)
from analysis.render import Entry, Table, grid

URL = "https://github.com/huggingface/peft/tree/main/method_comparison/MetaMathQA"
SIMULATION = PUBLISHED.with_name("leaderboard_simulation.yaml")


@dataclass(frozen=True)
class Shown:
    """A board as the page's sentences take it."""

    board: Board

    @property
    def label(self) -> str:
        return self.board.label

    @property
    def rows(self) -> int:
        return len(self.board.rows)

    @property
    def pairs(self) -> int:
        return self.rows * (self.rows - 1) // 2

    @property
    def top(self) -> int:
        return self.board.top

    @property
    def top_pairs(self) -> int:
        return self.top * (self.top - 1) // 2

    def count(self, question: str) -> int:
        """Decided pairs among the rows above TOP_SCORES."""
        return self.board.decided_among_top(getattr(self.board.decisions, question))

    def count_all(self, question: str) -> int:
        """Decided pairs of all rows."""
        return int(getattr(self.board.decisions, question).sum())


def page_text(results: pd.DataFrame) -> str:
    """The page as Markdown. Its sets are the boards; the last one is shown in full."""
    every_board = boards(results)
    latest = every_board[-1]
    pairs = shifts(results)
    labels = {board.name: board.label for board in every_board}
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    text = environment.get_template("page.md").render(
        url=URL,
        questions=QUESTIONS,
        latest=Shown(latest),
        top_scores=f"{TOP_SCORES:.0f}",
        upper_scores=f"{UPPER_SCORES:.0f}",
        correlation=CORRELATION,
        letters=LETTERS,
        falls=[words_of(pair, labels) for pair in falls_of_decoding(pairs, results)],
        decided=markdown(decided_table(every_board)),
        best=markdown(board_table(latest, most=latest.top)),
        shifted=markdown(shift_table(pairs, labels)),
        power=markdown(seeds_table(latest, power_by_seeds(latest.rows))),
        simulation=yaml.safe_load(SIMULATION.read_text()),
        sources=markdown(sources_table(every_board)),
    )
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def markdown(table: Table) -> str:
    """A table of the page, with its notes below and without its title."""
    return "\n".join([*grid(table.header, table.texts), "", *table.notes]).rstrip()


def falls_of_decoding(pairs: Sequence[Shift], results: pd.DataFrame) -> list[Shift]:
    """Of the shifts from a greedy to a sampled set the one over the most rows."""
    ways = results.groupby("set").decoding.first()
    changed = [
        pair
        for pair in pairs
        if (ways[pair.before], ways[pair.after]) == ("greedy", "sampled")
    ]
    return sorted(changed, key=lambda pair: -pair.rows)[:1]


def words_of(pair: Shift, labels: dict[str, str]) -> dict[str, str]:
    """A shift for a sentence: how far scores fell."""
    return {
        "before": labels[pair.before],
        "after": labels[pair.after],
        "rows": str(pair.rows),
        "fell": str(pair.fell),
        "mean": f"{-pair.mean:.2f}",
        "low": f"{-pair.high:.2f}",
        "high": f"{-pair.low:.2f}",
        "loss": f"{pair.loss:+.4f}",
    }


def sources_table(every_board: Sequence[Board]) -> Table:
    """The sets: where from, when, and how."""
    lines = []
    for board in every_board:
        rows = board.rows
        dates = rows.date.str[:10]
        line: dict[str, Entry] = {
            "set": board.label,
            "folder": board.name,
            "rows": str(len(rows)),
            "run": f"{dates.min()} to {dates.max()}",
            "transformers": ", ".join(sorted({*rows.transformers})),
            "answers": board.decoding,
        }
        lines.append(line)
    return Table.of("Sets", lines)


# --- files


def files(results: pd.DataFrame, folder: Path) -> dict[Path, str]:
    """The page and the picture that it shows."""
    return {
        folder / "leaderboard.md": page_text(results),
        folder / "leaderboard.svg": svg(score_figure(boards(results)[-1])),
    }


def save_pictures(board: Board, folder: Path) -> list[Path]:
    """Score by each cost, as PDF, PNG and CSV."""
    return [path for figure in pareto_figures(board) for path in save(figure, folder)]


def printed_files(results: pd.DataFrame) -> dict[Path, str]:
    """The numbers that the project publishes, and others.yaml with its rows of them."""
    return {
        PUBLISHED: results[COLUMNS].to_csv(index=False, lineterminator="\n"),
        PRINTED: with_rows(PRINTED.read_text(), results),
    }
