"""Floating-point operations of training and evaluation, by a model's architecture and a method's settings.

A multiplication and an addition count as two. Only matrix products count, which are nearly everything (Kaplan
et al. 2020, "Scaling laws for neural language models", section 2.1): no norms, activations and softmax, no
optimizer, and no classification head."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

#: Model types of transformers by how their blocks are built.
LIKE_BERT = ("bert", "roberta", "mpnet", "vit", "dinov2")
#: Methods whose low-rank pair is frozen, beside VeRA.
FROZEN_PAIRS = ("vera_plus", "lora_xs")


@dataclass(frozen=True)
class Shape:
    """The matrices of a transformer."""

    layers: int
    width: int  # of the attention, over all heads
    block: Mapping[str, tuple[int, int]]  # inputs and outputs of one block's matrices, by site
    vocabulary: int = 0  # of a language model
    hidden: int = 0
    positions: int | None = None  # the longest input in tokens, where that is known
    patch: int = 0  # of an image model: the inputs of the layer that reads a patch,
    side: int = 0  # the side of a patch in pixels,
    image: int = 0  # and the side of an image in pixels

    @property
    def weights(self) -> int:
        """N of Kaplan et al.: the weights that multiply each token, without embeddings and head."""
        return self.layers * sum(i * o for i, o in self.block.values()) + self.patch * self.hidden

    def tokens(self, image: int | None) -> int:
        """The patches of an image and its class token. image: pixels of a side; None: the model's size."""
        return ((image or self.image) // self.side) ** 2 + 1


def shape_of(architecture: Mapping[str, Any]) -> Shape | None:
    """The matrices of an architecture by transformers' keys; None for a type that this file lacks."""
    get, kind = architecture.get, architecture.get("model_type")
    if kind in LIKE_BERT:
        hidden = get("hidden_size", 768)
        inner = get("mlp_ratio", 4) * hidden if kind == "dinov2" else get("intermediate_size", 3072)
        shape = Shape(get("num_hidden_layers", 12), hidden, _block(hidden, inner), 0, hidden)
        if kind in ("bert", "roberta", "mpnet"):
            padding = 0 if kind == "bert" else 2  # the others' positions begin after the padding index
            return replace(shape, positions=get("max_position_embeddings", 512) - padding)
        side, image = get("patch_size", 16), get("image_size", 224)
        # DINOv2 was pretrained at 518 pixels, and its preprocessing cuts images to 224.
        image = min(image, 224) if kind == "dinov2" else image
        return replace(shape, patch=get("num_channels", 3) * side**2, side=side, image=image)
    if kind == "gpt2":
        hidden = get("n_embd", 768)
        inner = get("n_inner") or 4 * hidden
        vocabulary, positions = get("vocab_size", 50257), get("n_positions", 1024)
        return Shape(get("n_layer", 12), hidden, _block(hidden, inner), vocabulary, hidden, positions)
    if kind == "llama" and "hidden_size" in architecture:
        hidden, heads = int(architecture["hidden_size"]), get("num_attention_heads", 32)
        head = get("head_dim") or hidden // heads
        shared, inner = head * (get("num_key_value_heads") or heads), get("intermediate_size", 11008)
        block = {"query": (hidden, head * heads), "key": (hidden, shared), "value": (hidden, shared)}
        block |= {"attention_out": (head * heads, hidden), "gate": (hidden, inner), "up": (hidden, inner)}
        block["feed_forward_out"] = (inner, hidden)
        return Shape(get("num_hidden_layers", 32), head * heads, block, get("vocab_size", 32000), hidden)
    return None


def _block(hidden: int, inner: int) -> dict[str, tuple[int, int]]:
    """A block with as many keys and values as queries, and a feed-forward part of two matrices."""
    block = dict.fromkeys(("query", "key", "value", "attention_out"), (hidden, hidden))
    return block | {"up": (hidden, inner), "feed_forward_out": (inner, hidden)}


#: Sites of a block that read the same input.
TOGETHER = (("query", "key", "value"), ("gate", "up"))


@dataclass(frozen=True)
class Work:
    """FLOPs of one text or image in a forward pass, and in a training step."""

    forward: float
    training: float


def work(
    shape: Shape, method: Mapping[str, Any], length: float, rows: int, predicted: float, again: bool = False
) -> Work:
    """FLOPs of a text of `length` tokens (padding included) in a batch of `rows` texts.

    Forward: 2 N a token (Kaplan et al. 2020, table 1), and attention's two products of length x length,
    4 x layers x width x length a token, over the whole square, as kernels compute it (Chowdhery et al. 2022,
    "PaLM", appendix B: 12 L H Q T for three passes). A language model reads out the tokens that it is to
    predict: 2 x vocabulary x hidden each.

    Backward: as much again for the gradient of each product's input, and as much again for its weights' where
    they train: 2 N and 4 N a token (Hoffmann et al. 2022, appendix F: twice the forward). Attention has no
    weights, and two gradients: twice its forward in either case. Where the head alone trains there is no
    backward pass. The gradient counts down to the embeddings, although the first block's input needs none in
    a method on queries and values, nor the patches in full fine-tuning.

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
    """FLOPs of a text beyond the base model's: a method's own matrices.

    LoRA's pair of matrices and a bottleneck's have P weights: 2 P a token forward; in training as much again
    for the gradient of their input, and for that of the weights which train (shapes: Hu et al. 2022, section
    4.2); FROZEN_PAIRS train neither matrix. VeRA takes the cheapest of three ways, see `vera_flops`. The
    other methods count as LoRA of their rank (DyLoRA: the largest; AdaLoRA: the first, half as large again as
    the last unless it is given), or not at all where they have none."""
    kind, hidden = method["kind"], shape.hidden
    if kind == "adapter":
        adapters = shape.layers * (2 if method.get("placement") == "houlsby" else 1)
        return 2 * adapters * 2 * hidden * method["bottleneck"] * length * (3 if training else 1)
    inner = method.get("config") or {}
    rank = method.get("rank") or inner.get("r") or inner.get("init_r") or 0
    if not isinstance(rank, int) or not rank:
        return 0.0
    if kind == "adalora":
        rank = method.get("init_rank") or -(-3 * rank // 2)
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
    """The adapted matrices of a block, grouped by their input: its width, and the outputs of each matrix.
    all-linear means every matrix; a site that is not in the block adds none."""
    chosen = [name for name in shape.block if "all-linear" in sites or name in sites]
    groups: list[tuple[int, list[int]]] = []
    for name in chosen:
        together: tuple[str, ...] = next((names for names in TOGETHER if name in names), (name,))
        if name == next(other for other in chosen if other in together):
            groups.append((shape.block[name][0], [shape.block[o][1] for o in chosen if o in together]))
    return groups


def vera_flops(tokens: float, inputs: int, outputs: int, rank: int, training: bool, pairs: int = 1) -> float:
    """FLOPs of VeRA on the layers that read one input, beyond the frozen layers', in the cheapest way to
    compute it: the table of vera/kernels/__init__.py, without importing torch."""
    factor, merge = 2 * tokens * rank * (outputs + inputs * pairs), 2 * outputs * inputs * rank
    if not training:
        return min(factor, merge)
    again = 1 if inputs * outputs <= tokens * (rank * pairs + outputs) else 2
    gradients = min(factor, merge + 2 * tokens * outputs * inputs)
    return min(2 * factor, again * merge + gradients)
