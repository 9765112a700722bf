"""docs/results.md from small studies: findings by hand, pictures, trials, and the README's table. What the
findings of the published records and of a made ledger say is in tests/nets/golden/findings.jsonl."""

import json
import math
import re

import numpy as np
import pytest
import scipy.stats
from ledgers import halves, ledger, of_metric, record, seeds

from analysis.frame import runs
from analysis.results.__main__ import main
from analysis.results.finding import finding
from analysis.results.of_figures import null_band
from analysis.results.of_rows import findings, left_out
from analysis.results.readme import BEGIN, END, headline, near_lora
from analysis.results.sections import macros, overview
from runs.errors import UserError

WORDS = macros("words.md")
NEAR = "VeRA is near LoRA with fewer parameters"
AGREES, NOT, UNDECIDED = "agrees", "does not agree", "undecided"


def small(row, task, bests, dev_rows=1000, family=None, **changes):
    """A record a seed. Of ten dev rows a Matthews of 0.4 may be chance."""
    made = seeds(row, task, bests, model="minilm", **changes)
    for one in made:
        one["determinism"], one["data"]["dev_rows"] = {"threads": 1}, dev_rows
        one["config"]["task"]["family"] = family or "glue"
        one["result"] |= of_metric("matthews" if task == "cola" else "accuracy")
    return made


def rows(task, **bests):
    return [one for row, of in bests.items() for one in small(row, task, of)]


def tried(*records, measures=()):
    """The findings of some records, a mapping each."""
    return findings(runs(ledger(*records)), measures).to_dict("records")


def the(found, name="VeRA is near LoRA"):
    (one,) = [of for of in found if of["finding"].startswith(name)]
    return one


def made_up(name, where, holds, agrees, pairs=1, seeds_=(3,)):
    where = ("", "", *where.split(", "))
    numbers = {"lower": 0, "errors": []}
    return finding((name, "a table", "fit"), where, holds, agrees, pairs, counts=seeds_, numbers=numbers)


# --- findings


@pytest.mark.parametrize(
    ("vera", "differences", "word"),
    [
        ((0.43, 0.44, 0.45), (2, 2, 1), AGREES),  # from +0.3 on by pair, -0.3 unpaired
        ((0.42, 0.43, 0.44), (1, 1, 0), UNDECIDED),  # from -0.3 on by pair, -1.7 unpaired
        ((0.41, 0.42, 0.43), (0, 0, -1), UNDECIDED),  # from -1.3 on, though all are near
        ((0.36, 0.37, 0.42), (-5, -5, -2), UNDECIDED),  # up to -1.1 by pair, +0.9 unpaired
        ((0.36, 0.38, 0.39), (-5, -4, -5), NOT),  # up to -3.7, and -2.0
    ],
)
def test_vera_is_near_lora_by_bounds_of_the_mean_difference(vera, differences, word):
    lora = (0.41, 0.42, 0.44)
    made = rows("cola", vera=vera, lora=lora)
    near = the(tried(*made))
    x, y = ([100 * best for best in of] for of in (vera, lora))
    paired = scipy.stats.ttest_rel(x, y).confidence_interval(0.9)
    unpaired = scipy.stats.ttest_ind(x, y, equal_var=False).confidence_interval(0.9)
    assert near["difference"] == pytest.approx(np.mean(differences))
    assert (near["low"], near["high"]) == pytest.approx((paired.low, paired.high))
    assert (near["unpaired_low"], near["unpaired_high"]) == pytest.approx((unpaired.low, unpaired.high))
    assert (near["word"], near["reported"], near["crossfit_word"]) == (word,) * 3
    assert near["holds"] == tuple(difference >= -1 for difference in differences)
    assert [side["median"] for side in near["sides"]] == pytest.approx([100 * vera[1], 42])
    assert near["ids"] == tuple(one["id"] for one in made)
    assert (near["model"], near["task"], near["pairs"], near["epochs"]) == ("minilm", "cola", 3, (3,))
    one_sided = f"one-sided 95% bounds {paired.low:+.1f} and {paired.high:+.1f}"
    assert f"(3 pairs by seed: mean {np.mean(differences):+.1f}, {one_sided}, " in str(WORDS.here(near))
    assert str(WORDS.where(near)) == "MiniLM, cola, 3 epochs, 3 seeds"


@pytest.mark.parametrize(
    ("vera", "counts"), [((0.401, 0.4, 0.403, 0.402, 0.404), (4, 5)), ((0.3, 0.35, 0.4, 0.45, 0.45), ())]
)
def test_a_word_is_bold_from_five_pairs_on_unless_it_is_undecided(vera, counts):
    lora = (0.40, 0.401, 0.402, 0.403, 0.404)
    for n in counts:
        near = the(tried(*rows("cola", lora=lora[:n], vera=vera[:n])))
        assert str(WORDS.word(near)) == {4: "agrees", 5: "**agrees**"}[n]
    if not counts:
        near = the(tried(*rows("cola", lora=lora, vera=vera)))
        assert (near["firm"], str(WORDS.word(near))) == (True, "undecided")


def test_the_epochs_stand_beside_the_papers_and_what_was_still_rising():
    """VeRA's best epoch is the last one in two of three seeds; LoRA's in one. One epoch does not rise."""

    def of(row, task, *curves):
        return [record(row, task, s, values=v, model="minilm") for s, v in enumerate(curves)]

    vera = of("vera", "cola", (1, 2, 3), (1, 2, 3), (1, 3, 2))
    lora = of("lora", "cola", (1, 2, 3), (1, 3, 2), (3, 1, 2))
    trained = str(WORDS.trained(the(tried(*vera, *lora))))
    assert trained == "3 (paper: 80 BASE, 40 LARGE); still rising: VeRA r=1024 (2 of 3)"  # table 8's
    assert "rising" not in str(WORDS.trained(the(tried(*vera[1:], *lora))))  # one of two
    single = the(tried(*of("vera", "mrpc", [0.8]), *of("lora", "mrpc", [0.8])))
    assert str(WORDS.trained(single)) == "1 (paper: 30 BASE, 40 LARGE)"


def test_numbers_are_of_the_seeds_that_both_have_measured_on_the_same():
    made = [*small("vera", "cola", (0.9, 0.9, 0.4, 0.42)), *small("lora", "cola", (0.1, 0.1, 0.41, 0.42))[2:]]
    near = the(tried(*made))
    assert (near["counts"], [side["median"] for side in near["sides"]]) == ((2,), [41.0, 41.5])
    assert tried(*made[:2], *made[4:]) == []
    made[2]["data"]["dev_rows"] = 500
    assert the(tried(*made))["holds"] == (True,)
    made[3]["result"]["protocols"]["paper"]["best"] = None  # a run without its number
    assert tried(*made) == []


def test_one_seed_decides_nothing():
    near = the(tried(*rows("cola", vera=(0.9,), lora=(0.1,))))
    assert (near["difference"], near["agrees"]) == (80.0, None)
    assert math.isnan(near["low"])


@pytest.mark.parametrize(
    ("task", "border", "chance"), [("cola", 10.0, 0.0), ("rte", 52.7 + 2 * (52.7 * 47.3 / 400) ** 0.5, 52.7)]
)
@pytest.mark.parametrize("other", ["lora", "vera_unique"])
def test_rows_that_may_be_chance_are_not_compared(task, border, chance, other):
    """Two standard errors above chance are learned, of 400 dev rows; one row that has learned is enough."""
    for above, found in ((-0.01, chance), (0.01, math.nan)):
        made = [
            *small("vera", task, (0.0, 0.0), 400),
            *small(other, task, ((border + above) / 100,) * 2, 400),
        ]
        name = "VeRA is near LoRA" if other == "lora" else "A and B may be shared"
        near = the(tried(*made), name)
        assert near["chance"] == pytest.approx(found, nan_ok=True)
        assert near["agrees"] is (False if math.isnan(found) else None)
        assert bool(near["holds"]) is math.isnan(found)


def test_images_are_compared_by_their_last_epoch():
    made = [
        *small("vera", "digits", (0.9, 0.9), family="images"),
        *small("lora", "digits", (0.9, 0.9), family="images"),
    ]
    for one, last in zip(made, (0.48, 0.51, 0.80, 0.81), strict=True):
        one["result"]["protocols"]["paper"]["last"], one["result"]["reported"] = last, "last"
    near = the(tried(*made))
    assert [side["median"] for side in near["sides"]] == [49.5, 80.5]
    assert (near["source"][:7], near["agrees"], near["crossfit"]) == ("table 5", False, None)
    assert near["paper_epochs"] == {"": 10}


def test_texts_are_compared_by_bleu_where_both_were_decoded():
    made = [*small("vera", "e2e", (3.0, 2.9), family="e2e"), *small("lora", "e2e", (3.0, 2.9), family="e2e")]
    for one in made:
        one["result"] |= of_metric("perplexity")
    assert tried(*made) == []  # of which the paper says nothing
    for one in made[2:]:
        one["texts"] = {"scores": [{"which": "last", "variant": "0.9", "epoch": 2, "bleu": 70.0}]}
    assert tried(*made) == []  # a BLEU and a perplexity
    for one in made[:2]:
        one["texts"] = {"scores": [{"which": "last", "variant": "0.9", "epoch": 2, "bleu": 69.5}]}
    near = the(tried(*made))
    assert (near["source"][:7], near["difference"], near["agrees"]) == ("table 3", -0.5, True)
    assert near["paper_epochs"] == {"": 5}


def test_a_finding_that_hangs_on_how_epochs_are_chosen_is_undecided():
    """Cross-fitted, VeRA is where each half's best epoch leaves the other: at 40, not at the 50 of the
    whole."""
    made = rows("cola", vera=(0.5,) * 5, lora=(0.5,) * 5)
    assert the(tried(*made))["crossfit_word"] == AGREES
    for one in made[:5]:
        lower = 0.4 + one["cell"]["seed"] / 1000
        halves(one, (0.6, 0.5, lower), (lower, 0.5, 0.6))
    near = the(tried(*made))
    assert (near["reported"], near["crossfit_word"], near["word"]) == (AGREES, NOT, UNDECIDED)
    assert near["crossfit"]["difference"] == pytest.approx(-9.8)
    assert str(WORDS.word(near)) == "undecided (agrees by the best epoch)"
    assert str(WORDS.crossfit(near)).startswith("**does not agree**: VeRA r=1024 40.2, ")
    assert "| 1 | 0 | 0 | 1 | 1 | 5 of 5 |" in overview([near])


@pytest.mark.parametrize(
    ("name", "agrees", "means"),
    [
        ("d alone", True, (40.3, 30.7)),
        ("both vectors", True, (50.0, 40.3, 30.7)),
        ("A and B by Kaiming", False, (50.0, 60.0)),
        ("A and B may be shared", True, (50.0, 49.5)),
        ("d that starts at 0.1", True, (50.0, 29.7)),
        ("d that starts at 1e-7", None, (29.5, 29.7)),  # below in two seeds, above in the third
    ],
)
def test_ablations_are_compared_by_their_means_and_pairs(name, agrees, means):
    bests = {"vera": 0.5, "vera_only_d": 0.4, "vera_only_b": 0.3, "vera_uniform": 0.6, "vera_unique": 0.495}
    bests |= {"vera_d_init_1e-7": 0.295, "vera_d_init_1": 0.3}
    third = {"vera_only_d": 0.01, "vera_only_b": 0.02, "vera_d_init_1": -0.01}
    made = rows("cola", **{row: (of, of, of + third.get(row, 0)) for row, of in bests.items()})
    found = the(tried(*made), name)
    assert found["agrees"] is agrees
    assert [side["mean"] for side in found["sides"]] == pytest.approx(means, abs=0.05)
    named = zip(found["names"], means, strict=True)
    assert all(f"{word} {mean:.1f}" in str(WORDS.here(found)) for word, mean in named)


@pytest.mark.parametrize(
    ("only_d", "only_b", "agrees", "holds"),
    [
        ((0.45, 0.55, 0.4), (0.4, 0.4, 0.4), None, (True, False, True)),
        ((0.6, 0.6, 0.6), (0.4, 0.4, 0.4), False, (False,) * 3),
        ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5), None, (False,) * 3),  # equal is not better
    ],
)
def test_both_vectors_are_better_only_where_they_beat_each(only_d, only_b, agrees, holds):
    one = the(tried(*rows("cola", vera=(0.5,) * 3, vera_only_d=only_d, vera_only_b=only_b)), "both vectors")
    assert (one["agrees"], one["holds"]) == (agrees, holds)


COUNTS = {"vera_r1024": 16896, "vera": 7680, "lora": 73728, "lora_r1": 9216, "lora_r2": 18432}
HIGH, LOW, MIDDLE = (0.50, 0.51, 0.52, 0.53, 0.54), (0.4, 0.4, 0.41, 0.42, 0.44), (0.45, 0.6, 0.55, 0.5, 0.5)
TOP = (0.9,) * 5


def ranks(counts=COUNTS, **bests):
    """The finding on ranks from rows on CoLA; LoRA's alpha is 8 or, in a row that ends so, its rank
    (`proportional`)."""
    made = []
    for name, of_row in bests.items():
        row = name.removesuffix("_proportional")
        for one in small(row, "cola", of_row):
            one["id"] += name
            one["parameters"]["adapter"] = counts[row]
            if row.startswith("lora"):
                rank = int(row.partition("_r")[2] or 8)
                alpha = rank if name.endswith("_proportional") else 8
                method = {"kind": "lora", "rank": rank, "alpha": alpha, "label": f"LoRA r={rank}"}
                one["config"] |= {"method": method, "recipe": {"rank": 8, "alpha": 8}}
            made.append(one)
    return [one for one in tried(*made) if one["finding"].startswith("of like counts")]


@pytest.mark.parametrize(
    ("constant", "proportional", "words", "agrees", "firm"),
    [
        (LOW, LOW, (True, True), True, True),
        (LOW, LOW[:4], (True, True), True, False),
        (TOP, TOP, (False, False), False, True),
        (LOW, TOP, (True, False), None, True),
        (LOW, MIDDLE, (True, None), None, True),
        (HIGH, HIGH, (None, None), None, True),  # equal is not above
        (LOW, None, (True, "not run"), None, True),
        (None, LOW, ("not run", True), None, True),
    ],
)
def test_ranks_are_compared_by_both_conventions_of_alpha(constant, proportional, words, agrees, firm):
    cells = {"vera_r1024": HIGH, "vera": TOP, "lora": (0.6,) * 5}
    cells |= {"lora_r2": constant} if constant else {}
    cells |= {"lora_r2_proportional": proportional} if proportional else {}
    (found,) = ranks(**cells)
    assert tuple(of["agrees"] if of else "not run" for of in found["compared"]) == words
    assert (found["agrees"], found["firm"]) == (agrees, firm)
    assert str(WORDS.here(found)).count("not run") == words.count("not run")
    assert {of["x"]["label"] for of in found["compared"] if of} == {"vera_r1024"}


@pytest.mark.parametrize(
    ("counts", "near"),
    [
        ({"lora_r1": 11_000, "lora_r2": 30_000}, "LoRA r=2, alpha=8"),  # away by 1.8, and by 1.5
        ({"lora_r1": 10_000, "lora_r2": 90_000}, "LoRA r=1, alpha=8"),  # half
        ({"lora_r1": 9_999, "lora_r2": 90_000}, None),
        ({"lora_r1": 1_000, "lora_r2": 40_000}, "LoRA r=2, alpha=8"),  # twice
        ({"lora_r1": 1_000, "lora_r2": 40_001}, None),
        ({"lora_r1": 20_000}, None),  # one rank alone
    ],
)
def test_like_counts_are_within_a_factor_of_two(counts, near):
    bests, all_counts = dict.fromkeys(counts, (0.4, 0.41)), {"vera": 7_680, "vera_r1024": 20_000} | counts
    found = ranks(all_counts, vera=(0.4, 0.41), vera_r1024=(0.9, 0.91), **bests)
    assert [one["compared"][0]["y"]["label"] for one in found] == ([near] if near else [])
    assert not ranks(all_counts, vera_r1024=(0.9, 0.91), **bests)  # of one rank of VeRA nothing follows


# --- findings on measures


def measured(kind, values, seed, *of, **changes):
    cell = {"row": "vera", "model": "minilm", "task": "cola", "seed": seed}
    label = {"row": "VeRA", "model": "MiniLM", "task": "CoLA"}
    runs_ = [{"id": one["id"], "cell": cell, "label": label} for one in of]
    made = {"schema": 1, "id": f"{kind}-{seed}", "kind": kind, "of": runs_, "settings": {}, "values": values}
    return made | {"seeds": {"random": 0}, "summary": {}} | changes


def magnitude(query, value):
    """d of each site by layer."""
    layers = [*range(len(query)), *range(len(value))]
    sites = ["query"] * len(query) + ["value"] * len(value)
    return {"layer": layers, "site": sites, "d": [*query, *value], "b": [0.0] * len(layers)}


@pytest.mark.parametrize(
    ("name", "changes", "agrees", "holds"),
    [
        ("d changes more in query", [((0.2, 0.8), (0.1, 0.4))], None, (True,)),  # one run
        ("d changes more in query", [((0.2, 0.8), (0.1, 0.4))] * 2, True, (True, True)),
        ("d changes more in query", [((2, 8), (1, 4)), ((1, 4), (2, 8))], None, (True, False)),
        ("d changes more in later", [((0.1, 0.4), (0.2, 0.8))] * 2, True, (True, True)),
        # The last layer is less than the first: the halves alone do not decide
        ("d changes more in later", [((0.5, 0.1, 0.9, 0.4),) * 2] * 3, None, (False,) * 3),
    ],
)
def test_magnitudes_are_findings_run_by_run(name, changes, agrees, holds):
    vera = small("vera", "cola", (0.4,) * len(changes))
    measures = [measured("magnitude", magnitude(*of), s, vera[s]) for s, of in enumerate(changes)]
    found = the(tried(*vera, measures=measures), name)
    assert (found["agrees"], found["holds"], found["counts"]) == (agrees, holds, (len(changes),))
    assert found["ids"] == tuple(one["id"] for one in vera)


@pytest.mark.parametrize(("random", "agrees"), [(0.001, True), (0.05, None), (-0.05, None)])
def test_similarities_are_findings_pair_by_pair(random, agrees):
    """Three pairs are 0.03 above the random one; or the third 0.02 below it, or much further above than the
    two."""
    lora, vera = (small(row, "cola", (0.4,) * 3) for row in ("lora", "vera"))
    cosines = {"layer": [0, 1], "site": ["query"] * 2, "lora_vera": [0.02, 0.04], "vera_random": [0, 0]}
    measures = [
        measured("similarity", cosines | {"lora_random": of}, s, lora[s], vera[s])
        for s, of in enumerate(([0.001, -0.003], [0.001, -0.003], [random, random]))
    ]
    found = the(tried(*lora, *vera, measures=measures), "LoRA's and VeRA's")
    assert (found["agrees"], found["holds"]) == (agrees, (True, True, random < 0.03))
    assert found["numbers"]["lora_vera"] == pytest.approx(0.03)
    assert str(WORDS.where(found)) == "MiniLM, CoLA, 3 pairs of runs"


def test_a_fit_is_of_every_count():
    fit = {"method": ["lora", "vera", "lora", "vera"], "rank": [1, 10, 2, 30], "parameters": [20, 20, 40, 40]}
    fit |= {"mse": [[0.7], [0.7], [0.5], [0.4]], "best": [[0.7], [0.1], [0.5], [0.1]]}
    settings = {"size": 10, "matrices": 1, "target": "normal", "steps": 1, "lr": 0.1, "optimizer": "adam"}
    (found,) = tried(measures=[measured("matrix_fit", fit, 0, settings=settings)])
    assert (found["holds"], found["agrees"], found["firm"]) == ((True, False), False, False)
    assert found["numbers"] == {"lower": 1, "errors": [(20, 0.7, 0.7), (40, 0.4, 0.5)]}


def test_the_band_of_random_cosines_holds_95_percent_of_means():
    """Of 12 layers: in 100 pairs of runs, 200 means with a random matrix."""
    random = np.random.default_rng(0).normal(0, 0.01, (100, 2, 24))
    random[:, :, 1::2] = 0.9  # of value: no part of it
    sites = {"site": ["query", "value"] * 12}
    band = null_band(
        [{"values": sites | {"lora_random": lora, "vera_random": vera}} for lora, vera in random.tolist()]
    )
    assert band == pytest.approx(1.96 * 0.01 / 12**0.5, rel=0.05)
    assert (np.abs(random[:, :, ::2].mean(axis=2)) <= band).mean() == pytest.approx(0.95, abs=0.04)
    zero = {"site": ["query"], "lora_random": [None], "vera_random": [0.1]}
    assert math.isnan(null_band([{"values": zero}]))  # one number has no band


# --- the page and the README


def test_tries_that_no_finding_counts_are_of_runs_that_none_has(tmp_path):
    """A longer study of the same rows, whose cell is not the one that counts, and a task of no table."""
    counted = rows("cola", vera=(0.4, 0.41), lora=(0.4, 0.41))
    longer = [
        *small("vera", "cola", (0.5, 0.51), deviations=("long",)),
        *small("lora", "cola", (0.5, 0.51), deviations=("long",)),
    ]
    for one in longer:
        one["id"] += "-longer"
        one["config"]["train"]["epochs"] = 9
    mine = [
        *small("vera", "mine", (0.8, 0.8), family="text"),
        *small("lora", "mine", (0.8, 0.8), family="text"),
    ]
    studies = {tmp_path / "a": runs(ledger(*counted)), tmp_path / "b": runs(ledger(*counted, *longer, *mine))}
    found = findings(runs(ledger(*counted, *longer, *mine)))
    assert [*zip(found.task, found.epochs, strict=True)] == [("cola", (3,))]
    tries = left_out(studies, [], found)
    assert [(s, of["task"], of["epochs"]) for s, of in tries] == [("b", "mine", (3,)), ("b", "cola", (9,))]
    text = overview(found.to_dict("records"), tries=tries)
    assert (
        "| [1](#finding-1) | [b](results/b.md) | MiniLM, cola, 9 epochs, 2 seeds | VeRA r=1024 50.5" in text
    )
    assert left_out({tmp_path / "a": studies[tmp_path / "a"]}, [], found) == []


def test_a_line_for_each_finding_counts_the_pairs_that_say_so():
    found = [
        made_up(NEAR, "MiniLM, CoLA", (True, True), True),
        made_up(NEAR, "MiniLM, RTE", (True,) * 5, None, 5),
        made_up(NEAR, "DINOv2-small, digits", (False, False, False), False),
        made_up("VeRA | LoRA fit <b>", "10 x 10 matrices, ", (True, False), False, 5),
    ]
    text = overview(found)
    assert f"| [1](#finding-1) | {NEAR} | 3 | 1 | 1 | 1 | 1 | 7 of 10 |" in text
    assert "| [2](#finding-2) | VeRA \\| LoRA fit &lt;b> | 1 | 0 | 1 | 0 | 1 | 1 of 2 |" in text
    of_none = overview([])
    assert "No published run can be compared with a finding of the paper yet." in of_none
    assert not any(mark in of_none for mark in ("### Finding", "{{", "{%"))


def test_the_shares_on_the_page_are_those_of_the_simulation():
    """tests/analysis/test_inference.py has them."""
    text = " ".join(overview([]).split())
    assert "in 15% of cases with 3 pairs, 30% with 5, 58% with 10 and 89% with 20" in text
    assert "one-sided 95% bound of the mean difference X - Y is above -1 point" in text


@pytest.fixture
def study(tmp_path, monkeypatch):
    """A published study: head, LoRA and VeRA on CoLA, two trials, and words by hand."""
    folder = tmp_path / "records" / "glue_minilm"
    folder.mkdir(parents=True)
    monkeypatch.setattr("runs.record.ledger.PUBLISHED", folder.parent)
    made = rows("cola", head=(0.1, 0.2, 0.3), vera=(0.41, 0.415, 0.42), lora=(0.41,) * 3)
    for one in made[:3]:
        one["parameters"]["adapter"] = 0
    for rate, best in ((1e-2, 0.2), (4e-2, 0.3)):
        (trial,) = small("vera", "cola", (best,), lr=rate)
        trial["config"]["task"]["holdout"] = 0.2
        trial["config"]["train"]["lr_head"] = 1e-3
        trial["id"] += "-trial"
        made.append(trial)
    publish(folder, made)
    (folder / "NOTES.md").write_text("Run with love.\n")
    begin, end = (mark.format("glue_minilm") for mark in (BEGIN, END))
    of_all = "\n".join(mark.format("all studies") for mark in (BEGIN, END))
    (tmp_path / "README.md").write_text(f"# Mine\n{begin}\nold\n{end}\n{of_all}\nthe rest\n")
    return [f"docs={tmp_path / 'docs'}", f"readme={tmp_path / 'README.md'}"], tmp_path


def publish(folder, records):
    folder.mkdir(exist_ok=True)
    for one in records:
        (folder / f"{one['id']}.json").write_text(json.dumps(one))


def test_the_page_has_the_words_the_tables_the_pictures_and_the_trials(study, capsys):
    words, folder = study
    assert main([*words, "check=true"]) == 1
    assert "is not what the records give: make results" in capsys.readouterr().out
    assert not (folder / "docs").exists()
    assert main(words) == 0
    text = (folder / "docs" / "results.md").read_text()
    vera = " ".join(f"`{one['id']}`" for one in small("vera", "cola", (0.41, 0.415, 0.42)))
    for line in (
        f"| [1](#finding-1) | {NEAR} | 1 | 1 | 0 | 0 | 0 | 3 of 3 |",
        "| 3 (paper: 80 BASE, 40 LARGE) | agrees | agrees | R1, R2 |",
        f"| R1 | VeRA r=1024 | MiniLM, cola | 3 | 41.5 | 41.5 | {vera} |",
        "| [glue_minilm](results/glue_minilm.md) | 9 | 2 | 0 | 0.0 | a CPU, 1 thread |",
    ):
        assert line in text
    assert "Tries that no finding counts" not in text
    text = (folder / "docs" / "results" / "glue_minilm.md").read_text()
    by_seed = " ".join(f"{seed}: {one}" for seed, one in enumerate(vera.split()))
    rates = "(0.04, 0.001): 30.0; (0.01, 0.001): 20.0"
    for line in (
        "Run with love.",
        f"| VeRA r=1024 | MiniLM | cola | {by_seed} |",
        "| VeRA r=1024, trial, rates 0.01 and 0.001 | MiniLM | cola | 0: `",
        "## Table 2's protocol on minilm, a model that the paper does not use\n",
        f"| MiniLM | cola | VeRA r=1024 | 3 | 10 and 1,000 | 1 of 2 | {rates} |",
    ):
        assert line in text
    ranked = "minilm: cola, ranks over 3 seeds"
    headings = ["Figures", "minilm: cells", ranked, "Cost of each cell", "Tuning", "Runs"]
    assert re.findall("^## (.*)$", text, re.M)[1:] == headings
    notes = [line for line in text.splitlines() if line.startswith("- ")]
    assert len(notes) == len(set(notes))
    picture = folder / "docs" / "results" / "glue_minilm_parameters_cola_minilm.svg"
    assert f"]({picture.name})" in text
    assert picture.read_text().startswith("<svg")
    assert main([*words, "check=true"]) == 0
    picture.unlink()
    assert main([*words, "check=true"]) == 1
    assert main(words) == 0
    (folder / "records" / "glue_minilm" / "NOTES.md").write_text("Run with care.\n")
    assert main([*words, "check=true"]) == 1


def test_the_readmes_tables_stand_between_their_marks(study):
    words, folder = study
    assert main(words) == 0
    text = (folder / "README.md").read_text()
    assert (text[:7], text[-10:], "old" in text) == ("# Mine\n", "\nthe rest\n", False)
    assert "For: MiniLM, cola (3 seeds). Against: none. Undecided: 0." in text
    assert "| VeRA r=1024 | 43,008 | 1.00x | 41.5 +-0.5 (3/5) |" in text
    assert "| head | 0 | - | 20.0 +-10.0 (3/5) |" in text
    (folder / "README.md").write_text("# no marks\n")
    with pytest.raises(UserError, match=r"README\.md lacks the lines"):
        main(words)


SCORES = {"bleu": 69.5, "nist": 8.1, "meteor": None, "rouge_l": 70.25, "cider": 2.345}


@pytest.mark.parametrize(
    ("task", "family", "scores", "line"),
    [
        ("digits", "images", None, "1.00x | 2.5 +-0.7 (2/5) |"),
        (
            *("e2e", "e2e", SCORES),
            "1.00x | 69.5 +-0.0 (2/3) | 8.10 +-0.00 (2/3) | - | 70.2 +-0.0 (2/3) | 2.35 +-0.00 (2/3) |",
        ),
        ("alpaca", "instruct", None, "1.00x | 172 KB | 2.50 +-0.71 (2/5) |"),
    ],
)
def test_the_readmes_tables_of_images_texts_and_instructions(task, family, scores, line):
    made = [record("lora", task, seed, values=[3.0, 2.0 + seed], model="mine") for seed in (0, 1)]
    for one in made:
        one["config"]["task"]["family"] = family
        one["result"] |= of_metric("perplexity")
        one["texts"] = {
            "scores": [{"which": "last", "variant": "0.9", "epoch": 2, **scores}] if scores else []
        }
    assert headline(runs(ledger(*made))).splitlines()[-1] == f"| LoRA r=8 | 43,008 | {line}"


def test_a_page_has_every_setting_of_a_row_and_a_picture_one_of_them(study):
    words, folder = study
    nearest = small("vera", "cola", (0.41, 0.42, 0.43), lr=1e-2)
    further = small("vera", "cola", (0.31, 0.32, 0.33), lr=4e-2, deviations=("another rate",))
    publish(folder / "records" / "rates", [*nearest, *further])
    one = record("vera", "alpaca", values=[3.0], model="smollm2", determinism={"threads": 1})
    one["config"]["task"] |= {"family": "instruct", "train_rows": None}
    one["result"]["reported"] = "last"
    publish(folder / "records" / "instructions", [one])
    assert main(words) == 0
    text = (folder / "docs" / "results" / "rates.md").read_text()
    for rate, made, median in (("0.01", nearest, "42.0"), ("0.04", further, "32.0")):
        name = f"VeRA r=1024, lr {rate}"
        assert re.search(rf"^\| {name} +\| +cola \|.*\| +{median} \|", text, re.M)
        ids = " ".join(f"{seed}: `{of['id']}`" for seed, of in enumerate(made))
        assert f"| {name} | MiniLM | cola | {ids} |" in text
    picture = (folder / "docs" / "results" / "rates_parameters_cola_minilm.svg").read_text()
    assert ("42.0" in picture, "32.0" in picture) == (True, False)
    # A table without a number of ours beside the counts is left out
    text = (folder / "docs" / "results" / "instructions.md").read_text()
    assert ("MT-Bench" in text, "## smollm2: cells\n" in text) == (False, True)


def test_a_picture_that_no_study_has_any_more_goes(study, capsys):
    words, folder = study
    old = folder / "docs" / "results" / "gone.svg"
    old.parent.mkdir(parents=True)
    old.write_text("<svg/>")
    assert main([*words, "check=true"]) == 1
    assert f"{old} is not what the records give" in capsys.readouterr().out
    assert main(words) == 0
    assert not old.exists()


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
    found = [made_up(NEAR, "MiniLM, STS-B", (False,), False), made_up(NEAR, "MiniLM, MRPC", (True,), None, 5)]
    found.append(made_up("d changes more", "MiniLM, RTE", (True,), True, 5))
    text = near_lora(found)
    assert "For: none. Against: MiniLM, STS-B (3 seeds). Undecided: 1." in text
    assert "RTE" not in text
    assert near_lora(found[1:]).endswith("\nOur seeds decide that on none of 1 pair of model and task.")
