"""From words to runs: presets, recipes as the papers print them, and one clear line for whatever is wrong."""

import json
import shutil
import subprocess
import sys
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
GLUE = ["sst2", "mrpc", "cola", "qnli", "rte", "stsb"]
ROOT = Path(__file__).parents[2]


def error_of(words) -> str:
    with pytest.raises(UserError) as error:
        expand(words)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("groups", [["task=rte"], ["model=gpt2_medium", "task=e2e", "method=lora"]])
def test_the_values_that_help_shows_are_words_that_change_nothing(groups):
    # Which a shell would have quoted
    words = [word for word in values_of(groups) if ".label=" not in word]
    assert [run.config for run in expand([*groups, *words])] == [run.config for run in expand(groups)]
    assert len(words) > 40


def test_a_key_within_what_another_override_replaces_is_gone():
    assert not expand(["+train.lr_by.B=1e-2", "train.lr_by=null"])[0].config["train"]["lr_by"]


def test_a_whole_number_is_the_number_that_the_file_has():
    """Or `1` and `1.0` would be two runs."""
    base = ["model=gpt2_medium", "task=e2e", "model.path=/x"]
    one, other = (
        expand([*base, f"task.length_penalty=[{p}]", f"train.lr={p}"])[0].config for p in ("1", "1.0")
    )
    assert json.dumps(one) == json.dumps(other)


def test_lists_are_sweeps_and_the_command_line_beats_the_preset():
    runs = expand(["task=rte,mrpc", "method=vera,lora", "seed=0,1,2"])
    assert len(runs) == 12
    assert [(r.row, r.seed) for r in runs[1:4]] == [("vera", 1), ("vera", 2), ("lora", 0)]
    narrowed = expand(["experiment=table2_base", "method=vera", "task=rte", "seed=3"])
    assert [(r.row, r.task, r.seed, r.model) for r in narrowed] == [("vera", "rte", 3, "roberta_base")]
    assert expand(["experiment=demo", "train.epochs=1"])[0].config["train"]["epochs"] == 1


#: The recipes as the papers print them. The rows, tasks and seeds of each preset are in tests/nets.
BOOK = yaml.safe_load((ROOT / "analysis" / "printed" / "recipes.yaml").read_text())


@pytest.mark.slow  # 16 compositions each; test_published.py and tests/nets have the recipes of single cells
@pytest.mark.parametrize("size", ["base", "large"])
def test_image_cells_are_table_11s(size, monkeypatch):
    """Rates, rank, epochs and images as printed; what is not printed is marked as this project's choice. Each
    cell is composed once, not once for each seed."""
    composed, once = [], Files.compose
    monkeypatch.setattr(Files, "compose", lambda self, words: composed.append(words) or once(self, words))
    tasks, common = ("cifar100", "food101", "flowers102", "resisc45"), BOOK["images"]["common"]
    runs = expand([f"experiment=table5_{size}"])
    assert (len(runs), len(composed) < 16 + 5) == (80, True)  # and the preset, and what types are checked by
    for run in runs:
        train, printed = run.config["train"], BOOK["images"][f"vit-{size}"][run.row]
        for key in ("lr", "lr_head"):
            if key in printed:
                assert train[key] == printed[key][tasks.index(run.task)], run.label
        assert (train["schedule"], train["weight_decay"]) == (common["schedule"], common["weight_decay"])
        assert (train["epochs"], run.config["task"]["shots"]) == (common["epochs"], 10)
        assert run.config["method"].get("rank") == printed.get("rank")
        assert "effective_batch" in run.config["recipe"]["chosen"]
        assert not run.changed


@pytest.mark.parametrize("size", sample(["medium", "large"], "large"))
def test_e2es_cells_are_table_10s_and_table_11s_of_hu_et_al(size):
    """The recipes, GPT-2's dropouts, and how texts are decoded."""
    book = BOOK["e2e"]
    common = {key: book["common"][key] for key in ("epochs", "warmup_steps")}
    common |= {"effective_batch": 8, "weight_decay": 0.01, "schedule": "linear", "adam_eps": 1e-6}
    common |= {"decay_all": True, "clip": None, "max_length": 512}
    decoding = {"beams": 10, "length_penalty": [0.9, 0.8], "no_repeat_ngram": 4, "max_new_tokens": 64}
    decoding |= {"label_smoothing": book["common"]["label_smoothing"]}
    for run in expand([f"experiment=table3_{size}", "seed=0"]):
        train, task, method = (run.config[part] for part in ("train", "task", "method"))
        assert common.items() <= train.items()
        assert all(task[key] == value for key, value in decoding.items())
        assert run.config["model"]["settings"] == {"embd_pdrop": 0.0, "attn_pdrop": 0.0, "resid_pdrop": 0.0}
        assert run.config["keep"] == ("none" if run.row == "full" else "both")
        if run.row == "vera":
            assert (method["rank"], train["lr"]) == tuple(book["vera"][f"gpt2-{size}"].values())
        if run.row == "lora":
            own = {key: method[key] for key in ("rank", "alpha", "dropout")} | {"lr": train["lr"]}
            assert own.items() <= book["lora"].items()
            assert method["sites"] == ["query", "value"]


PAPER = BOOK["glue"]
PRINTED_OF = {
    ("vera", "roberta_base"): PAPER["vera"]["roberta-base"],
    ("vera", "roberta_large"): PAPER["vera"]["roberta-large"],
    ("lora", "roberta_base"): PAPER["lora"]["roberta-base"],
    ("lora", "roberta_large"): PAPER["lora"]["roberta-large-dagger"],
    ("lora_mnli", "roberta_large"): PAPER["lora"]["roberta-large"],
    ("adapter_p_3m", "roberta_large"): PAPER["adapter_p-3M"]["roberta-large"],
    ("adapter_p_800k", "roberta_large"): PAPER["adapter_p-0.8M"]["roberta-large"],
    ("adapter_h_6m", "roberta_large"): PAPER["adapter_h-6M"]["roberta-large"],
    ("adapter_h_800k", "roberta_large"): PAPER["adapter_h-0.8M"]["roberta-large"],
}


@pytest.mark.parametrize(
    ("row", "model"), sample(PRINTED_OF, ("vera", "roberta_base"), ("lora", "roberta_large"))
)
def test_recipes_are_what_the_papers_print(row, model):
    printed, common = PRINTED_OF[row, model], PAPER["common"]
    for i, task in enumerate(GLUE):
        (run,) = expand([f"model={model}", f"method={row}", f"task={task}"])
        train = run.config["train"]
        assert run.recipe == f"{row}/{model}"

        def of(key, column=i):
            value = printed[key]
            return value[column] if isinstance(value, list) else value

        size = "rank" if "rank" in printed else "bottleneck"
        assert run.config["method"][size] == printed[size]
        assert train["effective_batch"] == of("batch")
        assert train["epochs"] == of("epochs")
        assert train["lr"] == of("lr")
        assert train["lr_head"] == of("lr_head" if "lr_head" in printed else "lr")
        assert train["max_length"] == of("max_length")
        assert (train["warmup_ratio"], train["schedule"]) == (common["warmup_ratio"], common["schedule"])
        if row == "vera":
            assert (run.config["method"]["d_init"], run.config["method"]["init"]) == (0.1, "kaiming_uniform")
        elif row == "lora":
            assert run.config["method"]["alpha"] == printed["alpha"]


def test_the_projection_seed_is_zero_for_every_seed_unless_redrawn_and_the_data_seed_follows():
    def seeds(runs):
        return [(run.seed, run.config["method"]["projection_seed"], run.config["data_seed"]) for run in runs]

    assert seeds(expand(["seed=0,4"])) == [(0, 0, 0), (4, 0, 4)]
    redrawn = expand(["method=vera_redrawn", "seed=0,1,2"])
    assert seeds(redrawn) == [(seed, seed, seed) for seed in range(3)]
    assert redrawn[0].label == "VeRA r=256, A and B redrawn on reviews, seed 0"
    assert not {"redrawn", "scaling"} & set(redrawn[0].method)


@pytest.mark.parametrize(
    ("words", "alpha", "label"),
    [
        ("method=lora method.scaling=constant", 8, "LoRA r=8"),
        ("method=lora method.scaling=proportional", 8, "LoRA r=8"),
        ("method=lora_r2 method.scaling=constant", 8, "LoRA r=2, alpha=8"),
        ("method=lora_r2 method.scaling=proportional", 2, "LoRA r=2, alpha=r"),
        ("method=lora_r64 method.scaling=proportional", 64, "LoRA r=64, alpha=r"),
        ("method=lora_r2 method.alpha=3", 3, "LoRA r=2, alpha=3"),
        # SmolLM2's recipe has rank 4 and alpha 32, on Alpaca 8 and 16
        ("model=smollm2 task=e2e method=lora_r2 method.scaling=proportional", 16, "LoRA r=2, alpha=8r"),
        ("model=smollm2 task=alpaca method=lora_r2 method.scaling=proportional", 4, "LoRA r=2, alpha=2r"),
    ],
)
def test_alpha_is_the_recipes_or_follows_the_rank(words, alpha, label):
    (run,) = expand(words.split())
    assert (type(run.method["alpha"]), run.method["alpha"]) == (int, alpha)
    assert run.label.partition(" on ")[0] == label


#: A row of each recipe that rows share.
SHARED = {"peers": "pvera", "ranks": "vera"}


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("lr_head: 1e-3\nch", "lr_haed: 1e-3\nch", "lr_haed: nothing reads it. Did you mean lr_head?"),
        ("  epochs: {cola", "  epoch: {cola", "epoch: nothing reads it. Did you mean epochs?"),
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
    error = call_here("runs", "sources=true", check=2).stderr
    assert "sources=true are for --cfg job" in error


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


def test_a_preset_may_take_the_recipes_of_another_model():
    words = ["experiment=table2_mpnet", "task=rte", "seed=0"]
    runs = {run.row: run for run in expand([*words, "method=vera,vera_only_d,lora,head"])}
    recipes = {row: f"{row}/roberta_base" for row in ("vera", "lora", "head")}
    recipes["vera_only_d"] = "vera/roberta_base"  # by the row that it varies
    assert {row: run.recipe for row, run in runs.items()} == recipes
    assert {run.model for run in runs.values()} == {"mpnet_base"}
    assert runs["vera"].config["train"]["epochs"] == PAPER["vera"]["roberta-base"]["epochs"][4]
    assert "preset table2_mpnet has no recipe for ssf/roberta_base" in error_of([*words, "method=ssf"])
    (own,) = expand(["model=mpnet_base", "task=rte"])
    assert own.recipe == "vera/mpnet_base"


@pytest.mark.parametrize(
    ("words", "recipe"),
    [
        ("model=roberta_large task=rte method=lora_mnli", "lora_mnli/roberta_large"),  # one of its own
        (
            "model=roberta_large task=rte method=vera_unique",
            "vera/roberta_large",
        ),  # of the one it varies
        ("model=encoder model.path=/x task=rte method=vera_only_d", "defaults"),  # which has none, either
        ("model=roberta_base task=rte method=peft recipe=lora/roberta_base", "lora/roberta_base"),  # as asked
    ],
)
def test_the_recipe_of_a_row(words, recipe):
    (run,) = expand(words.split())
    assert run.recipe == recipe
    assert ("unique" not in words) or run.config["train"]["lr"] == 2e-2


def test_a_word_is_a_change_where_it_says_something_else_than_the_recipe_that_is_on():
    borrowed = ["model=minilm", "task=mrpc", "method=vera_only_d"]  # with the recipe of vera
    (plain,) = expand(borrowed)
    # Which conf/config.yaml has, and the recipe not
    same, other = f"train.lr={plain.config['train']['lr']}", "train.lr=1e-3"
    assert expand([*borrowed, same])[0].changed == []
    assert expand([*borrowed, other])[0].changed == [other]
    assert expand([*borrowed, "recipe=head/minilm", other])[0].changed == []
    of_model = "model.settings.resid_pdrop=0.1"
    (run,) = expand(["experiment=table3_medium", "method=vera", "seed=0", of_model])
    assert run.changed == [of_model]


def test_each_method_of_peft_is_a_row_of_its_own():
    (run,) = expand(["method=peft", "method.config_class=IA3Config"])
    assert (run.row, run.config["method"]["label"]) == ("peft_ia3", "IA3")
    # Resolved: they are in the record and in the id
    assert run.method["sites"] == ["key", "value", "feed_forward_out"]
    for words, sites in (
        (["method=peft"], ["query", "value"]),
        (["method=adalora"], ["query", "value"]),
        (["method=peft", "method.config_class=LNTuningConfig"], ["norms"]),
        (["method=peft", "method.config_class=BeftConfig", "method.sites=[query]"], ["query"]),
    ):
        (run,) = expand(words)
        assert run.method["sites"] == sites
        assert list(vera.make_method(**run.method).sites) == sites
    (run,) = expand(["method=peft", "method.config={use_dora: true, r: 4}"])
    assert run.row == "peft_lora_r_4_use_dora_true"
    assert run.config["method"]["label"] == "Lora r=4 use_dora=True"
    (run,) = expand(["method=peft", "method.label=Mine", "method.config_class=PveraConfig"])
    settings = {"kind": "peft", "config_class": "PveraConfig", "config": {}, "sites": ["query", "value"]}
    assert (run.row, run.method) == ("peft_mine", settings)


@pytest.mark.usefixtures("process")
def test_neither_configuration_nor_plan_nor_reading_imports_torch_or_wandb():
    modules = "runs.plan, runs.publish, runs.sweep.sweep, runs.tracking, analysis.tables"
    code = f"import sys, {modules}; print(*sys.modules.keys() & {{'torch', 'evaluate', 'wandb'}})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.split() == []


def test_a_home_folder_after_the_equals_sign_is_the_users():
    (run,) = expand(["model=vit_base", "model.path=~/vit", "task=image_folder", "task.data_dir=~/birds"])
    assert run.config["task"]["data_dir"] == str(Path.home() / "birds")
    assert run.config["model"]["path"] == str(Path.home() / "vit")


@pytest.mark.parametrize(("key", "value"), [("augment", "flip"), ("bad_images", "skip")])
def test_a_task_of_ones_own_with_a_setting_that_is_gone_is_refused(key, value, tmp_path):
    (tmp_path / "task").mkdir()
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
