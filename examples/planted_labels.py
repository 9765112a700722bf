r"""Measures how well `vera-bench mistakes` finds wrong labels: it plants some, and counts
how many of them stand at the top of the list.

python examples/planted_labels.py plant rows.csv
    writes the demo's 1,000 training rows, 50 of them with the wrong label
vera-bench model=minilm method=head task=text task.name=planted \
    task.train_file=rows.csv task.folds=5
vera-bench mistakes ID out=suspects.csv
python examples/planted_labels.py count suspects.csv
    counts the planted labels among the first 50, 100 and 200 rows of the list
"""

import csv
import random
import sys
from pathlib import Path

#: How many rows are written, and how many of them get a wrong label.
ROWS, PLANTED = 1000, 50
SEED = 0
OTHER_LABEL = {"negative": "positive", "positive": "negative"}


def planted_rows() -> set[int]:
    """The numbers, from 1 on, of the rows that get a wrong label."""
    return set(random.Random(SEED).sample(range(1, ROWS + 1), PLANTED))


def plant(target: Path) -> None:
    """Writes the demo's training rows with the planted labels. target: a new CSV file."""
    from tasks import reviews

    train = reviews.splits(train_rows=ROWS, dev_rows=500)["train"]
    planted = planted_rows()
    with open(target, "x", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        for number, (_, row) in enumerate(train.rows, start=1):
            label = row["label"]
            if number in planted:
                label = OTHER_LABEL[label]
            writer.writerow([row["text"], label])


def count(suspects: Path) -> list[str]:
    """Counts the planted labels among the first rows of a list of `vera-bench mistakes`,
    and among its rows whose prediction is not the label. Returns a line for each count.

    suspects: the list, a CSV file."""
    with open(suspects, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    planted = planted_rows()
    selections = {}
    for length in (PLANTED, 2 * PLANTED, 4 * PLANTED):
        selections[f"first {length} rows"] = rows[:length]
    differing = [row for row in rows if row["label"] != row["predicted"]]
    selections[f"{len(differing)} rows predicted otherwise"] = differing
    lines = []
    for name, selected in selections.items():
        planted_in_selection = planted & {int(row["row"]) for row in selected}
        count_in_selection = len(planted_in_selection)
        lines.append(f"{name}: {count_in_selection} of {PLANTED} planted labels")
    return lines


if __name__ == "__main__":
    commands = {"plant": plant, "count": count}
    if len(sys.argv) != 3 or sys.argv[1] not in commands:
        sys.exit(__doc__)
    lines = commands[sys.argv[1]](Path(sys.argv[2]))
    if lines:
        print("\n".join(lines))
