"""Every kind of row and every task of every preset runs for two steps, on a tiny model
of its architecture and own rows.

Methods that are no file of the clone. And recipes: the optimizer's groups beside the
authors' code, rates by patterns of names, rows that share a recipe."""

import re
import sys
from fnmatch import fnmatchcase
from pathlib import Path

import pytest
import torch
import yaml
from running import begin, call_here, output_of, refused, train_here
from tiers import slow_except
from tiny import tiny_model

import vera
from runs import evaluate, models, tune
from runs.config import CONF, expand
from runs.plan import plan
from runs.record.folder import RecordFolder
from runs.record.ledger import read_record, record_path
from runs.record.sweeps import read_sweep, sweep_names
from runs.run import methods
from runs.run.definition import with_starts
from runs.run.identity import run_id
from runs.run.methods import method_of_settings, patterns_by_name, read_rates
from runs.run.provenance import changed_sources
from runs.sweep import sweep
from runs.sweep.display import Display, result_words
from runs.training.checkpoint import (
    GRADIENT_CHECK_STEP,
    make_optimizer,
    optimizer_groups,
)
from runs.training.loop import Training
from runs.training.result import deviations
from runs.training.train import train
from tasks.files import module_file

pytestmark = pytest.mark.contract

#: Whose cells differ in numbers alone from those of other presets.
LIKE = "demo figure2 figure5 peers_base randomness rank_scaling table12 table13 table2_mpnet table3_large"
LIKE = (*LIKE.split(), "near", "table4_llama2", "table5_large", "table6_d_init")
PRESETS = sorted(
    path.stem
    for path in CONF.glob("experiment/*.yaml")
    if not path.stem.startswith(LIKE)
)
#: Of texts with a head; a run of each family is in tests/nets.
FAST = ["figure3"]
#: Fixtures with a model and data, and words, by the beginning of a preset's name.
IMAGES = ("tiny_vit", "images", "task.shots=4")
FEW = "task.items=1 task.max_new_tokens=4 task.train_rows=null task.dev_rows=null"
KINDS = dict.fromkeys(
    ("table2", "table6", "table7", "figure", "vera_all"), ("tiny_roberta", "glue", "")
)
KINDS |= dict.fromkeys(("glue", "rank", "ablations"), ("tiny_bert", "glue", ""))
KINDS |= {"table5": IMAGES, "images": IMAGES, "table3": ("tiny_gpt2", "e2e", FEW)}
#: Settings that name the rows' folder, or a file in it.
DIRS = {"maths": {"data_dir": "", "test_dir": ""}, "sums": {}}
QUESTIONS = dict.fromkeys(("train_file", "dev_file", "test_file"), "train.jsonl")
DIRS |= {"problems": QUESTIONS}
KINDS |= {
    "peers": ("wide_bert", "glue", "task=rte task.dev_rows=null"),
    "e2e": ("tiny_llama", "e2e", FEW),
}
#: Recipes that the rows of a preset share, by the beginning of its name.
SHARED = (
    "peers",
    "sums",
    "sums_digit",
    "commonsense",
    "commonsense_hira",
    "metamath_peft",
    "metamath_papers",
    "rlmath_peft",
    "perl",
    "how_small",
    "how_small_pilot",
)
#: In 4 bit, as the preset says; bf16 and checkpointing as the recipe does.
CHATS = ("tiny_llama", "alpaca", "task.train_rows=null task.dev_rows=2")
SHORT = "task.items=1 task.max_new_tokens=4 task.dev_rows=2 task.forgetting_text=none train.precision=fp32"
KINDS |= {
    "commonsense": ("tiny_llama", "commonsense", f"{SHORT} train.effective_batch=4")
}
KINDS |= {"metamath": ("wide_llama", "maths", f"{SHORT} train.effective_batch=8")}
SUMS = f"{SHORT} train.effective_batch=8 task.train_rows=8 task.test_rows=2"
KINDS |= dict.fromkeys(("sums", "how_small"), ("tiny_llama", "sums", SUMS))
REWARD = (
    "task.items=1 task.max_new_tokens=4 reward.max_new_tokens=4 train.max_length=64"
)
REWARD += " task.forgetting_text=none train.precision=fp32 train.effective_batch=8"
PERL = f"{REWARD} task.prompt_column=question task.answer_column=answer"
PERL += " task.chat_template=false task.prompt=null"
KINDS |= {"rlmath": ("wide_llama", "problems", REWARD)}
KINDS |= {"perl": ("wide_llama", "problems", PERL)}


#: What was trained here: kinds of rows, each with its task, and models, each with its
#: tasks. What differs in numbers alone is not trained, nor is each kind on each model
#: (tests/vera).
TRAINED: set[str] = set()


def kind_of(method):
    """A method's settings but for its numbers."""
    if not isinstance(method, dict):
        return method
    return {
        key: kind_of(of) for key, of in method.items() if type(of) not in (int, float)
    }


def cells_of(paper, words):
    """Of a preset's cells every row with the first task, and every task with the first
    row."""
    lists = yaml.safe_load((CONF / f"experiment/{paper}.yaml").read_text())["hydra"][
        "sweeper"
    ]["params"]
    first = {
        key: f"{key}={lists[key].split(',')[0]}"
        for key in {"method", "task"} & {*lists}
    }
    if len(first) < 2 or any(word.startswith("task=") for word in words):
        return expand(words)
    return [*expand([*words, first["task"]]), *expand([*words, first["method"]])]


@pytest.mark.parametrize("paper", slow_except(PRESETS, *FAST))
def test_every_row_and_task_runs_for_two_steps(paper, request, tmp_path, monkeypatch):
    # Java takes seconds a run
    monkeypatch.setattr("tasks.e2e_metrics.shutil.which", lambda name: None)
    model, data, more = next(
        (KINDS[begin] for begin in KINDS if paper.startswith(begin)), CHATS
    )
    words = [
        f"experiment={paper}",
        "seed=0",
        f"model.path={request.getfixturevalue(model)}",
        *more.split(),
    ]
    words += [
        f"task.{key}={request.getfixturevalue(data) / name}"
        for key, name in DIRS.get(data, {"data_dir": ""}).items()
    ]
    words += ["model.architecture=null"]
    if any(name in paper for name in ("minilm", "mpnet", "dinov2", "smollm2")):
        words += ["model.sha256=null"]
    runs = cells_of(
        paper, [*words, "train.max_steps=2", "device=cpu", f"output={tmp_path}"]
    )
    shared = [of for of in SHARED if of.startswith(paper.partition("_")[0])]
    for run in runs:
        rows = (run.row, run.config["method"].get("recipe"), *shared)
        assert run.recipe in {f"{row}/{run.model}" for row in rows}
        new = {
            f"{kind_of(run.method)} {run.task} {bool(run.start)}",
            f"{model} {run.task}",
        } - TRAINED
        if not new:
            continue
        TRAINED.update(new)
        for each in with_starts([run]):
            record = train(Training(each, run_id(each), lambda event: None))
        assert record["status"] == "done", run.label
        # Where there is one epoch, its eight rows are one effective batch.
        assert record["steps"] == {"none": 0}.get(
            run.row, 1 if run.config["train"]["epochs"] == 1 else 2
        )
        assert record["parameters"]["adapter"] == record["parameters"]["formula"]
        assert record["effective_batch"] == run.config["train"]["effective_batch"]
        assert bool(record["texts"]) == (
            data in ("e2e", "commonsense", "maths", "problems", "sums")
        )


#: By row; that of LoRA-XS is not there: VeRA's.
PEFTS = {
    "vera": 129024,
    "lora": 9175040,
    "dora_r32": 9289728,
    "vblora": 4849664,
    "unilora": 131072,
    "ia3": 286720,
    "full": 3212749824,
    "lora_xs": 129024,
    "randlora": 9289728,
    "hira": 9175040,
    "pvera": 143360,
    "tinylora": 3584,
}


@pytest.mark.parametrize(
    "row", slow_except(PEFTS, "vera", "vblora", "lora_xs", "tinylora")
)
def test_rows_train_as_many_parameters_as_pefts_results_print(row):
    (run,) = expand(["experiment=metamath_peft", "seed=0", f"method={row}"])
    model = models.skeleton(run.config["model"], num_labels=0)
    method = method_of_settings(run.method)
    method.adapt(model)
    assert (
        sum(p.numel() for p in method.adapter_parameters(model).values()) == PEFTS[row]
    )
    chosen = run.config["recipe"]["chosen"]
    assert ("lr" in chosen) == (row == "lora_xs")


# --- methods that are no file of the clone

OWN = '''
from dataclasses import dataclass

import torch

import vera
from vera.methods.layers import layer_changes


@dataclass(frozen=True)
class Biases(vera.BitFit, kind="own_biases"):
    """BitFit under another name."""


@dataclass(frozen=True)
class Forgets(vera.LoRA, kind="careless"):
    how: str = "forgets"

    def install(self, model):
        super().install(model)
        for change in layer_changes(model):
            a = (torch.zeros_like if self.how == "zero" else torch.randn_like)(change.A)
            del change.A
            change.register_buffer("A", a, persistent=False)  # random, and in no file

    def saved(self, model):
        return self.adapter_parameters(model)


class NoMethod:
    pass
'''
FILES = {
    "biases": "kind: own_method_of_a_test.Biases\nlabel: own biases\nkeep: best\nrecipe: bitfit\n"
}
FILES["careless"] = (
    "kind: own_method_of_a_test.Forgets\nlabel: careless\nkeep: best\nrank: 4\nhow: forgets\n"
)


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A folder of configuration whose methods are classes of a module elsewhere."""
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "own_method_of_a_test.py").write_text(OWN)
    (tmp_path / "conf" / "method").mkdir(parents=True)
    for name, text in FILES.items():
        (tmp_path / "conf" / "method" / f"{name}.yaml").write_text(text)
    # another test's file
    monkeypatch.delitem(sys.modules, "own_method_of_a_test", raising=False)
    monkeypatch.syspath_prepend(str(tmp_path / "code"))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "code"), prepend=":")
    return tmp_path


def of_method(words, *method):
    return [word for word in words if not word.startswith("method")] + list(method)


def test_a_method_outside_of_the_clone_trains_and_its_record_names_its_source(
    own, words
):
    mine = [*of_method(words, "method=biases"), "--config-dir", str(own / "conf")]
    record = train_here(mine)
    assert record["cell"]["row"] == "biases"
    assert record["config"]["method"]["kind"] == "own_method_of_a_test.Biases"
    source = record["code"]["sources"]["method"]
    assert (source["file"], source["uncommitted"]) == ("own_method_of_a_test.py", None)
    assert changed_sources(record) == []
    (own / "code" / "own_method_of_a_test.py").write_text(OWN + "# another version\n")
    assert changed_sources(record) == ["own_method_of_a_test.py"]
    (run,) = expand(mine)
    assert isinstance(method_of_settings(run.method), vera.METHODS["own_biases"])


@pytest.mark.usefixtures("process")
def test_processes_of_a_sweep_find_it_by_the_path(own, words):
    mine = [
        *of_method(words, "method=biases", "seed=0,1"),
        "--config-dir",
        str(own / "conf"),
        "tracking=off",
    ]
    printed = call_here("runs", *mine, check=0).stdout
    assert "2 of 2 runs done in " in printed
    (name,) = sweep_names(output_of(words))
    ids = read_sweep(output_of(words), name)
    assert [
        read_record(record_path(output_of(words), i))["cell"]["seed"] for i in ids
    ] == [0, 1]
    asked = [f"sweep={name}", f"output={output_of(words)}"]
    again = call_here("analysis.tables.__main__", *asked, check=0).stdout
    assert "| own biases | " in again
    assert again.strip() in printed
    assert again.strip() not in call_here("runs", *mine, "table=false", check=0).stdout


def test_a_package_that_does_not_compile_ends_no_line_on_a_finished_run(
    tmp_path, monkeypatch
):
    (tmp_path / "broken_package_of_a_test").mkdir()
    (tmp_path / "broken_package_of_a_test" / "__init__.py").write_text("def x(:\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert module_file("broken_package_of_a_test.svft.SVFT") is None


def test_a_file_that_names_recipes_nobody_wrote_is_refused(own, words):
    file = own / "conf" / "method" / "biases.yaml"
    file.write_text(file.read_text().replace("recipe: bitfit", "recipe: bitfitt"))
    with refused(
        f"no row with recipes, as {file} names it: 'bitfitt'. Did you mean bitfit?"
    ):
        expand([*of_method(words, "method=biases"), "--config-dir", str(own / "conf")])


def test_a_folder_of_ones_own_a_level_too_high_is_said_to_be(own, words):
    method = of_method(words, "method=biases")
    message = f"Your folder has no {own}/method/biases.yaml. "
    with refused(message, f"Did you mean --config-dir={own}/conf?"):
        expand([*method, "--config-dir", str(own)])


@pytest.mark.parametrize(
    ("code", "kind", "message"),
    [
        (OWN, "own.Nothing", "Nothing: cannot be imported"),
        (OWN, "own.NoMethod", "should be a method such as class NoMethod"),
        ("def x(:\n", "broken.Mine", "SyntaxError: invalid syntax"),
    ],
)
def test_what_is_no_method_or_fails_to_import_is_one_line_with_its_error(
    code, kind, message, own
):
    (own / "code" / "broken_method_of_a_test.py").write_text(code)
    kind = kind.replace("own.", "own_method_of_a_test.").replace(
        "broken.", "broken_method_of_a_test."
    )
    with refused(kind, message):
        method_of_settings({"kind": kind})
    # as an adapter file names it
    with pytest.raises(vera.AdapterError, match="no method of kind"):
        vera.make_method(kind)


@pytest.fixture
def careless(own, words):
    return [
        *of_method(words, "method=careless"),
        "--config-dir",
        str(own / "conf"),
        "train.lr=1.0",
    ]


def test_what_the_files_of_a_run_lack_does_not_come_back_with_its_seed(
    careless, capsys
):
    """As in a program that loads the file: there the random A is another one."""
    record = train_here([*careless, "train.epochs=3"])
    assert evaluate.main([record["id"], f"output={output_of(careless)}"]) == 1
    assert "NOT the same" in capsys.readouterr().out
    formula, trained = (record["parameters"][key] for key in ("formula", "adapter"))
    assert (
        f"the method's count() gives {formula:,}, but {trained:,} train: is something "
        "frozen that should train?" in record["deviations"]
    )


def test_a_count_that_differs_from_what_trains_is_said_before_the_first_step(
    careless, capsys
):
    """In the command at the start, in the run's log, and in its last line; also of a
    run that is stopped early."""
    events = []
    training = begin(careless, report=events.append)
    formula = training.method.count(training.raw_model)
    trained = sum(
        p.numel()
        for p in training.method.adapter_parameters(training.raw_model).values()
    )
    problem = (
        f"the method's count() gives {formula:,}, but {trained:,} train: is something "
        "frozen that should train?"
    )
    training.train_and_decode()
    assert training.notes[0] == problem
    started = next(event for event in events if "problems" in event)
    assert "first step" in started["phase"]
    assert started["problems"] == [problem]
    assert f"note: {problem}" in capsys.readouterr().out

    display = Display()
    for _ in range(2):
        display.show([("[1/1] careless", started)])
    assert capsys.readouterr().out.count(f"[1/1] careless  note: {problem}") == 1

    record = train_here([*careless, "train.max_steps=1"])
    assert problem in result_words(record)


def test_a_method_that_no_gradient_has_reached_by_one_of_the_steps_is_refused(careless):
    training = begin([*careless, "method.how=zero", "train.epochs=9"])
    with pytest.raises(
        vera.AdapterError, match="no gradient has reached what Forgets trains"
    ):
        training.train_and_decode()
    assert training.state.step == GRADIENT_CHECK_STEP - 1


# --- recipes

#: Of each recipe with an authors' source, on a task: learning rate and weight decay by
#: the end of a parameter's name (the first that fits). Written from the files named,
#: and not from conf. -: the authors' optimizer or model is another, and the rate is
#: this project's.
AUTHORS = """
# leo-yangli/VB-LoRA 2fa62a7, ecd7c14, NLU/NLU/scripts_vblora_qv/roberta_base_{mrpc,stsb}.sh;
# src/transformers/trainer.py, create_optimizer: no decay of bank and logits; AdamW in optimization.py: 0
vblora roberta_base mrpc: vblora_logits_?.*=1e-2/0 vblora_vector_bank.*=1e-3/0 bias=4e-3/0 *=4e-3/0.1
vblora roberta_base stsb: vblora_logits_?.*=1e-2/0 vblora_vector_bank.*=1e-3/0 bias=2e-2/0 *=2e-2/0.1
# KaiyangLi1992/Uni-LoRA e622e78, NLU/NLU/scripts_unilora_qv/roberta_base_{cola,qnli}.sh; the trainer is
# VB-LoRA's, theta its vector bank
unilora roberta_base cola: unilora_theta_d.*=5e-3/0 bias=5e-3/0 *=5e-3/0.1
unilora roberta_base qnli: unilora_theta_d.*=5e-3/0 bias=2e-4/0 *=2e-4/0.1
# Chaos96/fourierft ace4fe4, 1b660d1, experiments/GLUE/cola-base-best.sh, NLU_GLUE.py, args.py
fourierft roberta_base cola: fourierft_spectrum.*=0.12/0 *=8e-3/0
# nikhil-ghosh-berkeley/loraplus a38d3e0, glue/scripts/run_roberta_lora.sh (lr 5e-5, ratio 80, no weight
# decay); lora_plus.py: B's rate for B and for what has one dimension
lora_plus roberta_base mnli: A=5e-5/0 B=4e-3/0 bias=4e-3/0 *=5e-5/0
# MohammadrezaBanaei/LoRA-XS 3b1ce3b, scripts/run_glue.py and run_glue_pretrained.py (1e-3 is in each grid);
# main_glue.py and main_glue_from_pretrained.py: torch's AdamW, 0.01 by default, on every parameter
lora_xs roberta_large rte: *=1e-3/0.01
# UCDvision/NOLA d4d3e11, e009fdc, gpt/examples/NLG/scripts/finetune_gpt2m_e2e_qv_nola.sh and
# gpt/scripts/finetune_gpt2l_e2e_qv_nola.sh
nola gpt2_medium e2e: a=5e-3/0 b=5e-3/0
nola gpt2_large e2e: a=1e-2/0 b=1e-2/0
# dongzelian/SSF d9a631e, 28a70a6, train_scripts/vit/vtab/{cifar_100,flowers102,resisc45}/train_ssf.sh;
# optim_factory.py, param_groups_weight_decay: no decay of what has one dimension
ssf vit_base flowers102: weight=5e-3/5e-5 *=5e-3/0
ssf vit_base resisc45: weight=2e-3/5e-5 *=2e-3/0
# TonAnh/VeRA-plus a18c772, df8cce1, scripts/vera_plus/rte.sh; vera-plus.py: torch's AdamW on two groups
vera_plus roberta_base rte: b=4e-3/0.01 c=4e-3/0.01 d=4e-3/0.01 *=1e-2/0.01
# microsoft/LoRA 3732c24, c18b175, examples/NLU/roberta_base_mrpc.sh and src/transformers/trainer.py;
# examples/NLG/README.md and src/optimizer.py (one group)
lora roberta_base mrpc: bias=4e-4/0 *=4e-4/0.1
lora gpt2_medium e2e: *=2e-4/0.01
vera gpt2_medium e2e: *=-/0.01
vera gpt2_large e2e: *=-/0.01
# r-three/t-few 0423695, src/utils/Config.py: weight_decay 0, of IA3 alone (the head is this project's)
ia3 roberta_base rte: ia3_l.*=-/0 bias=-/0 *=-/0.01
# Zeju1997/oft 5f024e5, oft-db/train_dreambooth_oft.py: 1e-2; the parameter starts at 0
oft roberta_base rte: oft_R.*=-/0.01 bias=-/0 *=-/0.01
# Recipes that rows share. huggingface/peft, method_comparison/MetaMathQA: default_training_params.json, and
# vera/llama-3.2-3B-default, which names a rate alone (torch's decay); utils.py: AdamW on every parameter
lora llama3_2_3b gsm8k metamath_peft: *=1e-4/0.1
vera llama3_2_3b gsm8k metamath_peft: *=1e-3/0.01
# MohammadrezaBanaei/LoRA-XS 9b5f1ef, scripts/run_math_tuning.sh
lora_xs mistral_7b gsm8k metamath_papers: *=4e-3/0
# AGI-Edgerunners/LLM-Adapters, finetune.py: transformers' Trainer, without a decay
lora llama_7b commonsense commonsense: *=3e-4/0
# hqsiswiliam/hira 018e6d9, train_peft_hira.py: 0.01 by default (the rate is in a page that was not read)
hira llama3_8b commonsense commonsense_hira: *=-/0.01
"""
AUTHORS = dict(
    line.split(": ") for line in AUTHORS.splitlines() if line and line[0] != "#"
)


def of_two_layers(model):
    """The outline of a model whose parameters have the names of the whole one's."""
    layers = {"num_hidden_layers", "n_layer"} & model["architecture"].keys()
    return models.skeleton(
        model | {"architecture": model["architecture"] | dict.fromkeys(layers, 2)}, 2
    )


@pytest.mark.parity
@pytest.mark.parametrize("cell", AUTHORS)
def test_a_recipe_has_the_groups_of_its_authors(cell):
    row, model, task, *shared = cell.split()
    recipe = [f"recipe={name}/{model}" for name in shared]
    (run,) = expand([f"method={row}", f"model={model}", f"task={task}", *recipe])
    wanted = [
        re.fullmatch("(.+)=(.+)/(.+)", part).groups() for part in AUTHORS[cell].split()
    ]
    method = method_of_settings(run.method)
    outline = methods.adapt_quietly(of_two_layers(run.config["model"]), method)
    groups, names = (
        optimizer_groups(method, outline, run.config["train"]),
        dict(outline.named_parameters()),
    )
    found = {
        id(p): (group["lr"], group["weight_decay"])
        for group in groups
        for p in group["params"]
    }
    for name in (
        name for group in method.parameter_groups(outline).values() for name in group
    ):
        rate, decay = next(
            value for end, *value in wanted if fnmatchcase(f".{name}", f"*.{end}")
        )
        has = found.pop(id(names[name]))
        assert has[1] == float(decay), name
        assert rate == "-" or has[0] == pytest.approx(float(rate)), name
    assert not found
    optimizer = make_optimizer(groups, run.config["train"], torch.device("cpu"))
    # of the authors LoRA+'s alone have not torch's
    beta2 = 0.99 if row == "lora_plus" else 0.999
    assert {group["betas"] for group in optimizer.param_groups} == {(0.9, beta2)}


def test_each_recipe_with_an_authors_code_is_compared_with_it():
    for path in sorted((CONF / "recipe").glob("*/*.yaml")):
        source = yaml.safe_load(path.read_text()).get("source") or ""
        is_authors = not source.startswith(("this project's choice", "none for this"))
        if path.parent.name in ("perl", "rlmath_peft"):
            continue  # by TRL's own optimizer settings: no groups of parameters to compare
        if re.search(r"[\w-]+/[\w-]+", source) and is_authors:
            # a row's own recipe, or one that rows share
            words = (key.split() for key in AUTHORS)
            assert any(
                (of[3:] or of[:1], of[1]) == ([path.parent.name], path.stem)
                for of in words
            ), path


def test_schedules_and_sizes_of_the_scripts_that_no_preset_has():
    large = expand(
        ["model=roberta_large", "task=cola,sst2,qnli,mrpc,rte,stsb", "method=lora_xs"]
    )
    train = [run.config["train"] for run in large]
    assert [(part["epochs"], part["warmup_ratio"]) for part in train] == [
        (10, 0.06)
    ] * 3 + [(50, 0.0)] * 3
    nola = expand(["model=gpt2_medium,gpt2_large", "task=e2e", "method=nola"])
    # 500 steps of the schedule, which takes one after each micro-batch, of 8 rows and
    # of 4
    assert [run.config["train"]["warmup_steps"] for run in nola] == [500, 125]
    (plus,) = expand(["model=roberta_base", "task=rte", "method=vera_plus"])
    assert (plus.method["sites"], plus.method["rank"]) == (
        ["query", "key", "value"],
        1024,
    )
    assert plus.config["train"]["clip"] is None


# --- train.lr_by and decay_by: rates and weight decays of single parameters by patterns of their names

#: Of LoRA on a tiny model, by what is given: the rate, the decay and the size of each
#: group.
GROUPS = {
    "": "adapter: 1e-3 0.1 8, head: 2e-3 0.1 2, head (no decay): 2e-3 0 2",
    "decay_all: true": "adapter: 1e-3 0.1 8, head: 2e-3 0.1 4",
    "lr_by: {B: 0.01, query*.A: 0.005, classifier.*: 0.0001}": """
        adapter: 1e-3 0.1 2, adapter B: 1e-2 0.1 4, adapter query*.A: 5e-3 0.1 2,
        head: 2e-3 0.1 1, head (no decay): 2e-3 0 1,
        head classifier.*: 1e-4 0.1 1, head classifier.* (no decay): 1e-4 0 1""",
    "lr_by: {B: 0.01}, decay_by: {A: 0, query*.B: 0.5, value*.B: 0.3, bias: 0.2}": """
        adapter (no decay): 1e-3 0 4, adapter B (decay 0.5): 1e-2 0.5 2, adapter B (decay 0.3): 1e-2 0.3 2,
        head: 2e-3 0.1 2, head (decay 0.2): 2e-3 0.2 2""",
}


@pytest.mark.parametrize("given", GROUPS)
def test_each_parameter_is_in_one_group_which_is_named_by_its_rate_and_decay(given):
    model, method = tiny_model(), vera.LoRA(rank=2)
    method.adapt(model)
    settings = {"lr": 1e-3, "lr_head": 2e-3, "weight_decay": 0.1, "decay_all": False}
    groups = optimizer_groups(method, model, settings | yaml.safe_load(f"{{{given}}}"))
    found = {g["name"]: [g["lr"], g["weight_decay"], len(g["params"])] for g in groups}
    expected = dict(
        part.split(": ") for part in " ".join(GROUPS[given].split()).split(", ")
    )
    assert found == {
        name: [float(number) for number in of.split()] for name, of in expected.items()
    }
    members = [id(p) for group in groups for p in group["params"]]
    assert sorted(members) == sorted(
        id(p) for p in model.parameters() if p.requires_grad
    )


NAMES = [f"layer.{i}.query.{part}" for i in range(12) for part in "AB"]


@pytest.mark.parametrize(
    ("names", "patterns", "told"),
    [
        (
            NAMES,
            "A C",
            "name ends with 'C'. There are: layer.*.query.A, layer.*.query.B",
        ),
        (NAMES, "uery.B", "'uery.B'"),  # a part of a name is no end of one
        (NAMES, "B query.*", "'B' and 'query.*' both name layer.0.query.B"),
        ([f"{chr(97 + i)}.weight" for i in range(20)], "bias", "l.weight and 8 more"),
    ],
)
def test_an_unknown_pattern_is_refused_with_the_real_names(names, patterns, told):
    with refused("train.lr_by: ", told):
        patterns_by_name(names, dict.fromkeys(patterns.split(), 1.0))


def test_rates_by_the_row():
    """LoRA+: as many times the run's own rate, whatever it is."""
    (run,), (other,) = (
        expand(["method=lora_plus", f"train.{w}"])
        for w in ("lr=1e-2", "lr_by={B: 5e-1}")
    )
    assert (run.config["train"]["lr_by"], other.config["train"]["lr_by"]) == (
        {"B": 0.2},
        {"B": 0.5},
    )
    assert "lr_by" not in run.method
    assert read_rates({"B": "2.5x", "A": 0}, 1e-2) == {"B": 0.025, "A": 0.0}
    for wrong in ("x", "-2x", "2 x", "1e400x", None):
        with refused("train.lr_by.B=", "or such as 16x"):
            read_rates({"B": wrong}, 1e-2)


def test_empty_they_are_no_part_of_the_id():
    words = ["model=minilm", "task=reviews", "method=lora"]
    (plain,) = expand([*words, "train.adam_beta2=0.999"])
    runs = expand([*words, "train.lr_by={},null,{B:1},{B:1.0},{B:2}"])
    ids = [
        run_id(run)
        for run in (plain, *runs, *expand([*words, "train.decay_by=null,{B:1}"]))
    ]
    assert [ids.index(each) for each in ids] == [0, 0, 0, 3, 3, 5, 0, 7]


# --- what cannot work is said by the plan, and before a sweep starts

FUSED = "peft_lora on decoder: peft adapts transformer.h.0.attn.c_attn as a whole: name it, sites=[c_attn]"


def test_a_pair_that_cannot_work_is_refused_by_the_plan_and_before_a_sweep_starts(
    e2e_words,
):
    runs = expand(of_method(e2e_words, "method=lora,peft"))
    assert [(p.state, p.reason) for p in plan(runs, RecordFolder("nowhere"))] == [
        ("missing", ""),
        ("blocked", FUSED),
    ]
    with refused(FUSED):
        sweep.sweep(runs)
    assert not (Path(runs[0].config["output"]) / "runs").exists()


#: With a model that is not here the file's word counts, or nothing. FRoD computes with
#: the weights: what they alone could tell is not told.
REFUSALS = """
words | method=peft:TrainableTokensConfig | name target_modules in config
words | method=peft:XLoraConfig | needs a forward pass of its own
words | method=peft:LoraKonfig | Did you mean LoraConfig?
words | method=peft:FrodConfig |
words | method=peft:ShiraConfig | more shira params than the total number
words | method=ssf | has no patch embedding: SSF is for image models
words | method=lora_xs method.rank=33 | rank 33 is above that of bert.encoder.layer.0
words | method=lora_xs method.rank=32 |
words | method=lora train.lr_by={Bx:1e-2} | no trained parameter's name ends with 'Bx'. There are:
words | method=lora train.lr_by={B:2x} train.decay_by={Bx:1e-2} | train.decay_by: no trained parameter's name
e2e_words | method=peft method.sites=[c_attn] |
e2e_words | method=peft:LilyConfig method.sites=[c_attn] | does not support target modules of type
| model=gpt2_medium task=e2e method=peft | GPT-2 medium: peft adapts transformer.h.0.attn.c_attn as a whole
| model=decoder model.hub=owner/name task=e2e method=peft |
| experiment=peers_minilm seed=0 method=vblora_matched,lora_plus |
| experiment=peers_minilm seed=0 method=vblora_matched train.lr_by={bank:1} | name ends with 'bank'. There are
"""


@pytest.mark.parametrize("line", REFUSALS.strip().splitlines())
def test_what_a_method_needs_is_told_from_the_configuration_alone(line, request):
    family, words, why = (part.strip() for part in line.split("|"))
    for run in expand(
        of_method(request.getfixturevalue(family) if family else [], *words.split())
    ):
        told = methods.method_problem(run) or ""
        assert (bool(told), "\n" in told) == (bool(why), False), told
        assert why in told


def test_without_a_method_of_pefts_nothing_is_asked(words, monkeypatch):
    monkeypatch.setattr(
        methods, "_cached_problem", lambda *_: pytest.fail("built a model")
    )
    assert methods.method_problem(expand(words)[0]) is None


# --- recipes that rows share


def test_a_rows_part_takes_the_place_of_what_all_have(tmp_path):
    """And how a value was chosen is said of rows that have it."""
    path = tmp_path / "recipe" / "ours" / "minilm.yaml"
    path.parent.mkdir(parents=True)
    path.write_text(
        "lr: 1e-3\nlr_head: 2e-3\nby_task: {epochs: {reviews: 5}, lr_head: {reviews: 3e-3}}\n"
        "chosen: {clip: by hand, epochs: few}\nby_row:\n  lora: {lr: 5e-3, rank: 2, clip: 1}\n"
        "  vera: {epochs: 7, by_task: {lr: {reviews: 9e-3}, clip: {reviews: 2}}}\n  lora_r2: {rank: 2}\n"
        "  peft:IA3Config: {lr: 4e-3, lr_head: 1e-4, lr_by: {ia3_l*: 2x}}\n"
    )
    words = [
        "--config-dir",
        str(tmp_path),
        "recipe=ours/minilm",
        "model=minilm",
        "task=reviews",
    ]
    runs = expand([*words, "method=lora,vera,peft:IA3Config,lora_r2"])
    rates = [
        tuple(run.config["train"][key] for key in ("lr", "lr_head", "epochs"))
        for run in runs
    ]
    assert rates == [(5e-3, 3e-3, 5), (9e-3, 3e-3, 7), (4e-3, 1e-4, 5), (1e-3, 3e-3, 5)]
    assert (runs[0].method["rank"], runs[2].config["train"]["lr_by"]) == (
        2,
        {"ia3_l*": 8e-3},
    )
    # A record has the recipe that its row has, and a key that is given is a deviation
    # from that
    assert all("by_row" not in run.config["recipe"] for run in runs)
    assert [run.recipe for run in runs] == ["ours/minilm"] * 4
    chosen = [{"clip": "by hand", "epochs": "few"}] * 2 + [{"epochs": "few"}] * 2
    assert [run.config["recipe"]["chosen"] for run in runs] == chosen
    same, other = expand([*words, "method=lora", "train.lr=5e-3,1e-3"])
    assert same.changed == []
    assert [override.text for override in other.changed] == ["train.lr=0.001"]


# --- the rows of VeRA's peers: one budget of tuning


@pytest.mark.slow
def test_each_peer_has_four_rates_over_the_same_range():
    """Where they are to be tuned: rows of peers_base with published recipes have those.
    Their sizes, by which each has about VeRA's count, are in tests/nets, and count() is
    in tests/vera."""
    study = expand(["experiment=peers_minilm", "seed=0"])
    base = expand(["experiment=peers_base", "seed=0", "task=rte"])
    grids = yaml.safe_load((CONF / "tune.yaml").read_text())
    for run in [*study, *(run for run in base if run.recipe.startswith("peers/"))]:
        ((key, rates),) = tune.grid_of(run, grids).items()
        assert key == ("train.lr_head" if run.row == "head" else "train.lr")
        # nothing but rates
        told = [words for words in deviations(run, []) if "recipe" in words]
        assert all(words.startswith("the recipe has no lr") for words in told), (
            run.label
        )
        assert (len(rates), 60 <= float(rates[-1]) / float(rates[0]) <= 67) == (
            4,
            True,
        ), run.row
    classes = {
        name
        for group in grids["peers"].values()
        for name in group["rows"]
        if name.endswith("Config")
    }
    assert {run.config["method"].get("config_class") for run in study} - {
        None
    } == classes
