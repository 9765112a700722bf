"""Floating-point operations of training and evaluation, by a model's architecture and a method's settings.

A multiplication and an addition count as two. Counted are matrix products, which are nearly everything
(Kaplan et al. 2020, "Scaling laws for neural language models", section 2.1); no norms, activations and
softmax, no optimizer, and no classification head."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

#: Model types of transformers by how their blocks are built.
LIKE_BERT = ("bert", "roberta", "vit", "dinov2")
#: Methods whose low-rank pair is frozen, beside VeRA.
FROZEN_PAIRS = ("vera_plus", "lora_xs")


@dataclass(frozen=True)
class Shape:
    """The matrices of a transformer.

    block: of one block, by site: inputs and outputs. width: of its attention, over all heads. vocabulary: of
    a language model, else 0. positions: how many tokens it takes, where that is known. patch, side, image: of
    an image model the inputs of the layer that reads a patch, and the pixels of a side of a patch and of an
    image.
    """

    layers: int
    width: int
    block: Mapping[str, tuple[int, int]]
    vocabulary: int = 0
    hidden: int = 0
    positions: int | None = None
    patch: int = 0
    side: int = 0
    image: int = 0

    @property
    def weights(self) -> int:
        """N: the weights that each token is multiplied by, without the embeddings and what reads them out."""
        return self.layers * sum(i * o for i, o in self.block.values()) + self.patch * self.hidden

    def tokens(self, image: int | None) -> int:
        """Of an image of so many pixels a side, or of the model's own: its patches and the class token."""
        return ((image or self.image) // self.side) ** 2 + 1


def shape_of(architecture: Mapping[str, Any]) -> Shape | None:
    """The matrices by the keys of transformers' configurations; None for a type that is not known here."""
    get, kind = architecture.get, architecture.get("model_type")
    if kind in LIKE_BERT:
        hidden = get("hidden_size", 768)
        inner = get("mlp_ratio", 4) * hidden if kind == "dinov2" else get("intermediate_size", 3072)
        block = dict.fromkeys(("query", "key", "value", "attention_out"), (hidden, hidden))
        block |= {"up": (hidden, inner), "feed_forward_out": (inner, hidden)}
        shape = Shape(get("num_hidden_layers", 12), hidden, block, 0, hidden)
        if kind in ("bert", "roberta"):  # of whose positions two are the padding's
            return replace(shape, positions=get("max_position_embeddings", 512) - 2 * (kind == "roberta"))
        side, image = get("patch_size", 16), get("image_size", 224)
        # DINOv2 was pretrained at 518 pixels, and its preprocessing cuts images to 224.
        image = min(image, 224) if kind == "dinov2" else image
        return replace(shape, patch=get("num_channels", 3) * side**2, side=side, image=image)
    if kind == "gpt2":
        hidden = get("n_embd", 768)
        inner = get("n_inner") or 4 * hidden
        block = dict.fromkeys(("query", "key", "value", "attention_out"), (hidden, hidden))
        block |= {"up": (hidden, inner), "feed_forward_out": (inner, hidden)}
        vocabulary, positions = get("vocab_size", 50257), get("n_positions", 1024)
        return Shape(get("n_layer", 12), hidden, block, vocabulary, hidden, positions)
    if kind == "llama" and "hidden_size" in architecture:
        hidden, heads = int(architecture["hidden_size"]), get("num_attention_heads", 32)
        head = get("head_dim") or hidden // heads
        shared, inner = head * (get("num_key_value_heads") or heads), get("intermediate_size", 11008)
        block = {"query": (hidden, head * heads), "key": (hidden, shared), "value": (hidden, shared)}
        block |= {"attention_out": (head * heads, hidden), "gate": (hidden, inner), "up": (hidden, inner)}
        block["feed_forward_out"] = (inner, hidden)
        return Shape(get("num_hidden_layers", 32), head * heads, block, get("vocab_size", 32000), hidden)
    return None


#: Sites of a block that read the same input.
TOGETHER = (("query", "key", "value"), ("gate", "up"))


@dataclass(frozen=True)
class Work:
    """FLOPs of a row: of a forward pass, and of a training step's share."""

    forward: float
    training: float


def work(
    shape: Shape, method: Mapping[str, Any], length: float, rows: int, predicted: float, again: bool = False
) -> Work:
    """FLOPs of a row of `length` tokens (padding included) in a batch of `rows`.

    Forward: 2 N a token (Kaplan et al. 2020, table 1), and attention's two products of length x length,
    4 x layers x width x length a token, over the whole square, as kernels compute it (Chowdhery et al. 2022,
    "PaLM", appendix B: 12 L H Q T for three passes). A language model reads out the tokens that it is to
    predict: 2 x vocabulary x hidden each.

    Backward: as much again for the gradient of each product's input, and as much again for its weights' where
    they train: 2 N and 4 N a token (Hoffmann et al. 2022, appendix F: twice the forward). Attention has no
    weights, and two gradients: twice its forward in either case. Nothing where the head alone trains. The
    gradient is counted down to the embeddings: a method on queries and values needs none of the first block's
    input, and a full one none of the patches', which is left out of account.

    again: gradient checkpointing, which repeats the forward pass (Chen et al. 2016).
    """
    kind = method["kind"]
    products, attention = 2 * shape.weights * length, 4 * shape.layers * shape.width * length**2
    readout = 2 * shape.vocabulary * shape.hidden * predicted
    extra = {training: added(shape, method, length, rows, training) for training in (False, True)}
    forward = products + attention + readout
    if kind == "none":
        return Work(forward, 0.0)
    if kind == "head":
        return Work(forward, forward)
    weights = 2 if kind == "full" else 1
    backward = weights * (products + readout) + 2 * attention
    repeated = forward if again else 0.0
    return Work(forward + extra[False], forward + backward + repeated + extra[True])


def added(shape: Shape, method: Mapping[str, Any], length: float, rows: int, training: bool) -> float:
    """FLOPs of a row beyond the base model's: a method's own matrices.

    LoRA's pair and a bottleneck's are layers of P weights: 2 P a token forward; in training as much for the
    gradient of their input and, of what trains, of their weights (Hu et al. 2022, section 4.2, has the
    shapes); FROZEN_PAIRS train neither matrix. VeRA takes the cheapest of three ways, see `vera_flops`. The
    other methods count as LoRA of their rank (DyLoRA: the largest), or not at all."""
    kind, hidden = method["kind"], shape.hidden
    if kind == "adapter":
        places = 2 if method.get("placement") == "houlsby" else 1
        return 2 * shape.layers * places * 2 * hidden * method["bottleneck"] * length * (3 if training else 1)
    inner = method.get("config") or {}
    rank = method.get("rank") or inner.get("r") or inner.get("init_r") or 0
    if not isinstance(rank, int) or not rank:
        return 0.0
    groups = adapted(shape, method.get("sites") or ())
    if kind == "vera":
        pairs = method.get("projections") == "unique"
        return shape.layers * sum(
            vera_flops(length * rows, i, sum(outs), rank, training, len(outs) if pairs else 1) / rows
            for i, outs in groups
        )
    down = sum(i * len(outs) for i, outs in groups) * rank
    up = sum(sum(outs) for _, outs in groups) * rank
    trained = 0 if kind in FROZEN_PAIRS else up if method.get("freeze_a") else down + up
    return 2 * shape.layers * length * (down + up + (down + up + trained if training else 0))


def adapted(shape: Shape, sites: Sequence[str]) -> list[tuple[int, list[int]]]:
    """The adapted matrices of a block that read one input: its width, and the outputs of each. A site that is
    no role here stands for no matrix, but all-linear for every one."""
    chosen = [name for name in shape.block if "all-linear" in sites or name in sites]
    groups: list[tuple[int, list[int]]] = []
    for name in chosen:
        together: tuple[str, ...] = next((names for names in TOGETHER if name in names), (name,))
        if name == next(other for other in chosen if other in together):
            groups.append((shape.block[name][0], [shape.block[o][1] for o in chosen if o in together]))
    return groups


def vera_flops(tokens: float, inputs: int, outputs: int, rank: int, training: bool, pairs: int = 1) -> float:
    """FLOPs of VeRA beyond the frozen layers that read one input, for the cheapest way to compute it: the
    table of vera/kernels/__init__.py, without importing torch."""
    factor, merge = 2 * tokens * rank * (outputs + inputs * pairs), 2 * outputs * inputs * rank
    if not training:
        return min(factor, merge)
    again = 1 if inputs * outputs <= tokens * (rank * pairs + outputs) else 2
    gradients = min(factor, merge + 2 * tokens * outputs * inputs)
    return min(2 * factor, again * merge + gradients)
