"""The paper's claims on small records: pairs, verdicts on a task and over tasks,
collapsed runs, what is left out. What the findings of the published records and of a
made ledger say is in tests/nets/golden/findings.jsonl."""

import math

import numpy as np
import pandas as pd
import pytest
from ledgers import ledger, with_halves
from small import minilm_records, minilm_records_by_row

from analysis.frame import runs, with_reported_scores
from analysis.inference import Verdict, over_seeds_and_items
from analysis.results.comparisons import mark_collapsed
from analysis.results.findings import findings
from analysis.results.measured import null_band
from analysis.results.templates import macros
from runs.record.items import pack

pytestmark = pytest.mark.properties

WORDS = macros("words.md")
NEAR = "VeRA is near LoRA"
SUPPORTED, CONTRADICTED, INCONCLUSIVE = Verdict


def found_on(*records, measures=(), origin="ours"):
    """The findings of some records."""
    return findings(runs(ledger(*records)).assign(origin=origin), measures)


def the(findings, name=NEAR):
    (finding,) = [one for one in findings if one.claim.finding.startswith(name)]
    return finding


def compared(*records, name=NEAR):
    """The one comparison of a claim."""
    (comparison,) = the(found_on(*records), name).comparisons
    return comparison


# --- one task


@pytest.mark.parametrize(
    ("vera", "differences", "verdict"),
    [
        ((0.4105, 0.4195, 0.44), (0.05, -0.05, 0), SUPPORTED),
        # from +0.7 on by the lower bound, up to +2.6
        ((0.43, 0.44, 0.45), (2, 2, 1), INCONCLUSIVE),
        # from -1.3 on, though all are near
        ((0.41, 0.42, 0.43), (0, 0, -1), INCONCLUSIVE),
        # up to -1.1 by the 90% interval, and to +0.3 by the 95% interval
        ((0.36, 0.37, 0.42), (-5, -5, -2), INCONCLUSIVE),
        ((0.36, 0.37, 0.40), (-5, -5, -4), CONTRADICTED),
        # above is no contradiction
        ((0.46, 0.47, 0.48), (5, 5, 4), INCONCLUSIVE),
    ],
)
def test_vera_is_near_lora_by_pairs_of_one_seed(vera, differences, verdict):
    lora = (0.41, 0.42, 0.44)
    made = minilm_records_by_row("cola", vera=vera, lora=lora)
    near = compared(*made)
    assert near.pairs[0].mean.mean == pytest.approx(np.mean(differences))
    assert (near.verdict, near.crossfit) == (verdict, verdict)
    assert [side.median for side in near.sides] == pytest.approx([100 * vera[1], 42])
    assert near.ids == tuple(record["id"] for record in made)
    assert (near.model, near.task, near.sample_size, near.epochs) == (
        "minilm",
        "cola",
        3,
        (3,),
    )
    assert near.place == "MiniLM, cola"


def test_pairs_are_of_seeds_that_both_rows_have_on_the_same_data():
    made = [
        *minilm_records("vera", "cola", (0.9, 0.9, 0.4, 0.42)),
        *minilm_records("lora", "cola", (0.1, 0.1, 0.41, 0.42))[2:],
    ]
    near = compared(*made)
    assert near.counts == (2,)
    assert [side.median for side in near.sides] == [41.0, 41.5]
    assert found_on(*made[:2], *made[4:]) == []
    made[2]["data"]["dev_rows"] = 500
    near = compared(*made)
    # one pair decides nothing
    assert (near.sample_size, near.verdict) == (1, INCONCLUSIVE)


def test_pairs_that_all_collapsed_decide_nothing():
    made = [
        *minilm_records("vera", "cola", (0.9, 0.1)),
        *minilm_records("lora", "cola", (0.1, 0.9)),
    ]
    near = the(found_on(*made))
    assert (near.task_means, near.verdict) == ({}, INCONCLUSIVE)


def test_a_pair_that_the_difference_leaves_out_is_not_counted_on_the_page():
    scores = (0.50, 0.51, 0.52)
    near = compared(*minilm_records_by_row("cola", lora=scores, vera=scores))
    assert str(WORDS.pair_count(near.pairs[0])) == "3"
    finding = the(
        found_on(*minilm_records_by_row("cola", lora=scores, vera=(0.50, 0.51, 0.1)))
    )
    assert "| 2 of 3 |" in str(WORDS.lines(finding, 0, ""))


@pytest.mark.parametrize(("pairs", "text"), [(4, "supported"), (5, "**supported**")])
def test_five_pairs_make_a_verdict_bold(pairs, text):
    scores = [0.40, 0.401, 0.402, 0.403, 0.404][:pairs]
    near = compared(*minilm_records_by_row("cola", lora=scores, vera=scores))
    assert str(WORDS.verdict(near)) == text


@pytest.mark.parametrize(
    ("task", "border", "chance"),
    [("cola", 10.0, "0"), ("rte", 52.7 + 2 * (52.7 * 47.3 / 400) ** 0.5, "52.7")],
)
@pytest.mark.parametrize("other", ["lora", "vera_unique"])
def test_rows_that_may_have_learned_nothing_are_left_out(task, border, chance, other):
    """Two standard errors above chance are learned, of 400 dev rows; one row that has
    learned is enough."""
    name = NEAR if other == "lora" else "A and B may be shared"
    for shift in (-0.01, 0.01):
        theirs = ((border + shift) / 100,) * 2
        made = [
            *minilm_records("vera", task, (0.0, 0.0), 400),
            *minilm_records(other, task, theirs, 400),
        ]
        finding = the(found_on(*made, origin="mine"), name)
        (near,) = finding.comparisons
        if shift > 0:
            assert (near.excluded, len(finding.task_means)) == ("", 1)
        else:
            reason = f"no row has learned (chance is {chance})"
            assert (near.excluded, near.verdict) == (reason, INCONCLUSIVE)
            assert (finding.task_means, finding.verdict) == ({}, INCONCLUSIVE)
            assert [one.reason for one in finding.exclusions] == [reason]


def test_cross_fitted_epochs_have_a_verdict_of_their_own_and_no_veto():
    """Cross-fitted, VeRA is where each half's best epoch leaves the other: at 40, not
    at the 50 of the whole."""
    made = minilm_records_by_row("cola", vera=(0.5,) * 5, lora=(0.5,) * 5)
    assert compared(*made).crossfit == SUPPORTED
    for record in made[:5]:
        lower = 0.4 + record["cell"]["seed"] / 1000
        with_halves(record, (0.6, 0.5, lower), (lower, 0.5, 0.6))
    near = compared(*made)
    assert (near.verdict, near.crossfit) == (SUPPORTED, CONTRADICTED)


@pytest.mark.parametrize(
    ("only_d", "verdict"),
    [(0.6, CONTRADICTED), (0.5, INCONCLUSIVE), (0.4, SUPPORTED)],
)
def test_both_vectors_are_better_only_where_they_beat_each(only_d, verdict):
    made = minilm_records_by_row(
        "cola", vera=(0.5,) * 3, vera_only_d=(only_d,) * 3, vera_only_b=(0.4,) * 3
    )
    group = [
        one for one in found_on(*made) if one.claim.finding.startswith("both vectors")
    ]
    assert [one.name for one in group] == ["only d", "only b"]
    assert [one.verdict for one in group] == [verdict, SUPPORTED]
    assert group[0].comparisons[0].verdict == verdict


COUNTS = {
    "vera_r1024": 16896,
    "vera": 7680,
    "lora": 73728,
    "lora_r1": 9216,
    "lora_r2": 18432,
}
HIGH, LOW = (0.50, 0.51, 0.52, 0.53, 0.54), (0.4, 0.4, 0.41, 0.42, 0.44)
TOP = (0.9,) * 5


def ranks(counts=COUNTS, **scores):
    """The comparison of ranks from rows on CoLA; LoRA's alpha is 8 or, in a row that
    ends so, its rank (`proportional`)."""
    made = []
    for name, of_row in scores.items():
        row = name.removesuffix("_proportional")
        for record in minilm_records(row, "cola", of_row):
            record["id"] += name
            record["parameters"]["adapter"] = counts[row]
            if row.startswith("lora"):
                rank = int(row.partition("_r")[2] or 8)
                alpha = rank if name.endswith("_proportional") else 8
                method = {
                    "kind": "lora",
                    "rank": rank,
                    "alpha": alpha,
                    "label": f"LoRA r={rank}",
                }
                record["config"] |= {
                    "method": method,
                    "recipe": {"rank": 8, "alpha": 8},
                }
            made.append(record)
    group = [
        one for one in found_on(*made) if one.claim.finding.startswith("VeRA of a high")
    ]
    return [*group[0].comparisons] if group else []


@pytest.mark.parametrize(
    ("constant", "proportional", "signs", "verdict", "firm"),
    [
        (LOW, LOW[:4], (1, 1), SUPPORTED, False),
        (LOW, TOP, (1, -1), INCONCLUSIVE, True),
        (HIGH, HIGH, (0, 0), INCONCLUSIVE, True),  # equal is not above
        (LOW, None, (1, None), INCONCLUSIVE, True),
    ],
)
def test_ranks_are_compared_by_both_conventions_of_alpha(
    constant, proportional, signs, verdict, firm
):
    cells = {"vera_r1024": HIGH, "vera": TOP, "lora": (0.6,) * 5, "lora_r2": constant}
    if proportional:
        cells["lora_r2_proportional"] = proportional
    (comparison,) = ranks(**cells)
    assert tuple(pairs and pairs.mean.sign() for pairs in comparison.pairs) == signs
    assert (comparison.verdict, comparison.is_firm) == (verdict, firm)
    assert {pairs.left.label for pairs in comparison.pairs if pairs} == {"vera_r1024"}


@pytest.mark.parametrize(
    ("counts", "nearest"),
    [
        # away by 1.8, and by 1.5
        ({"lora_r1": 11_000, "lora_r2": 30_000}, "LoRA r=2, alpha=8"),
        ({"lora_r1": 10_000, "lora_r2": 90_000}, "LoRA r=1, alpha=8"),  # half
        # less than half, more than twice
        ({"lora_r1": 9_999, "lora_r2": 40_001}, None),
        ({"lora_r1": 20_000}, None),  # one rank alone
    ],
)
def test_matched_parameters_are_within_a_factor_of_two(counts, nearest):
    scores = dict.fromkeys(counts, (0.4, 0.41))
    sizes = {"vera": 7_680, "vera_r1024": 20_000} | counts
    found = ranks(sizes, vera=(0.4, 0.41), vera_r1024=(0.9, 0.91), **scores)
    assert [one.pairs[0].right.label for one in found] == ([nearest] if nearest else [])
    # of one rank of VeRA nothing follows
    assert not ranks(sizes, vera_r1024=(0.9, 0.91), **scores)


# --- test rows


def with_items(records, random):
    """The bits of each record by id: which of 1,000 test rows are right."""
    bits = {}
    for record in records:
        right = random.random(1000) < record["result"]["protocols"]["paper"]["best"]
        record["right"] = {"best": pack(right), "last": pack(~right)}
        bits[record["id"]] = right
    return bits


def test_an_interval_covers_test_rows_where_the_records_say_which_are_right():
    made = minilm_records_by_row(
        "mrpc", vera=(0.80, 0.81, 0.82, 0.0), lora=(0.84, 0.83, 0.84, 0.82)
    )
    bits = with_items(made, np.random.default_rng(2))
    of_ledger = ledger(*made)
    near = the(findings(runs(of_ledger), records=of_ledger.records))
    pairs = near.comparisons[0].pairs[0]
    # without the pair whose run of VeRA collapsed
    expected = over_seeds_and_items(
        np.array([bits[run] for run in pairs.left.ids[:3]]),
        np.array([bits[run] for run in pairs.right.ids[:3]]),
    )
    assert pairs.task_mean == expected
    assert pairs.covers == "seeds and test rows"
    assert expected.error > pairs.mean.error
    assert near.comparisons[0].verdict == near.claim.verdict(expected)
    # over tasks seeds alone are needed
    assert near.task_means["MiniLM, mrpc"].error == pairs.mean.error
    del made[0]["right"]
    near = the(findings(runs(of_ledger), records=of_ledger.records))
    pairs = near.comparisons[0].pairs[0]
    assert (pairs.covers, pairs.task_mean) == ("seeds only", pairs.mean)


def test_a_collapsed_first_run_does_not_hide_which_test_rows_belong_together():
    """Such a run may have no texts, which say it."""
    made = minilm_records_by_row(
        "mrpc", vera=(0.0, 0.80, 0.81, 0.82), lora=(0.84, 0.83, 0.84, 0.82)
    )
    bits = with_items(made, np.random.default_rng(2))
    groups = [item // 2 for item in range(1000)]
    records = {
        record["id"]: record | {"texts": {"groups": groups, "scores": []}}
        for record in made
        if record["result"]["protocols"]["paper"]["best"]
    }
    near = the(findings(runs(ledger(*made)), records=records))
    pairs = near.comparisons[0].pairs[0]
    assert pairs.left_collapsed == (True, False, False, False)
    assert pairs.task_mean == over_seeds_and_items(
        np.array([bits[run] for run in pairs.left.ids[1:]]),
        np.array([bits[run] for run in pairs.right.ids[1:]]),
        groups,
    )


# --- measures


def test_the_band_of_random_cosines_holds_95_percent_of_means():
    """Of 12 layers: in 100 pairs of runs, 200 means with a random matrix."""
    random = np.random.default_rng(0).normal(0, 0.01, (100, 2, 12))

    def cosines(*pairs):
        return pd.concat(
            pd.DataFrame(values, dtype=float).assign(number=number)
            for number, values in enumerate(pairs)
        )

    pairs = [
        {"lora_random": lora, "vera_random": vera} for lora, vera in random.tolist()
    ]
    band = null_band(cosines(*pairs))
    assert band == pytest.approx(1.96 * 0.01 / 12**0.5, rel=0.05)
    inside = np.abs(random.mean(axis=2)) <= band
    assert inside.mean() == pytest.approx(0.95, abs=0.04)
    # one has no band
    assert math.isnan(null_band(cosines({"lora_random": [None], "vera_random": [0.1]})))


# --- collapsed runs


def test_a_run_has_collapsed_that_diverged_gives_one_class_or_is_far_below_its_row():
    made = minilm_records(
        "lora", "digits", (0.85, 0.86, 0.87, 0.55, 0.58), family="images"
    )
    made += minilm_records("vera", "digits", (0.85, 0.86, 0.87), family="images")
    made[5]["status"] = "diverged"
    frame = runs(ledger(*made))
    for less, wanted in ((False, [3]), (True, [])):
        marked = mark_collapsed(frame.assign(number=frame.value, lower_is_better=less))
        of_lora = marked[marked.row == "lora"]
        assert list(of_lora[of_lora.collapsed].seed) == wanted
        assert list(marked[marked.row == "vera"].collapsed) == [True, False, False]
    share = "50% of dev, the larger class"
    alike = frame.assign(number=frame.value, lower_is_better=False, one_class=share)
    assert mark_collapsed(alike).collapsed.all()


def tasks_below(below=0.02):
    """VeRA two points below LoRA on four tasks, three seeds each."""
    levels = {"cola": 0.5, "sst2": 0.8, "mrpc": 0.82, "stsb": 0.7}
    noise = (0.001, -0.001, 0.0)
    vera, lora = [], []
    for task, level in levels.items():
        vera += minilm_records("vera", task, [level - below + n for n in noise])
        lora += minilm_records("lora", task, [level + n / 2 for n in noise])
    return vera, lora


def collapse(record):
    record["result"]["protocols"]["paper"]["best"] = 0.0


def test_a_collapsed_run_of_lora_does_not_hide_that_vera_is_below():
    """With it, the plain mean has an interval of 30 points; the verdict is of the pairs
    in which both runs trained."""
    vera, lora = tasks_below()
    near = the(found_on(*vera, *lora))
    assert (near.verdict, near.direction) == (CONTRADICTED, "below")
    assert [*near.analyses] == ["weighted mean"]
    assert near.mean.mean == pytest.approx(-2.0)
    collapse(lora[-2])
    near = the(found_on(*vera, *lora))
    assert (near.verdict, near.direction) == (CONTRADICTED, "below")
    assert near.mean.mean == pytest.approx(-2.0, abs=0.1)
    kept = near.analyses["plain mean with collapsed runs"]
    assert kept.mean > 0
    assert kept.sign() == 0
    assert "plain mean with collapsed runs" not in near.agreeing_analyses()
    assert near.pair_counts["MiniLM, stsb"] == 2


def test_collapses_are_counted_by_run_and_row_with_exact_intervals():
    vera, lora = tasks_below()
    collapse(lora[-2])
    near = the(found_on(*vera, *lora))
    of_vera, of_lora = near.collapses
    assert (of_vera.label, of_vera.count, of_vera.total) == ("VeRA", 0, 12)
    assert (of_lora.label, of_lora.count, of_lora.total) == ("LoRA", 1, 12)
    assert of_lora.interval == pytest.approx((0.0021, 0.3848), abs=1e-4)
    assert near.collapse_p == pytest.approx(1.0)
    assert str(WORDS.collapses(near)) == (
        "0 of 12 VeRA runs (95% CI 0% to 26%) and "
        "1 of 12 LoRA runs (95% CI 0.2% to 38%)"
    )


# --- over tasks


def test_a_new_task_lies_in_a_wider_interval_than_the_mean():
    vera, lora = tasks_below()
    for record in vera[:3]:
        record["result"]["protocols"]["paper"]["best"] += 0.01
    near = the(found_on(*vera, *lora))
    means = [-1.0, -2.0, -2.0, -2.0]
    deviation = np.std(means, ddof=1)
    low, high = near.mean.prediction()
    half = 3.182 * deviation * math.sqrt(1 + 1 / 4)
    assert (low, high) == pytest.approx((-1.75 - half, -1.75 + half), abs=2e-3)
    assert near.most_influential_task == "MiniLM, cola"
    assert near.mean_without("MiniLM, cola").mean == pytest.approx(-2.0)


def test_tasks_of_chance_are_out_of_the_mean_and_a_task_compared_twice_counts_once():
    made = minilm_records_by_row("cola", vera=(0.4, 0.41), lora=(0.4, 0.41))
    made += minilm_records_by_row("rte", vera=(0.5, 0.51), lora=(0.1, 0.1))
    near = the(found_on(*made))
    assert [*near.task_means] == ["MiniLM, cola"]
    assert (len(near.comparisons), near.verdict) == (2, SUPPORTED)
    longer = minilm_records_by_row("cola", vera=(0.44, 0.45), lora=(0.4, 0.41))
    for record in longer:
        record["id"] += "-longer"
        record["deviations"] = ("epochs 9",)
        record["config"]["train"]["epochs"] = 9
    near = the(found_on(*made, *longer))
    assert len(near.comparisons) == 3
    assert near.task_means["MiniLM, cola"].mean == pytest.approx(2.0)


def test_every_pair_of_a_task_in_points_counts_whatever_its_family():
    """A family that no table of the paper has, and a study of other settings."""
    counted = minilm_records_by_row("cola", vera=(0.4, 0.41), lora=(0.4, 0.41))
    for family in ("text", "maths", "mine"):
        made = [
            *minilm_records("vera", "mine", (0.7, 0.7), family=family),
            *minilm_records("lora", "mine", (0.8, 0.8), family=family),
        ]
        near = the(found_on(*counted, *made))
        assert near.task_means["MiniLM, mine"].mean == pytest.approx(-10)
        assert near.exclusions == ()


def test_a_score_that_is_not_in_points_is_left_out_with_its_reason():
    made = minilm_records_by_row("cola", vera=(0.4, 0.41), lora=(0.4, 0.41))
    for record in made:
        record["result"] |= {"metric": "perplexity", "scale": 1.0}
    alone = minilm_records_by_row("mrpc", vera=(0.8, 0.8)) + minilm_records_by_row(
        "sst2", vera=(0.8,), lora=(0.8,)
    )
    near = the(found_on(*made, *alone, origin="mine"))
    assert [*near.task_means] == ["MiniLM, sst2"]
    reasons = {one.place: (one.study, one.reason) for one in near.exclusions}
    assert reasons == {
        "MiniLM, cola": ("mine", "perplexity is not in points"),
        "MiniLM, mrpc": ("mine", "no own run of lora"),
    }


# --- rates


def trials(scores):
    """Trials of VeRA's ranks, by rank: a line for each rate, a score for each seed."""
    made = []
    for rank, by_rate in scores.items():
        for place, of_seeds in enumerate(by_rate):
            row = "vera" if rank == 256 else f"vera_r{rank}"
            for record in minilm_records(row, "sst2", of_seeds, lr=0.01 * 4**place):
                record["config"]["task"]["holdout"] = 0.2
                record["config"]["method"]["rank"] = rank
                record["id"] += f"-{rank}-{place}"
                made.append(record)
    return made


def test_the_regret_of_another_ranks_rate_is_scored_on_other_seeds_than_it_is_chosen():
    """Rank 1 loses three points at rank 256's rate, which loses one at rank 1's; a
    lucky seed chooses for the others and not for itself."""
    noise = np.array([0.0, 0.001, -0.001, 0.0])
    made = trials(
        {
            1: [0.80 + noise, 0.83 - noise],
            256: [0.82 + noise, 0.81 + noise],
        }
    )
    name = "another rank needs no learning rate"
    rates = compared(*made, name=name)
    assert float(rates.mean.mean) == pytest.approx(-2.0, abs=0.01)
    assert rates.verdict == CONTRADICTED
    assert rates.table == [
        ["rank", "rate 0.01", "rate 0.04", "best rate"],
        ["1", "80.0", "83.0", "0.04^"],
        ["256", "82.0", "81.0", "0.01^"],
    ]


def test_trials_that_are_added_to_a_grid_join_it_and_the_pages_say_what_they_give():
    """As when further seeds and a lower rate join trials of one seed."""
    noise = np.array([0.0, 0.001, -0.001, 0.0, 0.001])
    whole = trials(
        {
            1: [0.78 + noise, 0.83 - noise, 0.80 + noise, 0.79 - noise],
            256: [0.80 + noise, 0.82 - noise, 0.81 + noise, 0.80 - noise],
        }
    )

    def is_first(record):
        is_lowest = record["config"]["train"]["lr"] == 0.01
        return record["cell"]["seed"] == 0 and not is_lowest

    first = [record for record in whole if is_first(record)]
    (before,) = found_on(*first)
    assert before.verdict == INCONCLUSIVE
    assert before.task_means == {}
    assert "too few" in str(macros("words.md").regret(before.comparisons[0]))
    (after,) = found_on(*first, *(one for one in whole if not is_first(one)))
    (comparison,) = after.comparisons
    assert comparison.counts == (5,)
    assert [line[-1] for line in comparison.table[1:]] == ["0.04", "0.04"]
    # Both ranks have the same best rate, so that another rank's costs nothing
    assert float(after.mean.mean) == 0
    assert after.verdict == SUPPORTED
    sentence = str(macros("words.md").regret(comparison))
    assert "differs by +0.0 (95% CI of no width) points" in sentence
    assert "the interval has no width" in sentence


def test_one_seed_cannot_choose_a_rate_and_score_it():
    made = trials({1: [(0.80,), (0.83,)], 256: [(0.82,), (0.81,)]})
    rates = compared(*made, name="another rank needs no learning rate")
    assert rates.verdict == INCONCLUSIVE
    assert math.isnan(rates.mean.mean)
    assert [line[-1] for line in rates.table] == ["best rate", "0.04^", "0.01^"]
    # one rank, or one rate, is no comparison
    assert found_on(*trials({256: [(0.82,), (0.81,)]})) == []
    assert found_on(*trials({1: [(0.82,)], 256: [(0.81,)]})) == []


def test_a_rank_that_was_not_tried_at_a_rate_has_no_regret():
    made = trials({1: [(0.80, 0.8), (0.83, 0.83)], 256: [(0.82, 0.81)]})
    rates = compared(*made, name="another rank needs no learning rate")
    assert math.isnan(rates.mean.mean)
    assert rates.table[2] == ["256", "81.5", "-", "0.01^"]


def test_reported_scores_are_those_of_the_frame():
    made = minilm_records_by_row("cola", vera=(0.4, 0.42), lora=(0.5, 0.5))
    frame = with_reported_scores(runs(ledger(*made)))
    left = compared(*made).pairs[0].left
    assert left.mean == pytest.approx(frame[frame.row == "vera"].number.mean())
