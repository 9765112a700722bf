"""Where memory ends: a failing device is not taken for that, and a run goes on with
less of a batch."""

import json
import subprocess
from pathlib import Path

import pytest
import torch
from tiny import save_tiny

from gpu_check import DEVICE
from gpu_check.test_families import command
from runs.training.train import cause_of

pytestmark = [pytest.mark.properties, pytest.mark.slow]

#: Bytes that a run's process may take: a batch of 32 rows takes some 2 GB, one of 4
#: rows a quarter of one.
ROOM = 900_000_000


def test_memory_that_ends_is_known_as_that(found):
    with pytest.raises(Exception, match=r".") as error:  # 70 TB
        torch.empty(2**46, dtype=torch.uint8, device=DEVICE)
    found((str(error.value).splitlines() or [""])[0][:80])
    assert cause_of(error.value)[0] == "memory"


def test_a_run_whose_memory_ends_halves_its_micro_batch_and_finishes(
    words, tmp_path, found
):
    model = save_tiny(tmp_path / "model", "roberta", intermediate_size=65536)
    words += [
        f"model.path={model}",
        "method=vera",
        "train.epochs=1",
        "train.effective_batch=32",
    ]
    words += [f"device={DEVICE}", "eval_batch=4"]
    room = {
        "GPU_CHECK_ROOM": str(ROOM),
        "GPU_CHECK_DEVICE": DEVICE,
        "OMP_NUM_THREADS": "1",
    }
    of = command(words, tmp_path, Path(__file__).parent / "shim", **room)
    done = subprocess.run(**of, capture_output=True, timeout=150, text=True)
    (path,) = (tmp_path / "outputs" / "records").glob("*.json")
    record = json.loads(path.read_bytes())
    assert record["status"] == "done", (done.stdout + done.stderr)[-400:]
    told = "; ".join(d for d in record["deviations"] if "memory" in d)
    found(told, micro_batch=record["micro_batch"])
    assert record["micro_batch"] < record["effective_batch"] == 32
    assert "micro-batch" in told
