"""Tiny models and data on disk, and the words of one run of each family."""

import os
import shutil
import sys
from pathlib import Path
from typing import Any

import tiny

ROOT = Path(__file__).parents[2]


def text(home: Path, **changes: Any) -> list[str]:
    """A classifier with dropout; changes: of its architecture."""
    dropout = {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}
    model = tiny.save_tiny(home / "roberta", "roberta", **dropout | changes)
    return [
        *("task=rte", f"task.data_dir={tiny.write_glue(home / 'glue')}", "model=encoder"),
        *(f"model.path={model}", "train.effective_batch=8", "train.max_length=32"),
    ]


def e2e(home: Path) -> list[str]:
    """GPT-2, whose logits differ enough that rounding does not choose among tokens."""
    model = tiny.save_gpt2(home / "gpt2", initializer_range=0.2)
    return [
        *("task=e2e", f"task.data_dir={tiny.write_e2e(home / 'e2e')}", "model=decoder"),
        *(f"model.path={model}", "train.effective_batch=4", "train.max_length=64"),
        *("task.beams=3", "task.max_new_tokens=12", "eval_batch=6"),
    ]


def images(home: Path) -> list[str]:
    model, data = tiny.save_vit(home / "vit"), tiny.write_images(home / "images")
    return [
        *("task=image_folder", f"task.data_dir={data}", "task.shots=4", "model=vision"),
        *(f"model.path={model}", "train.effective_batch=4"),
    ]


def llama(home: Path) -> list[str]:
    """Llama in 4 bit, as table 4 trains it."""
    model, data = tiny.save_llama(home / "llama"), tiny.write_alpaca(home / "alpaca")
    return [
        *("task=alpaca", f"task.data_dir={data}", "task.dev_rows=2", "model=decoder"),
        *(f"model.path={model}", "model.quantise=nf4", "train.precision=bf16", "micro_batch=2"),
        *("gradient_checkpointing=true", "train.effective_batch=4", "train.max_length=96"),
    ]


def command(words: list[str], home: Path, *places: Path, **more: str) -> dict[str, Any]:
    """What subprocess is given for `python -m runs`, without Java, whose scores take ten seconds. places:
    before the others on Python's path; more: of its environment."""
    programs = home / "bin"
    programs.mkdir(exist_ok=True)
    for name in ("git", "uname"):
        if (found := shutil.which(name)) and not (programs / name).exists():
            (programs / name).symlink_to(found)
    path = os.pathsep.join([*map(str, places), str(ROOT)])
    environment = os.environ | {"PATH": str(programs), "PYTHONPATH": path} | more
    return {"args": [sys.executable, "-W", "ignore", "-m", "runs", *words], "cwd": ROOT, "env": environment}
