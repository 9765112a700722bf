"""docs/results.md from small studies: findings by hand, pictures, trials, and the
README's table. What the findings of the published records and of a made ledger say is
in tests/nets/golden/findings.jsonl."""

import math
import types
from functools import cache

import numpy as np
import pandas as pd
import pytest
import scipy.stats
from ledgers import halves, ledger, of_metric, seeds

from analysis.frame import runs
from analysis.results import pages
from analysis.results.__main__ import main
from analysis.results.findings import collapsed, findings, null_band, summaries, tries
from analysis.results.pages import (
    BEGIN,
    END,
    at_end,
    forest,
    macros,
    near_lora,
    overview,
    rows_table,
)
from runs.errors import UserError
from runs.record import write_study

pytestmark = pytest.mark.properties

WORDS = macros("words.md")
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
    return findings(runs(ledger(*records)), measures)


def the(found, name="VeRA is near LoRA"):
    (one,) = [of for of in found if of["finding"].startswith(name)]
    return one


# --- findings


@pytest.mark.parametrize(
    ("vera", "differences", "word"),
    [
        ((0.4105, 0.4195, 0.44), (0.05, -0.05, 0), AGREES),
        # from +0.7 on by the lower bound, up to +2.6
        ((0.43, 0.44, 0.45), (2, 2, 1), UNDECIDED),
        # from -1.3 on, though all are near
        ((0.41, 0.42, 0.43), (0, 0, -1), UNDECIDED),
        ((0.36, 0.37, 0.42), (-5, -5, -2), NOT),  # up to -1.1
        ((0.46, 0.47, 0.48), (5, 5, 4), NOT),  # above by more than the margin
    ],
)
def test_vera_is_near_lora_by_two_one_sided_tests_of_pairs(vera, differences, word):
    lora = (0.41, 0.42, 0.44)
    made = rows("cola", vera=vera, lora=lora)
    near = the(tried(*made))
    assert near["compared"][0]["mean"].mean == pytest.approx(np.mean(differences))
    assert (near["word"], near["crossfit_word"]) == (word, word)
    assert [side["median"] for side in near["sides"]] == pytest.approx(
        [100 * vera[1], 42]
    )
    assert near["ids"] == tuple(one["id"] for one in made)
    assert (near["model"], near["task"], near["pairs"], near["epochs"]) == (
        "minilm",
        "cola",
        3,
        (3,),
    )
    assert str(WORDS.where(near)) == "MiniLM, cola, 3 epochs, 3 seeds"


def test_pairs_are_of_seeds_that_both_have_on_the_same_data_and_five_make_a_word_bold():
    made = [
        *small("vera", "cola", (0.9, 0.9, 0.4, 0.42)),
        *small("lora", "cola", (0.1, 0.1, 0.41, 0.42))[2:],
    ]
    near = the(tried(*made))
    assert (near["counts"], [side["median"] for side in near["sides"]]) == (
        (2,),
        [41.0, 41.5],
    )
    assert tried(*made[:2], *made[4:]) == []
    made[2]["data"]["dev_rows"] = 500
    one = the(tried(*made))
    assert (one["pairs"], one["agrees"]) == (1, None)  # one pair decides nothing
    five = [0.40, 0.401, 0.402, 0.403, 0.404]
    for n, word in ((4, "agrees"), (5, "**agrees**")):
        assert (
            str(WORDS.word(the(tried(*rows("cola", lora=five[:n], vera=five[:n])))))
            == word
        )


@pytest.mark.parametrize(
    ("task", "border", "chance"),
    [("cola", 10.0, 0.0), ("rte", 52.7 + 2 * (52.7 * 47.3 / 400) ** 0.5, 52.7)],
)
@pytest.mark.parametrize("other", ["lora", "vera_unique"])
def test_rows_that_may_be_chance_are_not_compared(task, border, chance, other):
    """Two standard errors above chance are learned, of 400 dev rows; one row that has
    learned is enough."""
    for above, found in ((-0.01, chance), (0.01, math.nan)):
        theirs = ((border + above) / 100,) * 2
        made = [*small("vera", task, (0.0, 0.0), 400), *small(other, task, theirs, 400)]
        name = "VeRA is near LoRA" if other == "lora" else "A and B may be shared"
        near = the(tried(*made), name)
        assert near["chance"] == pytest.approx(found, nan_ok=True)
        assert near["agrees"] is (False if math.isnan(found) else None)


def test_a_finding_that_hangs_on_how_epochs_are_chosen_is_undecided():
    """Cross-fitted, VeRA is where each half's best epoch leaves the other: at 40, not
    at the 50 of the whole."""
    made = rows("cola", vera=(0.5,) * 5, lora=(0.5,) * 5)
    assert the(tried(*made))["crossfit_word"] == AGREES
    for one in made[:5]:
        lower = 0.4 + one["cell"]["seed"] / 1000
        halves(one, (0.6, 0.5, lower), (lower, 0.5, 0.6))
    near = the(tried(*made))
    assert (near["agrees"], near["crossfit_word"], near["word"]) == (
        True,
        NOT,
        UNDECIDED,
    )
    assert near["crossfit"]["compared"][0]["mean"].mean == pytest.approx(-9.8)
    assert str(WORDS.word(near)) == "undecided (agrees by the best epoch)"


@pytest.mark.parametrize(("only_d", "agrees"), [(0.6, False), (0.5, None), (0.4, True)])
def test_both_vectors_are_better_only_where_they_beat_each(only_d, agrees):
    tried_on = rows(
        "cola", vera=(0.5,) * 3, vera_only_d=(only_d,) * 3, vera_only_b=(0.4,) * 3
    )
    assert the(tried(*tried_on), "both vectors")["agrees"] is agrees


COUNTS = {
    "vera_r1024": 16896,
    "vera": 7680,
    "lora": 73728,
    "lora_r1": 9216,
    "lora_r2": 18432,
}
HIGH, LOW = (0.50, 0.51, 0.52, 0.53, 0.54), (0.4, 0.4, 0.41, 0.42, 0.44)
TOP = (0.9,) * 5


def ranks(counts=COUNTS, **bests):
    """The finding on ranks from rows on CoLA; LoRA's alpha is 8 or, in a row that ends
    so, its rank (`proportional`)."""
    made = []
    for name, of_row in bests.items():
        row = name.removesuffix("_proportional")
        for one in small(row, "cola", of_row):
            one["id"] += name
            one["parameters"]["adapter"] = counts[row]
            if row.startswith("lora"):
                rank = int(row.partition("_r")[2] or 8)
                alpha = rank if name.endswith("_proportional") else 8
                method = {
                    "kind": "lora",
                    "rank": rank,
                    "alpha": alpha,
                    "label": f"LoRA r={rank}",
                }
                one["config"] |= {"method": method, "recipe": {"rank": 8, "alpha": 8}}
            made.append(one)
    return [one for one in tried(*made) if one["finding"].startswith("of like counts")]


@pytest.mark.parametrize(
    ("constant", "proportional", "words", "agrees", "firm"),
    [
        (LOW, LOW[:4], (True, True), True, False),
        (LOW, TOP, (True, False), None, True),
        (HIGH, HIGH, (None, None), None, True),  # equal is not above
        (LOW, None, (True, "not run"), None, True),
    ],
)
def test_ranks_are_compared_by_both_conventions_of_alpha(
    constant, proportional, words, agrees, firm
):
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
        # away by 1.8, and by 1.5
        ({"lora_r1": 11_000, "lora_r2": 30_000}, "LoRA r=2, alpha=8"),
        ({"lora_r1": 10_000, "lora_r2": 90_000}, "LoRA r=1, alpha=8"),  # half
        # less than half, more than twice
        ({"lora_r1": 9_999, "lora_r2": 40_001}, None),
        ({"lora_r1": 20_000}, None),  # one rank alone
    ],
)
def test_like_counts_are_within_a_factor_of_two(counts, near):
    bests, all_counts = (
        dict.fromkeys(counts, (0.4, 0.41)),
        {"vera": 7_680, "vera_r1024": 20_000} | counts,
    )
    found = ranks(all_counts, vera=(0.4, 0.41), vera_r1024=(0.9, 0.91), **bests)
    assert [one["compared"][0]["y"]["label"] for one in found] == (
        [near] if near else []
    )
    # of one rank of VeRA nothing follows
    assert not ranks(all_counts, vera_r1024=(0.9, 0.91), **bests)


# --- findings on measures


def test_the_band_of_random_cosines_holds_95_percent_of_means():
    """Of 12 layers: in 100 pairs of runs, 200 means with a random matrix."""
    random = np.random.default_rng(0).normal(0, 0.01, (100, 2, 12))

    def cosines(*pairs):
        return pd.concat(
            pd.DataFrame(of, dtype=float).assign(number=n) for n, of in enumerate(pairs)
        )

    band = null_band(
        cosines(
            *(
                {"lora_random": lora, "vera_random": vera}
                for lora, vera in random.tolist()
            )
        )
    )
    assert band == pytest.approx(1.96 * 0.01 / 12**0.5, rel=0.05)
    assert (np.abs(random.mean(axis=2)) <= band).mean() == pytest.approx(0.95, abs=0.04)
    # one has no band
    assert math.isnan(null_band(cosines({"lora_random": [None], "vera_random": [0.1]})))


# --- a finding over its tasks


def test_a_run_has_collapsed_that_diverged_gives_one_class_or_is_far_below_its_row():
    made = small("lora", "digits", (0.85, 0.86, 0.87, 0.55, 0.58), family="images")
    made += small("vera", "digits", (0.85, 0.86, 0.87), family="images")
    made[5]["status"] = "diverged"
    frame = runs(ledger(*made))
    for less, wanted in ((False, [3]), (True, [])):
        found = collapsed(frame.assign(number=frame.value, lower_is_better=less))
        of_lora = found[found.row == "lora"]
        assert list(of_lora[of_lora.collapsed].seed) == wanted
        assert list(found[found.row == "vera"].collapsed) == [True, False, False]
    alike = collapsed(
        frame.assign(
            number=frame.value,
            lower_is_better=False,
            one_class="the larger class is 50",
        )
    )
    assert alike.collapsed.all()


def test_a_finding_over_its_tasks_says_a_word_where_all_analyses_agree():
    """Two points below on three tasks; a collapsed run of LoRA on a fourth makes the
    plain mean wide."""
    level, noise = (
        {"cola": 0.5, "sst2": 0.8, "mrpc": 0.82, "stsb": 0.7},
        (0.001, -0.001, 0.0),
    )
    vera = [
        one
        for task, of in level.items()
        for one in small("vera", task, [of - 0.02 + n for n in noise])
    ]
    lora = [
        one
        for task, of in level.items()
        for one in small("lora", task, [of + n / 2 for n in noise])
    ]
    (near,) = summaries(tried(*vera, *lora))
    assert (near["word"], list(near["analyses"])) == (
        "below",
        ["weighted", "unweighted"],
    )
    assert near["analyses"]["weighted"].mean == pytest.approx(-2.0)
    assert near["margin"] == pytest.approx(
        max(of.margin() for of in near["analyses"].values())
    )
    assert sorted(near["tasks"]) == [f"MiniLM, {task}" for task in sorted(level)]
    (one,) = [
        of for of in lora if (of["cell"]["task"], of["cell"]["seed"]) == ("stsb", 1)
    ]
    one["result"]["protocols"]["paper"]["best"] = 0.0
    (near,) = summaries(tried(*vera, *lora))
    assert (near["word"], len(near["analyses"])) == ("depends", 4)
    assert "undecided: unweighted" in near["why"]
    assert near["analyses"]["unweighted without collapsed runs"].mean == pytest.approx(
        -2.0, abs=0.1
    )
    kinds = forest([near]).data.kind.value_counts().to_dict()
    assert kinds == {"paper": 2, "pooled": 4, "task": 4, "title": 1}


def test_tasks_at_chance_are_out_of_the_mean_and_two_tries_of_one_task_count_once():
    made = rows("cola", vera=(0.4, 0.41), lora=(0.4, 0.41)) + rows(
        "rte", vera=(0.5, 0.51), lora=(0.1, 0.1)
    )
    found = tried(*made)
    (near,) = summaries(found)
    assert (list(near["tasks"]), len(near["tries"]), near["word"]) == (
        ["MiniLM, cola"],
        2,
        "near",
    )
    again = found[0] | {
        "compared": ({**found[0]["compared"][0], "differences": [4.0, 4.0]},)
    }
    (near,) = summaries([*found, again])
    assert near["tasks"]["MiniLM, cola"].mean == pytest.approx(2.0)


def test_tries_are_of_runs_that_no_finding_of_all_runs_has(tmp_path):
    """A longer study of the same rows, whose cell is not the one that counts, and a
    task of no table."""
    counted = rows("cola", vera=(0.4, 0.41), lora=(0.4, 0.41))
    longer, mine = list[dict](), list[dict]()
    for row in ("vera", "lora"):
        longer += small(row, "cola", (0.5, 0.51), deviations=("long",))
        mine += small(row, "mine", (0.8, 0.8), family="text")
    for one in longer:
        one["id"] += "-longer"
        one["config"]["train"]["epochs"] = 9
    both = ledger(*counted, *longer, *mine)
    studies = {tmp_path / "a": runs(ledger(*counted)), tmp_path / "b": runs(both)}
    found = tries(studies, {folder: [] for folder in studies})
    of_each = [(*of["studies"], of["task"], *of["epochs"]) for of in found]
    assert of_each == [("a", "cola", 3), ("b", "mine", 3), ("b", "cola", 9)]
    assert "1. VeRA less LoRA, over 2 tasks: +0.0 (" in overview(
        found, summaries(found)
    )
    of_none = overview([], []) + near_lora([])
    assert not any(mark in of_none for mark in ("nan", "{{", "{%"))


# --- a study's rows


def test_a_studys_rows_stand_beside_vera_by_pairs_or_by_a_pooled_variance():
    bests = {
        f"row{i}": [0.7 + i / 100 + seed * (i % 3) / 500 for seed in range(3)]
        for i in range(18)
    }
    made = rows("cola", vera=(0.70, 0.71, 0.72), lora=(0.80, 0.82, 0.81), **bests)
    table, notes = rows_table(runs(ledger(*made)))
    many, lines = notes["pooled"]["cola"], {row[0]: row[5:7] for row in table.texts}
    # twenty rows of three seeds
    assert (notes["compared"], many["freedom"]) == (19, 2 * 19)
    half = scipy.stats.t.ppf(0.975, 38) * many["deviation"] * (2 / 3) ** 0.5
    assert lines["LoRA r=8"] == ["**+10.0**", f"{10 - half:+.1f} to {10 + half:+.1f}"]
    # Neither one more seed of ten rows nor a row that varies more than the others
    # changes what is pooled
    more = [small(f"row{i}", "cola", (0.7, 0.7, 0.7, 0.7))[3] for i in range(10)]
    wild = rows("cola", wild=(0.6, 0.7, 0.8))
    table, notes = rows_table(runs(ledger(*made, *more, *wild)))
    assert notes["pooled"]["cola"] == many | {"apart": ["wild"]}
    line = next(row for row in table.texts if row[0] == "wild")
    expected = scipy.stats.ttest_rel([60, 70, 80], [70, 71, 72]).confidence_interval()
    assert line[6] == f"{expected.low:+.1f} to {expected.high:+.1f}"
    few = rows("cola", vera=(0.7, 0.71, 0.72), lora=(0.69, 0.71, 0.70))
    table, notes = rows_table(runs(ledger(*few)))
    expected = scipy.stats.ttest_rel([69, 71, 70], [70, 71, 72]).confidence_interval()
    line = next(row for row in table.texts if row[0] == "LoRA r=8")
    assert line[5:7] == ["-1.0", f"{expected.low:+.1f} to {expected.high:+.1f}"]
    assert (notes["pooled"], notes["compared"], notes["ends"]) == ({}, 1, False)


def test_rows_stand_beside_vera_over_tasks_by_a_mixed_model():
    draws = np.random.default_rng(1)
    gains = {"vera": 0.0, "lora": 0.03} | {f"row{i}": 0.0 for i in range(10)}
    made, means = [], {}
    for task, level in (("cola", 0.4), ("mrpc", 0.7), ("sst2", 0.6)):
        for row, gain in gains.items():
            bests = level + gain + draws.normal(0, 0.001) + draws.normal(0, 0.001, 3)
            means[row, task] = 100 * bests.mean()
            made += small(row, task, [*bests])
    # Two rows that count for nothing: on one task alone, and with a collapsed run
    made += small("row10", "cola", (0.4, 0.4, 0.4)) + small(
        "row11", "cola", (0.4, 0.4, 0.0)
    )
    made += small("row11", "mrpc", (0.7, 0.7, 0.7)) + small(
        "row11", "sst2", (0.7, 0.7, 0.7)
    )
    table, notes = pages.over_tasks_table(rows_table(runs(ledger(*made)))[1]["like"])
    lines = {row[0]: row[1:] for row in table.texts}
    assert (notes["tasks"], notes["compared"], notes["freedom"]) == (
        ["cola", "mrpc", "sst2"],
        11,
        11 * 2,
    )
    # The same by least squares: a column for each row and for each task but the first
    names, tasks = [*gains], notes["tasks"]
    x = [
        [row == of for of in names] + [task == of for of in tasks[1:]]
        for row, task in means
    ]
    x, y = np.array(x, dtype=float), np.array([*means.values()])
    solved, squares, *_ = np.linalg.lstsq(x, y, rcond=None)
    contrast = np.zeros(x.shape[1])
    contrast[[names.index("lora"), names.index("vera")]] = 1, -1
    error = (squares[0] / 22 * contrast @ np.linalg.inv(x.T @ x) @ contrast) ** 0.5
    half = scipy.stats.t.ppf(0.975, 22) * error
    less = contrast @ solved
    interval = f"{less - half:+.1f} to {less + half:+.1f}"
    assert lines["LoRA r=8"] == [f"**{less:+.1f}**", interval, "farther"]
    others = [line for name, line in lines.items() if name != "LoRA r=8"]
    assert [("**" in line[0], line[2]) for line in others] == [(False, "near")] * 10
    # one task
    assert (
        pages.over_tasks_table(rows_table(runs(ledger(*made[:36])))[1]["like"])[0].rows
        == []
    )


@pytest.mark.parametrize(
    ("bests", "is_at_end"), [((3, 5, 4), False), ((3, 4, 5), True), ((5, 4, 3), True)]
)
@pytest.mark.parametrize("less", [False, True])
def test_a_best_rate_at_an_end_of_its_grid_is_known(bests, is_at_end, less):
    how = {
        "conf_row": "vera",
        "task": "cola",
        "model": "minilm",
        "label": "VeRA",
        "lr_head": 1e-3,
    }
    numbers = [-best if less else best for best in bests]
    trials = pd.DataFrame(
        {"lr": (1e-3, 1e-2, 1e-1), "number": numbers, "lower_is_better": less}
    ).assign(**how)
    assert at_end(types.SimpleNamespace(**how, method="vera"), trials) == is_at_end
    # another rate of the head, which fails
    beside = trials[1:2].assign(lr_head=4e-3, number=0)
    assert (
        at_end(types.SimpleNamespace(**how, method="vera"), pd.concat([trials, beside]))
        == is_at_end
    )
    # a single rate has no ends
    assert not at_end(types.SimpleNamespace(**how, method="vera"), trials[:1])


@pytest.fixture
def study(tmp_path, monkeypatch):
    """A published study: head, LoRA and VeRA on CoLA, two trials, and words by hand."""
    folder = tmp_path / "records" / "glue_minilm"
    monkeypatch.setattr("runs.record.ledger.PUBLISHED", folder.parent)
    made = rows(
        "cola",
        head=(0.1, 0.2, 0.3),
        vera=(0.41, 0.415, 0.42),
        lora=(0.41, 0.415, 0.421),
    )
    for one in made[:3]:
        one["parameters"]["adapter"] = 0
    for rate, best in ((1e-2, 0.2), (4e-2, 0.3)):
        (trial,) = small("vera", "cola", (best,), lr=rate)
        trial["config"]["task"]["holdout"] = 0.2
        trial["id"] += "-trial"
        made.append(trial)
    write_study(folder, made)
    (folder / "NOTES.md").write_text(
        "Run with love.\n\n## What would change it\n\n- More.\n\n## Details\n\nMuch.\n"
    )
    begin, end = (mark.format("glue_minilm") for mark in (BEGIN, END))
    of_all = "\n".join(mark.format("all studies") for mark in (BEGIN, END))
    (tmp_path / "README.md").write_text(
        f"# Mine\n{begin}\nold\n{end}\n{of_all}\nthe rest\n"
    )
    return [f"docs={tmp_path / 'docs'}", f"readme={tmp_path / 'README.md'}"], tmp_path


@pytest.mark.slow
@pytest.mark.usefixtures("undrawn")
def test_the_pages_have_the_words_the_table_the_pictures_and_the_runs(
    study, capsys, monkeypatch
):
    words, folder = study
    monkeypatch.setattr(pages, "others_pages", cache(pages.others_pages))
    assert main([*words, "check=true"]) == 1
    assert "is not what the records give: make results" in capsys.readouterr().out
    assert not (folder / "docs").exists()
    assert main(words) == 0
    text = (folder / "docs" / "results.md").read_text()
    assert (
        "| 1 | MiniLM, cola, 3 epochs, 3 seeds | VeRA r=1024 41.5, LoRA r=8 41.5: -0.0 "
        in text
    )
    assert "| [glue_minilm](results/glue_minilm.md) | 9 | 2 | 0.0 |" in text
    text = (folder / "docs" / "results" / "glue_minilm.md").read_text()
    order = [
        "Run with love.",
        "| VeRA r=1024^ |",
        "## What would change it",
        "Much.",
        "![",
        "Every number: ",
    ]
    assert [text.index(part) for part in order] == sorted(
        text.index(part) for part in order
    )
    picture = (
        folder / "docs" / "results" / "glue_minilm_metric_by_parameters_cola_minilm.svg"
    )
    assert f"]({picture.name})" in text
    text = (folder / "README.md").read_text()
    assert (text[:7], text[-10:], "old" in text) == ("# Mine\n", "\nthe rest\n", False)
    assert "| VeRA r=1024 | 43,008 | 1.00x | 41.5 +-0.5 (3/5) |" in text
    assert main([*words, "check=true"]) == 0
    picture.unlink()  # one that is missing, and one too many
    (gone := picture.with_name("gone.svg")).write_text("<svg/>")
    assert main([*words, "check=true"]) == 1
    printed = capsys.readouterr().out
    assert all(
        f"{path} is not what the records give" in printed for path in (picture, gone)
    )
    assert main(words) == 0
    assert (picture.exists(), gone.exists()) == (True, False)
    (folder / "README.md").write_text("# no marks\n")
    with pytest.raises(UserError, match=r"README\.md lacks the lines"):
        main(words)
    monkeypatch.setattr("runs.record.ledger.PUBLISHED", folder / "none")
    with pytest.raises(UserError, match="no published records"):
        main(words)
