"""Shows why scores of a generation benchmark fell with transformers 5: `generate` takes
what a call's configuration leaves open from the model's own, and Llama's says `do_sample`.

Without do_sample in the call, five seeds give several texts: it samples. With
do_sample=False they give one."""

import torch
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

torch.manual_seed(0)
model = LlamaForCausalLM(
    LlamaConfig(vocab_size=50, hidden_size=32, num_hidden_layers=1)
)
model.generation_config = GenerationConfig(do_sample=True, temperature=0.6, top_p=0.9)
model.generation_config.transformers_version = "4.45.0.dev0"  # as Llama 3.2's file has
for settings in ({}, {"do_sample": False}):
    texts = set()
    for seed in range(5):
        torch.manual_seed(seed)
        config = GenerationConfig(max_length=20, pad_token_id=0, **settings)
        tokens = model.generate(torch.tensor([[1]]), generation_config=config)
        texts.add(tuple(tokens[0].tolist()))
    name = settings or "do_sample is not set"
    print(f"{name}: {len(texts)} distinct texts of 5 seeds")
