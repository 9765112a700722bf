"""Every class of the installed peft: what docs/methods.md says of it beside what support.py tries."""

import copy
import functools
import os
import re
import tempfile
from collections.abc import Callable

import peft
import torch
from torch import nn
from transformers import RobertaConfig, RobertaForSequenceClassification

import vera
from vera.methods.peft_settings import SITES

#: The layer that holds query, key and value, where one does.
FUSED = {"GPT-2": "c_attn", "ViT of timm": "qkv", "ViT of timm in transformers": "qkv"}
WORDS = "word_embeddings"
EMBEDDINGS = {"BERT": WORDS, "RoBERTa": WORDS, "GPT-2": "wte", "Llama": "embed_tokens"}
#: Settings without which a class does not fit 32 x 32 matrices.
SMALL = {
    "C3AConfig": {"block_size": 8},
    "FourierFTConfig": {"n_frequency": 50},
    "MissConfig": {"r": 4},
    "PsoftConfig": {"r": 8},
    "RoadConfig": {"group_size": 16},
    "ShiraConfig": {"r": 4},
    "VBLoRAConfig": {"vector_length": 16, "num_vectors": 8, "r": 2},
    "WaveFTConfig": {"n_frequency": 64},
}


def classes() -> list[str]:
    """The names of all configuration classes, also of those that are refused here."""
    return sorted({c.__name__ for c in peft.PEFT_TYPE_TO_CONFIG_MAPPING.values()}, key=str.lower)


def sites_on(name: str, architecture: str) -> tuple[str, ...]:
    """A class's own sites; a fused projection as a whole, since peft adapts no part of it."""
    fused = FUSED.get(architecture)
    own = SITES.get(name, SITES["others"])
    found = (fused if fused and site in ("query", "key", "value") else site for site in own)
    return tuple(dict.fromkeys(found))


def of_peft(name: str, **config) -> Callable[[str], vera.Method]:
    """A method of peft's for each architecture."""
    return lambda a: vera.Peft(name, config, sites_on(name, a))


def of_class(name: str) -> Callable[[str], vera.Method]:
    """A class at its defaults, where these fit a tiny model."""
    if name != "TrainableTokensConfig":
        return of_peft(name, **SMALL.get(name, {}))

    def two_tokens(architecture: str) -> vera.Method:
        named = {"target_modules": [EMBEDDINGS[architecture]]} if architecture in EMBEDDINGS else {}
        return vera.Peft(name, {**named, "token_indices": [3, 4]})

    return two_tokens


@functools.cache
def roberta_base() -> nn.Module:
    """Its matrices, with random values, to be copied; and 64 words, at which no class but TrainableTokens
    looks."""
    torch.manual_seed(0)
    sizes = {"max_position_embeddings": 514, "vocab_size": 64, "type_vocab_size": 1}
    return RobertaForSequenceClassification(RobertaConfig(**sizes))


def facts(name: str) -> list[str]:
    """Of a class at its defaults on RoBERTa-base: its sites, the parameters that train without the head, the
    bytes of the adapter file, and the frozen tensors that are not in it. Raises AdapterError for a class that
    is refused."""
    method = vera.Peft(name) if name != "TrainableTokensConfig" else of_class(name)("RoBERTa")
    model = copy.deepcopy(roberta_base())
    torch.manual_seed(0)
    method.adapt(model)
    with tempfile.TemporaryDirectory() as folder:
        vera.save(model, method, f"{folder}/adapter")
        size = os.path.getsize(f"{folder}/adapter")
    return [site_words(name), f"{method.count(model):,}", f"{size:,}", redrawn(method, model)]


def site_words(name: str) -> str:
    return ", ".join(SITES.get(name, SITES["others"])) or "named in config"


def redrawn(method: vera.Method, model: nn.Module) -> str:
    """The last names of the frozen tensors that peft draws again and the file lacks."""
    names = {*method.redrawn(model), *model._peft.hidden}
    # Such as vera_A of ...query.vera_A.default; peft also names tensors by their module
    last = {re.sub(r"\.default\b", "", name).split(".")[-1] for name in names}
    return ", ".join(sorted(last)) or "nothing"
