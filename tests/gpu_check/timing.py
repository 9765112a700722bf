"""Training steps of table 2's rows with random weights of RoBERTa-base's architecture, as runs/probe.py makes
them."""

from typing import Any

import torch

from runs import probe
from runs.config import expand
from runs.run import Run
from runs.training.build import make_accelerator

#: Rows and tokens of each: SST-2's batches of 16 and of 64, and QNLI's of 64.
SHAPES = {
    True: {"SST-2": [(16, 18), (64, 18)], "QNLI": [(64, 65)]},
    False: {"SST-2": [(2, 8)], "QNLI": [(4, 16)]},
}
#: What a CPU has time for, in place of RoBERTa-base.
SMALL = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96}
SMALL |= {"model_type": "roberta", "vocab_size": 200, "max_position_embeddings": 80, "type_vocab_size": 1}


def run_of(method: str, precision: str, device: str) -> Run:
    """A cell of table 2 (base), small on a CPU."""
    words = ["experiment=table2_base", f"method={method}", "task=sst2", "seed=0", f"device={device}"]
    words += [f"train.precision={precision}"]
    if device == "cpu":
        words += [f"model.architecture={{{','.join(f'{key}: {value}' for key, value in SMALL.items())}}}"]
        words += ["method.rank=16"] if method == "vera" else []
    (run,) = expand(words)
    return run


class Steps:
    """Training steps of a run, on batches of any size."""

    def __init__(self, run: Run) -> None:
        self.accelerator = make_accelerator(run)
        torch.manual_seed(0)
        self.model, method = probe._model(run, self.accelerator.device)
        self.step = probe._Step(run, self.model, method, self.accelerator, 0)

    def __call__(self, rows: int, length: int) -> Any:
        self.step.length = length
        return self.step(rows * length)

    def wait(self) -> None:
        if self.accelerator.device.type == "cuda":
            torch.cuda.synchronize()
