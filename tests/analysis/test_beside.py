"""A cell beside the paper's number: rows of another size, numbers that are only quoted, and the words for a
row."""

import statistics

import numpy as np
import pytest
from ledgers import COUNTS, apart, ledger, record, seeds

from analysis import beside, inference, tables, verdicts
from analysis.beside import Beside
from analysis.cells import Cell, cells
from analysis.paper import GLUE, IMAGES
from analysis.statistics import statistics_tables


def sized(
    row, count, tasks=tuple(GLUE), model="roberta_large", bests=(0.95, 0.951, 0.952, 0.953, 0.954), **changes
):
    made = [one for task in tasks for one in seeds(row, task, bests, model=model, **changes)]
    for one in made:
        one["parameters"]["adapter"] = count
    return made


def status_of(table, source="ours"):
    return [row[-1] for row in table.texts if row[1] == source]


# --- the size of a row


@pytest.mark.parametrize(
    ("row", "count", "size", "same"),
    [
        ("lora_fa", 393216, "3.7M", False),
        ("lora_fa", 3686400, "3.7M", True),  # rank 75
        ("lora_fa", 3649999, "3.7M", False),
        ("lora_fa", 3650001, "3.7M", True),
        ("vera", 61440, "0.061M", True),
        ("vera", 62464, "0.061M", False),  # rank 300 or so
        ("head", 0, "0", True),
        ("head", 61440, "0", False),
        ("none", 0, 0, True),
        ("adapter_p_3m", 3171840, "3M", True),
        ("lora", 159907840, "159.9M (610MB)", True),  # table 13's
    ],
)
def test_a_row_is_the_papers_where_its_count_rounds_to_the_printed_one(row, count, size, same):
    (cell,) = cells(sized(row, count, ("rte",)), 5).values()
    assert beside.same_size(cell, "roberta_large", row, size) is same


def test_a_row_is_the_papers_where_its_count_is_the_exact_one_of_that_row():
    """393,216 printed as 0.35M, of LoRA on GPT-2 medium and of nothing else."""
    (cell,) = cells(sized("lora", 393216, ("rte",)), 5).values()
    assert beside.same_size(cell, "gpt2_medium", "lora", "0.35M")
    assert not beside.same_size(cell, "gpt2_large", "lora", "0.35M")
    assert not beside.same_size(cell, "gpt2_medium", "vera", "0.35M")
    assert not beside.same_size(cell, "gpt2_medium", "lora", "0.77M")


def test_every_exact_count_is_the_printed_one_rounded_or_has_a_note():
    for of in COUNTS:
        assert beside.follows(of["printed"], of["count"]) != ("note" in of), of
    told = [
        note for model in dict.fromkeys(of["model"] for of in COUNTS) for note in beside.about_counts(model)
    ]
    assert len(told) == sum("note" in of or "chosen" in of for of in COUNTS) == 8
    assert beside.about_counts("gpt2_large") == [
        "The paper prints 0.77M for lora, whose exact count is 737,280: the printed figure does not follow"
        " from rank 4."
    ]


def test_a_row_of_another_size_is_not_judged():
    """method=lora_fa method.rank=8 on RoBERTa-large has 393,216 parameters; the paper's row has 3.7M."""
    made = ledger(*sized("lora_fa", 393216))
    table = tables.table2(made, "paper")[1]
    assert status_of(table) == ["ours, another size: not compared"]
    assert not any(row[1] == "difference" for row in table.texts)
    assert not any(note.startswith(("difference:", "reproduced n/m")) for note in table.notes)
    found = [f.verdict for f in verdicts.verdicts(made) if f.verdict.ids]
    assert [(said.word, said.difference, said.interval) for said in found] == [("other size", None, None)] * 6
    assert {row[-1] for row in statistics_tables(made)[0].texts} == {"other size"}
    fewer = tables.table2(ledger(*sized("lora_fa", 393216, ("rte",))), "paper")[1]
    assert status_of(fewer) == ["ours, another size: not compared"]
    assert not any(row[1] == "difference" for row in fewer.texts)


def test_a_row_whose_printed_count_is_off_its_formula_is_judged_and_the_table_says_so():
    made = [record("lora", "e2e", seed, model="gpt2_medium") for seed in range(5)]
    for one in made:
        score = {
            "bleu": 69 + one["cell"]["seed"] / 10,
            "nist": 8.5,
            "meteor": 46.0,
            "rouge_l": 71.0,
            "cider": 2.4,
        }
        one["texts"] = {"scores": [{"which": "last", "variant": "0.9", "epoch": 3.0, **score}]}
        assert one["parameters"]["adapter"] == 393216
    table = tables.table3(ledger(*made), "paper")[0]
    (difference,) = [row for row in table.texts if row[1] == "difference"]
    assert difference[3] == apart(([69.0, 69.1, 69.2, 69.3, 69.4], 68.9, None)) == "+0.3 +-0.2"
    assert difference[4] == "-0.19 +-0.00"  # NIST, of the same value in each seed
    assert beside.about_counts("gpt2_medium")[0] in table.notes
    assert status_of(table) == ["inside 0/5"]


def test_a_size_that_was_chosen_here_is_the_papers_only_by_what_the_paper_prints():
    """AdaLoRA's 590,112 is this project's rank, and not the paper's 0.38M; DyLoRA's rounds to 0.39M."""
    for row, count, size, same in (("adalora", 590112, "0.38M", False), ("dylora", 393216, "0.39M", True)):
        (cell,) = cells(sized(row, count, ("e2e",), model="gpt2_medium"), 3).values()
        assert beside.same_size(cell, "gpt2_medium", row, size) is same
    made = [record("adalora", "e2e", seed, model="gpt2_medium") for seed in range(5)]
    for one in made:
        scores = dict.fromkeys(("bleu", "nist", "meteor", "rouge_l", "cider"), 50.0)
        one["texts"] = {"scores": [{"which": "last", "variant": "0.9", "epoch": 3.0, **scores}]}
        one["parameters"]["adapter"] = 590112
    table = tables.table3(ledger(*made), "paper")[0]
    assert status_of(table) == ["ours, another size: not compared"]
    assert not any(row[1] == "difference" for row in table.texts)
    chosen = [note for note in table.notes if "size and rates chosen here" in note]
    assert [note.partition(":")[0] for note in chosen] == ["dylora", "adalora"]
    assert "590,112 parameters for the paper's 0.38M" in chosen[1]
    assert not any("exact count is 590,112" in note for note in table.notes)


def test_table_2_says_which_of_its_printed_counts_is_off_its_formula():
    (note,) = beside.about_counts("roberta_base")
    assert note.startswith("The paper prints 125M for full, whose exact count is 124,055,040: ")
    base, large = tables.table2(ledger(*sized("full", 124055040, model="roberta_base")), "paper")
    assert note in base.notes
    assert not any("whose exact count is" in line for line in large.notes)
    assert any(row[1] == "difference" for row in base.texts)


def test_images_and_judged_texts_of_another_size_are_not_judged_either():
    images = sized("lora", 589824, tuple(IMAGES), "vit_base")
    for one in images:
        one["config"]["task"] |= {"family": "images", "shots": 10}
        one["result"]["reported"] = "last"
    table = tables.table5(ledger(*images), "paper")[0]
    assert status_of(table) == ["ours, another size: not compared"]
    assert not any(row[1] == "difference" for row in table.texts)
    judged = judged_by_gpt_4("lora", [5.0, 5.1, 5.2, 5.3, 5.4])
    for one in judged:
        one["parameters"]["adapter"] = 40_000
    table = tables.table4(ledger(*judged), "paper")[0]
    assert status_of(table) == ["ours, another size: not compared"]
    assert not any(row[1] == "difference" for row in table.texts)
    words = {
        f.verdict.word for one in (images, judged) for f in verdicts.verdicts(ledger(*one)) if f.verdict.ids
    }
    assert words == {"other size"}


def test_a_dash_is_no_number():
    """A cell without a difference yet names no runs, or it would be a link to them."""
    table = tables.table2(ledger(*seeds("vera", "rte"), *seeds("vera", "cola", (0.65, 0.66))), "paper")[0]
    (difference,) = [row for row in table.rows if row[1].text == "difference"]
    assert [cell.ids for cell in difference if cell.text == "-"] == [()] * 6
    assert [cell for cell in difference if cell.ids] == [difference[table.header.index("RTE")]]


# --- judged texts


def judged_by_gpt_4(row, means, model="llama_7b"):
    made = [record(row, "alpaca", seed, model=model) for seed in range(len(means))]
    for one, mean in zip(made, means, strict=True):
        one["config"]["task"] |= {"family": "instruct", "train_rows": None}
        one["result"]["reported"] = "last"
        one["judged"] = [
            {
                "bench": "mt_bench",
                "judge": "gpt-4",
                "mean": mean,
                "low": mean,
                "high": mean,
                "n": 160,
                "n_valid": 160,
                "turns": {"1": mean, "2": mean},
                "answering": {
                    "answer_tokens": 1024,
                    "top_p": 1.0,
                    "top_k": None,
                    "batch": 8,
                    "without_room": 0,
                },
            }
        ]
    return made


def test_llama_13b_without_training_is_quoted_even_where_ours_is_judged():
    """Its 2.61 is a number of Zheng et al. 2023, asked with another prompt and not in 4 bit."""
    made = ledger(*judged_by_gpt_4("none", [2.6, 2.61, 2.62, 2.63, 2.64], "llama_13b"))
    table = next(table for table in tables.table4(made, "paper") if "Llama 13B" in table.title)
    lines = [row for row in table.texts if row[0] == "none" or row[1] == "difference"]
    assert [(row[1], row[3], row[-1]) for row in lines] == [
        ("paper", "2.61", "quoted"),
        ("ours", "2.62 +-0.02", "ours"),
    ]
    assert any(
        "that of Zheng et al. 2023" in note and "no difference is shown" in note for note in table.notes
    )
    (found,) = [
        f for f in verdicts.verdicts(made) if (f.table, f.model, f.row) == ("table4", "llama_13b", "none")
    ]
    assert (found.verdict.word, found.verdict.difference, found.verdict.ids) == ("quoted", None, ())
    other = next(table for table in tables.table4(made, "paper") if "Llama 7B" in table.title)
    assert not any("Zheng" in note for note in other.notes)


def test_a_judges_scores_have_two_decimals_and_their_interval():
    table = tables.table4(ledger(*judged_by_gpt_4("vera", [4.5, 4.6, 4.7, 4.8, 4.9])), "paper")[0]
    (difference,) = [row for row in table.texts if row[1] == "difference"]
    assert difference[3] == apart(([4.5, 4.6, 4.7, 4.8, 4.9], 4.77, None), decimals=2) == "-0.07 +-0.24"
    assert status_of(table) == ["inside 1/1"]


# --- the words for a row


def test_a_row_of_words_is_counted_with_what_chance_alone_gives():
    words = ["reproduced"] * 4 + ["consistent, wide"] * 3 + ["not reproduced"] * 13
    assert beside.summary(words) == "reproduced 4/20, wide 3, not 13 (1 by chance)"
    assert beside.summary(words[3:8]) == "reproduced 1/5, wide 3, not 1 (0.25 by chance)"
    assert (
        beside.summary(["inside our interval", "outside our interval", "inside our interval"]) == "inside 2/3"
    )
    assert (
        beside.summary(["reproduced", "outside our interval"])
        == "reproduced 1/1, wide 0, not 0 (0.05 by chance), inside 0/1"
    )
    assert beside.summary(["not run", "quoted", "incomplete", "other size"]) == ""


def test_words_say_what_they_mean_where_they_stand():
    assert "12% of perfect replications" in beside.VERDICTS["inside"]
    assert "5% of perfect replications" in beside.VERDICTS["reproduced"]
    assert (
        "at most the margin: 1 point (0.1 for NIST and CIDEr, 0.2 for judges)"
        in beside.VERDICTS["reproduced"]
    )
    assert beside.notes([["VeRA", "paper", "quoted"], ["", "ours", "ours, incomplete"]]) == []
    whole = beside.notes([["VeRA", "ours", "reproduced 1/2, wide 0, not 1 (0.1 by chance); mean reproduced"]])
    assert whole == [beside.VERDICTS["reproduced"], beside.VERDICTS["mean"]]


def test_the_mean_of_a_row_is_judged_where_every_cell_is():
    def one(bests, printed, spread):
        return Beside(Cell(seeds(bests=bests), 5), printed, spread)

    even = (0.783, 0.785, 0.787, 0.789, 0.791)
    far, near = one(even, 79.4, 0.3), one(even, 78.0, 0.3)
    assert (far.verdict.word, near.verdict.word) == ("not reproduced", "not reproduced")
    assert beside.mean([far, near]).word(1.0) == "reproduced"  # 0.7 below, 0.7 above
    assert beside.status([far, near]).endswith("; mean reproduced")
    values = [78.3, 78.5, 78.7, 78.9, 79.1]
    assert beside.difference_text(beside.mean([far, near]), 3) == apart(
        (values, 79.4, 0.3), (values, 78.0, 0.3), decimals=3
    )
    assert beside.mean([far]) is None
    assert beside.mean([far, one(even[:4], 78.7, 0.3)]) is None
    assert beside.status([far, one(even[:4], 78.7, 0.3)]) == "ours"


def test_fewer_seeds_than_a_verdict_needs_have_a_difference_without_an_interval():
    three = Beside(Cell(seeds(bests=(0.78, 0.79, 0.80)), 3), 78.7, 0.7)
    assert three.gap() == "+0.3"
    assert Beside(Cell(seeds(bests=(0.78, 0.79, 0.80)), 5), 78.7, 0.7).gap() == "-"
    assert three.verdict.word == "incomplete"
    six = seeds(bests=(0.785, 0.786, 0.787, 0.788, 0.789, 0.787))
    assert Beside(Cell(six, 5), 78.7, 0.3).verdict.word == "reproduced"
    six[5]["result"]["protocols"]["paper"]["best"] = None  # five have their number, and a sixth has none
    assert Beside(Cell(six, 5), 78.7, 0.3).verdict.word == "incomplete"
    by_mean = Beside(Cell(seeds(bests=(0.7, 0.78, 0.79, 0.8, 0.81)), 5), 78.7, 0.7, middle=statistics.fmean)
    assert by_mean.gap() == apart(([70.0, 78.0, 79.0, 80.0, 81.0], 78.7, 0.7), middle=statistics.fmean)


# --- LoRA's alpha at other ranks


def lora(rank, alpha, seed, best, recipe=(8, 8)):
    """recipe: its rank and alpha."""
    made = record(f"lora_r{rank}", "cola", seed, best, model="minilm")
    made["id"] += f"-{alpha}"
    made["config"]["method"] = {"kind": "lora", "rank": rank, "alpha": alpha, "label": f"LoRA r={rank}"}
    made["config"]["recipe"] = dict(zip(("rank", "alpha"), recipe, strict=True))
    made["label"] |= {"row": f"LoRA r={rank}"}
    return made


def test_two_conventions_of_alpha_are_two_rows():
    made = [lora(2, alpha, seed, best) for alpha, best in ((8, 0.1), (2, 0.2)) for seed in range(5)]
    found = cells(made, 5)
    assert {key[1]: (cell.seeds, cell.median(), cell.left_out) for key, cell in found.items()} == {
        "lora_r2": (5, 10.0, 0),
        "lora_r2_proportional": (5, 20.0, 0),
    }
    assert [cell.label for cell in found.values()] == ["LoRA r=2, alpha=8", "LoRA r=2, alpha=r"]
    table = tables.table2(ledger(*made), "paper")[2]
    assert [(row[0], row[3]) for row in table.texts] == [
        ("LoRA r=2, alpha=8", "10.0 +-0.0"),
        ("LoRA r=2, alpha=r", "20.0 +-0.0"),
    ]


@pytest.mark.parametrize(
    ("rank", "alpha", "recipe", "row", "label"),
    [
        (2, 32, (4, 32), "lora_r2", "LoRA r=2, alpha=32"),
        (2, 16, (4, 32), "lora_r2_proportional", "LoRA r=2, alpha=8r"),
        (64, 32, (64, 32), "lora_r64", "LoRA r=64"),  # the recipe's own, where the two are one
        (2, 3, (8, 8), "lora_r2", "LoRA r=2, alpha=3"),  # neither: given
    ],
)
def test_a_rows_label_says_how_alpha_came_about(rank, alpha, recipe, row, label):
    ((key, cell),) = cells([lora(rank, alpha, 0, 0.5, recipe)], 5).items()
    assert (key[1], cell.label) == (row, label)


@pytest.mark.parametrize(
    ("middle", "reachable", "beyond"), [(statistics.median, 0.65, 0.7), (statistics.fmean, 0.8, 0.9)]
)
def test_a_wide_spread_of_the_papers_keeps_a_cell_from_reproduced_whatever_ours_is(middle, reachable, beyond):
    """As the note under the tables says: of ours any spread and any number of seeds is tried."""

    def narrowest(spread):
        paper = inference.Estimate.printed(80.0, spread, 5, middle)
        ours = [
            inference.Estimate(80.0, variance, df)
            for variance in np.linspace(0, 0.5, 101)
            for df in (4, 9, 1000)
        ]
        return min(inference.difference(one, paper).half for one in ours)

    assert narrowest(beyond) > beside.MARGIN
    assert narrowest(reachable) <= beside.MARGIN
