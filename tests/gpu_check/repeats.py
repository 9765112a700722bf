"""The same steps from the same state, three times: their trained values are equal to the bit.

The lengths are those at which the gradient of attention is summed in parts, whose order a GPU may change."""

import copy
import hashlib
from pathlib import Path
from typing import Any

import torch
from tiny import shake
from torch import Tensor, nn

import vera
from gpu_check import material
from gpu_check.report import Report
from runs.config import expand
from runs.training.build import make_optimizer
from runs.training.flags import set_flags

STEPS, TIMES = 5, 3
Batch = dict[str, Tensor]


def run(report: Report, home: Path) -> None:
    (own,) = expand(["model=roberta_base", "task=rte", "method=vera", "seed=0"])
    set_flags(own, torch.device(report.device))
    for make in (of_roberta, of_vit, of_llama):
        with report.guarded(f"repeats of {make.__name__.removeprefix('of_')}"):
            name, model, batch, precision = make(report.device, report.on_gpu)
            for method in (vera.VeRA(rank=64), vera.Full()):
                copied = copy.deepcopy(model)
                method.adapt(copied)
                shake(copied, 0.01)
                hashes = [trained(copy.deepcopy(copied), batch, precision) for _ in range(TIMES)]
                what = f"{name}, {precision}, {method.kind}: {STEPS} steps {TIMES} times"
                report.check(f"{what}, to the bit", len(set(hashes)) == 1, " ".join(hashes))


def trained(model: nn.Module, batch: Batch, precision: str) -> str:
    """A hash of what has been trained after some steps."""
    device = next(model.parameters()).device
    torch.manual_seed(1)
    model.train()
    parameters = [p for p in model.parameters() if p.requires_grad]
    group = {"name": "all", "lr": 1e-3, "weight_decay": 0.01, "params": parameters}
    optimizer = make_optimizer([group], {"adam_eps": 1e-8, "adam_beta2": 0.999}, device)
    for _ in range(STEPS):
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16"):
            loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    if not torch.isfinite(loss):
        raise AssertionError(f"the loss is {float(loss)}")
    values = hashlib.sha256()
    for p in parameters:
        values.update(p.detach().cpu().numpy().tobytes())
    return values.hexdigest()[:16]


def of_roberta(device: str, large: bool) -> tuple[str, nn.Module, Batch, str]:
    """With dropout and padding."""
    rows, length = (16, 250) if large else (4, 200)
    ids = torch.randint(5, 1000, (rows, length), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, length - 70 :] = 0
    batch = {"input_ids": ids, "attention_mask": mask, "labels": torch.arange(rows) % 2}
    model = material.roberta(device, large)
    return f"RoBERTa {rows} x {length}", model, moved(batch, device), "fp32"


def of_vit(device: str, large: bool) -> tuple[str, nn.Module, Batch, str]:
    from transformers import ViTConfig, ViTForImageClassification

    rows, layers, width = (32, 12, 768) if large else (2, 2, 96)
    sizes: dict[str, Any] = {"hidden_size": width, "num_hidden_layers": layers, "num_labels": 10}
    torch.manual_seed(0)
    with torch.device(device):
        model = ViTForImageClassification(ViTConfig(**sizes, intermediate_size=4 * width))
    images = torch.randn(rows, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    batch = {"pixel_values": images, "labels": torch.arange(rows) % 10}
    return f"ViT {rows} x 197", model, moved(batch, device), "fp32"


def of_llama(device: str, large: bool) -> tuple[str, nn.Module, Batch, str]:
    from transformers import LlamaConfig, LlamaForCausalLM

    rows, length = (4, 512) if large else (2, 160)
    width, heads = (1024, 16) if large else (128, 4)
    sizes = {"hidden_size": width, "num_attention_heads": heads, "num_key_value_heads": heads}
    sizes |= {"intermediate_size": 2 * width, "num_hidden_layers": 4 if large else 2, "vocab_size": 1000}
    torch.manual_seed(0)
    with torch.device(device):
        model = LlamaForCausalLM(LlamaConfig(**sizes, use_cache=False))
    ids = torch.randint(5, 900, (rows, length), generator=torch.Generator().manual_seed(0))
    return f"Llama {rows} x {length}", model, moved({"input_ids": ids, "labels": ids}, device), "bf16"


def moved(batch: Batch, device: str) -> Batch:
    return {name: value.to(device) for name, value in batch.items()}
