"""The models that are timed, and a training step of each variant. Weights are random."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import vera

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


REFERENCE = "peft LoRA r=8"


Row = dict[str, Any]


@dataclass(frozen=True)
class Shape:
    """A model to time: its transformers configuration, VeRA's rank, and how long its sequences are."""

    label: str
    rank: int
    config: dict[str, Any]
    sequence: int = 128


ROBERTA: dict[str, Any] = {
    "model_type": "roberta",
    "vocab_size": 50265,
    "max_position_embeddings": 514,
    "type_vocab_size": 1,
    "pad_token_id": 1,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "num_labels": 2,
}


LARGE = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}


LLAMA = {"model_type": "llama", "hidden_size": 4096, "num_hidden_layers": 1, "num_attention_heads": 32}


SHAPES = (
    Shape("RoBERTa-base", 1024, ROBERTA),
    Shape("RoBERTa-large", 256, {**ROBERTA, **LARGE}),
    Shape("a Llama block", 1024, {**LLAMA, "intermediate_size": 11008, "vocab_size": 256}, sequence=512),
)


PATHS = ("factor", "hybrid", "materialised")


def base_model(shape: Shape) -> nn.Module:
    """A model of a shape with random weights, the same each time."""
    import transformers

    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(**shape.config)
    build: Any = (
        transformers.AutoModel
        if "llama" in shape.label.lower()
        else transformers.AutoModelForSequenceClassification
    )
    return build.from_config(config).to(DEVICE)


def sharing(base: nn.Module) -> nn.Module:
    """A copy that shares the weights: many variants fit in the memory of one."""
    memo: dict[int, Any] = {id(p): nn.Parameter(p.data, requires_grad=False) for p in base.parameters()}
    return copy.deepcopy(base, memo)


def variant(name: str, base: nn.Module, shape: Shape) -> nn.Module:
    """The base model as a variant trains it."""
    if name == "full":
        return copy.deepcopy(base).requires_grad_(True)
    model, llama = sharing(base), "llama" in shape.label.lower()
    if name.startswith("peft"):
        import peft

        sites = ["q_proj", "v_proj"] if llama else ["query", "value"]
        task: Any = {"target_modules": sites, "task_type": None if llama else "SEQ_CLS"}
        vera_ = name == "peft VeRA"
        config: Any = peft.VeraConfig(r=shape.rank, **task) if vera_ else peft.LoraConfig(r=8, **task)
        return peft.get_peft_model(model, config)
    if name == "head":
        vera.Head().adapt(model)
    elif name != "floor":
        path = name.removeprefix("VeRA").strip() or "auto"
        vera.VeRA(rank=shape.rank, path=path).adapt(model)
    return model


def batch_of(shape: Shape, base: nn.Module, tokens: int) -> dict[str, Tensor]:
    """A batch of so many tokens in all, random, on the device."""
    sequence = min(shape.sequence, tokens)
    ids = torch.randint(3, shape.config["vocab_size"], (tokens // sequence, sequence), device=DEVICE)
    if "llama" in shape.label.lower():  # a block in the middle of a stack: its input needs a gradient
        return {"inputs_embeds": base.get_input_embeddings()(ids).detach().requires_grad_()}  # type: ignore[operator]
    return {"input_ids": ids, "labels": torch.randint(0, 2, (len(ids),), device=DEVICE)}


def forward(name: str, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """The loss. "floor" is the frozen model and the gradient of its first block's input: less, no adapter can
    do."""
    with torch.autocast(DEVICE, dtype=torch.bfloat16, enabled=DEVICE == "cuda"):
        if name == "floor" and "input_ids" in batch:
            roberta: Any = model.roberta
            states = roberta.embeddings(batch["input_ids"]).detach().requires_grad_()
            logits = model.classifier(roberta.encoder(states)[0])  # type: ignore[operator]
            return nn.functional.cross_entropy(logits, batch["labels"])
        output = model(**batch)
        return output.loss if "labels" in batch else output[0].float().square().mean()


def stepper(name: str, model: nn.Module) -> Callable[[dict[str, Tensor]], None]:
    """A whole training step."""
    trained = [p for p in model.train().parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained or [nn.Parameter(torch.zeros(1))], lr=1e-4)

    def step(batch: dict[str, Tensor]) -> None:
        forward(name, model, batch).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()

    return step


def saved_bytes(name: str, model: nn.Module, batch: dict[str, Tensor]) -> int:
    """What a forward pass keeps for the backward pass, weights apart, each storage once."""
    own = {t.untyped_storage().data_ptr() for t in [*model.parameters(), *model.buffers()]}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = forward(name, model, batch)
    del loss
    return sum(kept.values())
