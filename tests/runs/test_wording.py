"""The sentences of records as a reader sees them."""

import json
import re

import pytest

from runs.record.ledger import PUBLISHED
from runs.record.wording import RULES, in_words

pytestmark = pytest.mark.properties

#: What a run wrote, and what nobody should have to read.
CLIPPED = (
    r" given$",
    r"^dev:",
    r"a fixed subset of",
    r"of like lengths",
    r", (not|of) ",
    r"held out",
    r"; ",
)


def published_sentences():
    """Every deviation of every published record."""
    sentences = set()
    for file in PUBLISHED.glob("*/records.jsonl"):
        for line in file.read_text(encoding="utf-8").splitlines():
            sentences.update(json.loads(line)["deviations"])
    return sorted(sentences)


def test_no_clipped_sentence_of_a_published_record_is_shown():
    sentences = published_sentences()
    assert len(sentences) > 100
    shown = {sentence: in_words(sentence) for sentence in sentences}
    clipped = [
        text for text in shown.values() if any(re.search(p, text) for p in CLIPPED)
    ]
    assert clipped == []
    assert max(map(len, shown.values())) <= 100


def test_at_most_one_rule_fits_a_sentence_and_its_words_fit_none():
    for sentence in published_sentences():
        rules = [rule for rule in RULES if re.fullmatch(rule.pattern, sentence)]
        assert len(rules) <= 1, sentence
        assert in_words(in_words(sentence)) == in_words(sentence)


@pytest.mark.parametrize(
    ("stored", "shown"),
    [
        ("train.lr=0.03 given", "train.lr=0.03 was set by hand"),
        (
            "sst2 train: 1000 rows (a fixed subset of 67349); GLUE has 67349",
            "trained on 1,000 of 67,349 training rows",
        ),
        (
            "rte dev: 270 rows (the files hold 270); GLUE has 277",
            "dev has 270 rows, where GLUE has 277",
        ),
        (
            "dev: 250 of 1000 training rows held out (task.holdout=0.25), the dev set "
            "is not used",
            "scored on 250 held-out training rows of 1,000",
        ),
        (
            "micro-batch 8, since memory ran out at 16; the effective batch stays",
            "micro-batch of 8, because memory ran out at 16",
        ),
        (
            "evaluation batch 8, since memory ran out at 16",
            "evaluation batch of 8, because memory ran out at 16",
        ),
        (
            "lr 0.12 instead of the recipe's 0.03",
            "lr 0.12 instead of the recipe's 0.03",
        ),
        ("a sentence of tomorrow", "a sentence of tomorrow"),
    ],
)
def test_a_stored_sentence_is_shown_in_plain_words(stored, shown):
    assert in_words(stored) == shown
