"""docs/results.md from small studies: findings by hand, pictures, trials, and the README's table."""

import json
import math
import re
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.stats
from ledgers import halves, ledger, of_metric, record, seeds

from analysis.frame import runs
from analysis.results import frame
from analysis.results.__main__ import main
from analysis.results.finding import Finding
from analysis.results.of_figures import null_band
from analysis.results.of_rows import findings, left_out
from analysis.results.readme import BEGIN, END, headline, near_lora
from analysis.results.sections import overview, template
from analysis.statistics import statistics_tables
from runs.errors import UserError


def small(row, task, bests, **changes):
    made = seeds(row, task, bests, model="minilm", **changes)
    for one in made:
        one["determinism"] = {"threads": 1}
        one["data"]["dev_rows"] = 1000  # of ten, a Matthews of 0.4 may be chance
        one["result"] |= of_metric("matthews" if task == "cola" else "accuracy")
    return made


def tried(of):
    """The findings of a ledger."""
    return findings(runs(of), [*of.measures.values()])


WORDS = template("words.md").module


def said(found, name):
    """A finding, with its words on the page."""
    (one,) = [of for of in found if of.finding.startswith(name)]
    words = {
        word: str(getattr(WORDS, word)(one)) for word in ("where", "here", "trained", "word", "crossfit")
    }
    keys = ("source", "holds", "agrees", "firm", "verdict", "compared")
    return SimpleNamespace(of=one, **words, **{key: getattr(one, key) for key in keys})


def made_up(name, where, holds, agrees, pairs=1, seeds_=(3,), unit="run"):
    return Finding(
        name, "a table", "near", "", "", *where.split(", "), holds, agrees, pairs, counts=seeds_, unit=unit
    )


def pairs(x, y, near=False):
    """What a finding says of two rows, in points by seed, by scipy's t-tests."""
    (low, high), (lowest, highest) = (
        test.confidence_interval(0.9 if near else 0.95)
        for test in (scipy.stats.ttest_rel(x, y), scipy.stats.ttest_ind(x, y, equal_var=False))
    )
    of = (
        f"one-sided 95% bounds {low:+.1f} and {high:+.1f}, unpaired {lowest:+.1f} and {highest:+.1f}"
        if near
        else f"95% interval {low:+.1f} to {high:+.1f}, unpaired {lowest:+.1f} to {highest:+.1f}"
    )
    return f"({len(x)} pairs by seed: mean {np.mean(x) - np.mean(y):+.1f}, {of})"


# --- claims


@pytest.mark.parametrize(
    ("vera", "medians", "differences", "agrees"),
    [
        # From +0.3 on by pair, -0.3 unpaired
        ((0.43, 0.44, 0.45), "VeRA r=1024 44.0, LoRA r=8 42.0", (2, 2, 1), True),
        # From -0.3 on by pair, -1.7 unpaired
        ((0.42, 0.43, 0.44), "VeRA r=1024 43.0, LoRA r=8 42.0", (1, 1, 0), None),
        # From -1.3 on, though all are near
        ((0.41, 0.42, 0.43), "VeRA r=1024 42.0, LoRA r=8 42.0", (0, 0, -1), None),
        ((0.40, 0.42, 0.41), "VeRA r=1024 41.0, LoRA r=8 42.0", (-1, 0, -3), None),
        # Up to -1.1 by pair, +0.9 unpaired
        ((0.36, 0.37, 0.42), "VeRA r=1024 37.0, LoRA r=8 42.0", (-5, -5, -2), None),
        # Up to -3.3, and -2.7
        ((0.36, 0.37, 0.39), "VeRA r=1024 37.0, LoRA r=8 42.0", (-5, -4, -5), False),
    ],
)
def test_vera_is_near_lora_by_bounds_of_the_mean_difference(vera, medians, differences, agrees):
    lora = small("lora", "cola", (0.41, 0.42, 0.44))
    for one in lora:
        one["parameters"]["adapter"] = 430080
    near = said(tried(ledger(*small("vera", "cola", vera), *lora)), "VeRA is near LoRA")
    assert near.where == "MiniLM, cola, 3 epochs, 3 seeds"
    told = pairs([100 * best for best in vera], (41, 42, 44), near=True)
    assert near.here == f"{medians} {told}; 0.1 of the parameters, 0.1 with the head"
    assert near.agrees is agrees
    assert near.holds == tuple(difference >= -1 for difference in differences)
    assert near.word == {True: "agrees", False: "does not agree", None: "undecided"}[agrees]


@pytest.mark.parametrize(("below", "word"), [(0.0, "agrees"), (0.1, "does not agree")])
def test_a_word_is_bold_from_five_pairs_on(below, word):
    lora, vera = (0.40, 0.401, 0.402, 0.403, 0.404), (0.401, 0.4, 0.403, 0.402, 0.404)
    for seeds_ in (4, 5):
        made = [
            *small("lora", "cola", lora[:seeds_]),
            *small("vera", "cola", [best - below for best in vera[:seeds_]]),
        ]
        near = said(tried(ledger(*made)), "VeRA is near LoRA")
        assert near.word == {4: word, 5: f"**{word}**"}[seeds_]
        assert near.firm is (seeds_ == 5)


def test_an_undecided_word_is_never_bold():
    made = [*small("lora", "cola", (0.4,) * 5), *small("vera", "cola", (0.3, 0.35, 0.4, 0.45, 0.45))]
    near = said(tried(ledger(*made)), "VeRA is near LoRA")
    assert (near.word, near.firm) == ("undecided", True)


def test_the_epochs_stand_beside_the_papers_and_what_was_still_rising():
    """VeRA's best epoch is the last one in two of three seeds; LoRA's in one."""
    vera = [
        record("vera", "cola", s, values=v, model="minilm")
        for s, v in enumerate(((1, 2, 3), (1, 2, 3), (1, 3, 2)))
    ]
    lora = [
        record("lora", "cola", s, values=v, model="minilm")
        for s, v in enumerate(((1, 2, 3), (1, 3, 2), (3, 1, 2)))
    ]
    near = said(tried(ledger(*vera, *lora)), "VeRA is near LoRA")
    # Table 8's, on CoLA
    assert near.trained == "3 (paper: 80 BASE, 40 LARGE); still rising: VeRA r=1024 (2 of 3)"
    whole = overview([near.of])
    assert f"| {near.trained} | {near.word} |" in whole
    # One of two
    assert "still rising" not in said(tried(ledger(*vera[1:], *lora)), "VeRA is near LoRA").trained


def test_a_single_epoch_is_not_a_rising_one():
    made = [record(row, "mrpc", 0, values=[0.8], model="minilm") for row in ("vera", "lora")]
    for one in made:
        one["data"]["dev_rows"] = 100_000
    assert said(tried(ledger(*made)), "VeRA is near LoRA").trained == "1 (paper: 30 BASE, 40 LARGE)"


def test_numbers_are_of_the_seeds_that_both_have():
    made = [*small("vera", "cola", (0.9, 0.9, 0.4, 0.42)), *small("lora", "cola", (0.1, 0.1, 0.41, 0.42))[2:]]
    near = said(tried(ledger(*made)), "VeRA is near LoRA")
    assert near.where == "MiniLM, cola, 3 epochs, 2 seeds"
    assert near.here.startswith(f"VeRA r=1024 41.0, LoRA r=8 41.5 {pairs((40, 42), (41, 42), near=True)}")
    assert tried(ledger(*made[:2], *made[4:])) == []


def test_one_seed_decides_nothing():
    one = said(
        tried(ledger(*small("vera", "cola", (0.9,)), *small("lora", "cola", (0.1,)))),
        "VeRA is near LoRA",
    )
    assert "(1 pair by seed: mean +80.0)" in one.here
    assert one.agrees is None


def test_rows_that_may_be_chance_are_not_compared():
    made = [*small("vera", "rte", (0.5, 0.5)), *small("lora", "rte", (0.58, 0.58))]
    for one in made:
        one["data"]["dev_rows"] = 277  # as RTE has: a standard error of 3 points
    one = said(tried(ledger(*made)), "VeRA is near LoRA")
    assert one.here.endswith("; all may be chance: the larger class is 52.7")
    assert (one.agrees, one.holds) == (None, ())
    unique = small("vera_unique", "rte", (0.5, 0.5))
    for of in unique:
        of["data"]["dev_rows"] = 277
    one = said(tried(ledger(*made[:2], *unique)), "A and B may be shared")
    assert one.here.endswith("; all may be chance: the larger class is 52.7")
    assert one.agrees is None
    for lora in made[2:]:
        lora["result"]["protocols"]["paper"]["best"] = 0.6
    assert said(tried(ledger(*made)), "VeRA is near LoRA").agrees is False
    # So may a correlation be, of 0.06 and less with 1,000 rows
    made = [one for row in ("vera", "lora") for one in small(row, "cola", (0.05, 0.06))]
    one = said(tried(ledger(*made)), "VeRA is near LoRA")
    assert one.here.endswith("; all may be chance: the metric of chance is 0")
    for lora in made[2:]:
        lora["result"]["protocols"]["paper"]["best"] = 0.2
    assert "chance" not in said(tried(ledger(*made)), "VeRA is near LoRA").here


def test_runs_on_other_data_are_no_finding():
    made = [one for row in ("vera", "lora") for one in small(row, "cola", (0.5, 0.5))]
    assert said(tried(ledger(*made)), "VeRA is near LoRA").holds == (True, True)
    made[0]["data"]["dev_rows"] = 500
    assert said(tried(ledger(*made)), "VeRA is near LoRA").holds == (True,)
    made[1]["data"]["dev_rows"] = 500
    assert not tried(ledger(*made))


def test_images_are_compared_by_their_last_epoch():
    made = [
        record(row, "digits", s, 0.9, last + s / 100, model="dinov2_small")
        for row, last in (("vera", 0.5), ("lora", 0.8))
        for s in range(2)
    ]
    made[0]["result"]["protocols"]["paper"]["last"] = 0.48
    for one in made:
        one["config"]["task"]["family"] = "images"
        one["result"]["reported"] = "last"
    near = said(tried(ledger(*made)), "VeRA is near LoRA")
    assert near.source.startswith("table 5, means of its data sets")
    assert near.here.startswith(f"VeRA r=1024 49.5, LoRA r=8 80.5 {pairs((48, 51), (80, 81), near=True)}")
    assert near.agrees is False  # up to -23.6
    assert near.trained == "3 (paper: 10)"


def test_texts_are_compared_by_bleu_where_they_were_decoded():
    made = [
        record(row, "e2e", s, values=[3.0, 2.0], model="smollm2")
        for row in ("vera", "lora")
        for s in range(2)
    ]
    for one in made:
        one["config"]["task"]["family"] = "e2e"
        one["result"]["reported"] = "last"
        one["result"] |= of_metric("perplexity")
    assert tried(ledger(*made)) == []  # of which the paper says nothing
    for one in made:
        bleu = {"vera": 69.5, "lora": 70.0}[one["cell"]["row"]] + one["cell"]["seed"] / 100
        one["texts"] = {
            "scores": [{"which": "last", "variant": "length penalty 0.9", "epoch": 2, "bleu": bleu}]
        }
    near = said(tried(ledger(*made)), "VeRA is near LoRA")
    assert near.source.startswith("table 3, BLEU: ")
    assert near.here.startswith("VeRA r=1024 69.5, LoRA r=8 70.0 (2 pairs by seed: mean -0.5, ")
    assert near.agrees
    assert near.trained == "2 (paper: 5)"
    (told,) = [table for table in statistics_tables(runs(ledger(*made))) if table.title == "smollm2: cells"]
    assert (
        "e2e: best to optimism are of the dev set's perplexity; texts are written once, at the end."
        in told.notes
    )


def test_a_finding_that_hangs_on_how_epochs_are_chosen_says_so():
    """Cross-fitted, VeRA is where each half's best epoch leaves the other: at 40, not at the 50 of the
    whole."""
    made = [one for row in ("vera", "lora") for one in small(row, "cola", (0.5,) * 5)]
    near = said(tried(ledger(*made)), "VeRA is near LoRA")
    assert (near.agrees, near.crossfit) == (True, "**agrees**")
    for one in made:
        if one["cell"]["row"] == "vera":
            lower = 0.4 + one["cell"]["seed"] / 1000
            halves(one, (0.6, 0.5, lower), (lower, 0.5, 0.6))
    near = said(tried(ledger(*made)), "VeRA is near LoRA")
    assert near.agrees
    apart = pairs([40 + seed / 10 for seed in range(5)], [50] * 5, near=True)
    assert near.crossfit.startswith(f"**does not agree**: VeRA r=1024 40.2, LoRA r=8 50.0 {apart}")
    assert near.crossfit in overview([near.of])
    assert (near.verdict, near.word) == (None, "undecided (agrees by the best epoch)")
    assert "| 1 | 0 | 0 | 1 | 1 | 5 of 5 |" in overview([near.of])
    assert near_lora([near.of]).endswith("\nOur seeds decide that on none of 1 pair of model and task.")
    images = [
        record(row, "digits", s, values=[0.9, 0.8], model="vit") for row in ("vera", "lora") for s in range(2)
    ]
    for one in images:
        one["config"]["task"]["family"] = "images"
        one["result"]["reported"] = "last"
    # Where no epoch is selected
    assert said(tried(ledger(*images)), "VeRA is near LoRA").crossfit == "-"


def test_ablations_are_compared_by_their_means_and_pairs():
    rows = {"vera": 0.5, "vera_only_d": 0.4, "vera_only_b": 0.3, "vera_uniform": 0.6, "vera_unique": 0.495}
    rows |= {"vera_d_init_1e-7": 0.295, "vera_d_init_1": 0.3}
    apart = {"vera_only_d": 0.01, "vera_only_b": 0.02, "vera_d_init_1": -0.01}  # in the third seed
    made = [
        one
        for row, best in rows.items()
        for one in small(row, "cola", (best, best, best + apart.get(row, 0)))
    ]
    found = tried(ledger(*made))
    both, only_d, only_b = (50, 50, 50), (40, 40, 41), (30, 30, 32)
    assert said(found, "d alone").here == f"only d 40.3; only b 30.7 {pairs(only_d, only_b)}"
    assert said(found, "d alone").agrees
    assert (
        said(found, "both vectors").here
        == f"both 50.0; only d 40.3 {pairs(both, only_d)}, only b 30.7 {pairs(both, only_b)}"
    )
    assert said(found, "both vectors").agrees
    assert said(found, "A and B by Kaiming").agrees is False
    assert (
        said(found, "A and B may be shared").here == "shared 50.0; unique 49.5 (3 pairs by seed: mean +0.5,"
        " one-sided 95% bounds +0.5 and +0.5, unpaired +0.5 and +0.5)"
    )
    assert said(found, "A and B may be shared").agrees
    assert said(found, "d that starts at 0.1").agrees
    assert said(found, "d that starts at 1e-7").agrees is None  # below in two seeds, above in the third
    assert not any(str(WORDS.word(of)).startswith("**") for of in found)  # of three pairs


def test_both_vectors_agree_only_where_both_comparisons_do():
    rows = {"vera": (0.5, 0.5, 0.5), "vera_only_b": (0.4, 0.4, 0.4), "vera_only_d": (0.45, 0.55, 0.4)}
    one = said(
        tried(ledger(*(r for row, bests in rows.items() for r in small(row, "cola", bests)))),
        "both vectors",
    )
    assert (one.agrees, one.holds) == (None, (True, False, True))


def test_both_vectors_are_not_better_where_one_alone_is():
    made = [
        *small("vera", "cola", (0.5, 0.5)),
        *small("vera_only_d", "cola", (0.6, 0.6)),
        *small("vera_only_b", "cola", (0.4, 0.4)),
    ]
    assert said(tried(ledger(*made)), "both vectors").agrees is False


RANKED = {"vera_r1024": 16896, "vera": 7680, "lora": 73728, "lora_r1": 9216, "lora_r2": 18432}


def ranks(**bests):
    """Cells of ranks on CoLA, by row; LoRA's alpha is 8 or, in a row that ends so, its rank
    (`proportional`)."""
    made = []
    for name, of_row in bests.items():
        row = name.removesuffix("_proportional")
        for one in small(row, "cola", of_row):
            one["id"] += name
            one["parameters"]["adapter"] = RANKED[row]
            if row.startswith("lora"):
                rank = int(row.partition("_r")[2] or 8)
                alpha = rank if name.endswith("_proportional") else 8
                one["config"] |= {
                    "method": {"kind": "lora", "rank": rank, "alpha": alpha, "label": f"LoRA r={rank}"}
                }
                one["config"]["recipe"] = {"rank": 8, "alpha": 8}
            made.append(one)
    return ledger(*made)


HIGH, LOW, MIDDLE = (0.50, 0.51, 0.52, 0.53, 0.54), (0.4, 0.4, 0.41, 0.42, 0.44), (0.45, 0.6, 0.55, 0.5, 0.5)


@pytest.mark.parametrize(
    ("constant", "proportional", "words", "agrees"),
    [
        (LOW, LOW, ("agrees", "agrees"), True),
        ((0.9,) * 5, (0.9,) * 5, ("does not agree", "does not agree"), False),
        (LOW, (0.9,) * 5, ("agrees", "does not agree"), None),
        (LOW, MIDDLE, ("agrees", "undecided"), None),
        ((0.9,) * 5, MIDDLE, ("does not agree", "undecided"), None),
        (LOW, None, ("agrees", "not run"), None),
        ((0.9,) * 5, None, ("does not agree", "not run"), None),
        (None, LOW, ("not run", "agrees"), None),
    ],
)
def test_ranks_are_compared_where_counts_are_nearest_and_by_both_conventions(
    constant, proportional, words, agrees
):
    cells = {"vera_r1024": HIGH, "vera": (0.9,) * 5, "lora": (0.6,) * 5}
    cells |= {"lora_r2": constant} if constant else {}
    cells |= {"lora_r2_proportional": proportional} if proportional else {}
    found = said(tried(ranks(**cells)), "of like counts")
    first, second = found.here.split("; with alpha proportional to the rank: ")
    assert first.startswith("with a constant alpha: ")
    assert [side.rpartition(": ")[2] for side in (first, second)] == list(words)
    assert (found.agrees, found.word) == (
        agrees,
        {True: "**agrees**", False: "**does not agree**", None: "undecided"}[agrees],
    )
    if constant == proportional == LOW:
        sides = [[100 * best for best in bests] for bests in (HIGH, LOW)]
        told = (
            "vera_r1024 52.0 (16,896 parameters); LoRA r=2, alpha={} 41.0 (18,432 parameters)"
            f" {pairs(*sides)}"
        )
        assert first == f"with a constant alpha: {told.format('8')}: agrees"
        assert second == f"{told.format('r')}: agrees"
        assert found.holds == (True,) * 10


def test_ranks_of_fewer_pairs_by_one_convention_are_not_bold():
    cells = {"vera_r1024": HIGH, "vera": HIGH, "lora": HIGH, "lora_r2": LOW, "lora_r2_proportional": LOW[:4]}
    found = said(tried(ranks(**cells)), "of like counts")
    assert (found.agrees, found.firm) == (True, False)


def test_ranks_with_other_counts_are_no_claim():
    made = [
        *small("vera", "cola", (0.5,)),
        *small("vera_r64", "cola", (0.5,)),
        *small("lora", "cola", (0.4,)),
        *small("lora_r64", "cola", (0.4,)),
    ]
    for one in made:
        one["parameters"]["adapter"] = {"vera": 7680, "vera_r64": 5376}.get(one["cell"]["row"], 73728)
    assert not any(of.finding.startswith("of like counts") for of in tried(ledger(*made)))


def of_counts(**counts):
    """VeRA and LoRA rows by their counts of parameters; VeRA's highest rank is the best by far."""
    made = []
    for row, parameters in counts.items():
        for one in small(row, "cola", (0.9, 0.91) if row == "vera_r1024" else (0.4, 0.41)):
            one["parameters"]["adapter"] = parameters
            one["label"] |= {"row": row}
            made.append(one)
    return [str(WORDS.here(of)) for of in tried(ledger(*made)) if of.finding.startswith("of like counts")]


@pytest.mark.parametrize(
    ("counts", "near"),
    [
        # 9,000 away by a factor of 1.8, and 10,000 away by one of 1.5
        ({"lora_r1": 11_000, "lora_r2": 30_000}, "lora_r2"),
        ({"lora_r1": 10_000, "lora_r2": 90_000}, "lora_r1"),  # half
        ({"lora_r1": 9_999, "lora_r2": 90_000}, None),
        ({"lora_r1": 1_000, "lora_r2": 40_000}, "lora_r2"),  # twice
        ({"lora_r1": 1_000, "lora_r2": 40_001}, None),
        ({"lora_r1": 20_000}, None),  # one rank alone
    ],
)
def test_like_counts_are_within_a_factor_of_two(counts, near):
    found = of_counts(vera=7_680, vera_r1024=20_000, **counts)
    assert [near in here for here in found] == ([True] if near else [])
    assert not of_counts(vera_r1024=20_000, **counts)  # of one rank of VeRA nothing follows


def test_equal_is_not_better():
    same = (0.5, 0.5, 0.5)
    made = [one for row in ("vera_only_d", "vera_only_b", "vera") for one in small(row, "cola", same)]
    for claim in ("d alone", "both vectors"):
        found = said(tried(ledger(*made)), claim)
        assert (found.agrees, found.holds) == (None, (False,) * 3)
    found = said(tried(ranks(vera_r1024=same, vera=same, lora=same, lora_r2=same)), "of like counts")
    assert (found.agrees, found.holds) == (None, (False,) * 3)


@pytest.mark.parametrize(("task", "border"), [("cola", 10.0), ("rte", 52.7 + 2 * (52.7 * 47.3 / 400) ** 0.5)])
def test_two_standard_errors_above_chance_are_learned(task, border):
    """Of 400 dev rows; one row that has learned is enough."""
    for above, chance in ((-0.01, True), (0.01, False)):
        made = [*small("vera", task, (0.0, 0.0)), *small("lora", task, ((border + above) / 100,) * 2)]
        for one in made:
            one["data"]["dev_rows"] = 400
        near = said(tried(ledger(*made)), "VeRA is near LoRA")
        assert ("all may be chance" in near.here) is chance
        assert near.agrees is (None if chance else False)


def measured(kind, values, of, **changes):
    cell = {"row": "vera", "model": "minilm", "task": "cola", "seed": 0}
    label = {"row": "VeRA", "model": "MiniLM", "task": "CoLA"}
    made = {
        "schema": 1,
        "id": kind,
        "kind": kind,
        "of": [{"id": i, "cell": cell, "label": label} for i in of],
        "settings": {},
    }
    return made | {"seeds": {"random": 0}, "values": values, "summary": {}} | changes


def test_measures_are_findings_too():
    vera, lora = small("vera", "cola", (0.4,))[0], small("lora", "cola", (0.4,))[0]
    d = {"layer": [0, 0, 1, 1], "site": ["query", "value"] * 2, "d": [0.1, 0.2, 0.4, 0.8], "b": [0.0] * 4}
    cosines = {
        "layer": [0, 1],
        "site": ["query"] * 2,
        "lora_vera": [0.02, 0.04],
        "lora_random": [0.001, -0.003],
        "vera_random": [0, 0],
    }
    fit = {"method": ["lora", "vera", "lora", "vera"], "rank": [1, 10, 2, 30], "parameters": [20, 20, 40, 40]}
    fit |= {"mse": [[0.7], [0.7], [0.5], [0.4]], "best": [[0.7], [0.1], [0.5], [0.1]]}
    settings = {"size": 10, "matrices": 1, "target": "normal", "steps": 1, "lr": 0.1, "optimizer": "adam"}
    measures = [
        measured("magnitude", d, [vera["id"]]),
        measured("similarity", cosines, [lora["id"], vera["id"]]),
    ]
    found = tried(
        ledger(vera, lora, measures=[*measures, measured("matrix_fit", fit, [], settings=settings)])
    )
    assert (
        said(found, "d changes more in query").here
        == "mean over layers, median of the runs: query 0.25, value 0.5"
    )
    assert said(found, "d changes more in query").agrees is None  # one run
    assert said(found, "VeRA and LoRA fit").agrees is not None
    assert not said(found, "VeRA and LoRA fit").word.startswith("**")  # of one run
    other = small("vera", "cola", (0.4,))[0] | {"id": "other"}
    other["cell"] = other["cell"] | {"seed": 1}
    turned = measured("magnitude", d | {"d": [0.9, 0.2, 1.0, 0.8]}, ["other"], id="turned")
    turned["of"][0]["cell"] = turned["of"][0]["cell"] | {"seed": 1}
    both = tried(ledger(vera, other, measures=[measures[0], turned]))
    assert said(both, "d changes more in query").agrees is None  # one run says so, the other does not
    assert said(both, "d changes more in query").holds == (False, True)
    # By 0.45 and 0.35: two runs, whose interval is 0.64 wide
    assert said(both, "d changes more in later").agrees is None
    third = vera | {"id": "third", "cell": vera["cell"] | {"seed": 2}}
    again = measured("magnitude", d, ["third"], id="again")
    again["of"][0]["cell"] = again["of"][0]["cell"] | {"seed": 2}
    three = tried(ledger(vera, other, third, measures=[measures[0], turned, again]))
    # The last layer less than the first in one run of three: the halves alone do not decide
    ends = {"layer": [0, 1, 2, 3], "site": ["query"] * 4, "d": [0.5, 0.1, 0.9, 0.4], "b": [1.0] * 4}
    ends |= {"site": ["query", "value"] * 4, "layer": [0, 0, 1, 1, 2, 2, 3, 3], "b": [1.0] * 8}
    ends |= {"d": [0.5, 0.5, 0.1, 0.1, 0.9, 0.9, 0.4, 0.4]}
    mixed = [
        measured("magnitude", ends, [of["id"]], id=f"ends-{seed}")
        for seed, of in enumerate((vera, other, third))
    ]
    for seed, of in enumerate(mixed):
        of["of"][0]["cell"] = of["of"][0]["cell"] | {"seed": seed}
    hangs = said(tried(ledger(vera, other, third, measures=mixed)), "d changes more in later")
    assert (hangs.agrees, hangs.holds) == (None, (False,) * 3)
    later = said(three, "d changes more in later")
    assert (later.agrees, later.word, later.where) == (True, "agrees", "MiniLM, CoLA, 3 runs")
    assert later.trained == "3 (paper: 80 BASE, 40 LARGE)"
    assert said(found, "d changes more in query").where == "MiniLM, CoLA, 1 run"
    assert (
        said(found, "d changes more in later").here
        == "mean of the first half of the layers, median of the runs: 0.15, of the second 0.6; of the first"
        " layer 0.15, of the last 0.6"
    )
    assert said(found, "LoRA's and VeRA's").where == "MiniLM, CoLA, 1 pair of runs"
    # Of four cosines with a random matrix, two layers each: 1.96 x sqrt((0.001^2 + 0.003^2) / 4 / 2).
    assert said(found, "LoRA's and VeRA's").here.endswith(
        "LoRA and VeRA 3.0e-02, LoRA and random -1.0e-03; 95% of such means with a random matrix lie within"
        " +-2.2e-03"
    )
    assert said(found, "LoRA's and VeRA's").agrees is None
    pairs_ = [small(row, "cola", (0.4, 0.4, 0.4)) for row in ("lora", "vera")]
    # Three pairs are 0.03 above the random one; or the third 0.02 below it, or much further above than the
    # two.
    for random, agrees in ((0.001, True), (0.05, None), (-0.05, None)):
        of = [[lora["id"], vera["id"]] for lora, vera in zip(*pairs_, strict=True)]
        three = [measured("similarity", cosines, ids_, id=str(i)) for i, ids_ in enumerate(of)]
        for seed, one in enumerate(three):
            one["of"] = [o | {"cell": o["cell"] | {"seed": seed}} for o in one["of"]]
        three[2]["values"] = cosines | {"lora_random": [random, random]}
        claim = said(tried(ledger(*pairs_[0], *pairs_[1], measures=three)), "LoRA's and VeRA's")
        assert (claim.where, claim.agrees) == ("MiniLM, CoLA, 3 pairs of runs", agrees)
        assert claim.holds == (True, True, random < 0.03)
    fitted = said(found, "VeRA and LoRA fit")
    assert (
        fitted.here
        == "of 2 counts equal at 1, VeRA's error lower at 1 (VeRA and LoRA at 20: 0.700 and 0.700, 40: 0.400"
        " and 0.500)"
    )
    assert fitted.agrees is False


def test_findings_are_a_frame_with_their_numbers_and_runs():
    lora, vera = (0.40, 0.41, 0.42), (0.36, 0.37, 0.39)
    made = [*small("vera", "cola", vera), *small("lora", "cola", lora), *small("vera_unique", "cola", vera)]
    found = frame(tried(ledger(*made))).set_index("finding")
    line = found.loc["VeRA is near LoRA with fewer parameters"]
    x, y = ([100 * best for best in bests] for bests in (vera, lora))
    by_pair = scipy.stats.ttest_rel(x, y).confidence_interval(0.9)
    unpaired = scipy.stats.ttest_ind(x, y, equal_var=False).confidence_interval(0.9)
    assert line.difference == pytest.approx(-11 / 3)
    assert (line.low, line.high) == pytest.approx((by_pair.low, by_pair.high))
    assert (line.unpaired_low, line.unpaired_high) == pytest.approx((unpaired.low, unpaired.high))
    assert (line.model, line.task, line.pairs, line.epochs) == ("minilm", "cola", 3, (3,))
    assert (line.word, line.reported, line.crossfit_word) == ("does not agree",) * 3
    assert line.ids == tuple(one["id"] for one in made[:6])
    assert found.word.iloc[1] == "undecided"  # equal by pair; unpaired from -1.9 on


def test_tries_that_no_finding_counts_are_of_runs_that_none_has(tmp_path):
    """A longer study of the same rows, whose cell is not the one that counts, and a task of no table."""
    counted = [one for row in ("vera", "lora") for one in small(row, "cola", (0.4, 0.41))]
    longer = [
        one for row in ("vera", "lora") for one in small(row, "cola", (0.5, 0.51), deviations=("long",))
    ]
    for one in longer:
        one["id"] += "-longer"
        one["config"]["train"]["epochs"] = 9
    mine = [one for row in ("vera", "lora") for one in small(row, "mine", (0.8, 0.8))]
    for one in mine:
        one["config"]["task"]["family"] = "text"
    studies = {tmp_path / "a": runs(ledger(*counted)), tmp_path / "b": runs(ledger(*counted, *longer, *mine))}
    found = tried(ledger(*counted, *longer, *mine))
    assert [(of.task, of.epochs) for of in found] == [("cola", [3])]
    tries = left_out(studies, [], found)
    assert [(study, of.task, of.epochs) for study, of in tries] == [("b", "mine", [3]), ("b", "cola", [9])]
    text = overview(found, tries=tries)
    assert (
        "| [1](#finding-1) | [b](results/b.md) | MiniLM, cola, 9 epochs, 2 seeds | VeRA r=1024 50.5" in text
    )
    assert left_out({tmp_path / "a": studies[tmp_path / "a"]}, [], found) == []


def test_a_run_without_its_number_is_no_finding():
    made = [*small("vera", "cola", (0.4,)), *small("lora", "cola", (0.4,))]
    made[0]["result"]["protocols"]["paper"]["best"] = None
    assert tried(ledger(*made)) == []


def test_the_band_of_random_cosines_holds_95_percent_of_means():
    """Of 12 layers: in 100 pairs of runs, 200 means with a random matrix."""
    random = np.random.default_rng(0).normal(0, 0.01, (100, 2, 24))
    measures = []
    for lora, vera in random.tolist():
        values = {
            "site": ["query", "value"] * 12,
            "lora_random": lora,
            "vera_random": vera,
            "lora_vera": [0.5] * 24,
        }
        values["lora_random"][1::2] = values["vera_random"][1::2] = [0.9] * 12  # of value: no part of it
        measures.append({"values": values})
    band = null_band(measures)
    assert band == pytest.approx(1.96 * 0.01 / 12**0.5, rel=0.05)
    within = np.abs(random[:, :, ::2].mean(axis=2)) <= band
    assert within.mean() == pytest.approx(0.95, abs=0.04)
    zero = {"site": ["query"], "lora_random": [None], "vera_random": [0.1]}
    assert math.isnan(null_band([{"values": zero}]))  # one number has no band


def test_a_line_for_each_finding_counts_the_pairs_that_say_so():
    near = "VeRA is near LoRA with fewer parameters"
    found = [
        made_up(near, "MiniLM, CoLA", (True, True), True),
        made_up(near, "MiniLM, RTE", (True,) * 5, None, 5),
        made_up(near, "DINOv2-small, digits", (False, False, False), False),
        made_up("VeRA | LoRA fit <b>", "10 x 10 matrices, ", (True, False), False, 5),
    ]
    for of in found:
        of.kind = "fit"
        of.numbers = {"lower": 0, "errors": []}
    text = overview(found)
    assert "with at least 5 pairs or runs" in text
    assert f"| [1](#finding-1) | {near} | 3 | 1 | 1 | 1 | 1 | 7 of 10 |" in text
    assert "| [2](#finding-2) | VeRA \\| LoRA fit &lt;b> | 1 | 0 | 1 | 0 | 1 | 1 of 2 |" in text


def test_the_page_says_what_its_words_rest_on():
    """The shares are those of tests/analysis/test_inference.py."""
    text = " ".join(overview([]).split())
    for words in (
        "Student's t on the differences, and unpaired, with Welch's t",
        "a finding that one test alone decides is undecided",
        "No correction** for how many findings are tried",
        "one-sided 95% bound of the mean difference X - Y is above -1 point",
        "Few seeds** rarely decide",
        '"does not agree" in 15% of cases with 3 pairs, 30% with 5, 58% with 10 and 89% with 20',
        "Bold** words rest on at least 5 pairs or runs",
        "pools tasks with different metrics",
        "share VeRA's runs",
        "still rising (its best epoch is the last one in most seeds)",
    ):
        assert words in text, words


def test_without_a_comparable_run_the_page_says_so():
    text = overview([])
    assert "No published run can be compared with a finding of the paper yet." in text
    assert "### Finding" not in text
    assert "{{" not in text
    assert "{%" not in text


def test_bleu_is_not_compared_with_perplexity():
    made = [
        record(row, "e2e", s, values=[3.0, 2.0], model="smollm2")
        for row in ("vera", "lora")
        for s in range(2)
    ]
    for one in made:
        one["config"]["task"]["family"] = "e2e"
        one["result"]["reported"] = "last"
        one["result"] |= of_metric("perplexity")
        if one["cell"]["row"] == "lora":
            one["texts"] = {"scores": [{"which": "last", "variant": "0.9", "epoch": 2, "bleu": 70.0}]}
        else:
            one["status"] = "diverged"
    assert tried(ledger(*made)) == []


# --- the page and the README


@pytest.fixture
def study(tmp_path, monkeypatch):
    """A published study: head, LoRA and VeRA on CoLA, two trials, and words by hand."""
    folder = tmp_path / "records" / "glue_minilm"
    folder.mkdir(parents=True)
    monkeypatch.setattr("runs.record.ledger.PUBLISHED", folder.parent)
    made = [
        *small("head", "cola", (0.1, 0.2, 0.3)),
        *small("vera", "cola", (0.41, 0.415, 0.42)),
        *small("lora", "cola", (0.41,) * 3),
    ]
    for one in made[:3]:
        one["parameters"]["adapter"] = 0
    for rate, best in ((1e-2, 0.2), (4e-2, 0.3)):
        (trial,) = small("vera", "cola", (best,), lr=rate)
        trial["config"]["task"]["holdout"] = 0.2
        trial["config"]["train"]["lr_head"] = 1e-3
        trial["id"] += "-trial"
        made.append(trial)
    for one in made:
        (folder / f"{one['id']}.json").write_text(json.dumps(one))
    (folder / "NOTES.md").write_text("Run with love.\n")
    readme = tmp_path / "README.md"
    begin, end = (mark.format("glue_minilm") for mark in (BEGIN, END))
    of_all = "\n".join(mark.format("all studies") for mark in (BEGIN, END))
    readme.write_text(f"# Mine\n{begin}\nold\n{end}\n{of_all}\nthe rest\n")
    return [f"docs={tmp_path / 'docs'}", f"readme={readme}"], tmp_path


def test_the_page_has_the_words_the_tables_the_pictures_and_the_trials(study, capsys):
    words, folder = study
    assert main([*words, "check=true"]) == 1
    assert "is not what the records give: make results" in capsys.readouterr().out
    assert not (folder / "docs").exists()
    assert main(words) == 0
    text = (folder / "docs" / "results.md").read_text()
    claim = "VeRA is near LoRA with fewer parameters"
    assert f"| [1](#finding-1) | {claim} | 1 | 1 | 0 | 0 | 0 | 3 of 3 |" in text
    assert text.count(claim) == 1
    assert "In the paper: table 2, averages: LARGE 87.8 and 87.8, BASE 85.2 and 86.6.\n" in text
    assert "| 3 (paper: 80 BASE, 40 LARGE) | agrees | agrees | R1, R2 |" in text
    ids = {
        row: " ".join(f"`{one['id']}`" for one in small(row, "cola", (0.41, 0.415, 0.42)))
        for row in ("vera", "lora")
    }
    assert f"| R1 | VeRA r=1024 | MiniLM, cola | 3 | 41.5 | 41.5 | {ids['vera']} |" in text
    assert f"| R2 | LoRA r=8 | MiniLM, cola | 3 | 41.0 | 41.0 | {ids['lora']} |" in text
    assert "Tries that no finding counts" not in text
    where = "[glue_minilm](results/glue_minilm.md)"
    assert f"| {where} | 9 | 2 | 0 | 0.0 | a CPU, 1 thread |" in text
    text = (folder / "docs" / "results" / "glue_minilm.md").read_text()
    assert "Run with love." in text
    by_seed = " ".join(f"{seed}: {one}" for seed, one in enumerate(ids["vera"].split()))
    assert f"| VeRA r=1024 | MiniLM | cola | {by_seed} |" in text
    assert "| VeRA r=1024, trial, rates 0.01 and 0.001 | MiniLM | cola | 0: `" in text
    assert "## Table 2's protocol on minilm, a model that the paper does not use\n" in text
    rates = "(0.04, 0.001): 30.0; (0.01, 0.001): 20.0"
    assert f"| MiniLM | cola | VeRA r=1024 | 3 | 10 and 1,000 | 1 of 2 | {rates} |" in text
    assert "it is their range, which covers the true median in 75% (3 seeds) of cases." in text
    assert "## Cost of each cell\n" in text
    headings = re.findall("^## (.*)$", text, re.M)
    ranked = "minilm: cola, ranks over 3 seeds"
    assert headings[1:] == ["Figures", "minilm: cells", ranked, "Cost of each cell", "Tuning", "Runs"]
    assert "RoBERTa-base: GLUE dev sets" not in text  # nothing of the paper's models is in the study
    picture = folder / "docs" / "results" / "glue_minilm_parameters_cola_minilm.svg"
    assert f"]({picture.name})" in text
    notes = [line for line in text.splitlines() if line.startswith("- ")]
    assert len(notes) == len(set(notes))
    assert picture.read_text().startswith("<svg")
    assert main([*words, "check=true"]) == 0
    picture.unlink()
    assert main([*words, "check=true"]) == 1
    assert main(words) == 0
    (folder / "records" / "glue_minilm" / "NOTES.md").write_text("Run with care.\n")
    assert main([*words, "check=true"]) == 1


def test_tries_that_no_finding_counts_are_listed(study):
    """Another setting of the rows, by the same study's or another's name, and a task of no table."""
    words, folder = study
    other = folder / "records" / "longer"
    other.mkdir()
    for row, bests in (("vera", (0.5, 0.6, 0.7)), ("lora", (0.7, 0.8, 0.9))):
        for one in [
            *small(row, "cola", bests),
            *(record(row, "reviews", s, 0.8, model="minilm") for s in (0, 1)),
        ]:
            one["id"] = f"longer-{row}-{one['cell']['task']}-{one['cell']['seed']}"
            one["config"]["train"]["epochs"] = 9
            one["deviations"] = ["9 epochs"]
            one["config"]["task"]["family"] = "text"
            (other / f"{one['id']}.json").write_text(json.dumps(one))
    assert main(words) == 0
    text = (folder / "docs" / "results.md").read_text()
    tries = text.partition("### Tries that no finding counts")[2].partition("###")[0]
    rows = [line for line in tries.splitlines() if line.startswith("| [1]")]
    assert [row.split(" | ")[1:3] for row in rows] == [
        ["[longer](results/longer.md)", "MiniLM, cola, 9 epochs, 3 seeds"],
        ["[longer](results/longer.md)", "MiniLM, reviews, 9 epochs, 2 seeds"],
    ]
    assert "mean -20.0" in rows[0]
    assert "| [1](#finding-1) | VeRA is near LoRA with fewer parameters | 1 | 1 |" in text  # the counted one


def test_the_readmes_table_stands_between_its_marks(study):
    words, folder = study
    assert main(words) == 0
    text = (folder / "README.md").read_text()
    assert text.startswith("# Mine\n")
    assert text.endswith("\nthe rest\n")
    assert "For: MiniLM, cola (3 seeds). Against: none. Undecided: 0." in text
    assert "old" not in text
    assert "| VeRA r=1024 | 43,008 | 1.00x | 41.5 +-0.5 (3/5) |" in text
    assert "| head | 0 | - | 20.0 +-10.0 (3/5) |" in text
    (folder / "README.md").write_text("# no marks\n")
    with pytest.raises(UserError, match=r"README\.md lacks the lines"):
        main(words)


def test_the_readmes_tables_of_images_texts_and_instructions():
    made = [
        record(row, "digits", seed, 0.9, 0.5 + seed / 10, model="dinov2_small")
        for row in ("vera", "lora")
        for seed in (0, 1)
    ]
    for one in made:
        one["config"]["task"]["family"] = "images"
        one["result"]["reported"] = "last"
        one["parameters"]["adapter"] = {"vera": 100, "lora": 1000}[one["cell"]["row"]]
    assert headline(runs(ledger(*made))).splitlines() == [
        "| | trainable | vs LoRA | digits |",
        "| --- | ---: | ---: | ---: |",
        "| LoRA r=8 | 1,000 | 1.00x | 55.0 +-7.1 (2/5) |",
        "| VeRA r=1024 | 100 | 0.10x | 55.0 +-7.1 (2/5) |",
    ]
    told = [
        record("vera", task, seed, values=[3.0, 2.0 + seed], model="smollm2")
        for task in ("e2e", "alpaca")
        for seed in (0, 1)
    ]
    for one in told:
        one["config"]["task"]["family"] = {"e2e": "e2e", "alpaca": "instruct"}[one["cell"]["task"]]
        one["result"]["reported"] = "last"
        one["result"] |= of_metric("perplexity")
        scores = {"bleu": 69.5, "nist": 8.1, "meteor": None, "rouge_l": 70.25, "cider": 2.345}
        one["texts"] = {"scores": [{"which": "last", "variant": "0.9", "epoch": 2, **scores}]}
    assert headline(runs(ledger(*told[:2]))).splitlines() == [
        "| | trainable | vs LoRA | BLEU | NIST | METEOR | ROUGE-L | CIDEr |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
        (
            "| VeRA r=1024 | 43,008 | - | 69.5 +-0.0 (2/3) | 8.10 +-0.00 (2/3) | - | 70.2 +-0.0 (2/3) | 2.35"
            " +-0.00 (2/3) |"
        ),
    ]
    for one in told:
        del one["texts"]
    assert (
        headline(runs(ledger(*told[2:]))).splitlines()[-1]
        == "| VeRA r=1024 | 43,008 | - | 172 KB | 2.50 +-0.71 (2/5) |"
    )


def test_a_table_without_a_number_of_ours_beside_the_counts_is_left_out(study):
    words, folder = study
    other = folder / "records" / "instructions"
    other.mkdir()
    one = record("vera", "alpaca", values=[3.0], model="smollm2")
    one["config"]["task"] |= {"family": "instruct", "train_rows": None}
    one["result"]["reported"] = "last"
    (other / f"{one['id']}.json").write_text(json.dumps(one | {"determinism": {"threads": 1}}))
    assert main(words) == 0
    text = (folder / "docs" / "results" / "instructions.md").read_text()
    assert text.startswith("# instructions\n")
    assert "MT-Bench" not in text
    assert "## smollm2: cells\n" in text


def test_a_page_has_every_setting_of_a_row_and_a_picture_one_of_them(study):
    words, folder = study
    other = folder / "records" / "rates"
    other.mkdir()
    nearest = small("vera", "cola", (0.41, 0.42, 0.43), lr=1e-2)
    further = small("vera", "cola", (0.31, 0.32, 0.33), lr=4e-2, deviations=("another rate",))
    for one in (*nearest, *further):
        (other / f"{one['id']}.json").write_text(json.dumps(one))
    assert main(words) == 0
    text = (folder / "docs" / "results" / "rates.md").read_text()
    for rate, made, median in (("0.01", nearest, "42.0"), ("0.04", further, "32.0")):
        name = f"VeRA r=1024, lr {rate}"
        assert re.search(rf"^\| {name} +\| +cola \|.*\| +{median} \|", text, re.M)
        ids = " ".join(f"{seed}: `{one['id']}`" for seed, one in enumerate(made))
        assert f"| {name} | MiniLM | cola | {ids} |" in text
    picture = (folder / "docs" / "results" / "rates_parameters_cola_minilm.svg").read_text()
    assert "42.0" in picture
    assert "32.0" not in picture
    assert "Left out: 3 runs with other settings" in text


def test_a_picture_that_no_study_has_any_more_goes(study, capsys):
    words, folder = study
    old = folder / "docs" / "results" / "gone.svg"
    old.parent.mkdir(parents=True)
    old.write_text("<svg/>")
    page = old.with_suffix(".md")
    page.write_text("# gone\n")
    assert main([*words, "check=true"]) == 1
    assert f"{page} is not what the records give" in capsys.readouterr().out
    assert main(words) == 0
    assert not old.exists()
    assert not page.exists()


def test_benchmarks_are_shown_with_their_date_and_processor(study):
    words, folder = study
    bench = folder / "docs" / "bench" / "mine"
    bench.mkdir(parents=True)
    made = {"machine": {"name": "A processor"}, "threads": 2, "date": "2026-01-02", "rows": []}
    (bench / "serving.json").write_text(json.dumps(made))
    (bench / "serving.md").write_text("| a table |\n")
    assert main(words) == 0
    text = (folder / "docs" / "results.md").read_text()
    assert "**serving, 2026-01-02, A processor, 2 threads**\n\n| a table |" in text


def test_without_published_records_it_says_so(tmp_path):
    with pytest.raises(UserError, match="no published records"):
        main([f"docs={tmp_path}"])


def test_the_readme_names_every_task_by_the_verdict_on_vera_beside_lora():
    near = "VeRA is near LoRA with fewer parameters"
    made = [
        made_up(near, "MiniLM, STS-B", (False,), False),
        made_up(near, "MiniLM, MRPC", (True,), None, 5, (5,)),
        made_up("d changes more", "MiniLM, RTE", (True,), True, 5),
    ]
    text = near_lora(made)
    assert "For: none. Against: MiniLM, STS-B (3 seeds). Undecided: 1." in text
    assert "RTE" not in text
