"""The same steps from the same state, three times: their trained values are equal to
the bit.

The lengths are those at which the gradient of attention is summed in parts, whose order
a GPU may change."""

import copy
import hashlib
from typing import Any

import pytest
import torch
import transformers
from tiny import shake
from torch import Tensor, nn

import vera
from gpu_check import DEVICE, ON_GPU
from runs.config import expand
from runs.training.checkpoint import make_optimizer
from runs.training.determinism import set_flags

pytestmark = [pytest.mark.determinism, pytest.mark.slow]

STEPS, TIMES = 5, 3
#: Models: class and settings. RoBERTa has dropout and padding.
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "RoBERTa": ("RobertaForSequenceClassification", {"max_position_embeddings": 514}),
    "ViT": ("ViTForImageClassification", {}),
    "Llama": ("LlamaForCausalLM", {"use_cache": False}),
}
#: Layers, width and heads, and rows and length of a batch: on a GPU, and as a CPU has
#: time for.
SHAPES = {
    True: {
        "RoBERTa": (12, 768, 12, 16, 250),
        "ViT": (12, 768, 12, 32, 224),
        "Llama": (4, 1024, 16, 4, 512),
    },
    False: {
        "RoBERTa": (2, 96, 4, 4, 200),
        "ViT": (2, 96, 12, 2, 224),
        "Llama": (2, 128, 4, 2, 160),
    },
}


@pytest.mark.parametrize(
    "method", [vera.VeRA(rank=64), vera.Full()], ids=lambda method: method.kind
)
@pytest.mark.parametrize("name", MODELS)
def test_the_same_steps_from_the_same_state_three_times(name, method, found):
    (own,) = expand(["model=roberta_base", "task=rte", "method=vera", "seed=0"])
    set_flags(own, torch.device(DEVICE))
    (kind, settings), (layers, width, heads, rows, length) = (
        MODELS[name],
        SHAPES[ON_GPU][name],
    )
    sizes = {
        "num_hidden_layers": layers,
        "hidden_size": width,
        "num_attention_heads": heads,
    }
    of, precision = getattr(transformers, kind), "bf16" if name == "Llama" else "fp32"
    torch.manual_seed(0)
    with torch.device(DEVICE):
        model = of(
            of.config_class(
                **settings, **sizes, intermediate_size=4 * width, vocab_size=1000
            )
        )
    batch = {
        key: value.to(DEVICE) for key, value in batch_of(name, rows, length).items()
    }
    method.adapt(model)
    shake(model, 0.01)
    hashes = [trained(copy.deepcopy(model), batch, precision) for _ in range(TIMES)]
    found(
        f"{rows} x {length}, {precision}: {STEPS} steps {TIMES} times: {' '.join(hashes)}"
    )
    assert len(set(hashes)) == 1


def batch_of(name: str, rows: int, length: int) -> dict[str, Tensor]:
    generator, labels = torch.Generator().manual_seed(0), torch.arange(rows) % 2
    if name == "ViT":
        return {
            "pixel_values": torch.randn(rows, 3, length, length, generator=generator),
            "labels": labels,
        }
    ids = torch.randint(5, 900, (rows, length), generator=generator)
    if name == "Llama":
        return {"input_ids": ids, "labels": ids}
    mask = torch.ones_like(ids)
    mask[1, length - 70 :] = 0
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def trained(model: nn.Module, batch: dict[str, Tensor], precision: str) -> str:
    """A hash of what has been trained after some steps."""
    device = next(model.parameters()).device
    torch.manual_seed(1)
    model.train()
    parameters = [p for p in model.parameters() if p.requires_grad]
    group = {"name": "all", "lr": 1e-3, "weight_decay": 0.01, "params": parameters}
    optimizer = make_optimizer([group], {"adam_eps": 1e-8, "adam_beta2": 0.999}, device)
    for _ in range(STEPS):
        with torch.autocast(
            device.type, dtype=torch.bfloat16, enabled=precision == "bf16"
        ):
            loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert torch.isfinite(loss), f"the loss is {float(loss)}"
    return hashlib.sha256(
        b"".join(p.detach().cpu().numpy().tobytes() for p in parameters)
    ).hexdigest()[:16]
