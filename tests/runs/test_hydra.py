"""What a user of Hydra types by habit works as in Hydra, or is refused in one line: nothing is ignored.

Through the commands themselves. What Hydra itself would compose is asked of its compose API."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from running import ROOT, call, call_here, output_of

from runs.config import CONF, expand
from runs.errors import UserError
from runs.identity import run_id
from runs.record import run_folder

pytestmark = pytest.mark.properties


def plan_of(*words):
    """The first line of a plan, which counts the runs, and its lines of rows."""
    lines = call_here("runs.plan", *words, check=0).stdout.splitlines()
    return lines[0], [line.split()[0] for line in lines[3 : lines.index("", 3)] if line[0] != "?"]


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
"""


@pytest.mark.parametrize("line", GRAMMAR.strip().splitlines())
def test_lists_and_the_grammar_of_overrides(line, tmp_path):
    """-m or not: the same sweep."""
    words, count, *rows = *line.partition(" | ")[:1], *line.partition(" | ")[2].split()
    runs = expand(words.split())
    assert (len(runs), list(dict.fromkeys(run.row for run in runs))) == (int(count), rows)
    assert expand(["-m", *words.split()]) == expand([*words.split(), "--multirun"]) == runs


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


#: What is refused, and what the line names: what docs/hydra.md lists, and options that do not fit.
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
+train.foo=1 | no key 'train.foo'
++train.foo=1 | no key 'train.foo'
+task.foo=1 | no key 'task.foo'
+train.lr=1 | An item is already at 'train.lr'
~train.lr | ~train.lr: not taken here. Instead: every run has that key
~model | ~model: not taken here
~nothing | ~nothing
train.lr=fast | train.lr=fast: should be
"""


@pytest.mark.parametrize("line", REFUSED.strip().splitlines())
def test_what_is_refused_is_one_line_and_starts_nothing(line, tmp_path):
    words, _, named = line.partition(" | ")
    done = call_here("runs", *words.split(), f"output={tmp_path / 'outputs'}", check=2)
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert named in done.stderr
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
    counted, rows = plan_of(*mine)
    assert ": 4 runs" in counted
    assert rows == ["my_vera", "vera"]
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


#: Shows which of torchrun's processes compose, and what each of them would run.
SHOW = """
import os, sys, runs.__main__ as command
from types import SimpleNamespace
rank, compose, out = os.environ["RANK"], command.read_command, sys.argv[1]
def show(name, text):
    with open(os.path.join(out, name + rank), "w") as file:
        file.write(text)
def read_command(words, folder):
    show("composed", "")
    return compose(words, folder)
def sweep(runs, launch, again):
    show("runs", " ".join(run.label for run in runs) + launch.launcher.name)
    return SimpleNamespace(exit_code=0)
command.read_command, command.sweep = read_command, sweep
sys.exit(command.main(sys.argv[2:]))
"""


@pytest.mark.usefixtures("process")
def test_of_torchruns_processes_the_first_one_composes_for_all_and_speaks(tmp_path):
    (tmp_path / "show.py").write_text(SHOW)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--master-port=29673"]

    def done(*words):
        env = os.environ | {"PYTHONPATH": str(ROOT)}
        return subprocess.run(
            [*torchrun, *words], cwd=ROOT, env=env, capture_output=True, text=True, timeout=120
        )

    refused = done("-m", "runs", "method=verra")
    assert refused.returncode != 0
    assert refused.stderr.count("error: no method 'verra'. Did you mean vera?") == 1
    words = ["method=vera", "task=rte,mrpc", "seed=3", f"output={tmp_path}"]
    assert done(str(tmp_path / "show.py"), str(tmp_path), *words).returncode == 0
    assert sorted(path.name for path in tmp_path.glob("composed*")) == ["composed0"]
    first, second = (tmp_path / f"runs{rank}" for rank in (0, 1))
    assert first.read_text() == second.read_text()
    assert "RTE, seed 3" in first.read_text()
    assert "MRPC, seed 3" in first.read_text()
