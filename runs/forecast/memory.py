"""The memory that training a run takes, as a forecast: weights, what an optimizer keeps of those that train,
and the activations of a micro-batch."""

from dataclasses import replace

from runs.errors import UserError
from runs.forecast.outline import padded_length, shape_of_run
from runs.forecast.rows import Sources
from runs.run import Run

#: Bytes that a forward pass keeps for each token, layer and unit of width, in float32: `make bench` counts 45
#: for LoRA and 47 for VeRA on RoBERTa-base without dropout, whose masks add a byte for each of five.
KEPT = 50
#: The same of a checkpointed layer.
CHECKPOINTED = 4
#: Of a GPU's free memory, what a forecast may fill: it is no measurement.
SHARE = 0.8
#: CUDA itself, its libraries' workspaces, and what the allocator cannot use. Assumed.
BESIDE = 1.5e9


def training_bytes(run: Run, sources: Sources) -> float | None:
    """Of a run, in bytes; None where the model's architecture or its rows' lengths are not known, or where
    the dev set is too small, as the run itself says."""
    shape, config = shape_of_run(run), run.config
    try:
        length = padded_length(run, sources)
    except UserError:
        return None
    if shape is None or length is None:
        return None
    vocabulary = shape.vocabulary or (0 if shape.patch else 50_000)
    of_weight = 0.53 if config["model"].get("quantise") else 4.0  # NF4's blocks have scales
    if run.method["kind"] == "full":
        of_weight *= 4  # gradients, and AdamW's two moments
    weights = shape.weights * of_weight + vocabulary * shape.hidden * max(of_weight, 4.0)
    whole = config["train"]["effective_batch"]
    tokens = min(config["micro_batch"] or whole, whole) * length
    half = config["train"]["precision"] in ("bf16", "fp16")
    kept = KEPT * shape.layers
    if config.get("gradient_checkpointing"):  # the inputs of all layers, and the whole of one at a time
        kept = CHECKPOINTED * shape.layers + KEPT
    activations = tokens * shape.hidden * kept / (2 if half else 1)
    logits = tokens * shape.vocabulary * 8.0  # in float32, with their gradient
    return weights + activations + logits + BESIDE


def fitting(run: Run, free: float) -> dict[str, int]:
    """The micro-batch that a run needs to fit into so much free memory (bytes): the effective batch halved as
    often as that takes. Empty where the whole fits, where the configuration sets one, or where the memory of
    the run is not known."""
    rows, whole = run.config["train"]["effective_batch"], run.config["micro_batch"]
    if whole is not None:
        return {}
    sources, smaller = Sources(), run
    while (needed := training_bytes(smaller, sources)) and needed > SHARE * free and rows > 1:
        rows //= 2
        smaller = replace(run, config=run.config | {"micro_batch": rows})
    return {} if smaller is run else {"micro_batch": rows}
