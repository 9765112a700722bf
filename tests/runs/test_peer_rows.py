"""The rows of VeRA's peers: their counts and sizes, their recipes, and one budget of tuning."""

import re
from pathlib import Path

import pytest
import yaml
from tiny import save_tiny
from transformers import RobertaConfig, RobertaForSequenceClassification

from runs import methods, models, tune
from runs.config import CONF, expand
from runs.errors import UserError
from runs.identity import run_id
from runs.methods import make_method, rates_of
from runs.training.loop import Training
from runs.training.train import train

pytestmark = pytest.mark.contract


#: The counts on RoBERTa-base. Those on MiniLM are in its study's records, which tests/nets counts again.
COUNTS = {"vera": 43_008, "lora_r1": 36_864, "lora_xs_matched": 43_200, "pvera": 43_008, "randlora": 43_008}
COUNTS |= {"waveft": 43_008, "ia3": 55_296, "boft": 55_296, "oft": 46_080, "c3a": 36_864, "road": 36_864}
COUNTS |= {"psoft": 42_456, "beft": 9_216, "lokr": 43_008, "supertuning": 43_008, "hra": 36_864}
COUNTS |= {"deft": 36_864, "delora": 36_888, "hira": 36_864, "miss": 36_864, "shira": 36_864}
COUNTS |= {"peanut": 36_864, "unilora": 23_040, "unilora_matched": 43_008, "fourierft": 24_000}
COUNTS |= {"fourierft_matched": 43_008, "vblora_matched": 43_264, "nola_matched": 43_008}
COUNTS |= {"tied_lora_matched": 43_392, "vera_plus_matched": 43_008}


@pytest.fixture(scope="module")
def study():
    """A run of each row of peers_minilm."""
    return {run.row: run for run in expand(["experiment=peers_minilm", "seed=0"])}


@pytest.fixture(scope="module")
def base():
    """A run of each row of peers_base, on one task."""
    return {run.row: run for run in expand(["experiment=peers_base", "seed=0", "task=rte"])}


def count_of(run) -> int:
    """What a run's method trains, from its model's outline."""
    words = {key: run.config["model"][key] for key in ("architecture", "settings", "modality", "label")}
    outline, method = models.skeleton(words, 2, None), make_method(run.method)
    if run.row == "shira":  # which draws its entries as it is installed
        width, layers = words["architecture"]["hidden_size"], words["architecture"]["num_hidden_layers"]
        sizes = {"hidden_size": width, "num_attention_heads": 12, "intermediate_size": 8, "vocab_size": 9}
        outline = RobertaForSequenceClassification(RobertaConfig(**sizes, num_hidden_layers=1))
        method.adapt(outline)
        return layers * method.count(outline)
    method.adapt(outline)
    return method.count(outline)


@pytest.mark.slow
def test_each_row_has_its_count_near_veras(base):
    assert {row: count_of(base[row]) for row in COUNTS} == COUNTS
    far = {row for row, count in COUNTS.items() if not 0.75 < count / COUNTS["vera"] < 1.25}
    assert far == {"ia3", "boft", "beft", "unilora", "fourierft"}


@pytest.mark.slow
def test_every_row_of_both_presets_has_four_rates_over_the_same_range(study, base):
    """Where rates are to be tuned: rows of peers_base with published recipes have those."""
    grids = yaml.safe_load((CONF / "tune.yaml").read_text())
    searched = [*study.values(), *(run for run in base.values() if run.recipe.startswith("peers/"))]
    for run in searched:
        ((key, rates),) = tune.grid_of(run, grids).items()
        assert key == ("train.lr_head" if run.row == "head" else "train.lr")
        assert len(rates) == 4, run.row
        assert 60 <= float(rates[-1]) / float(rates[0]) <= 67, run.row
    published = {run.recipe.partition("/")[0] for run in base.values()} - {"peers"}
    others = {"lora_plus", "lora_xs", "unilora", "fourierft", "vblora", "vera_plus_matched"}
    assert published == {"vera", "lora", *others}
    classes = {name for group in grids["peers"].values() for name in group["rows"] if name.endswith("Config")}
    run_by = {run.config["method"].get("config_class") for run in study.values()} - {None}
    assert run_by == classes


def test_rates_by_the_row():
    """LoRA+ and VB-LoRA: as many times the run's own rate, whatever it is."""
    vblora, plus, lora = expand(["model=roberta_base", "task=rte", "method=vblora,lora_plus_r1,lora_r1"])
    assert vblora.config["train"]["lr_by"] == {"vblora_logits*": 1e-2}
    assert plus.config["train"]["lr_by"] == {"B": pytest.approx(4e-3), "bias": pytest.approx(4e-3)}
    assert (plus.config["train"]["lr"], lora.config["train"]["lr"]) == (5e-5, 5e-4)
    (run,) = expand(["method=lora_plus", "train.lr=1e-2"])
    assert run.config["train"]["lr_by"] == {"B": pytest.approx(0.2)}
    assert "lr_by" not in run.method
    (other,) = expand(["method=lora_plus", "train.lr_by={B: 5e-1}"])
    assert other.config["train"]["lr_by"] == {"B": 0.5}
    assert rates_of({"B": "2.5x", "A": 0}, 1e-2) == {"B": 0.025, "A": 0.0}
    for wrong in ("x", "-2x", "2 x", "1e400x", None):
        with pytest.raises(UserError, match=r"train\.lr_by\.B=.*or such as 16x"):
            rates_of({"B": wrong}, 1e-2)


def test_an_unknown_pattern_names_the_class_own_parameters():
    words = ["method=vblora_matched", "experiment=peers_minilm", "seed=0"]
    (run,) = expand([*words, "train.lr_by={bank: 1e-2}"])
    assert re.search(
        r"no trained parameter's name ends with 'bank'. There are: .*vblora", methods.refusal(run)
    )
    for row in ("vblora_matched", "lora_plus"):
        (run,) = expand([f"method={row}", *words[1:]])
        assert methods.refusal(run) is None


@pytest.mark.slow
@pytest.mark.parametrize(
    ("preset", "kind", "width"), [("peers_base", "roberta", 768), ("peers_minilm", "bert", 384)]
)
def test_every_row_trains_for_two_steps(preset, kind, width, glue, tmp_path):
    """On a layer of the model's own width, which the sizes are made for."""
    model = save_tiny(
        tmp_path / "model", kind, hidden_size=width, num_hidden_layers=1, num_attention_heads=12
    )
    words = [f"experiment={preset}", "task=rte", "seed=0", f"model.path={model}", "model.architecture=null"]
    words += [f"task.data_dir={glue}", "train.max_steps=2", "device=cpu", f"output={tmp_path}"]
    runs = expand([*words, *(["model.sha256=null", "task.dev_rows=null"] if kind == "bert" else [])])
    for run in runs:
        record = train(Training(run, run_id(run), lambda event: None))
        assert record["status"] == "done", run.label
        assert record["steps"] == 2
        assert record["parameters"]["adapter"] == record["parameters"]["formula"]
        assert (record["parameters"]["adapter"] > 0) == (run.row != "head")
        if run.recipe.startswith("peers/"):  # the row's part is the recipe, and nothing differs from it
            # Its rates are for reviews alone where the study is
            lacks = [words for words in record["deviations"] if words.startswith("the recipe has no lr")]
            assert [words for words in record["deviations"] if "recipe" in words] == lacks, run.label


# --- recipes that rows share


def shared(folder: Path, text: str) -> list[str]:
    """The words for a recipe of this text, which MiniLM's rows share."""
    path = folder / "recipe" / "ours" / "minilm.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return ["--config-dir", str(folder), "recipe=ours/minilm", "model=minilm", "task=reviews"]


def test_how_rates_were_chosen_is_said_of_rows_that_have_some(tmp_path):
    text = "epochs: 2\nchosen: {lr: the best of four, epochs: few}\nby_row:\n  lora: {lr: 5e-3}\n"
    text += "  adalora: {by_task: {lr: {reviews: 1e-2}}}\n  lora_r2: {rank: 2}\n"
    runs = expand([*shared(tmp_path, text), "method=lora,adalora,vera,lora_r2"])
    said = [run.config["recipe"]["chosen"] for run in runs]
    assert said == [{"lr": "the best of four", "epochs": "few"}] * 2 + [{"epochs": "few"}] * 2


def test_a_rows_part_takes_the_place_of_what_all_have(tmp_path):
    words = shared(
        tmp_path,
        "source: ours\nlr: 1e-3\nlr_head: 2e-3\nby_task: {epochs: {reviews: 5}, lr_head: {reviews: 3e-3}}\n"
        "by_row:\n  lora: {lr: 5e-3, rank: 2}\n  vera: {epochs: 7, by_task: {lr: {reviews: 9e-3}}}\n"
        "  peft:IA3Config: {lr: 4e-3, lr_head: 1e-4, lr_by: {ia3_l*: 2x}}\n",
    )
    runs = expand([*words, "method=lora,vera,peft:IA3Config,peft:OFTConfig"])
    rates = [(run.config["train"]["lr"], run.config["train"]["lr_head"]) for run in runs]
    assert rates == [(5e-3, 3e-3), (9e-3, 3e-3), (4e-3, 1e-4), (1e-3, 3e-3)]
    assert [run.config["train"]["epochs"] for run in runs] == [5, 7, 5, 5]
    assert runs[0].method["rank"] == 2
    assert runs[2].config["train"]["lr_by"] == {"ia3_l*": 8e-3}
    # A record has the recipe that its row has, and a key that is given is a deviation from that
    assert all("by_row" not in run.config["recipe"] for run in runs)
    assert [run.recipe for run in runs] == ["ours/minilm"] * 4
    (same,) = expand([*words, "method=lora", "train.lr=5e-3"])
    (other,) = expand([*words, "method=lora", "train.lr=1e-3"])
    assert (same.changed, other.changed) == ([], ["train.lr=1e-3"])


def test_published_recipes_are_those_of_the_scripts():
    """Their numbers, once more from the sources: the sum over tasks shows a slip."""
    sums = {
        "vblora": {"epochs": 465, "lr_head": 0.078},
        "unilora": {"epochs": 465, "lr_head": 0.026},
        "fourierft": {"epochs": 360, "lr_head": 0.041, "lr": 0.5, "scaling": 563.0},
    }
    for row, of_keys in sums.items():
        recipe = yaml.safe_load((CONF / "recipe" / row / "roberta_base.yaml").read_text())["by_task"]
        assert {key: pytest.approx(sum(map(float, recipe[key].values()))) for key in recipe} == of_keys
    large = expand(["model=roberta_large", "task=cola,sst2,qnli,mrpc,rte,stsb", "method=lora_xs"])
    train = [run.config["train"] for run in large]
    assert [(part["epochs"], part["warmup_ratio"]) for part in train] == [(10, 0.06)] * 3 + [(50, 0.0)] * 3
    nola = expand(["model=gpt2_medium,gpt2_large", "task=e2e", "method=nola"])
    # 500 steps of the schedule, which takes one after each micro-batch, of 8 rows and of 4
    assert [run.config["train"]["warmup_steps"] for run in nola] == [500, 125]
    plus = expand(["model=roberta_base", "task=rte", "method=vera_plus,vera_plus_matched"])
    assert [run.method["sites"] for run in plus] == [["query", "key", "value"], ["query", "value"]]
    assert [(run.method["rank"], run.config["train"]["clip"]) for run in plus] == [(1024, None), (256, None)]
    configs = expand(["model=roberta_base", "task=rte", "method=fourierft,fourierft_matched"])
    assert [run.method["config"] for run in configs] == [
        {"n_frequency": n, "scaling": 110.0} for n in (1000, 1792)
    ]
