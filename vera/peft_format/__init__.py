"""Adapters in huggingface/peft's format.

VeRA and LoRA go to it and come back without loss, and so do the methods of peft itself
on the way out. VeRA and many methods of peft also become a LoRA, for servers that serve
nothing else.

A folder holds adapter_config.json and adapter_model.safetensors, with the head inside.
peft adapts a fused projection (GPT-2's c_attn) as one matrix. Our separate query and
value adapters of rank r become one adapter of rank 2r there, with zeros for the key:

    LoRA   A' = [A_q; A_v]    B' = [[B_q, 0], [0, 0], [0, B_v]]
    VeRA   A' = [A; A]        B' = [[B, 0], [0, 0], [0, B]]    d' = [d_q; d_v]    b' = [b_q; 0; b_v]

VeRA's A and B are stored, because peft cannot draw ours. peft keeps one pair for all
VeRA adapters with the same `projection_prng_key`, so the key that we write is a hash of
A and B: peft then refuses to mix adapters of different pairs."""

from vera.peft_format.exporting import export_peft
from vera.peft_format.importing import import_peft
from vera.peft_format.to_lora import Conversion, LayerConversion, export_lora

__all__ = [
    "Conversion",
    "LayerConversion",
    "export_lora",
    "export_peft",
    "import_peft",
]
