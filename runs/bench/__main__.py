"""The cost of VeRA beside peft and the base model: ratios of medians, from interleaved runs in one process.

python -m runs.bench               training steps of RoBERTa-base, memory, files, start-up: under 5 minutes on
                                   2 cores
python -m runs.bench full=true     every model, length and variant
python -m runs.bench serving       64 adapters in one batch (full=true: 10,000 resident, more lengths)
python -m runs.bench decoding      beam search for E2E beside transformers' own, GPT-2 small (full=true:
                                   medium, too)
python -m runs.bench contention    a run beside busy processes, by how OpenMP's threads wait: five minutes
                                   (full=true: three rounds)

Weights are random: time does not depend on them. float32 on a CPU, bfloat16 autocast on a GPU; no dropout.
"""

import gc
import json
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from runs.bench.contention import contention
from runs.bench.decoding import decoding
from runs.bench.models import DEVICE, PATHS, REFERENCE, SHAPES
from runs.bench.serving import serving
from runs.bench.tables import markdown
from runs.bench.training import epoch, files, memory, start, training
from runs.command import Common, entry_point, one_of, read, setting
from runs.record import write_atomically
from runs.training.provenance import code_state, machine, versions

PARTS = ("training", "serving", "decoding", "contention")


@dataclass(frozen=True)
class Settings(Common):
    """Settings of the command."""

    full: bool = setting(False, "every model, length and variant, which takes longer than five minutes")
    data: str | None = setting(None, "a folder with GLUE's data: adds an epoch on RTE")
    output: str = setting("outputs", "the tables go to bench/ in this folder")


def main(arguments: list[str]) -> int:
    line = read(arguments, Settings, names="[PART]")
    name = one_of("part", "".join(line.names) or "training", PARTS)
    full, data = line.settings.full, line.settings.data
    if name == "serving":
        rows = serving(full)
    elif name == "decoding":
        rows = decoding(full)
    elif name == "contention":
        rows = contention(full)
    else:
        rows = []
        methods = ["VeRA", REFERENCE, "peft VeRA"]
        for shape in SHAPES if full else SHAPES[:1]:
            variants, lengths = methods, [512, 1024, 2048]
            if full:
                heads = [] if shape.is_llama else ["head", "full"]
                variants = [*methods, *(f"VeRA {path}" for path in PATHS), *heads, "floor"]
                lengths = [*lengths, 4096]
            if DEVICE == "cuda":  # of fewer tokens, launches alone would be timed
                lengths = [*lengths, 16384, 32768]
            rows += training(shape, variants, lengths, 5 if full else 3)
            gc.collect()
            rows += memory(shape, methods, 2048 if full else 1024)
        rows += files(SHAPES[0])
        rows += start()
        rows += epoch(data) if data else []
    text = markdown(rows)
    origin = {"machine": machine(torch.device(DEVICE)), "threads": torch.get_num_threads()}
    origin |= {"date": time.strftime("%Y-%m-%d"), "versions": versions(), "code": code_state()}
    folder = Path(line.settings.output) / "bench"
    write_atomically(folder / f"{name}.json", json.dumps({**origin, "rows": rows}, indent=1) + "\n")
    write_atomically(folder / f"{name}.md", text + "\n")
    print(f"{text}\n\nThe numbers behind it: {folder / name}.json")
    return 0


if __name__ == "__main__":
    entry_point(main)
