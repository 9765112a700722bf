"""The boards as tables."""

import math
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence

from analysis.leaderboard.board import (
    SEED_SDS,
    TOP_ROWS,
    TOP_SCORES,
    Board,
    DecidedPairs,
    Power,
    Shift,
)
from analysis.leaderboard.inference import ALPHA, UPPER_SCORES, Variance
from analysis.render import NONE, Entry, Number, Table

#: What a compact letter display is often misread as.
LETTERS = (
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
    """The rows of a set. limit: so many, the best ones."""
    rows = board.rows if limit is None else board.rows.head(limit)
    versions = ", ".join(sorted({*board.rows.transformers}))
    title = f"{board.label}: {board.decoding} answers, transformers {versions}"
    notes = [
        "Score: percent of the test questions, one seed. +-: half of the 95% interval "
        "of a re-run with the same seed on the same questions.",
        LETTERS,
    ]
    return Table.of(title, [row_line(row) for row in rows.to_dict("records")], notes)


def row_line(row: Mapping[Hashable, float]) -> dict[str, Entry]:
    """The line of one result."""
    line: dict[str, Entry] = {"row": str(row["row"])}
    line["parameters"] = Number(row["parameters"], form="count")
    line["score"] = Number(row["score"], row["rerun_half"])
    is_known = math.isfinite(row["rerun_half"])
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
        f"Decided: at {ALPHA:.0%} over all pairs of the set, by Holm's correction. "
        "The two questions are never added up.",
        *dict.fromkeys(f"{note}." for note in variance_notes(boards)),
    ]
    return Table.of("Decided pairs", lines, notes)


def answer_line(board: Board, question: str, answer: DecidedPairs) -> dict[str, Entry]:
    """How many pairs of a set a question decides."""
    line: dict[str, Entry] = {"set": board.label, "question": answer.label}
    decided, decided_top = board.decided(question), board.decided_top(question)
    line["decided"] = Number(decided, form="count") if answer.is_known else NONE
    line["pairs"] = Number(board.pairs, form="count")
    above = f"above {TOP_SCORES:.0f}"
    if answer.is_known:
        line[f"decided {above}"] = Number(decided_top, form="count")
    else:
        line[f"decided {above}"] = NONE
    line[f"pairs {above}"] = Number(board.top_pairs, form="count")
    return line


def variance_notes(boards: Sequence[Board]) -> Iterator[str]:
    """The re-run standard deviations behind question (a), in words."""
    for board in boards:
        yield f"A re-run of {board.decoding} sets {variance_words(board.variances)}"
    yield f"A re-run of all sets {variance_words(boards[-1].any_decoding)}"


def variance_words(variances: dict[str, Variance | None]) -> str:
    """varies (standard deviation) by 0.48 points above 40% (10 degrees of freedom) and
    by ... points up to 40% ..."""
    words = []
    for group, side in (("upper", "above"), ("lower", "up to")):
        variance = variances[group]
        part = f"{side} {UPPER_SCORES:.0f}%"
        if variance is None:
            words.append(f"by an unknown amount {part}, as no two sets share rows")
        else:
            words.append(
                f"by {math.sqrt(variance.value):.2f} points {part} "
                f"({variance.freedom} degrees of freedom)"
            )
    return f"varies (standard deviation) {' and '.join(words)}"


def shift_table(shifts: Iterable[Shift], labels: Mapping[str, str]) -> Table:
    """The mean difference between sets over the rows in both. labels: of the sets."""
    lines = []
    for pair in shifts:
        line: dict[str, Entry] = {
            "from": labels.get(pair.before, pair.before),
            "to": labels.get(pair.after, pair.after),
        }
        line["rows"] = Number(pair.rows, form="count")
        line["fell"] = Number(pair.fell, form="count")
        line["mean difference"] = Number(pair.mean, decimals=2, sign=True)
        line["95% CI"] = Number(pair.low, decimals=2, sign=True, high=pair.high)
        # no -0.0000
        line["training loss"] = Number(round(pair.loss, 4) + 0.0, decimals=4)
        lines.append(line)
    notes = [
        "In points, paired over rows of equal settings, by Student's t over rows. All "
        "rows answered the same questions, so the interval holds for these questions."
    ]
    return Table.of("From one set to another", lines, notes)


def seeds_table(board: Board, power: Sequence[Power]) -> Table:
    """How many seeds would settle the order of the best rows."""
    lines = []
    for step in power:
        line: dict[str, Entry] = {
            "seeds": Number(step.seeds, form="count"),
            "GPU hours": Number(step.hours, decimals=0),
        }
        cases = zip(SEED_SDS, step.differences, step.pairs, strict=True)
        for sd, difference, pairs in cases:
            line[f"sd {sd}: points"] = Number(difference)
            line[f"sd {sd}: pairs"] = Number(pairs, form="count")
        lines.append(line)
    pairs = TOP_ROWS * (TOP_ROWS - 1) // 2
    notes = [
        f"The {TOP_ROWS} best rows of {board.label}. The standard deviation of a seed is "
        "assumed, because these data have one seed.",
        "Points: the smallest difference between two rows' means over seeds that is "
        f"found with 80% power among {pairs} pairs. Pairs: how many printed scores differ "
        "by as much.",
        "Hours follow from the published training seconds. More seeds do not answer "
        "question (b), because they are run on the same questions.",
    ]
    return Table.of("How many seeds would settle it", lines, notes)
