"""docs/results.md from small studies: findings by hand, pictures, trials, and the README's table."""

import json

import pytest
from ledgers import ledger, record, seeds

from analysis import results


def small(row, task, bests, **changes):
    made = seeds(row, task, bests, model="minilm", **changes)
    for one in made:
        one["determinism"] = {"threads": 1}
        one["result"]["metric"] = "matthews" if task == "cola" else "accuracy"
    return made


def said(found, claim):
    (one,) = [f for f in found if f.claim.startswith(claim)]
    return one


# --- findings


def test_vera_is_near_lora_by_the_medians_and_says_how_many_parameters():
    lora = small("lora", "cola", (0.40, 0.42, 0.44))
    for one in lora:
        one["parameters"]["adapter"] = 430080
    near = said(results.findings(ledger(*small("vera", "cola", (0.41, 0.42, 0.409)), *lora)), "VeRA is within a point")
    assert near.agrees
    assert near.where == "MiniLM, cola, 3 seeds"
    assert near.here == "VeRA 41.0, LoRA 42.0: -1.0, paired by seed -3.1 to +1.0; 0.10 of the parameters"
    far = said(results.findings(ledger(*small("vera", "cola", (0.41, 0.42, 0.408)), *lora)), "VeRA is within a point")
    assert far.agrees  # the median is 41.0 still
    far = said(results.findings(ledger(*small("vera", "cola", (0.40, 0.41, 0.409)), *lora)), "VeRA is within a point")
    assert (far.agrees, far.word) == (False, "**does not agree**")


def test_images_are_compared_by_their_last_epoch():
    made = [
        record(row, "digits", s, 0.9, last, model="dinov2_small")
        for row, last in (("vera", 0.5), ("lora", 0.8))
        for s in range(2)
    ]
    for one in made:
        one["config"]["task"]["family"] = "images"
    near = said(results.findings(ledger(*made)), "VeRA is within a point")
    assert near.here.startswith("VeRA 50.0, LoRA 80.0: -30.0")
    assert not near.agrees


def test_ablations_are_compared_by_their_means():
    rows = {"vera": 0.5, "vera_only_d": 0.4, "vera_only_b": 0.3, "vera_uniform": 0.6, "vera_unique": 0.505}
    rows |= {"vera_d_init_1e-7": 0.2, "vera_d_init_1": 0.3}
    found = results.findings(
        ledger(*(one for row, best in rows.items() for one in small(row, "cola", (best, best, best + 0.03))))
    )
    assert said(found, "d alone").agrees
    assert said(found, "d alone").here == "only d 41.0, only b 31.0"
    assert said(found, "both vectors").agrees
    assert not said(found, "A and B by Kaiming").agrees
    assert said(found, "A and B may be shared").agrees
    assert not said(found, "d that starts").agrees


def test_ranks_are_compared_where_counts_are_nearest():
    made = [*small("vera_r1024", "cola", (0.5,)), *small("vera_r1", "cola", (0.9,))]
    made += [*small("lora_r1", "cola", (0.4,)), *small("lora_r64", "cola", (0.6,))]
    counts = {"vera_r1024": 16896, "vera_r1": 4620, "lora_r1": 9216, "lora_r64": 589824}
    for one in made:
        one["parameters"]["adapter"] = counts[one["cell"]["row"]]
    found = said(results.findings(ledger(*made)), "of like counts")
    assert found.here == "vera_r1024 50.0 (16,896 parameters), lora_r1 40.0 (9,216 parameters)"
    assert found.agrees


def test_a_run_without_its_number_is_no_finding():
    made = [*small("vera", "cola", (0.4,)), *small("lora", "cola", (0.4,))]
    made[0]["result"]["protocols"]["paper"]["best"] = None
    assert results.findings(ledger(*made)) == []


# --- the page and the README


@pytest.fixture
def study(tmp_path, monkeypatch):
    """A published study: head, LoRA and VeRA on CoLA, two trials, and words by hand."""
    folder = tmp_path / "records" / "glue_minilm"
    folder.mkdir(parents=True)
    monkeypatch.setattr("runs.record.PUBLISHED", folder.parent)
    made = [
        *small("head", "cola", (0.1, 0.2, 0.3)),
        *small("vera", "cola", (0.4, 0.41, 0.42)),
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
    readme.write_text(f"# Mine\n{results.BEGIN}\nold\n{results.END}\nthe rest\n")
    return ["--docs", str(tmp_path / "docs"), "--readme", str(readme)], tmp_path


def test_the_page_has_the_words_the_tables_the_pictures_and_the_trials(study, capsys):
    words, folder = study
    assert results.main([*words, "--check"]) == 1
    assert "is not what the records say: make results" in capsys.readouterr().out
    assert not (folder / "docs").exists()
    assert results.main(words) == 0
    text = (folder / "docs" / "results.md").read_text()
    assert "Run with love." in text
    assert "| [glue_minilm](#glue_minilm) | 9 and 2 trials | 0 | 0.0 | a CPU, 1 thread |" in text
    assert "**Table 2's protocol on minilm, a model that the paper does not use**" in text
    assert "| VeRA r=1024 | cola | 10, 5 | (0.04, 0.001): 30.0; (0.01, 0.001): 20.0 |" in text
    assert "- params: without the classification head" in text
    assert "RoBERTa-base: GLUE dev sets" not in text  # nothing of the paper's models has run
    picture = folder / "docs" / "results" / "glue_minilm_parameters_cola_minilm.svg"
    assert f"](results/{picture.name})" in text
    assert picture.read_text().startswith("<svg")
    assert results.main([*words, "--check"]) == 0
    (folder / "records" / "glue_minilm" / "NOTES.md").write_text("Run with care.\n")
    assert results.main([*words, "--check"]) == 1


def test_the_readmes_table_stands_between_its_marks(study, capsys):
    words, folder = study
    assert results.main(words) == 0
    text = (folder / "README.md").read_text()
    assert text.startswith("# Mine\n")
    assert text.endswith("\nthe rest\n")
    assert "old" not in text
    assert "| VeRA r=1024 | 43,008 | 1.00x | 41.0 +-1.0 (3/5) |" in text
    assert "| head | 0 | - | 20.0 +-10.0 (3/5) |" in text
    (folder / "README.md").write_text("# no marks\n")
    assert results.main(words) == 2
    assert "README.md lacks the lines" in capsys.readouterr().err


def test_a_picture_that_no_study_has_any_more_goes(study):
    words, folder = study
    old = folder / "docs" / "results" / "gone.svg"
    old.parent.mkdir(parents=True)
    old.write_text("<svg/>")
    assert results.main(words) == 0
    assert not old.exists()


def test_without_published_records_it_says_so(tmp_path, capsys):
    assert results.main(["--docs", str(tmp_path)]) == 2
    assert "no published records" in capsys.readouterr().err
