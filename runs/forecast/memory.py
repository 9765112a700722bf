"""The memory that training a run takes, as a forecast: weights, what an optimizer keeps of those that train,
and the activations of a micro-batch."""

from dataclasses import replace

from runs import models
from runs.forecast.cost import batch_of
from runs.forecast.rows import known_data
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


def training_bytes(run: Run) -> float | None:
    """Of a run, in bytes; None where the model's architecture or its rows' lengths are not known. A block has
    12 x width^2 weights, as in BERT, GPT-2 and ViT; Llama's have about as many."""
    data, config = known_data(run), run.config
    get = (models.architecture_of(config["model"]) or {}).get
    layers, width = get("num_hidden_layers") or get("n_layer"), get("hidden_size") or get("n_embd")
    if not (data and layers and width and (batch := batch_of(run, data))):
        return None
    of_weight = 0.53 if config["model"].get("quantise") else 4.0  # NF4's blocks have scales
    if run.method["kind"] == "full":
        of_weight *= 4  # gradients, and AdamW's two moments
    vocabulary = get("vocab_size", 0)
    weights = 12 * layers * width**2 * of_weight + vocabulary * width * max(of_weight, 4.0)
    half = 2 if config["train"]["precision"] in ("bf16", "fp16") else 1
    kept = KEPT * layers
    if config.get("gradient_checkpointing"):  # the inputs of all layers, and the whole of one at a time
        kept = CHECKPOINTED * layers + KEPT
    reads_out = config["model"]["modality"] == "text generation"  # in float32, with their gradient
    of_token = width * kept / half + (vocabulary * 8.0 if reads_out else 0.0)
    return float(weights + batch.rows * batch.length * of_token + BESIDE)


def fitting(run: Run, free: float) -> dict[str, int]:
    """The micro-batch that a run needs to fit into so much free memory (bytes): the effective batch halved as
    often as that takes. Empty where the whole fits, where the configuration sets one, or where the memory of
    the run is not known."""
    rows, whole = run.config["train"]["effective_batch"], run.config["micro_batch"]
    if whole is not None:
        return {}
    smaller = run
    while (needed := training_bytes(smaller)) and needed > SHARE * free and rows > 1:
        rows //= 2
        smaller = replace(run, config=run.config | {"micro_batch": rows})
    return {} if smaller is run else {"micro_batch": rows}
