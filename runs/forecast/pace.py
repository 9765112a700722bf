"""How fast a device computes a row of a table: measured by a probe (runs/probe.py) and kept in the cache, or
by gpu-check (tests/gpu_check) on a card like this machine's."""

import contextlib
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from runs import gpus, models
from runs.identity import hash_of
from runs.models.locate import json_mapping
from runs.record import ROOT, cache_folder, write_atomically
from runs.run import Run

#: What gpu-check has measured, where a card was had.
GPU_CHECK = ROOT / "docs" / "gpu.json"


@dataclass(frozen=True)
class Pace:
    """Seconds of a forward and backward pass: `step` for the pass itself, and `token` for each of its tokens,
    padding included. For a row that trains nothing, seconds of a forward pass. source: what has measured
    it."""

    step: float
    token: float
    source: str = "a probe of this device"


def pace_of(run: Run) -> Pace | None:
    """How fast this machine computes a run's row; None where that was not measured."""
    return pace_here(run) or _of_card(run)


def pace_here(run: Run) -> Pace | None:
    """The same, where a probe has measured it on this machine."""
    try:
        return _pace(json.loads(_path(run).read_bytes())["pace"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _of_card(run: Run) -> Pace | None:
    """As gpu-check has measured it on a card like those of this machine, by model, row and precision."""
    key = pace_key(run)
    cards = set(key.pop("machine")["cards"][:-1])
    paces = (json_mapping(str(GPU_CHECK)) or {}).get("paces") if cards else None
    for entry in paces if isinstance(paces, list) else []:
        with contextlib.suppress(ValueError, KeyError, TypeError):  # a file that somebody has edited
            if {entry["card"]} == cards and entry["key"] == key:
                return _pace(entry, f"gpu-check's steps on another {entry['card']} (docs/gpu.json)")
    return None


def _pace(values: Mapping[str, Any], source: str = Pace.source) -> Pace | None:
    pace = Pace(float(values["step"]), float(values["token"]), source)
    return pace if math.isfinite(pace.step + pace.token) and min(pace.step, pace.token) >= 0 else None


def keep_pace(run: Run, pace: Pace, how: Mapping[str, Any]) -> None:
    """Writes a measured pace into the cache. how: the device and the steps of the measurement, for people."""
    kept = {"pace": {"step": pace.step, "token": pace.token}, "key": pace_key(run), "how": dict(how)}
    with contextlib.suppress(OSError):  # a read-only home costs the forecast, no more
        write_atomically(_path(run), json.dumps(kept, indent=1))


def pace_key(run: Run) -> dict[str, Any]:
    """What a pace depends on: the machine, the model's architecture, the row with its settings, and the
    precision. The lengths of texts are left out: a forecast multiplies them by the pace."""
    config = run.config
    model = {key: config["model"].get(key) for key in ("modality", "settings", "quantise")}
    return {
        "machine": machine(config["device"]),
        "model": {**model, "architecture": models.architecture_of(config["model"])},
        "row": run.method,
        "precision": config["train"]["precision"],
        "gradient_checkpointing": bool(config.get("gradient_checkpointing")),
    }


def _path(run: Run) -> Path:
    return cache_folder() / "paces" / f"{hash_of(pace_key(run))[:24]}.json"


@cache
def machine(device: str) -> dict[str, Any]:
    """The machine of a pace: device, threads, version of torch. It does not import torch, which would take
    longer than a whole plan."""
    return {
        "device": device,
        "cards": [] if device == "cpu" else _cards(),
        "processor": gpus.processor(),
        "cores": len(gpus.cores()),
        "threads": os.environ.get("OMP_NUM_THREADS"),
        "torch": version("torch"),
    }


def _cards() -> list[str]:
    """The names of NVIDIA's graphics cards, and which of them CUDA may use."""
    return [*names, os.environ.get("CUDA_VISIBLE_DEVICES", "all")] if (names := gpus.names()) else []
