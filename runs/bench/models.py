"""The timed models, with random weights, and a training step of each variant."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import vera

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
#: The variant that training steps are compared with.
REFERENCE = "peft LoRA r=8"

Row = dict[str, Any]


@dataclass(frozen=True)
class Shape:
    """A model: its transformers configuration, VeRA's rank on it, and the tokens of a sequence."""

    label: str
    rank: int
    config: dict[str, Any]
    sequence: int = 128

    @property
    def is_llama(self) -> bool:
        """Whether it is a block of a Llama, without a head."""
        return self.config["model_type"] == "llama"


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
    auto: Any = transformers.AutoModel if shape.is_llama else transformers.AutoModelForSequenceClassification
    return auto.from_config(config).to(DEVICE)


def sharing(base: nn.Module) -> nn.Module:
    """A copy with the same weights in memory, frozen: many variants need the memory of one."""
    memo: dict[int, Any] = {id(p): nn.Parameter(p.data, requires_grad=False) for p in base.parameters()}
    return copy.deepcopy(base, memo)


def variant(name: str, base: nn.Module, shape: Shape) -> nn.Module:
    """The base model with the trained parameters of a variant."""
    if name == "full":
        return copy.deepcopy(base).requires_grad_(True)
    model = sharing(base)
    if name.startswith("peft"):
        import peft

        targets = ["q_proj", "v_proj"] if shape.is_llama else ["query", "value"]
        task: Any = {"target_modules": targets, "task_type": None if shape.is_llama else "SEQ_CLS"}
        is_vera = name == "peft VeRA"
        config: Any = peft.VeraConfig(r=shape.rank, **task) if is_vera else peft.LoraConfig(r=8, **task)
        return peft.get_peft_model(model, config)
    if name == "head":
        vera.Head().adapt(model)
    elif name != "floor":
        path: Any = name.removeprefix("VeRA").strip() or "auto"
        vera.VeRA(rank=shape.rank, path=path).adapt(model)
    return model


def batch_of(shape: Shape, base: nn.Module, tokens: int) -> dict[str, Tensor]:
    """A random batch with this number of tokens in all, on the device."""
    sequence = min(shape.sequence, tokens)
    ids = torch.randint(3, shape.config["vocab_size"], (tokens // sequence, sequence), device=DEVICE)
    if shape.is_llama:  # a block in the middle of a stack: its input needs a gradient
        return {"inputs_embeds": base.get_input_embeddings()(ids).detach().requires_grad_()}  # type: ignore[operator]
    return {"input_ids": ids, "labels": torch.randint(0, 2, (len(ids),), device=DEVICE)}


def forward(name: str, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """The loss. "floor" is the frozen model with the gradient of its first block's input, the least work of
    any adapter."""
    with torch.autocast(DEVICE, dtype=torch.bfloat16, enabled=DEVICE == "cuda"):
        if name == "floor" and "input_ids" in batch:
            roberta: Any = model.roberta
            states = roberta.embeddings(batch["input_ids"]).detach().requires_grad_()
            logits = model.classifier(roberta.encoder(states)[0])  # type: ignore[operator]
            return nn.functional.cross_entropy(logits, batch["labels"])
        output = model(**batch)
        return output.loss if "labels" in batch else output[0].float().square().mean()


def stepper(name: str, model: nn.Module) -> Callable[[dict[str, Tensor]], None]:
    """A function that does a whole training step."""
    trained = [p for p in model.train().parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained or [nn.Parameter(torch.zeros(1))], lr=1e-4)

    def step(batch: dict[str, Tensor]) -> None:
        forward(name, model, batch).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()

    return step


def saved_bytes(name: str, model: nn.Module, batch: dict[str, Tensor]) -> int:
    """The bytes that a forward pass keeps for the backward pass, without weights, each storage once."""
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
