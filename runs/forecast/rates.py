"""FLOP a second: as runs/probe.py has measured them on this machine for a row, or as conf/cards.yaml assumes
them of a card."""

import contextlib
import json
import os
from importlib.metadata import version
from pathlib import Path

import yaml

from runs import gpus
from runs.config import CONF
from runs.errors import UserError
from runs.identity import hash_of
from runs.record import write_atomically
from runs.run import Run
from tasks.fetch import cache_folder

#: FLOP a second, and in words where the number is from.
Rate = tuple[float, str]
#: The most steps and seconds of a probe, for each row of a model.
STEPS, SECONDS = 20, 20


def measured(run: Run) -> Rate | None:
    """What a probe has measured for a run's row on this machine; None where it has not."""
    try:
        return float(json.loads(_path(run).read_bytes())["flops"]), "a probe's rate on this device"
    except (OSError, ValueError, KeyError, TypeError):
        return None


def keep(run: Run, flops: float) -> None:
    """Writes a measured rate into the cache."""
    with contextlib.suppress(OSError):  # a read-only home costs the forecast, no more
        write_atomically(_path(run), json.dumps({"flops": flops, "row": row_key(run)}))


def row_key(run: Run) -> str:
    """What a rate depends on, beside the machine: the model, the row with its settings, and the precision."""
    config = run.config
    settings = [config["model"], run.method, config["train"]["precision"], config["micro_batch"]]
    return json.dumps([config["device"], *settings, config["gradient_checkpointing"]], sort_keys=True)


def _path(run: Run) -> Path:
    cards = [*gpus.names(), os.environ.get("CUDA_VISIBLE_DEVICES")] if run.config["device"] != "cpu" else []
    machine = [
        cards,
        gpus.processor(),
        len(gpus.cores()),
        os.environ.get("OMP_NUM_THREADS"),
        version("torch"),
    ]
    return cache_folder() / "rates" / f"{hash_of([machine, row_key(run)])[:24]}.json"


def assumed(run: Run, card: str | None = None) -> Rate | None:
    """What conf/cards.yaml assumes of a card, by default this machine's; None for one that it lacks. Raises
    UserError for a name that it lacks."""
    cards = yaml.safe_load((CONF / "cards.yaml").read_text())
    here = gpus.names() if not card and run.config["device"] in ("auto", "cuda") else []
    if card and card not in cards:
        raise UserError(f"card={card}: conf/cards.yaml has {', '.join(cards)}")
    name = card or next((name for name in cards if here and all(name in one for one in here)), None)
    flops = cards[name].get(run.config["train"]["precision"]) if name else None
    return (flops, f"the rate that conf/cards.yaml assumes of one {name}") if flops else None
