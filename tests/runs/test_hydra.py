"""What a user of Hydra types by habit works as in Hydra, or is refused in one line: nothing is ignored.

Through the commands themselves. What Hydra itself would compose is asked of its compose API."""

import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from running import call, call_here, output_of

import runs.__main__ as main
from runs.config import CONF, expand
from runs.errors import UserError
from runs.identity import run_id
from runs.record import run_folder

pytestmark = pytest.mark.properties


#: Words, how many runs they are, and of which rows.
GRAMMAR = """
method=vera seed=3 | 1 vera
method=vera,lora seed=0,1,2 | 6 vera lora
seed=range(5) | 5 vera
seed=range(0,6,2) | 3 vera
method=choice(vera,bitfit) | 2 vera bitfit
method=glob(vera_r1*) | 3 vera_r1 vera_r1024 vera_r16
method=glob(vera_r1*,exclude=*16) | 2 vera_r1 vera_r1024
method=sort(vera,bitfit) | 2 bitfit vera
train.lr=sort(1e-2,1e-3,reverse=true) | 2 vera
train.epochs=int(1.0,2.0) | 2 vera
seed=int(3.0) | 1 vera
train.lr=float(1) | 1 vera
+experiment=demo method=head | 3 head
experiment=demo method=head,vera seed=0 | 2 head vera
method=peft +method.config.r=4 | 1 peft_lora_r_4
method=peft +method.config.r=4,8 | 2 peft_lora_r_4 peft_lora_r_8
method=peft method.config={r:4,p:1} ~method.config.p | 1 peft_lora_r_4
++train.lr=3e-3 | 1 vera
~recipe | 1 vera
train.lr_head=${train.lr} | 1 vera
output=${oc.env:HOME}/x | 1 vera
"""


@pytest.mark.parametrize("line", GRAMMAR.strip().splitlines())
def test_lists_and_the_grammar_of_overrides(line, tmp_path):
    words, count, *rows = *line.partition(" | ")[:1], *line.partition(" | ")[2].split()
    runs = expand(words.split())
    assert (len(runs), list(dict.fromkeys(run.row for run in runs))) == (int(count), rows)


def test_multirun_or_not_is_the_same_sweep():
    words = ["method=vera,lora", "seed=0,1"]
    assert expand(["-m", *words]) == expand([*words, "--multirun"]) == expand(words)


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["task=rte", "model=roberta_base", "train.epochs=2"],
        ["experiment=table3_medium", "method=vera", "seed=1", "model.settings.resid_pdrop=0.1"],
        ["launcher=slurm", "launcher.partition=gpu", "tracking=offline"],
        ["method=peft", "+method.config.r=4", "++train.lr=3", "~recipe"],
        ["task=alpaca", "model=llama2_13b"],
    ],
)
def test_the_configuration_is_what_hydra_composes(words):
    shown = yaml.safe_load(call_here("runs", "--cfg", "job", *words, check=0).stdout)
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("config", words)
        assert shown == OmegaConf.to_container(cfg)
        package = call_here("runs", "-c", "job", "--package", "train", "--resolve", *words, check=0).stdout
        assert package.startswith("# @package train\n")
        assert yaml.safe_load(package) == OmegaConf.to_container(cfg.train, resolve=True)


def test_what_hydras_options_print():
    first = call_here("runs", "--cfg", "job", "method=lora,vera", "seed=4,5", check=0)
    assert first.stderr == "note: of 4 runs the first one\n"
    shown = yaml.safe_load(first.stdout)
    assert (shown["method"]["kind"], shown["seed"]) == ("lora", 4)
    borrowed = yaml.safe_load(call_here("runs", "--cfg", "job", "method=vera_r64", check=0).stdout)
    assert borrowed["recipe"]["source"] == expand(["method=vera_r64"])[0].config["recipe"]["source"]
    assert "job" in yaml.safe_load(call_here("runs", "--cfg", "hydra", check=0).stdout)["hydra"]
    both = yaml.safe_load(call_here("runs", "--cfg", "all", "--resolve", check=0).stdout)
    assert {"hydra", "train", "launcher"} <= both.keys()
    assert "Hydra 1." in call_here("runs", "--version", check=0).stdout
    usage = call_here("runs", "--help", "task=mrpc", check=0).stdout
    for part in ("python -m runs model=", "launcher: local, ray, serial, slurm", "name: mrpc", "--cfg"):
        assert part in usage
    assert "== Flags ==" in call_here("runs", "--hydra-help", check=0).stdout


@pytest.mark.usefixtures("process")
def test_the_defaults_tree():
    tree = call("runs", "--info", "defaults-tree", "task=rte", check=0).stdout
    assert "task: rte" in tree
    assert "shared/glue" in tree


#: Words, and what the line that refuses them names: what docs/hydra.md lists, options that do not fit, keys
#: and values.
REFUSED = """
hydra/launcher=submitit_slurm | hydra/launcher=submitit_slurm: not taken here. Instead: docs/hydra.md
+hydra.launcher.nodes=2 | hydra.launcher.nodes
hydra/sweeper=optuna | hydra/sweeper
hydra.sweeper.params.seed=0 | hydra.sweeper
hydra.mode=MULTIRUN | hydra.mode
hydra.run.dir=x | hydra.run.dir=x: not taken here. Instead: docs/hydra.md
hydra.job.chdir=true | hydra.job.chdir
hydra.verbose=true | hydra.verbose
hydra.searchpath=[file:///x] | hydra.searchpath
--experimental-rerun x | --experimental-rerun
--run | --run
-cn other | -c
--config-path=x | --config-path
--config-dir /nowhere | --config-dir /nowhere: no such folder
--resolve | --package, --resolve and sources=true are for --cfg job
--cfg task=rte | --cfg
--cfg job --package trian | has no such part. Did you mean train?
-sc install=csh | No completion plugin for 'csh'
--jobs=3 | --jobs=3
method=vera,lora method=bitfit | method is given twice: method=bitfit
model=minilm model=minilm | model is given twice
seed=0 seed=1,2 | seed is given twice
train.lr=interval(0,1) | train.lr=interval(0,1)
method=vera,choice(lora,bitfit) | choice() or range() beside or within a list
launcher=serial,local | launcher= takes one value, for all runs of the command
redo=true,false | redo= takes one value
experiment=demo,figure4 | experiment= takes one value
model.settings={a:[{_target_:os.system}]} | no override does
+train.lr=1 | An item is already at 'train.lr'
+seed=1 | An item is already at 'seed'
+task=rte | Multiple values for task
+train.foo=1 | no key 'train.foo'
++train.foo=1 | no key 'train.foo'
+task.foo=1 | no key 'task.foo'
~train.lr | ~train.lr: not taken here. Instead: every run has that key
~model | ~model: not taken here
~nothing | ~nothing
train.lr=fast | train.lr=fast: should be
model=robertta_base | no model 'robertta_base'. Did you mean roberta_base? (python -m
model=gpt2_medium | model gpt2_medium takes text generation, task reviews is text
model=vit_base task=rte | model vit_base takes image, task rte is text
model.modality=images | model minilm takes images, task reviews is text
init_from=lora | init_from=lora: should be a run id (12 hex digits), an adapter file or ROW@TASK
init_from=lorra@mnli | no method 'lorra'. Did you mean lora?
init_from=lora@mnly | no task 'mnly'. Did you mean mnli?
init_from=lora_mnli@rte | init_from=lora_mnli@rte: lora_mnli starts from another run itself
method=peft method.config=3 | method.config=3: should be a valid dictionary
method=vera,lorra | no method 'lorra'. Did you mean lora?
method=peft:IA3Config method.config_class=LoraConfig | leave method.config_class= out
method=vera,perft:IA3Config | no method 'perft
method=OSF | One of peft's classes: peft:CLASS, such as peft:OSFConfig
method=IA3 | Did you mean ia3?
method=peft method.config.r=4 | no key 'method.config.r'
method=vera method.kind=a.b | a file names what is called
method=LoRA(r=8) | 'method=LoRA(r=8)' is not KEY=VALUE
model=FacebookAI/roberta-base | One of the hub: model=encoder model.hub=Face
experiment=table5 | no experiment 'table5'. Did you mean table5_base or table5_large?
recipe=vera/roberta_bas | no recipe 'vera/roberta_bas'. Did you mean vera/roberta_base?
recipe=null | no recipe 'null'
recipe.lr=3 | recipe.lr=3: not taken here. Instead: a recipe is a file
trian.lr=3 | no key 'trian.lr'. Did you mean train.lr?
lr=3 | no key 'lr'. Did you mean train.lr?
method.rnk=3 | no key 'method.rnk'. Did you mean method.rank?
model.foo=1 | no key 'model.foo'
task.train_file=x | no key 'task.train_file'
method.r=3 | no key 'method.r'. Did you mean method.rank?
+x=1 | no key 'x'
+task.foo.bar=1 | no key 'task.foo.bar'
+train.foo.bar=1 | no key 'train.foo.bar'
+train.lr.foo=1 | no key 'train.lr.foo'
+method.sites.foo=1 | method.sites
+method.configs=1 | no key 'method.configs'
+method.config.r=1 | no key 'method.config.r'
task.family=../../evil | task.family=../../evil: should be one of e2e, glue, images, instruct, text
task.family=null | task.family=null: should be
train.lr=glob(*) | train.lr=glob(*): nothing of that name
train.lr=range(0,1,0) | train.lr=range(0,1,0): cannot be listed
seed=range(0,inf) | cannot be listed (more than
train.lr=[1e-2,1e-3] | train.lr=[0.01,0.001]: should be
method.rank=[4,8] | method.rank=[4,8]: should be
method=[vera,lora] | no method '[vera,lora]'
seed=[0,1] | seed=[0,1]: should be
seed=0-2 | seed=0-2:
seed=0,0 | appears twice in this sweep
lease_seconds=5 | lease_seconds=5:
model=encoder model.path=/nowhere | /nowhere: no such folder (model.path)
seed=true | seed=true: should be
seed=0,9223372036854775808 | seed=9223372036854775808: should be less than
data_seed=-1 | data_seed=-1: should be
train.epochs=2.5 | train.epochs=2.5: should be
train.epochs=0 | train.epochs=0: should be
train.evaluate_every=0 | train.evaluate_every=0: should be
train.lr=-1 | train.lr=-1
train.lr=nan | train.lr=nan: should be
train.lr_by=3 | train.lr_by=3: should be a mapping of names to rates, such as {B: 1e-2}
train.lr_by={B:-1} | train.lr_by.B=-1: should be a number that is not negative
train.lr_by={B:x} | train.lr_by.B=x: should be a number
train.decay_by={B:true} | train.decay_by.B=True: should be a number
train.adam_beta2=1 | train.adam_beta2=1
train.warmup_ratio=2 | train.warmup_ratio=2
train.clip=0 | train.clip=0
train.schedule=step | train.schedule=step: should be 'linear', 'cosine' or 'constant'
train={adam_eps:1e-4} | name each setting by itself, such as train.epochs=3
select=test | select=test: should be
keep=all | keep=all: should be
keep=both | keep=both is for tasks that decode texts
device=gpu | device=gpu: should be
adapter_precision=fp8 | adapter_precision=fp8: should be
micro_batch=0 | micro_batch=0: should be
debug=maybe | debug=maybe: should be
method.rank=abc | method.rank=abc: should be
method.sites=query | method.sites=query: should be a valid list
method.redrawn=null | method.redrawn=null:
task.regression=maybe | task.regression=maybe: should be
task.length_grouped=null | task.length_grouped=null: should be
task.holdout=2 | task.holdout=2: should be
task.train_rows=null | task.train_rows=
task=text task.train_file=a.csv task.text=null | task.text=null: should be
task=text task.name=rte | task.name=rte: conf/task has another task of that name
model=roberta_base task=rte task.data_dir=99 | task.data_dir=99: should be
model=encoder | model.path=
model=encoder model.wheel="foo==1.0" | model.sha256=
model=encoder model.wheel=['foo==1.0'] | name==version --hash
model.quantise=nf4 | model.quantise=nf4 is for language models
model=gpt2_medium task=e2e model.settings=3 | model.settings=3: should be
model=gpt2_medium task=e2e task.items=abc | task.items=abc: should be
model=gpt2_medium task=e2e task.length_penalty=0.8 | task.length_penalty=0.8: should be a valid list
method=lora method.scaling=linear | method.scaling=linear: should be
method.projection_seed=${seed} | method.projection_seed=${seed}: matrices that are drawn anew
method.redrawn=true | method.redrawn=true: matrices that are drawn anew
method=vera_redrawn method.projection_seed=0 seed=0,1 | method.projection_seed=0: redrawn
method=vera_redrawn method.projection_seed=${data_seed} data_seed=1 | ${data_seed}: matrices that
~keep | ~keep: not taken here
=1 | '=1' is not KEY=VALUE
method.rank=[1 | 'method.rank=[1' is not KEY=VALUE
experiment=table2_base model=encoder model.path=/x | preset table2_base has no recipe for full/encoder
launcher=slurm launcher.executors=0 | launcher.executors=0: should be
launcher=ray launcher.init=3 | launcher.init=3: should be
launcher.name=x | launcher.name=x
launcher=local +launcher.executors=3 | launcher.executors
+launcher.foo=1 | launcher.foo
launcher=slurm +launcher.runs_per_device=2 | launcher.runs_per_device
tracking.mode=foo | tracking.mode=foo: should be
"""
#: Names of other programs, and this one's.
HABITS = """
learning_rate train.lr, batch_size train.effective_batch, train_batch_size train.effective_batch,
per_device_train_batch_size micro_batch, gradient_accumulation_steps micro_batch,
per_device_eval_batch_size eval_batch, num_train_epochs train.epochs, max_seq_length train.max_length,
lr_scheduler_type train.schedule, max_grad_norm train.clip, output_dir output, dataset task, wandb tracking
"""


def test_under_torchrun_every_process_has_shuffled_seeds_in_one_order(monkeypatch):
    seen, ended = list[list[int]](), SimpleNamespace(exit_code=0)
    monkeypatch.setenv("MASTER_PORT", "29500")
    monkeypatch.setattr(main, "sweep", lambda runs, **_: seen.append([run.seed for run in runs]) or ended)
    for _ in range(2):
        main.main(["task=rte", "seed=shuffle(0,1,2,3,4,5,6,7)"])
    assert seen[0] == seen[1]
    assert sorted(seen[0]) == [*range(8)]


@pytest.mark.parametrize(
    ("words", "named"),
    [
        *(line.split(" | ") for line in REFUSED.strip("\n").splitlines()),
        *((f"{a}=1", f"no key '{a}'. Did you mean {b}?") for a, b in map(str.split, HABITS.split(","))),
    ],
)
def test_what_is_refused_is_one_line_and_starts_nothing(words, named, tmp_path):
    done = call_here("runs", *words.split(" "), f"output={tmp_path / 'outputs'}", check=2)
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert named.rstrip() in done.stderr
    assert done.stdout == ""
    assert not (tmp_path / "outputs").exists()


def test_a_folder_of_own_files(words, tmp_path, monkeypatch):
    """--config-dir: a preset, a row, a task and a recipe from outside the clone, in every command that
    composes runs."""
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
    kept = [word for word in words if not word.startswith(("task=", "method", "train.", "seed="))]
    mine = ["--config-dir", str(tmp_path / "own"), "experiment=mine", *kept]
    runs = expand(mine)
    rates = [("my_vera", 0, 0.5), ("my_vera", 1, 0.5), ("vera", 0, 0.25), ("vera", 1, 0.25)]
    assert [(run.row, run.seed, run.config["train"]["lr"]) for run in runs] == rates
    assert {run.config["task"]["train_rows"] for run in runs} == {8}
    assert re.search(": 4 runs.*\nmy_vera .*\nvera ", call_here("runs.plan", *mine, check=0).stdout, re.S)
    assert "of 4 runs" in call_here("runs", "--cfg", "job", *mine, check=0).stderr
    quick = ["train.max_steps=1", "tracking=off", "debug=true", "table=false"]
    assert "4 runs" in call_here("runs", *mine, *quick, check=0).stdout
    error = call_here("runs", *mine, "method=my_verra", check=2).stderr
    assert "no method 'my_verra'. Did you mean my_vera?" in error
    # Hydra would take conf/'s file of two of one name, without a word
    (tmp_path / "own" / "method" / "lora.yaml").write_text("kind: full\n")
    with pytest.raises(UserError, match=r"method/lora.yaml: conf/ has a file of this name"):
        expand([*mine[:2], *kept, "task=rte", "method=vera"])
    (tmp_path / "own" / "method" / "lora.yaml").write_bytes((CONF / "method" / "lora.yaml").read_bytes())
    (run,) = expand([*mine[:2], *kept, "task=rte", "method=lora"])  # a copy does no harm
    assert run.config["method"]["kind"] == "lora"
    assert "no experiment 'mine'" in call_here("runs", "experiment=mine", check=2).stderr


def test_a_run_leaves_its_configuration_as_hydra_does(words):
    call_here("runs", *words, "train.max_steps=1", "tracking=off", "debug=true", check=0)
    (run,) = expand([*words, "train.max_steps=1", "debug=true"])
    folder = run_folder(output_of(words), run_id(run))
    assert yaml.safe_load((folder / "config.yaml").read_text()) == run.config
    again = yaml.safe_load((folder / "overrides.yaml").read_text())
    assert [run_id(one) for one in expand(again)] == [run_id(run)]


@pytest.mark.usefixtures("process")
def test_a_shell_completes_the_installed_script(tmp_path):
    """What Hydra's function for bash asks of the script."""
    script = Path(sys.executable).with_name("vera-bench")
    asked = subprocess.run([script, "-sc", "install=bash"], capture_output=True, text=True, check=True)
    assert "hydra_bash_completion vera-bench" in asked.stdout
    for typed, completed in {
        "method=vera_r1": ["method=vera_r1", "method=vera_r1024", "method=vera_r16"],
        "launcher=": ["launcher=local", "launcher=ray", "launcher=serial", "launcher=slurm"],
        "train.lr": ["train.lr=", "train.lr_by=", "train.lr_head="],
    }.items():
        line = {"COMP_LINE": f"vera-bench {typed}", "COMP_POINT": str(len(typed) + 11)}
        done = subprocess.run(
            [script, "-sc", "query=bash"], capture_output=True, text=True, check=True, env=os.environ | line
        )
        assert done.stdout.split() == completed
