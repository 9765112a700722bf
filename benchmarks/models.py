"""The timed models, with random weights, and a training step of each variant."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import vera

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@dataclass(frozen=True)
class Shape:
    """A model: its transformers configuration, VeRA's rank on it, where peft adapts it (vera finds the same
    layers by itself), and the tokens of a sequence."""

    label: str
    rank: int
    config: dict[str, Any]
    targets: tuple[str, ...] = ("query", "value")
    sequence: int = 128


ROBERTA: dict[str, Any] = {"model_type": "roberta", "vocab_size": 50265, "max_position_embeddings": 514}
ROBERTA |= {"type_vocab_size": 1, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
LARGE = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
LLAMA = {"model_type": "llama", "hidden_size": 4096, "num_hidden_layers": 1, "num_attention_heads": 32}
LLAMA |= {"intermediate_size": 11008, "vocab_size": 256}
SHAPES = (
    Shape("RoBERTa-base", 1024, ROBERTA),
    Shape("RoBERTa-large", 256, ROBERTA | LARGE),
    Shape("a Llama block", 1024, LLAMA, ("q_proj", "v_proj"), 512),
)


def base_model(shape: Shape) -> nn.Module:
    """A model of a shape with random weights, the same each time, without a head."""
    import transformers

    torch.manual_seed(0)
    auto: Any = transformers.AutoModel
    return auto.from_config(transformers.AutoConfig.for_model(**shape.config)).to(DEVICE)


def sharing(base: nn.Module) -> nn.Module:
    """A copy with the same weights in memory, frozen: many variants need the memory of one."""
    memo: dict[int, Any] = {id(p): nn.Parameter(p.data, requires_grad=False) for p in base.parameters()}
    return copy.deepcopy(base, memo)


def variant(name: str, base: nn.Module, shape: Shape) -> nn.Module:
    """The base model with the trained parameters of a variant: "VeRA" alone or with one of its paths, "peft
    VeRA", "peft LoRA r=8" or "full"."""
    if name == "full":
        return copy.deepcopy(base).requires_grad_(True)
    model = sharing(base)
    if name.startswith("peft"):
        import peft

        kind: Any = peft.VeraConfig if name == "peft VeRA" else peft.LoraConfig
        rank = shape.rank if name == "peft VeRA" else 8
        return peft.get_peft_model(model, kind(r=rank, target_modules=[*shape.targets]))
    path: Any = name.removeprefix("VeRA").strip() or "auto"
    vera.VeRA(rank=shape.rank, path=path).adapt(model)
    return model


def batch_of(shape: Shape, base: nn.Module, tokens: int) -> Tensor:
    """The embeddings of a random batch with this number of tokens in all. Those of a block in the middle of a
    stack need a gradient."""
    sequence = min(shape.sequence, tokens)
    ids = torch.randint(3, shape.config["vocab_size"], (tokens // sequence, sequence), device=DEVICE)
    embedded: Tensor = base.get_input_embeddings()(ids).detach()  # type: ignore[operator]
    return embedded.requires_grad_(shape.config.get("num_hidden_layers") == 1)


def loss_of(model: nn.Module, batch: Tensor) -> Tensor:
    """The mean size of the last hidden states."""
    with torch.autocast(DEVICE, dtype=torch.bfloat16, enabled=DEVICE == "cuda"):
        states: Tensor = model(inputs_embeds=batch)[0]
        return states.float().abs().mean()


def stepper(model: nn.Module) -> Callable[[Tensor], None]:
    """A function that does a whole training step."""
    optimizer = torch.optim.AdamW([p for p in model.train().parameters() if p.requires_grad], lr=1e-4)

    def step(batch: Tensor) -> None:
        loss_of(model, batch).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()

    return step
