"""Training steps of table 2's rows with random weights of RoBERTa-base's architecture, on random rows."""

from typing import Any

import torch

from runs import models
from runs.config import expand
from runs.methods import make_method
from runs.run import Run
from runs.training.build import make_accelerator, make_optimizer, optimizer_groups

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
        self.accelerator, self.train = make_accelerator(run), run.config["train"]
        torch.manual_seed(0)
        outline = models.skeleton(run.config["model"], 2)
        with torch.device(self.accelerator.device):
            self.raw = type(outline)(outline.config)
        self.method = make_method(run.method)
        self.method.adapt(self.raw)
        optimizer = make_optimizer(
            optimizer_groups(self.method, self.raw, self.train), self.train, self.accelerator.device
        )
        self.model, self.optimizer = self.accelerator.prepare(self.raw, optimizer)
        self.method.before_training(self.raw, 1000)
        self.count = 0

    def __call__(self, rows: int, length: int) -> Any:
        device = self.accelerator.device
        ids = torch.randint(5, self.raw.config.vocab_size, (rows, length), device=device)
        mask = torch.ones_like(ids)
        mask[0, -1] = 0  # nearly every batch has padding
        labels = torch.zeros(rows, dtype=torch.long, device=device)
        self.model.train()
        with self.accelerator.autocast():
            loss = self.model(input_ids=ids, attention_mask=mask, labels=labels).loss
        self.accelerator.backward(loss)
        trained = [p for p in self.raw.parameters() if p.requires_grad]
        self.accelerator.clip_grad_norm_(trained, self.train["clip"] or 1.0)
        self.optimizer.step()
        self.count += 1
        self.method.after_step(self.raw, self.count)
        self.optimizer.zero_grad()
        return float(loss.detach())  # waits for the device

    def wait(self) -> None:
        if self.accelerator.device.type == "cuda":
            torch.cuda.synchronize()
