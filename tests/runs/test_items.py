"""Which rows a run got right: a bit each in its record."""

import csv

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from running import output_of, straight_and_resumed, trained

from runs.record.items import MOST_ITEMS, pack, right_items, unpack
from runs.record.ledger import run_folder

pytestmark = pytest.mark.properties


@given(st.lists(st.booleans(), min_size=1, max_size=200))
def test_bits_come_back_as_they_were(right):
    assert unpack(pack(right), len(right)).tolist() == right


def test_more_rows_than_a_record_holds_have_no_bits():
    assert pack(np.ones(MOST_ITEMS, dtype=bool)) is not None
    assert pack(np.ones(MOST_ITEMS + 1, dtype=bool)) is None


@pytest.mark.parametrize("text", ["AA==", "AAAA", "no base64!"])
def test_bits_of_another_number_of_rows_are_refused(text):
    with pytest.raises(ValueError, match=r"bits|base64|Only base64"):
        unpack(text, 9)


def test_a_record_says_which_rows_are_right(words):
    record = trained(words)
    folder = run_folder(output_of(words), record["id"])
    with open(folder / "predictions.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    right = [row["label"] == row["predicted"] for row in rows]
    assert right_items(record, "best").tolist() == right  # it keeps the best epoch's
    for epoch in ("best", "last"):
        share = right_items(record, epoch).mean()
        assert share == pytest.approx(record["result"][epoch], abs=1e-12)


def test_a_resumed_run_has_the_same_bits(words, tmp_path):
    straight, resumed = straight_and_resumed(words, tmp_path, "step", 8)
    assert straight["right"] == resumed["right"]


def test_a_metric_that_is_no_accuracy_has_no_bits(words):
    other = [word.replace("task=rte", "task=cola") for word in words]
    assert "right" not in trained(other)
