"""From words to runs: the grammar of overrides, presets, recipes as the papers print
them.

What a user of Hydra types by habit works as in Hydra, or is refused in one line:
nothing is ignored."""

import contextlib
import copy
import functools
import operator
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from nets.golden import read_lines
from omegaconf import OmegaConf
from pydantic import ValidationError
from running import call_here, output_of, refused, trained, values_of
from tiers import slow_except

import runs.__main__ as main
import vera
from runs.command.advice import describe_mistake
from runs.command.errors import UserError
from runs.config import (
    CONF,
    Files,
    cells,
    expand,
    files,
    model_and_method,
    read_command,
)
from runs.config.compose import NO_RECIPE, VERSION_BASE, Composer
from runs.config.resolvers import check_recipe
from runs.config.schema import Config
from runs.machine import hashes
from runs.record.ledger import run_folder
from runs.record.override import split_seeds
from runs.run.identity import run_id

pytestmark = pytest.mark.properties

choices = Files().choices
ROOT = Path(__file__).parents[2]


def test_the_values_that_help_shows_are_words_that_change_nothing():
    groups = ["model=gpt2_medium", "task=e2e", "method=lora"]
    # Which a shell would have quoted
    words = [word for word in values_of(groups) if ".label=" not in word]
    assert [run.config for run in expand([*groups, *words])] == [
        run.config for run in expand(groups)
    ]
    assert len(words) > 40


@pytest.mark.parametrize(
    "text",
    ["7", "0,1,2", "0, 1", "range(20)", "range(5,9)", "range(5, 9)", "range(0,20,2)"],
)
def test_seeds_are_listed_as_hydra_lists_them(text):
    (override,) = OverridesParser.create().parse_overrides([f"seed={text}"])
    values = [override.value()]
    if override.is_sweep_override():
        values = [*override.sweep_iterator()]
    assert split_seeds(text) == tuple(map(str, values))


HOME = str(Path.home())
E2E = "model=gpt2_medium task=e2e model.path=/x"
PEFT = {
    "kind": "peft",
    "config_class": "PveraConfig",
    "config": {},
    "sites": ["query", "value"],
}
#: Words, and what is so of the last run that they make: its attributes, and values of
#: its configuration.
MADE = [
    ("+train.lr_by.B=1e-2 train.lr_by=null", {"train.lr_by": None}),
    # The command line beats the preset; a whole number is the number that the file has,
    # or it is another run
    (
        "experiment=table2_base method=vera task=rte seed=3",
        {"row": "vera", "task": "rte", "seed": 3},
    ),
    # Its words are what made it, without where and how it is done
    (
        "task=rte launcher=local launcher.runs_per_device=2 redo=true train.epochs=1",
        {"overrides": ["method=vera", "model=minilm", "task=rte", "train.epochs=1"]},
    ),
    (
        f"{E2E} task.length_penalty=[1] train.lr=1",
        {"task.length_penalty": [1.0], "train.lr": 1.0},
    ),
    (
        "model=vit_base model.path=~/vit task=image_folder task.data_dir=~",
        {"task.data_dir": HOME},
    ),
    # A seed of the projections is one for all runs unless they are redrawn; that of the
    # data follows
    ("seed=0,4", {"method.projection_seed": 0, "data_seed": 4}),
    (
        "method=vera_redrawn seed=0,2",
        {"method.projection_seed": 2, "data_seed": 2, "recipe": "vera/minilm"},
    ),
    # Alpha is the recipe's or follows the rank. SmolLM2's has rank 8 and alpha 16 on
    # Alpaca
    (
        "method=lora_r2 method.scaling=constant",
        {"method.alpha": 8, "label": "LoRA r=2, alpha=8"},
    ),
    (
        "model=smollm2 task=alpaca method=lora_r2 method.scaling=proportional",
        {"method.alpha": 4, "label": "LoRA r=2, alpha=2r"},
    ),
    # The recipe of a row is its own, that of the row that it varies, none, or the one
    # that was asked for
    (
        "model=roberta_large task=rte method=lora_mnli",
        {"recipe": "lora_mnli/roberta_large"},
    ),
    (
        "model=roberta_large task=rte method=vera_unique",
        {"recipe": "vera/roberta_large", "train.lr": 2e-2},
    ),
    ("model=encoder model.path=/x task=rte method=vera_only_d", {"recipe": "defaults"}),
    (
        "model=roberta_base task=rte method=peft recipe=lora/roberta_base",
        {"recipe": "lora/roberta_base"},
    ),
    # A word is a change where it says something else than the recipe that is on
    (
        "model=minilm task=mrpc method=vera_only_d train.lr=1e-3",
        {"changed": ["train.lr=1e-3"]},
    ),
    (
        "model=minilm task=mrpc recipe=head/minilm method=vera_only_d train.lr=1e-3",
        {"changed": []},
    ),
    (
        f"{E2E} model.settings.resid_pdrop=0.1",
        {"changed": ["model.settings.resid_pdrop=0.1"]},
    ),
    # Each method of peft's is a row of its own, and its sites are in the record and in
    # the id
    (
        "method=peft method.config_class=IA3Config",
        {
            "row": "peft_ia3",
            "method.label": "IA3",
            "method.sites": ["key", "value", "feed_forward_out"],
        },
    ),
    (
        "method=peft method.config={use_dora:true,r:4}",
        {
            "row": "peft_lora_r_4_use_dora_true",
            "method.label": "Lora r=4 use_dora=True",
        },
    ),
    (
        "method=peft method.label=Mine method.config_class=PveraConfig",
        {"row": "peft_mine", "method": PEFT},
    ),
]


@pytest.mark.parametrize(("words", "facts"), MADE)
def test_words_make_a_run(words, facts):
    run = expand(words.split())[-1]
    known = (
        run.config
        | vars(run)
        | {"method": run.method, "label": run.label.partition(" on ")[0]}
        | {"changed": [override.text for override in run.changed]}
    )
    for name, value in facts.items():
        part, _, key = name.partition(".")
        assert repr(run.config[part][key] if key else known[part]) == repr(value), name


#: The recipes as the papers print them. The rows, tasks and seeds of each preset are in
#: tests/nets.
BOOK = yaml.safe_load((ROOT / "analysis" / "printed" / "recipes.yaml").read_text())
TASKS = {"glue": ("sst2", "mrpc", "cola", "qnli", "rte", "stsb"), "e2e": ("e2e",)}
TASKS |= {"images": ("cifar100", "food101", "flowers102", "resisc45")}
#: By row and model: where its recipe is in BOOK.
PRINTED = {
    "vera roberta_base": "glue vera roberta-base",
    "vera roberta_large": "glue vera roberta-large",
}
PRINTED |= {
    "lora roberta_base": "glue lora roberta-base",
    "lora gpt2_medium": "e2e lora",
}
for ours, theirs in {
    "lora": "roberta-large-dagger",
    "lora_mnli": "roberta-large",
}.items():
    PRINTED[f"{ours} roberta_large"] = f"glue lora {theirs}"
PRINTED |= {
    f"vera gpt2_{size}": f"e2e vera gpt2-{size}" for size in ("medium", "large")
}
for ours, theirs in {
    "p_3m": "p-3M",
    "p_800k": "p-0.8M",
    "h_6m": "h-6M",
    "h_800k": "h-0.8M",
}.items():
    PRINTED[f"adapter_{ours} roberta_large"] = f"glue adapter_{theirs} roberta-large"
for of in ("head", "full", "vera", "lora"):
    PRINTED |= {
        f"{of} vit_{size}": f"images vit-{size} {of}" for size in ("base", "large")
    }
NAMES = {"batch": "effective_batch", "matrix_init": "init"}
#: What is no value of the configuration.
NONE = (
    "optimizer",
    "seeds",
    "report",
    "select",
    "gpus",
    "b_init",
    "train",
    "pretraining",
    "targets",
)


@pytest.mark.parametrize(
    "of",
    slow_except(PRINTED, "vera roberta_base", "lora roberta_large", "vera gpt2_large"),
)
def test_recipes_are_what_the_papers_print(of):
    (part, *names), (row, model) = PRINTED[of].split(), of.split()
    printed = (
        BOOK[part]["common"]
        | BOOK[part].get("decode", {})
        | BOOK[part].get(row, {}).get("common", {})
    )
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
SHARED = {
    "metamath_peft": "lora",
    "peers": "pvera",
    "ranks": "vera",
    "sums_digit": "lora",
}
MINILM = CONF / "recipe" / "vera" / "minilm.yaml"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "lr_head: 1e-3\nch",
            "lr_haed: 1e-3\nch",
            "lr_haed: nothing reads it. Did you mean lr_head?",
        ),
        (
            "epochs: {cola",
            "epochs: {colla",
            "colla: nothing reads it. Did you mean cola?",
        ),
        ("epochs: {cola: 5}", "epochs: {1: 5}", "1: nothing reads it."),
        (
            "epochs: {cola: 5}",
            "epochs: 5",
            "by_row, by_task and by_task's values are mappings",
        ),
        (
            "  lr_head: on",
            "  lr_hed: on",
            "lr_hed: nothing reads it. Did you mean lr_head?",
        ),
        (
            "by_task:",
            "by_row: {lorra: {lr: 1}}\nby_task:",
            "lorra: nothing reads it. Did you mean lora?",
        ),
        (
            "by_task:",
            "by_row: {lora: {sizes: 1}}\nby_task:",
            "sizes: nothing reads it. Did you mean size?",
        ),
        (
            "by_task:",
            "by_row: {lora: {by_task: {lr: {reviewz: 1}}}}\nby_task:",
            "reviewz: nothing reads it.",
        ),
        (
            "by_task:",
            "by_row: {lora: 3}\nby_task:",
            "by_row, by_task and by_task's values are mappings",
        ),
    ],
)
def test_a_key_of_a_recipe_that_nothing_reads_is_one_clear_line(old, new, message):
    text = MINILM.read_text()
    assert old in text
    with refused(f"{MINILM}: {message}"):
        recipe = yaml.safe_load(text.replace(old, new))
        check_recipe(recipe, MINILM, "reviews", Files())


def test_a_recipe_is_checked_however_it_is_chosen(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "CONF", Path(shutil.copytree(CONF, tmp_path / "conf")))
    file = tmp_path / "conf" / MINILM.relative_to(CONF)
    file.write_text(file.read_text().replace("\nlr_head:", "\nlr_haed:"))
    for words in (
        ["method=vera"],
        ["method=vera_only_d"],
        ["method=head", "recipe=vera/minilm"],
    ):
        with refused(f"{file}: lr_haed: nothing reads it. Did you mean lr_head?"):
            expand(words)
    assert expand(["method=lora"])  # whose recipe is whole


def test_each_value_says_where_it_comes_from():
    def sources(*words):
        shown = call_here(
            "runs", "--cfg", "job", "sources=true", *words, check=0
        ).stdout
        return dict(line.split(None, 1) for line in shown.splitlines() if "  " in line)

    found = sources(
        "model=roberta_base", "task=rte", "method=vera_r64", "train.clip=null"
    )
    assert (
        found["train.lr=0.004"] == "conf/recipe/vera/roberta_base.yaml: by_task.lr.rte"
    )
    assert (
        found["train.warmup_ratio=0.06"]
        == "conf/recipe/vera/roberta_base.yaml: warmup_ratio"
    )
    assert found["train.clip=null"] == "the command line"
    assert (
        found["train.adam_beta2=0.999"]
        == "conf/config.yaml: ${recipe:adam_beta2,0.999}"
    )
    assert found["method.rank=64"] == "conf/method/vera_r64.yaml"
    assert found["task.hub=nyu-mll/glue"] == "conf/shared/glue.yaml"
    found = sources(
        "experiment=peers_minilm", "method=tied_lora_matched", "--package", "method"
    )
    assert (
        found["method.rank=4"]
        == "conf/recipe/peers/minilm.yaml: by_row.tied_lora_matched.size"
    )
    assert all(word.startswith("method.") for word in found)


# many compositions; tests/nets has every preset, with most recipes, model and task
@pytest.mark.slow
def test_every_row_and_recipe_of_conf_composes():
    for method in choices("method"):
        (run,) = expand(["model=roberta_base", f"method={method}"])
        assert vera.make_method(**run.method)
        assert run.config["method"]["label"]
    of_presets = {
        line["words"].rpartition("(")[2].rstrip(")")
        for line in read_lines("runs.jsonl")
    }
    for recipe in sorted({*choices("recipe")} - of_presets):
        method, model = recipe.split("/")
        method, model = SHARED.get(method, method), model.removesuffix("_proportional")
        assert method in choices("method")
        assert model in choices("model")
        kinds = {"image": "cifar100", "text generation": "alpaca"}
        fits = kinds.get(model_and_method(model, "vera")[0]["modality"], "rte")
        (run,) = expand(
            [f"model={model}", f"method={method}", f"task={fits}", f"recipe={recipe}"]
        )
        assert run.config["recipe"]["source"]


def test_a_recipe_of_ones_own_may_have_a_rate_for_own_data(tmp_path):
    """As runs.tune prints it; under another name the same file is refused, and named
    where it is."""
    (tmp_path / "recipe" / "vera").mkdir(parents=True)
    (tmp_path / "recipe" / "vera" / "mine.yaml").write_text(
        "by_task: {lr: {stars: 0.125}}\n"
    )
    words = [
        "--config-dir",
        str(tmp_path),
        "recipe=vera/mine",
        "task=text",
        "task.train_file=a.csv",
    ]
    (run,) = expand([*words, "task.name=stars"])
    assert run.config["train"]["lr"] == 0.125
    with refused(f"{tmp_path}", "mine.yaml: stars: nothing reads it"):
        expand([*words, "task.name=moons"])


# --- through the commands; what Hydra itself would compose is asked of its compose API

#: Words, how many runs they are, and of which rows.
GRAMMAR = """
method=vera,lora seed=0,1,2 | 6 vera lora
method=glob(vera_r1*,exclude=*16) | 2 vera_r1 vera_r1024
+experiment=demo method=head | 3 head
experiment=demo method=head,vera seed=0 | 2 head vera
method=vera,peft:IA3Config,peft:LoraConfig,lora seed=0,1 | 8 vera peft_ia3 peft_lora lora
method=peft +method.config.r=4,8 | 2 peft_lora_r_4 peft_lora_r_8
method=peft method.config={r:4,p:1} ~method.config.p | 1 peft_lora_r_4
train.lr_head=${train.lr} | 1 vera
"""


@pytest.mark.parametrize("line", GRAMMAR.strip().splitlines())
def test_lists_and_the_grammar_of_overrides(line):
    words, _, (count, *rows) = (
        *line.partition(" | ")[:2],
        line.partition(" | ")[2].split(),
    )
    runs = expand(words.split())
    assert (len(runs), list(dict.fromkeys(run.row for run in runs))) == (
        int(count),
        rows,
    )
    assert runs == sorted(runs, key=lambda run: rows.index(run.row))  # seeds go fastest


@pytest.mark.parametrize(
    "words",
    [
        "experiment=table3_medium method=vera seed=1 model.settings.resid_pdrop=0.1",
        "launcher=slurm launcher.partition=gpu tracking=offline",
        "method=peft +method.config.r=4 ++train.lr=3 ~recipe",
    ],
)
def test_the_configuration_is_what_hydra_composes(words):
    words = words.split()
    shown = yaml.safe_load(call_here("runs", "--cfg", "job", *words, check=0).stdout)
    with initialize_config_dir(str(CONF), **VERSION_BASE):
        # of what ~recipe is in Hydra 1.4, and where that has a recipe: below
        cfg = compose(
            "config", [NO_RECIPE if word == "~recipe" else word for word in words]
        )
        row = shown["method"]["kind"]
        cfg.recipe = cfg.recipe.get(row, cfg.recipe)
        assert shown == OmegaConf.to_container(cfg)
        package = call_here(
            "runs", "-c", "job", "--package", "train", "--resolve", *words, check=0
        ).stdout
        assert package.startswith("# @package train\n")
        assert yaml.safe_load(package) == OmegaConf.to_container(
            cfg.train, resolve=True
        )


def test_what_hydras_options_print():
    first = call_here("runs", "--cfg", "job", "method=lora,vera", "seed=4,5", check=0)
    assert first.stderr == "note: this is the first of 4 runs\n"
    shown = yaml.safe_load(first.stdout)
    assert (shown["method"]["kind"], shown["seed"]) == ("lora", 4)
    both = yaml.safe_load(
        call_here("runs", "--cfg", "all", "--resolve", check=0).stdout
    )
    assert {"hydra", "train", "launcher"} <= both.keys()
    assert "Hydra 1." in call_here("runs", "--version", check=0).stdout
    usage = call_here("runs", "--help", check=0).stdout
    for part in (
        "vera-bench model=",
        "launcher    local, ray, serial, slurm",
        "method      vera-bench list methods",
        "--cfg",
    ):
        assert part in usage
    keys = call_here("runs", "--help", "task=mrpc", "launcher=slurm", check=0).stdout
    for part in (
        "task.name=mrpc\n",
        "task.train_rows=null\n    a fixed random subset of this many rows\n",
        "launcher.timeout_min=60\n    minutes of one job",
    ):
        assert part in keys
    assert "train.lr=" not in keys.partition("\nOther keys")[0]
    assert "== Flags ==" in call_here("runs", "--hydra-help", check=0).stdout
    tree = call_here("runs", "--info", "defaults-tree", "task=rte", check=0).stdout
    assert [part for part in ("task: rte", "shared/glue") if part not in tree] == []


#: Words that are refused as runs are composed, by what the line says of them.
ALONE = {
    "{word}: should be": """
method.rank=abc method.sites=query init_from=lora
""",
    "{word}: not taken here. Instead: ": """
+hydra.launcher.nodes=2 hydra.searchpath=[file:///x] recipe.lr=3 ~model ~train.lr
train={adam_eps:1e-4} method.kind=a.b task.reader=a.b model.settings={a:[{_target_:os.system}]}
""",
    "no key '{key}'": """
task.train_file=x +train.foo=1 ++train.foo=1 +task.foo.bar=1 +train.lr.foo=1 +method.config.r=1
+method.configs=1
""",
    "{key}= takes one value": "redo=true,false experiment=demo,figure4",
    "'{word}' is not KEY=VALUE": "method=LoRA(r=8) =1",
    "{key}": "train.lr=interval(0,1) ~nothing seed=0-2",
}
#: Words together, and what the line that refuses them names.
REFUSED = """
method=vera,lora method=bitfit | method is given twice: method=bitfit
method=vera,choice(lora,bitfit) | choice() or range() beside or within a list
+task=rte | Multiple values for task
trian.lr=3 | Did you mean train.lr?
model=robertta_base | no model 'robertta_base'. Did you mean roberta_base? All names: vera-bench list models
init_from=lorra@mnli | no method 'lorra'. Did you mean lora?
init_from=lora_mnli@rte | init_from=lora_mnli@rte: lora_mnli starts from another run itself
method=peft:IA3Config method.config_class=LoraConfig | leave method.config_class= out
method=OSF | If a folder of yours has it: --config-dir=FOLDER. If peft has it: peft:OSFConfig
model=FacebookAI/roberta-base | One of the hub: model=encoder model.hub=Face
experiment=table5 | no experiment 'table5'. Did you mean table5_base or table5_large?
train.lr=glob(*) | train.lr=glob(*): nothing of that name
train.lr=range(0,1,0) | train.lr=range(0,1,0): cannot be listed
seed=range(0,inf) | cannot be listed (more than
method=[vera,lora] | no method '[vera,lora]'
task=text task.train_file=a.csv task.name=rte | Give your data another name, such as task.name=rte_2
model=gpt2_medium task=e2e task.length_penalty=0.8 | task.length_penalty=0.8: should be a valid list
model=gpt2_medium task=e2e task.length_penalty=[true] | task.length_penalty.0=true: should be
method.projection_seed=${seed} | method.projection_seed=${seed}: matrices that are drawn anew
method.redrawn=true | method.redrawn=true: matrices that are drawn anew
experiment=table2_base model=encoder model.path=/x | preset table2_base has no recipe for full/encoder
experiment=table2_base method=vera model=encoder model.path=/x | such as recipe=roberta_base)
experiment=vera_all model=encoder model.path=/x | such as recipe=roberta_base)
"""
CASES = [line.split(" | ") for line in REFUSED.strip().splitlines()]
for says, words in ALONE.items():
    CASES += [
        (word, says.format(word=word, key=word.lstrip("+").split("=")[0]))
        for word in words.split()
    ]


@pytest.mark.parametrize(("words", "named"), CASES)
def test_what_cannot_be_composed_is_one_line(words, named):
    with refused(named):
        expand(words.split())


#: Of the configuration of these words' run: what its values may not be
#: (runs/config/schema.py). A line has words, each put in by itself, or words that are
#: put in together and what is named then.
VALUES = {
    "task=reviews": """
seed=true seed=9223372036854775808 data_seed=-1 train.epochs=2.5 train.epochs=0 train.lr=fast
train.lr=-1 train.lr=nan train.lr_by=3 train.adam_beta2=1 train.warmup_ratio=2 train.clip=0
train.schedule=step device=gpu debug=maybe task.family=../../evil task.family=null task.holdout=2
task.length_grouped=null task.text=null task.data_dir=99 task.shots=0 task.draw_seed=-1 keep=both
task.augment=flip task.bad_images=skip ~task.family ~model.label ~method.kind
train.lr_by={B:-1} | train.lr_by.B=-1: should be a number that is not negative
train.decay_by={B:true} | train.decay_by.B=True: should be a number
model.modality=images | model minilm takes images, task reviews is text
model.package=null | model.path=
model.wheel="foo==1.0" model.sha256=null | model.sha256=
model.wheel=['foo==1.0'] | name==version --hash
model.quantise=nf4 | model.quantise=nf4 is for language models
model.dtype=bf16 | the new head trains in float32
method.redrawn=true seed=1 | method.projection_seed=0: redrawn
launcher.name=slurm launcher.executors=0 | launcher.executors=0: should be
launcher.name=local launcher.executors=3 | launcher.executors
""",
    "task=sums model=smollm2": """
task.decode=train task.beams=null task.no_repeat_ngram=-1 task.length_penalty=[] task.length_penalty=[-1]
task.label_smoothing=1.0 task.max_characters=0 task.tests=[] task.stops=[''] task.reader=null
task.train_on_inputs=null task.train_rows=null task.test_rows=0 task.top_p=0 task.top_p=2
method.kind=full model.quantise=nf4 | method=full trains weights that 4 bits cannot
model.dtype=int8 model.dtype=null
model.dtype=fp16 | model.dtype=fp16 needs train.precision=fp16
model.dtype=bf16 train.precision=fp16 | train.precision=bf16, or fp32 for no autocast
model.dtype=fp16 train.precision=fp16 method.kind=full | model.dtype=fp16: fp32 or bf16
""",
}


@pytest.mark.parametrize("words", VALUES)
def test_a_value_that_none_may_be_is_refused_by_its_key(words):
    (run,), put = expand(words.split()), list[tuple[list[str], str]]()
    for line in VALUES[words].strip().splitlines():
        together, bar, named = line.partition(" | ")
        put += (
            [(together.split(), named)]
            if bar
            else [([word], word) for word in together.split()]
        )
    for values, named in put:
        config = copy.deepcopy(run.config)
        for override in OverridesParser.create().parse_overrides(values):
            *parents, key = override.key_or_group.split(".")
            part = functools.reduce(
                lambda of, name: of.setdefault(name, {}), parents, config
            )
            part[key] = override.value()
            if override.is_delete():
                del part[key]
        with pytest.raises((UserError, ValidationError)) as error:
            Config.model_validate(config)
        line = (
            describe_mistake(error.value)
            if isinstance(error.value, ValidationError)
            else str(error.value)
        )
        named = named.lstrip("~").partition("=")[0] if [named] == values else named
        assert (named in line, "\n" in line) == (True, False), (values, line)


def test_each_name_that_other_programs_have_is_answered_with_ours():
    names = yaml.safe_load((CONF / "other_names.yaml").read_text())
    with Composer(Files()) as composer:
        for theirs, ours in names.items():
            with refused(f"no key '{theirs}'", f"{ours}?"):
                raise composer.unknown_key_error(theirs, ("method=lora",))


@pytest.mark.parametrize(
    ("key", "advice"),
    [
        ("launcher.timeout", "Did you mean launcher.timeout_min?"),
        ("launcher.time", "Did you mean launcher.timeout_min?"),
        ("launcher.mem", "Did you mean launcher.mem_gb?"),
        ("launcher.gpus", "Did you mean launcher.gpus_per_node?"),
        ("launcher.partitions", "Did you mean launcher.partition?"),
        ("launcher.acount", "Did you mean launcher.account?"),
    ],
)
def test_a_wrong_key_of_slurm_is_answered_with_the_right_one(key, advice):
    with pytest.raises(UserError) as error:
        expand(["task=rte", "launcher=slurm", f"{key}=1"])
    assert str(error.value) == f"no key '{key}'. {advice}"
    with refused(f"no key '{key}'. {advice} It needs launcher=slurm"):
        expand(["task=rte", f"{key}=1"])


def test_a_key_of_another_launcher_is_answered_with_that_launcher():
    for group in ([], ["launcher=local"]):
        with refused("no key 'launcher.dry_run'. It needs launcher=slurm"):
            expand(["task=rte", *group, "launcher.dry_run=true"])
    with refused(
        "no key 'launcher.executors'. It needs launcher=ray or launcher=slurm"
    ):
        expand(["task=rte", "launcher.executors=2"])


def test_under_torchrun_every_process_has_shuffled_seeds_in_one_order(monkeypatch):
    seen, ended = list[list[int]](), SimpleNamespace(exit_code=0)
    monkeypatch.setenv("MASTER_PORT", "29500")
    monkeypatch.setattr(
        main,
        "sweep",
        lambda runs, *_: seen.append([run.seed for run in runs]) or ended,
    )
    for _ in range(2):
        main.main(["task=rte", "seed=shuffle(0,1,2,3,4,5,6,7)"])
    assert seen[0] == seen[1]
    assert sorted(seen[0]) == [*range(8)]


#: Mistakes in options, in words of a whole sweep, and in a value.
COMMANDS = """
--config-dir /nowhere | --config-dir /nowhere: no such folder
--resolve | --package, --resolve and sources=true are for --cfg job
--cfg task=rte | --cfg
--cfg job --package trian | no key 'trian'. Did you mean train?
-sc install=csh | -sc install=csh: should be install=SHELL, of bash, zsh, fish
--config-path=x | --config-path=x
seed=0,0 | appears twice in this sweep
model=encoder model.path=/nowhere | /nowhere: no such folder (model.path)
tracking.mode=foo | tracking.mode=foo: should be
"""


@pytest.mark.parametrize("line", COMMANDS.strip().splitlines())
def test_what_is_refused_is_one_line_and_starts_nothing(line, tmp_path):
    words, named = line.split(" | ")
    done = call_here("runs", *words.split(), f"output={tmp_path / 'outputs'}", check=2)
    assert (done.stdout, done.stderr[:7], done.stderr.count("\n")) == ("", "error: ", 1)
    assert named in done.stderr
    assert not (tmp_path / "outputs").exists()


def test_a_folder_of_own_files(words, tmp_path, monkeypatch):
    """--config-dir: a preset, a row, a task and a recipe from outside the clone."""
    for path, text in {
        "experiment/mine.yaml": "# @package _global_\ndefaults:\n  - override /task: mine\nhydra:\n"
        "  sweeper:\n"
        "    params:\n      method: my_vera,vera\n      seed: 0,1\n",
        "method/my_vera.yaml": "defaults:\n  - vera\n  - _self_\nlabel: my VeRA\nrank: 4\n",
        "task/mine.yaml": "defaults:\n  - rte\n  - _self_\ntrain_rows: 8\n",
        "recipe/my_vera/encoder.yaml": "source: chosen\nlr: 0.5\nepochs: 1\n",
        "recipe/vera/encoder.yaml": "source: chosen\nlr: 0.25\nepochs: 1\n",
    }.items():
        (tmp_path / "own" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "own" / path).write_text(text)
    kept = [
        word
        for word in words
        if not word.startswith(("task=", "method", "train.", "seed="))
    ]
    mine = ["--config-dir", str(tmp_path / "own"), "experiment=mine", *kept]
    runs = expand(mine)
    rates = [
        ("my_vera", 0, 0.5),
        ("my_vera", 1, 0.5),
        ("vera", 0, 0.25),
        ("vera", 1, 0.25),
    ]
    assert [(run.row, run.seed, run.config["train"]["lr"]) for run in runs] == rates
    assert {run.config["task"]["train_rows"] for run in runs} == {8}
    assert re.search(
        ": 4 runs.*\nmy_vera .*\nvera ",
        call_here("runs.plan", *mine, check=0).stdout,
        re.S,
    )
    for first, typed, named in (
        (
            "# @package _global_",
            [],
            r"/experiment/bad.yaml line 3: train.clip=abc: should be .*$",
        ),
        ("# @package _global_", ["train.clip=x"], r"^train.clip=x: should be [^(]*$"),
        ("", [], "experiment/bad.yaml: its first line should be # @package _global_"),
    ):
        (tmp_path / "own" / "experiment" / "bad.yaml").write_text(
            f"{first}\ntrain:\n  clip: abc\n"
        )
        with pytest.raises(UserError, match=named):
            expand([*mine[:2], "experiment=bad", *kept, "task=mine", *typed])
    # Hydra would take conf/'s file of two of one name, without a word
    (tmp_path / "own" / "method" / "lora.yaml").write_text("kind: full\n")
    with pytest.raises(
        UserError, match=r"method/lora.yaml: conf/ has a file of this name"
    ):
        expand([*mine[:2], *kept, "task=rte", "method=vera"])
    (tmp_path / "own" / "method" / "lora.yaml").write_bytes(
        (CONF / "method" / "lora.yaml").read_bytes()
    )
    # a copy does no harm
    (run,) = expand([*mine[:2], *kept, "task=rte", "method=lora"])
    assert run.config["method"]["kind"] == "lora"


def test_a_run_leaves_its_configuration_as_hydra_does(words):
    folder, (run,) = run_folder(output_of(words), trained(words)["id"]), expand(words)
    kept = yaml.safe_load((folder / "config.yaml").read_text())
    assert kept == run.config | {"output": kept["output"]}
    again = yaml.safe_load((folder / "overrides.yaml").read_text())
    assert [run_id(one) for one in expand(again)] == [run_id(run)]


@pytest.mark.usefixtures("process")
def test_a_shell_completes_the_installed_script(monkeypatch):
    """What Hydra's function for bash asks of the script."""
    script = Path(sys.executable).with_name("vera-bench")
    asked = subprocess.run(
        [script, "-sc", "install=bash"], capture_output=True, text=True, check=True
    )
    assert "hydra_bash_completion vera-bench" in asked.stdout
    for typed, completed in {
        "method=vera_r1": "method=vera_r1 method=vera_r1024 method=vera_r16",
        "launcher=": "launcher=local launcher=ray launcher=serial launcher=slurm",
        "train.lr": "train.lr= train.lr_by= train.lr_head=",
    }.items():
        monkeypatch.setenv("COMP_LINE", f"vera-bench {typed}")
        monkeypatch.setenv("COMP_POINT", str(len(typed) + 11))
        assert (
            call_here("runs", "-sc", "query=bash", check=0).stdout.split()
            == completed.split()
        )


# --- composed once


@pytest.mark.parametrize(
    "words",
    ["method=vera,vera_redrawn", "method=lora data_seed=${seed} train.epochs=1"],
)
def test_seeds_that_are_composed_together_are_the_runs_that_they_are_by_themselves(
    words,
):
    alone = [expand([*words.split(), f"seed={seed}"]) for seed in (0, 3, 7)]
    by_seed = [list(runs) for runs in zip(*alone, strict=True)]
    together = expand([*words.split(), "seed=0,3,7"])
    assert together == [run for runs in by_seed for run in runs]
    assert {run.config["data_seed"] for run in together} == {0, 3, 7}
    together[0].config["train"]["lr"] = 9  # each has a configuration of its own
    assert together[1].config["train"]["lr"] != 9
    with refused("seed=abc: should be a valid integer"):
        expand([*words.split(), "seed=abc,1"])


def test_a_table_is_composed_once_until_a_file_changes(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(files, "CONF", Path(shutil.copytree(CONF, tmp_path / "conf")))
    composed = list[list[str]]()
    real = cells.compose_command

    def compose_command(overrides, of_files):
        composed.append([*overrides])
        return real(overrides, of_files)

    def read_anew(*words):
        """As another process does."""
        monkeypatch.setattr(hashes, "PROCESS_CACHE", {})
        return read_command(words)

    monkeypatch.setattr(cells, "compose_command", compose_command)
    words = ["method=vera,lora", "seed=0,1", "train.clip=2", "init_from=lora@rte"]
    first, again = read_anew(*words), read_anew(*words)
    assert (first, composed) == (again, [words])
    for one, other in zip(first.runs, again.runs, strict=True):
        assert repr(one) == repr(other)  # 8 is not 8.0
        assert one.overrides == other.overrides
    (kept,) = (tmp_path / "cache" / "vera-bench" / "commands").iterdir()
    for damaged in ("", kept.read_text()[:-9], '{"launch": 3}'):
        kept.write_text(damaged)
        assert read_anew(*words) == first
    count = len(composed)
    recipe = tmp_path / "conf" / "recipe" / "vera" / "minilm.yaml"
    recipe.write_text(recipe.read_text().replace("lr_head: 1e-3", "lr_head: 0.5", 1))
    assert read_anew(*words).runs[0].config["train"]["lr_head"] == 0.5
    assert len(composed) == count + 1
    # one run, and what may be another one tomorrow
    for others in (["method=vera"], ["seed=shuffle(0,1)"], ["output=${oc.env:HOME},x"]):
        with contextlib.suppress(UserError):
            read_anew(*others)
    assert len([*kept.parent.iterdir()]) == 2


def test_hydra_is_used_through_its_public_modules():
    for path in (ROOT / "runs").rglob("*.py"):
        assert "hydra._internal" not in path.read_text(), path


def test_a_plan_that_was_made_before_waits_for_neither_hydra_nor_torch():
    code = (
        "import sys; from runs.plan import main; main(sys.argv[1:]); "
        "print({'hydra', 'torch'} & {*sys.modules}, file=sys.stderr)"
    )
    command = [sys.executable, "-c", code, "experiment=figure4"]
    for _ in range(2):
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines()[-1] == "set()"


#: Presets of one's own, with a mistake each, and what is said of it beside the file.
PRESETS = [
    ("train:\n  epoch: 3", "line 2: no key 'train.epoch'. Did you mean train.epochs?"),
    ("train: {epochs: x}", "line 2: train.epochs=x: should be a valid integer"),
    ("method:\n  rnak: 3", "line 3: no key 'method.rnak'. Did you mean method.rank?"),
    (
        "defaults:\n  - override /method: verra",
        "line 3: no method 'verra'. Did you mean",
    ),
    (
        "defaults:\n  - override /modle: minilm",
        "line 3: no key 'modle'. Did you mean model",
    ),
    (
        "hydra:\n  sweeper:\n    params:\n      method: vera,lorra",
        "line 5: no method 'lorra'. Did you mean lora?",
    ),
    (
        "hydra:\n  sweeper:\n    params:\n      train.epoch: 1,2",
        "line 5: no key 'train.epoch'. Did you mean train.epochs?",
    ),
]


@pytest.mark.parametrize(("content", "message"), PRESETS)
def test_a_mistake_in_a_preset_is_named_with_its_file_and_line(
    content, message, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    preset = tmp_path / "own" / "experiment" / "mine.yaml"
    preset.parent.mkdir(parents=True)
    preset.write_text(f"# @package _global_\n{content}\n")
    if content.startswith("train:\n"):
        message = message.replace("line 2", "line 3")
    with refused(f"own/experiment/mine.yaml {message}"):
        expand(["--config-dir", "own", "experiment=mine"])
    # what is typed is named as it was typed
    preset.write_text("# @package _global_\n")
    with pytest.raises(UserError, match=r"^no key 'train.epoch'. Did you mean"):
        expand(["--config-dir", "own", "experiment=mine", "train.epoch=1"])


def test_a_recipe_of_a_model_is_each_rows_own_recipe_for_it():
    """So that a local encoder runs a table's rows with one command."""
    words = [
        "model=encoder",
        "model.path=/x",
        "task=rte",
        "method=vera,lora,vera_unique",
    ]
    runs = expand([*words, "recipe=roberta_base"])
    names = ["vera/roberta_base", "lora/roberta_base", "vera/roberta_base"]
    assert [run.recipe for run in runs] == names
    for run, name in zip(runs, names, strict=True):
        (alone,) = expand([*words[:3], f"method={run.row}", f"recipe={name}"])
        assert (alone, alone.overrides) == (run, run.overrides)
    assert (
        len(expand(["experiment=table2_base", *words[:2], "recipe=roberta_base"]))
        == 180
    )
    with refused("recipe=roberta_base: none has no recipe for roberta_base"):
        expand(["method=none", "recipe=roberta_base"])
