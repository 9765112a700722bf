"""When two records of one run agree."""

import copy
import math

import pytest

from runs.machine.gpus import processor_model
from runs.record.agreement import difference_of_results

pytestmark = pytest.mark.properties

RESULT = {"metric": "accuracy", "best": 0.8, "last": 0.75, "best_epoch": [1, 2]}


def record(**changes):
    return {"result": copy.deepcopy(RESULT) | changes, "predictions": {"best": "a"}}


def test_equal_results_agree_whatever_their_predictions_hash_says():
    other = record() | {"predictions": {"best": "b"}}
    assert difference_of_results(record(), other) is None


@pytest.mark.parametrize(
    ("metric", "change", "agrees"),
    [
        ("pearson", 2e-8, True),
        ("pearson", 9e-7, True),
        ("pearson", 2e-6, False),
        ("accuracy", 2e-8, False),
    ],
)
def test_a_regression_agrees_within_a_millionth(metric, change, agrees):
    first = record(metric=metric)
    second = record(metric=metric, best=0.8 + change)
    difference = difference_of_results(first, second)
    if agrees:
        assert difference is None
    else:
        assert difference == pytest.approx(change, rel=1e-6)


@pytest.mark.parametrize(
    "change", [{"metric": "f1"}, {"best_epoch": [1]}, {"added": 1}, {"best": None}]
)
def test_results_of_another_kind_differ_by_infinity(change):
    assert difference_of_results(record(), record(**change)) == math.inf


def test_what_lm_eval_added_is_no_difference():
    assert difference_of_results(record(), record(lm_eval=[{}])) is None


def test_the_processor_is_named_by_its_model():
    assert processor_model()
    assert "\n" not in processor_model()
