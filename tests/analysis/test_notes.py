"""The notes of studies: every count, score, difference, interval, p-value and list of
our runs is a call in the template, and none is typed, in figures or in words. Settings,
dates, sizes of data and citations may be typed."""

import re

import pandas as pd
import pytest
from ledgers import ledger
from small import minilm_records, minilm_records_by_row

from analysis.frame import runs
from analysis.results.numbers import StudyNumbers, rendered_notes
from analysis.results.scores import fixed, listed
from analysis.results.study_rows import study_rows
from analysis.variants import every_variant
from runs.command.errors import UserError
from runs.record.ledger import PUBLISHED

pytestmark = pytest.mark.nets

NOTES = sorted(PUBLISHED.glob("*/NOTES.md"))

#: Numbers in words. "one" alone is a pronoun more often than a number.
IN_WORDS = (
    "two three four five six seven eight nine ten eleven twelve thirteen fourteen "
    "fifteen sixteen seventeen eighteen nineteen twenty thirty forty fifty sixty "
    "hundred dozen twice double triple third thirds quarter quarters fifth sixth "
    "seventh eighth ninth tenth tenths twentieth thirtieth "
)
NUMBER = re.compile(
    r"(?<![\w.-])[-+]?\d[\d,]*(?:\.\d+)?(?:e[+-]?\d+)?%?(?![\w])"
    rf"|\b(?:{'|'.join(IN_WORDS.split())})\b"
    r"|(?<!another )\bone (?:of|run|seed|pair|trial)s?\b",
    re.IGNORECASE,
)
#: What stands before a number that is a setting, a date or a citation, or after one
#: that is a setting or a size of data.
BEFORE = re.compile(
    r"(?:\b(?:ranks?|alpha|tables?|figures?|seeds?|section|penalty|from|scale|"
    r"projection_seed|batches of|steps of|drawn from)|\w=|\[)"
    r"(?: (?:of|is|=|to|or|and|\d[\d.,]*,?))* ?$",
    re.IGNORECASE,
)
AFTER = re.compile(
    r"^(?:[ -](?:and|or|to|of|x|its|the|a|fixed|training|dev|test|held-out|other|"
    r"further|made|evaluation|[A-Z]\w*'s|[\d,.]+))*[ -]"
    r"(?:epochs?|steps?|rows?|images?|pixels?|tokens?|layers?|problems?|sentences?|"
    r"phrases|MRs|inputs|classes|core|bits?)\b"
)
#: Confidence and significance levels, dates, learning rates, and Python's precisions.
SETTING = re.compile(
    r"\b(?:95|90)% CI\b|\b\d{4}-\d\d-\d\d\b|\b\d(?:\.\d+)?e-\d+\b|\[0, 0\.1\]|"
    r"\b(?:bf|float)\d+\b|\b\d+ x \d+\b|\bx 100\b",
)


#: A call that prints a number or text which stands in it.
LITERAL = re.compile(r"\{\{[\s(\[]*(?:[-+]?\d|['\"][^'\"}]*\d).*?\}\}", re.DOTALL)


def typed_numbers(template):
    """The numbers of a template that are typed, with the words around them."""
    prose = re.sub(r"\{\{.*?\}\}|\{%.*?%\}|\{#.*?#\}|`[^`]*`", "", template, flags=re.S)
    prose = re.sub(r"\]\([^)]*\)|^#+ .*$", "", prose, flags=re.M)
    prose = SETTING.sub("", prose)
    found = LITERAL.findall(template)
    for match in NUMBER.finditer(prose):
        before = prose[max(0, match.start() - 60) : match.start()]
        after = prose[match.end() : match.end() + 60]
        if not BEFORE.search(before) and not AFTER.search(after):
            around = prose[max(0, match.start() - 25) : match.end() + 25]
            found.append(" ".join(around.split()))
    return found


@pytest.mark.parametrize("path", NOTES, ids=lambda path: path.parent.name)
def test_no_number_of_our_runs_is_typed(path):
    assert typed_numbers(path.read_text()) == []


@pytest.mark.parametrize(
    "typed",
    [
        "VeRA is 1.2 points below LoRA.",
        "Over twenty pairs of seeds",
        "VeRA is below in 12, above in 6",
        "with a tenth of the parameters",
        "p = 0.03",
        "the medians are 1.3, 8.8 and 17.5",
        "(95% CI 0.1 to 2.3)",
        "one of LoRA's seeds collapsed",
        "BitFit has 79.2% at its rate",
        "VeRA trains 7,680 parameters",
        "two seeds of NoLA",
        "at most 3 points",
        "{{ 1.2 }} points below",
        "{{ ('1.2') }} points below",
    ],
)
def test_a_typed_number_is_found_in_figures_and_in_words(typed):
    assert typed_numbers(typed)


@pytest.mark.parametrize(
    "allowed",
    [
        "{{ score('vera').median }} points",
        "LoRA of rank 8 with alpha 16, after 3 epochs of 1,000 rows",
        "at most 128 tokens a row, 5,000 of its 51,760 rows",
        "100 of the 630 test MRs, 8,551 training and 1,043 dev rows",
        "tables 6 and 7; until 2026-11-26; learning rates of 1e-3 and 4e-3",
        "enlarged from 8 x 8 pixels, drawn from [0, 0.1]",
        "seed 0 ran on another processor; ranks 1, 2 and 4",
        "`task.holdout=0.25` with a 95% CI, in bf16 on MiniLM and RESISC45",
        "another one of these",
    ],
)
def test_settings_dates_sizes_and_names_may_be_typed(allowed):
    assert typed_numbers(allowed) == []


@pytest.mark.parametrize("path", NOTES, ids=lambda path: path.parent.name)
def test_notes_begin_with_a_short_answer_and_what_would_change_it(path):
    title, answer, change, *_ = path.read_text().split("\n\n")
    assert title.splitlines()[-1].startswith("# ")
    assert not answer.startswith("#")
    assert change.startswith("## What would change it")
    assert "\n## Details\n" in path.read_text()


# --- what a template can ask


@pytest.fixture
def study():
    made = minilm_records_by_row(
        "cola", vera=(0.40, 0.42, 0.44), lora=(0.42, 0.43, 0.47)
    )
    for rate, best in ((1e-3, 0.2), (4e-3, 0.3), (1.6e-2, 0.1)):
        (trial,) = minilm_records("vera", "cola", (best,), lr=rate)
        trial["config"]["task"]["holdout"] = 0.2
        trial["id"] += "-trial"
        made.append(trial)
    frame = runs(ledger(*made))
    rows_of = study_rows(every_variant(frame, keep_nearest_name=True))
    return StudyNumbers(frame, rows_of, PUBLISHED)


def test_a_template_can_ask_for_scores_differences_and_counts(study):
    score = study.score("vera", task="cola")
    assert (score.n, score.median, score.mean) == (3, 42.0, pytest.approx(42))
    assert (score.lowest, score.lowest_seed, score.sd) == (40.0, 0, pytest.approx(2))
    minus = study.minus("vera", "lora", task="cola")
    assert minus.values == pytest.approx((-2, -1, -3))
    assert (minus.n, minus.below, minus.above) == (3, 3, 0)
    assert (minus.smallest, minus.largest) == pytest.approx((1, 3))
    low, high = minus.ends()
    assert (low, high) == pytest.approx((-2 - 2.484, -2 + 2.484), abs=1e-3)
    assert study.count() == 6
    assert study.count("vera", kind="trial") == 3


def test_a_template_can_ask_for_rates_that_trials_tried(study):
    assert study.rates("vera", task="cola") == [1e-3, 4e-3, 1.6e-2]
    assert study.best_rate("vera") == 4e-3
    assert study.trial("vera", 4e-3) == pytest.approx(30)


def test_a_call_that_matches_no_run_or_several_of_one_seed_is_an_error(study):
    with pytest.raises(ValueError, match="no result of bitfit"):
        study.score("bitfit")
    study.runs = pd.concat([study.runs, study.runs])
    with pytest.raises(ValueError, match="several runs of one seed"):
        study.score("vera")


def test_a_template_can_ask_for_another_study(study):
    """Batches drawn at random, beside those of another study's runs of equal seeds."""
    other = study.score("vera", study="near_minilm")
    assert (other.n, study.minus("vera", "vera", right_study="near_minilm").n) == (
        20,
        3,
    )


def test_collapsed_runs_can_be_left_out(study):
    study.runs.loc[study.runs.id == study.runs.id.iloc[0], "collapsed"] = True
    assert study.minus("vera", "lora").n == 3
    assert study.minus("vera", "lora", trained=True).n == 2


def test_the_best_epoch_is_compared_with_another_of_the_same_runs(study):
    change = study.change(["vera", "lora"], "best", "last")
    assert change.n == 3
    best = (
        study.score("vera", score="best").mean - study.score("vera", score="last").mean
    )
    other = (
        study.score("lora", score="best").mean - study.score("lora", score="last").mean
    )
    assert change.mean.mean == pytest.approx((best + other) / 2)


@pytest.mark.parametrize("score", ["number", "value", "best", "last", "crossfit"])
def test_a_difference_is_positive_where_the_first_row_is_better(study, score):
    """With a score of which lower is better, VeRA's lower ones are."""
    study.runs = study.runs.assign(lower_is_better=True, higher_is_better=False)
    study.runs[score] = study.runs.number
    assert study.minus("vera", "lora", score=score).above == 3


def test_an_error_in_a_template_names_its_file(tmp_path, study):
    (tmp_path / "NOTES.md").write_text("{{ score('bitfit').median }}")
    with pytest.raises(UserError, match=r"NOTES\.md: no result of bitfit"):
        rendered_notes(tmp_path, study.runs, study.rows)
    (tmp_path / "NOTES.md").write_text("{{ count('vera' }}")
    with pytest.raises(UserError, match=r"NOTES\.md"):
        rendered_notes(tmp_path, study.runs, study.rows)
    (tmp_path / "NOTES.md").unlink()
    assert rendered_notes(tmp_path, study.runs, study.rows) == ""


def test_numbers_and_names_are_listed_as_prose_has_them():
    assert fixed(1234.56) == "1,234.6"
    assert fixed([1.25, 2.0], 2) == "1.25 and 2.00"
    assert listed(["a", "b", "c"]) == "a, b and c"
    assert listed([]) == "none"
