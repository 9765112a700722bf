"""The boards as tables."""

import math
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence

from analysis.leaderboard.board import (
    SEED_SDS,
    TOP_ROWS,
    TOP_SCORE,
    Board,
    DecidedPairs,
    Power,
    Shift,
)
from analysis.leaderboard.inference import ALPHA, UPPER_SCORE, Variance
from analysis.render import NONE, Entry, Number, Table

#: The note on letters, which says how they are often misread.
NOTE_ON_LETTERS = (
    "Two rows share a letter if their pair is not decided; "
    "a shared letter does not mean equal."
)


def leaderboard_tables(
    boards: Sequence[Board], shifts: Sequence[Shift], power: Sequence[Power]
) -> list[Table]:
    """All tables: each set, what is decided, the shifts, and the power table of the
    last set."""
    tables = [board_table(board) for board in boards]
    if boards:
        tables.append(decided_table(boards))
        tables.append(seeds_table(boards[-1], power))
    if shifts:
        labels = {board.name: board.label for board in boards}
        tables.append(shift_table(shifts, labels))
    return tables


def board_table(board: Board, limit: int | None = None) -> Table:
    """The rows of a set. limit: of so many rows, the best ones; None for all."""
    rows = board.rows if limit is None else board.rows.head(limit)
    versions = ", ".join(sorted({*board.rows.transformers}))
    title = f"{board.label}: {board.decoding} answers, transformers {versions}"
    notes = [
        "Score: percent of the test questions, one seed. +-: half of the 95% interval "
        "of a re-run with the same seed on the same questions.",
        NOTE_ON_LETTERS,
    ]
    return Table.of(title, [row_line(row) for row in rows.to_dict("records")], notes)


def row_line(row: Mapping[Hashable, float]) -> dict[str, Entry]:
    """The line of one row, by the headers of the table. row: a row of `Board.rows`."""
    line: dict[str, Entry] = {"row": str(row["row"])}
    line["parameters"] = Number(row["parameters"], form="count")
    line["score"] = Number(row["score"], spread=row["rerun_half"])
    is_known = math.isfinite(row["rerun_half"])  # whether a re-run has a variance
    line["(a) re-run"] = str(row["rerun_letters"]) if is_known else NONE
    line["95% CI, questions"] = Number(row["low"], high=row["high"])
    line["(b) questions"] = str(row["question_letters"])
    line["memory"] = Number(row["memory_bytes"], form="bytes")
    line["seconds"] = Number(row["seconds"], form="seconds")
    line["file"] = Number(row["file_bytes"], form="bytes")
    return line


def decided_table(boards: Sequence[Board]) -> Table:
    """How many pairs each question decides, of all rows and of the best ones."""
    lines = []
    for board in boards:
        for question, answer in board.answers.items():
            lines.append(answer_line(board, question, answer))
    notes = [
        f"Decided: significant at {ALPHA:.0%} after Holm's correction over all pairs of "
        "the set.",
        # sets with one way of decoding share a note
        *dict.fromkeys(f"{note}." for note in variance_notes(boards)),
    ]
    return Table.of("Decided pairs", lines, notes)


def answer_line(board: Board, question: str, answer: DecidedPairs) -> dict[str, Entry]:
    """How many pairs of a set a question decides, as a line of the table. question: a key
    of `Board.answers`; answer: its value."""
    line: dict[str, Entry] = {"set": board.label, "question": answer.label}
    decided: Entry = NONE
    decided_top: Entry = NONE
    if answer.is_known:
        decided = Number(board.decided_count(question), form="count")
        decided_top = Number(board.decided_top_count(question), form="count")
    above = f"above {TOP_SCORE:.0f}"
    line["decided"] = decided
    line["pairs"] = Number(board.pair_count, form="count")
    line[f"decided {above}"] = decided_top
    line[f"pairs {above}"] = Number(board.top_pair_count, form="count")
    return line


def variance_notes(boards: Sequence[Board]) -> Iterator[str]:
    """The re-run standard deviations behind question (a), a sentence for each set and one
    for all sets, without a full stop."""
    for board in boards:
        yield f"A re-run of {board.decoding} sets {variance_words(board.variances)}"
    # the same of every board
    yield f"A re-run of all sets {variance_words(boards[-1].variances_of_all)}"


def variance_words(variances: dict[str, Variance | None]) -> str:
    """The standard deviations of both groups of rows as text: "has a standard deviation
    of 0.48 points above 40% (10 degrees of freedom) and of 2.10 points up to 40% (8
    degrees of freedom)"."""
    phrases = []
    for group, side in (("upper", "above"), ("lower", "up to")):
        variance = variances[group]
        scores = f"{side} {UPPER_SCORE:.0f}%"
        if variance is None:
            phrases.append(f"of an unknown size {scores}, as no two sets share rows")
        else:
            phrases.append(
                f"of {math.sqrt(variance.value):.2f} points {scores} "
                f"({variance.freedom} degrees of freedom)"
            )
    return f"has a standard deviation {' and '.join(phrases)}"


def shift_table(shifts: Iterable[Shift], labels: Mapping[str, str]) -> Table:
    """The mean difference between sets over the rows in both. labels: of the sets, by
    their names."""
    lines = []
    for shift in shifts:
        line: dict[str, Entry] = {
            "from": labels.get(shift.before, shift.before),
            "to": labels.get(shift.after, shift.after),
        }
        line["rows"] = Number(shift.rows, form="count")
        line["fell"] = Number(shift.fell, form="count")
        line["mean difference"] = Number(shift.mean, decimals=2, sign=True)
        line["95% CI"] = Number(shift.low, decimals=2, sign=True, high=shift.high)
        # + 0.0 makes 0 of -0, which would print as -0.0000
        line["training loss"] = Number(round(shift.loss, 4) + 0.0, decimals=4)
        lines.append(line)
    notes = [
        "Differences are in points, over rows with equal settings in both sets, by "
        "Student's t over rows. All "
        "rows answered the same questions, so the interval holds for these questions."
    ]
    return Table.of("From one set to another", lines, notes)


def seeds_table(board: Board, power: Sequence[Power]) -> Table:
    """How many seeds would settle the order of the best rows: a line for each number of
    seeds. power: what `power_by_seeds` returns for the board's rows."""
    lines = []
    for power_of_seeds in power:
        line: dict[str, Entry] = {
            "seeds": Number(power_of_seeds.seeds, form="count"),
            "GPU hours": Number(power_of_seeds.hours, decimals=0),
        }
        cases = zip(
            SEED_SDS, power_of_seeds.differences, power_of_seeds.pairs, strict=True
        )
        for sd, difference, pairs in cases:
            line[f"sd {sd}: points"] = Number(difference)
            line[f"sd {sd}: pairs"] = Number(pairs, form="count")
        lines.append(line)
    pairs = TOP_ROWS * (TOP_ROWS - 1) // 2
    notes = [
        f"The {TOP_ROWS} best rows of {board.label}. The standard deviation of a seed is "
        "assumed, because these data have one seed.",
        "Points: the smallest difference between two rows' means over seeds that is "
        f"found with 80% power among {pairs} pairs. Pairs: how many of them differ by at "
        "least as much in the printed scores.",
        "Hours follow from the published training seconds. More seeds do not answer "
        "question (b), because they are run on the same questions.",
    ]
    return Table.of("How many seeds would settle it", lines, notes)
