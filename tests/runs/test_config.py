"""From words to runs: presets, recipes as the papers print them, and one clear line for whatever is wrong."""

import functools
import operator
import shutil
from pathlib import Path

import pytest
import yaml
from nets.golden import read_lines
from running import call_here, values_of
from tiers import sample

import vera
from runs.config import CONF, Files, expand, files, parts
from runs.errors import UserError

pytestmark = pytest.mark.properties

choices = Files().choices
ROOT = Path(__file__).parents[2]


def error_of(words) -> str:
    with pytest.raises(UserError) as error:
        expand(words)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_the_values_that_help_shows_are_words_that_change_nothing():
    groups = ["model=gpt2_medium", "task=e2e", "method=lora"]
    # Which a shell would have quoted
    words = [word for word in values_of(groups) if ".label=" not in word]
    assert [run.config for run in expand([*groups, *words])] == [run.config for run in expand(groups)]
    assert len(words) > 40


HOME = str(Path.home())
E2E = "model=gpt2_medium task=e2e model.path=/x"
PEFT = {"kind": "peft", "config_class": "PveraConfig", "config": {}, "sites": ["query", "value"]}
#: Words, and what is so of the last run that they make: its attributes, and values of its configuration.
MADE = [
    ("+train.lr_by.B=1e-2 train.lr_by=null", {"train.lr_by": None}),
    # The command line beats the preset; a whole number is the number that the file has, or it is another run
    ("experiment=table2_base method=vera task=rte seed=3", {"row": "vera", "task": "rte", "seed": 3}),
    ("experiment=demo train.epochs=1", {"train.epochs": 1}),
    (f"{E2E} task.length_penalty=[1] train.lr=1", {"task.length_penalty": [1.0], "train.lr": 1.0}),
    ("model=vit_base model.path=~/vit task=image_folder task.data_dir=~", {"task.data_dir": HOME}),
    # A seed of the projections is one for all runs unless they are redrawn; that of the data follows
    ("seed=0,4", {"method.projection_seed": 0, "data_seed": 4}),
    ("method=vera_redrawn seed=0,2", {"method.projection_seed": 2, "data_seed": 2, "recipe": "vera/minilm"}),
    # Alpha is the recipe's or follows the rank. SmolLM2's has rank 4 and alpha 32, on Alpaca 8 and 16
    ("method=lora method.scaling=proportional", {"method.alpha": 8, "label": "LoRA r=8"}),
    ("method=lora_r2 method.scaling=constant", {"method.alpha": 8, "label": "LoRA r=2, alpha=8"}),
    ("method=lora_r2 method.scaling=proportional", {"method.alpha": 2, "label": "LoRA r=2, alpha=r"}),
    ("method=lora_r2 method.alpha=3", {"method.alpha": 3, "label": "LoRA r=2, alpha=3"}),
    (
        "model=smollm2 task=e2e method=lora_r2 method.scaling=proportional",
        {"method.alpha": 16, "label": "LoRA r=2, alpha=8r"},
    ),
    (
        "model=smollm2 task=alpaca method=lora_r2 method.scaling=proportional",
        {"method.alpha": 4, "label": "LoRA r=2, alpha=2r"},
    ),
    # The recipe of a row is its own, that of the row that it varies, none, or the one that was asked for
    ("model=roberta_large task=rte method=lora_mnli", {"recipe": "lora_mnli/roberta_large"}),
    ("model=roberta_large task=rte method=vera_unique", {"recipe": "vera/roberta_large", "train.lr": 2e-2}),
    ("model=encoder model.path=/x task=rte method=vera_only_d", {"recipe": "defaults"}),
    ("model=roberta_base task=rte method=peft recipe=lora/roberta_base", {"recipe": "lora/roberta_base"}),
    # A word is a change where it says something else than the recipe that is on
    ("model=minilm task=mrpc method=vera_only_d train.lr=1e-3", {"changed": ["train.lr=1e-3"]}),
    ("model=minilm task=mrpc recipe=head/minilm method=vera_only_d train.lr=1e-3", {"changed": []}),
    (f"{E2E} model.settings.resid_pdrop=0.1", {"changed": ["model.settings.resid_pdrop=0.1"]}),
    # Each method of peft's is a row of its own, and its sites are in the record and in the id
    (
        "method=peft method.config_class=IA3Config",
        {"row": "peft_ia3", "method.label": "IA3", "method.sites": ["key", "value", "feed_forward_out"]},
    ),
    (
        "method=peft method.config={use_dora:true,r:4}",
        {"row": "peft_lora_r_4_use_dora_true", "method.label": "Lora r=4 use_dora=True"},
    ),
    ("method=peft method.config_class=LNTuningConfig", {"method.sites": ["norms"]}),
    ("method=peft method.config_class=BeftConfig method.sites=[query]", {"method.sites": ["query"]}),
    ("method=peft method.label=Mine method.config_class=PveraConfig", {"row": "peft_mine", "method": PEFT}),
]


@pytest.mark.parametrize(("words", "facts"), MADE)
def test_words_make_a_run(words, facts):
    run = expand(words.split())[-1]
    known = run.config | vars(run) | {"method": run.method, "label": run.label.partition(" on ")[0]}
    for name, value in facts.items():
        part, _, key = name.partition(".")
        assert repr(run.config[part][key] if key else known[part]) == repr(value), name


#: The recipes as the papers print them. The rows, tasks and seeds of each preset are in tests/nets.
BOOK = yaml.safe_load((ROOT / "analysis" / "printed" / "recipes.yaml").read_text())
TASKS = {"glue": ("sst2", "mrpc", "cola", "qnli", "rte", "stsb"), "e2e": ("e2e",)}
TASKS |= {"images": ("cifar100", "food101", "flowers102", "resisc45")}
#: By row and model: where its recipe is in BOOK.
PRINTED = {"vera roberta_base": "glue vera roberta-base", "vera roberta_large": "glue vera roberta-large"}
PRINTED |= {
    "lora_mnli roberta_large": "glue lora roberta-large",
    "lora roberta_base": "glue lora roberta-base",
}
PRINTED |= {"lora roberta_large": "glue lora roberta-large-dagger", "lora gpt2_medium": "e2e lora"}
PRINTED |= {f"vera gpt2_{size}": f"e2e vera gpt2-{size}" for size in ("medium", "large")}
for ours, theirs in {"p_3m": "p-3M", "p_800k": "p-0.8M", "h_6m": "h-6M", "h_800k": "h-0.8M"}.items():
    PRINTED[f"adapter_{ours} roberta_large"] = f"glue adapter_{theirs} roberta-large"
for of in ("head", "full", "vera", "lora"):
    PRINTED |= {f"{of} vit_{size}": f"images vit-{size} {of}" for size in ("base", "large")}
NAMES = {"batch": "effective_batch", "matrix_init": "init"}
#: What is no value of the configuration.
NONE = ("optimizer", "seeds", "report", "select", "gpus", "b_init", "train", "pretraining", "targets")


@pytest.mark.parametrize("of", sample(PRINTED, "vera roberta_base", "lora roberta_large", "vera gpt2_large"))
def test_recipes_are_what_the_papers_print(of):
    (part, *names), (row, model) = PRINTED[of].split(), of.split()
    printed = BOOK[part]["common"] | BOOK[part].get("decode", {}) | BOOK[part].get(row, {}).get("common", {})
    printed |= functools.reduce(operator.getitem, names, BOOK[part])
    if part == "glue":  # one rate, where no other is printed
        printed.setdefault("lr_head", printed["lr"])
    for i, task in enumerate(TASKS[part]):
        (run,) = expand([f"model={model}", f"method={row}", f"task={task}", "seed=0"])
        found = run.config["task"] | run.config["method"] | run.config["train"]
        found["length_penalty"] = found.get("length_penalty", [None])[0]
        assert run.recipe == f"{row}/{model}"
        for key in printed.keys() - {*NONE}:
            value = printed[key][i] if isinstance(printed[key], list) else printed[key]
            assert found[NAMES.get(key, key)] == value, (task, key)


#: A row of each recipe that rows share.
SHARED = {"peers": "pvera", "ranks": "vera"}


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("lr_head: 1e-3\nch", "lr_haed: 1e-3\nch", "lr_haed: nothing reads it. Did you mean lr_head?"),
        ("epochs: {cola", "epochs: {colla", "colla: nothing reads it. Did you mean cola?"),
        ("epochs: {cola: 5}", "epochs: {1: 5}", "1: nothing reads it."),
        ("epochs: {cola: 5}", "epochs: 5", "by_row, by_task and by_task's values are mappings"),
        ("  lr_head: on", "  lr_hed: on", "lr_hed: nothing reads it. Did you mean lr_head?"),
        ("by_task:", "by_row: {lorra: {lr: 1}}\nby_task:", "lorra: nothing reads it. Did you mean lora?"),
        ("by_task:", "by_row: {lora: {sizes: 1}}\nby_task:", "sizes: nothing reads it. Did you mean size?"),
        ("by_task:", "by_row: {lora: {by_task: {lr: {reviewz: 1}}}}\nby_task:", "reviewz: nothing reads it."),
        ("by_task:", "by_row: {lora: 3}\nby_task:", "by_row, by_task and by_task's values are mappings"),
    ],
)
def test_a_key_of_a_recipe_that_nothing_reads_is_one_clear_line(old, new, message, tmp_path, monkeypatch):
    monkeypatch.setattr(files, "CONF", Path(shutil.copytree(CONF, tmp_path / "conf")))
    file = files.CONF / "recipe" / "vera" / "minilm.yaml"
    assert old in file.read_text()
    file.write_text(file.read_text().replace(old, new))
    for words in (["method=vera"], ["method=vera_only_d"], ["method=head", "recipe=vera/minilm"]):
        assert f"recipe/vera/minilm.yaml: {message}" in error_of(words)
    assert expand(["method=lora"])  # whose recipe is whole


def test_each_value_says_where_it_comes_from():
    def sources(*words):
        shown = call_here("runs", "--cfg", "job", "sources=true", *words, check=0).stdout
        return dict(line.split(None, 1) for line in shown.splitlines() if "  " in line)

    found = sources("model=roberta_base", "task=rte", "method=vera_r64", "train.clip=null")
    assert found["train.lr=0.004"] == "conf/recipe/vera/roberta_base.yaml: by_task.lr.rte"
    assert found["train.warmup_ratio=0.06"] == "conf/recipe/vera/roberta_base.yaml: warmup_ratio"
    assert found["train.clip=null"] == "the command line"
    assert found["train.adam_beta2=0.999"] == "conf/config.yaml: ${recipe:adam_beta2,0.999}"
    assert found["method.rank=64"] == "conf/method/vera_r64.yaml"
    assert found["task.hub=nyu-mll/glue"] == "conf/shared/glue.yaml"
    found = sources("experiment=peers_minilm", "method=tied_lora_matched", "--package", "method")
    assert found["method.rank=4"] == "conf/recipe/peers/minilm.yaml: by_row.tied_lora_matched.size"
    assert all(word.startswith("method.") for word in found)


@pytest.mark.slow  # many compositions; tests/nets has every preset, with most recipes, model and task
def test_every_row_and_recipe_of_conf_composes():
    for method in choices("method"):
        (run,) = expand(["model=roberta_base", f"method={method}"])
        assert vera.make_method(**run.method)
        assert run.config["method"]["label"]
    of_presets = {line["words"].rpartition("(")[2].rstrip(")") for line in read_lines("runs.jsonl")}
    for recipe in sorted({*choices("recipe")} - of_presets):
        method, model = recipe.split("/")
        method, model = SHARED.get(method, method), model.removesuffix("_proportional")
        assert method in choices("method")
        assert model in choices("model")
        kinds = {"image": "cifar100", "text generation": "alpaca"}
        fits = kinds.get(parts(model, "vera")[0]["modality"], "rte")
        (run,) = expand([f"model={model}", f"method={method}", f"task={fits}", f"recipe={recipe}"])
        assert run.config["recipe"]["source"]


def test_a_task_of_ones_own_with_a_setting_that_is_gone_is_refused(tmp_path):
    (tmp_path / "task").mkdir()
    for key, value in (("augment", "flip"), ("bad_images", "skip")):
        file = f"defaults: [image_folder, _self_]\nname: mine\n{key}: {value}\n"
        (tmp_path / "task" / "mine.yaml").write_text(file)
        words = ["--config-dir", str(tmp_path), "task=mine", "model=dinov2_small", "task.data_dir=/x"]
        assert f"task.{key}={value}" in error_of(words)


def test_a_recipe_of_ones_own_may_have_a_rate_for_own_data(tmp_path):
    """As runs.tune prints it; under another name the same file is refused, and named where it is."""
    folder = tmp_path / "recipe" / "vera"
    folder.mkdir(parents=True)
    recipe = yaml.safe_load((CONF / "recipe" / "vera" / "minilm.yaml").read_text())
    (folder / "mine.yaml").write_text(yaml.safe_dump(recipe | {"by_task": {"lr": {"stars": 0.125}}}))
    words = ["--config-dir", str(tmp_path), "recipe=vera/mine", "task=text", "task.train_file=a.csv"]
    (run,) = expand([*words, "task.name=stars"])
    assert run.config["train"]["lr"] == 0.125
    with pytest.raises(UserError, match=r"stars: nothing reads it") as error:
        expand([*words, "task.name=moons"])
    assert str(folder / "mine.yaml") in str(error.value)


def test_where_and_how_a_run_is_done_is_in_none_of_its_words():
    words = ["method=vera", "task=rte", "train.epochs=2"]
    (run,) = expand([*words, "launcher=slurm", "launcher.partition=gpu"])
    assert run.overrides == expand(words)[0].overrides
