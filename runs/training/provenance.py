"""What a number was made with: code, versions, machine."""

import os
import platform
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from runs.gpus import driver
from runs.sources import git

#: The folders of the checkout that results are made with.
MAKING = ("vera", "tasks", "runs", "conf")
PACKAGES = (
    "torch",
    "transformers",
    "accelerate",
    "peft",
    "safetensors",
    "tokenizers",
    "spacy",
    "sacrebleu",
    "pycocoevalcap",
    "timm",
    "pillow",
    "numpy",
    "datasets",
    "evaluate",
    "scikit-learn",
    "scipy",
    "hydra-core",
)


@cache
def code_state() -> dict[str, Any]:
    """The commit of the code and whether that commit is not all of it: a tracked file has changed, or a
    folder that makes results holds one that is neither tracked nor ignored. None outside a git checkout."""
    commit = git("rev-parse", "HEAD")
    if commit is None:
        return {"commit": None, "dirty": None}
    changed = git("status", "--porcelain", "--untracked-files=no")
    # Which are no code
    new = git("ls-files", "--others", "--exclude-standard", "--", *MAKING, ":!runs/records")
    return {"commit": commit, "dirty": bool(changed or new)}


@cache
def versions() -> dict[str, str]:
    """Python's and the packages' versions."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def machine(device: torch.device) -> dict[str, Any]:
    """The device in words, never the machine's name."""
    on_gpu = device.type == "cuda"
    name = torch.cuda.get_device_name(device) if on_gpu else _processor()
    found = {"type": device.type, "name": name, "system": platform.system(), "cuda": torch.version.cuda}
    if not on_gpu:
        return found
    cudnn: Any = torch.backends.cudnn
    capability = ".".join(map(str, torch.cuda.get_device_capability(device)))
    return found | {"driver": driver(), "cudnn": cudnn.version(), "capability": capability}


def provenance(code: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """What a run's process is and is made with, for whoever follows the run while it is on."""
    return {"pid": os.getpid(), "code": code, "versions": versions(), "device": machine(device)}


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
