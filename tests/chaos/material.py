"""What a campaign disturbs: sweeps of tiny runs, which reach every phase of a run."""

from dataclasses import dataclass
from pathlib import Path

from chaos.watch import PHASES
from tiny import save_gpt2, save_llama, save_tiny, write_e2e, write_glue

#: The phases of a language model alone.
LANGUAGE = ("reading the fixed text", "estimating the reach", "decoding", "scoring")

#: A reward that an untrained model earns now and then.
REWARDS = """
def even(prompt, completion, answer):
    return float(len(completion) % 2)
"""


@dataclass(frozen=True)
class Sweep:
    """The overrides of one command, and the phases that its runs have."""

    name: str
    overrides: list[str]
    phases: tuple[str, ...]


def make_sweeps(home: Path) -> list[Sweep]:
    """Writes tiny models and their data below `home`. Returns the sweeps: classifiers
    with dropout, a decoder that writes texts, and a decoder trained by reward."""
    shared = [
        "device=cpu",
        "tracking=off",
        "checkpoint_minutes=0",
        "seed=0,1",
        "table=false",
    ]
    without_texts = tuple(phase for phase in PHASES if phase not in LANGUAGE)
    return [
        Sweep("classify", [*_classify(home), *shared], without_texts),
        Sweep("write", [*_write(home), *shared], tuple(PHASES)),
        Sweep("reward", [*_reward(home), *shared], tuple(PHASES)),
    ]


def _classify(home: Path) -> list[str]:
    dropout = {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}
    model = save_tiny(home / "bert", "bert", **dropout)
    return [
        "model=encoder",
        f"model.path={model}",
        "task=rte",
        f"task.data_dir={write_glue(home / 'glue')}",
        "method=vera,lora,adalora,full",
        "train.epochs=3",
        "train.effective_batch=8",
        "train.max_length=32",
        "train.lr=1e-2",
        "eval_batch=2",
    ]


def _write(home: Path) -> list[str]:
    return [
        "model=decoder",
        f"model.path={save_gpt2(home / 'gpt2')}",
        f"task.forgetting_text={_write_text(home)}",
        "task=e2e",
        f"task.data_dir={write_e2e(home / 'e2e')}",
        "task.beams=3",
        "task.max_new_tokens=24",
        "method=vera,lora",
        "train.epochs=3",
        "train.effective_batch=4",
        "train.lr=0.3",
        "train.max_length=64",
        "eval_batch=3",
        "keep=both",
        "adapter_precision=fp16",
    ]


def _reward(home: Path) -> list[str]:
    (home / "campaign_rewards.py").write_text(REWARDS)
    return [
        "model=decoder",
        f"model.path={save_llama(home / 'llama')}",
        f"task.forgetting_text={_write_text(home)}",
        "task=sums",
        "task.train_rows=24",
        "task.dev_rows=4",
        "task.test_rows=6",
        "method=vera",
        "train.objective=reward",
        "reward.samples=4",
        "reward.function=campaign_rewards.even",
        "train.epochs=2",
        "train.effective_batch=6",
        "train.lr=1e-2",
        "eval_batch=2",
    ]


def _write_text(home: Path) -> Path:
    """A text for forgetting, of which a run reads more than one window."""
    path = home / "text.txt"
    path.write_text("The keeper lights the lamp when the sun goes down. " * 20)
    return path
