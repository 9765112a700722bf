"""What a run was done with: configuration, code, versions, machine."""

import platform
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
import yaml
from accelerate import Accelerator

from runs.gpus import driver, processor
from runs.record import built_from, run_folder, write_atomically
from runs.run import Run
from runs.sources import git, head

#: The folders of the checkout that a result depends on.
MAKING = ("vera", "tasks", "runs", "conf")
PACKAGES = (
    *("torch", "transformers", "accelerate", "peft", "safetensors", "tokenizers", "spacy", "sacrebleu"),
    *("pycocoevalcap", "timm", "pillow", "numpy", "datasets", "evaluate", "scikit-learn", "scipy"),
    "hydra-core",
)


def write_configuration(run: Run, run_id: str) -> None:
    """Writes what Hydra's own applications leave in each run's folder: config.yaml, resolved, and
    overrides.yaml, a command line for this run."""
    folder, overrides = run_folder(run.config["output"], run_id), [*run.overrides, f"seed={run.seed}"]
    write_atomically(folder / "config.yaml", yaml.safe_dump(run.config, sort_keys=False, allow_unicode=True))
    write_atomically(folder / "overrides.yaml", yaml.safe_dump(overrides, allow_unicode=True))


@cache
def code_state() -> dict[str, Any]:
    """The commit of the code, and whether files differ from it (dirty): a tracked file has changed, or a
    folder of MAKING holds a file that is neither tracked nor ignored. Of an installed wheel, as it was built;
    None where there was no git checkout."""
    commit = head()
    if commit is None:
        return built_from()
    changed = git("status", "--porcelain", "--untracked-files=no")
    # Records are not code
    new = git("ls-files", "--others", "--exclude-standard", "--", *MAKING, ":!runs/records")
    return {"commit": commit, "dirty": bool(changed or new)}


@cache
def versions() -> dict[str, str]:
    """The versions of Python and of the packages."""
    installed = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            installed[package] = version(package)
        except PackageNotFoundError:
            continue
    return installed


def machine(device: torch.device) -> dict[str, Any]:
    """The device and the system; never the machine's name."""
    on_gpu = device.type == "cuda"
    name = torch.cuda.get_device_name(device) if on_gpu else processor()
    described = {"type": device.type, "name": name, "system": platform.system(), "cuda": torch.version.cuda}
    if not on_gpu:
        return described
    cudnn: Any = torch.backends.cudnn
    capability = ".".join(map(str, torch.cuda.get_device_capability(device)))
    return described | {"driver": driver(), "cudnn": cudnn.version(), "capability": capability}


def made_with(code: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """The code, versions and device of a run, as its record has them."""
    return {"code": dict(code), "versions": versions(), "device": machine(device)}


def conditions(code: dict[str, Any], accelerator: Accelerator, micro_batch: int | None) -> dict[str, Any]:
    """What may change a run's numbers without being part of its identity, of one attempt."""
    commit = f"{code['commit']}"[:12] + " with uncommitted changes" * bool(code["dirty"])
    name, threads = machine(accelerator.device)["name"], torch.get_num_threads()
    here = {"threads": threads, "processes": accelerator.num_processes, "micro_batch": micro_batch}
    return {"commit": commit, **versions(), "device": name, **here}


def changes(before: dict[str, Any], now: dict[str, Any]) -> str:
    """What differs between the conditions of two attempts, in words."""
    keys = [key for key in {**before, **now} if before.get(key) != now.get(key)]
    return "; ".join(f"{key} {before.get(key)}, then {now.get(key)}" for key in keys)
