"""The example that counts how many planted wrong labels a list of `mistakes` has."""

import csv
import runpy

import pytest
from running import ROOT

from tasks import reviews
from tasks.tables import DataTable

pytestmark = pytest.mark.properties

SCRIPT = ROOT / "examples" / "planted_labels.py"


@pytest.fixture
def example(monkeypatch):
    """The example's functions, on as many made-up reviews as the demo has."""
    rows = []
    for number in range(1000):
        label = ("negative", "positive")[number % 2]
        rows.append((number + 1, {"text": f"review {number + 1}", "label": label}))
    table = DataTable("reviews:train", rows)
    monkeypatch.setattr(
        reviews, "splits", lambda train_rows, dev_rows: {"train": table}
    )
    return runpy.run_path(str(SCRIPT))


def planted_and_right(path):
    """The numbers of the rows with a wrong label, and of the others."""
    with open(path, newline="") as file:
        labels = [row["label"] for row in csv.DictReader(file)]
    planted, right = [], []
    for number, label in enumerate(labels, start=1):
        known = ("positive", "negative")[number % 2]
        numbers = right if label == known else planted
        numbers.append(number)
    return planted, right


def test_the_planted_labels_are_counted_where_they_stand(example, tmp_path):
    example["plant"](tmp_path / "rows.csv")
    planted, right = planted_and_right(tmp_path / "rows.csv")
    assert (len(planted), len(right)) == (50, 950)

    # 30 of them stand first, 15 after the first 100 rows and 5 at the end, where the
    # model predicts the planted label
    ranked = [*planted[:30], *right[:80], *planted[30:45], *right[80:], *planted[45:]]
    with open(tmp_path / "suspects.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["row", "label", "predicted"])
        for place, number in enumerate(ranked):
            predicted = "positive" if place < 300 else "negative"
            writer.writerow([number, "negative", predicted])
    assert example["count"](tmp_path / "suspects.csv") == [
        "first 50 rows: 30 of 50 planted labels",
        "first 100 rows: 30 of 50 planted labels",
        "first 200 rows: 45 of 50 planted labels",
        "300 rows predicted otherwise: 45 of 50 planted labels",
    ]
