"""What transformers' `generate` really uses: its settings after the library has merged a
configuration with the model's own and with its defaults.

transformers 5 fills in what a configuration leaves out from the model's
generation_config.json. A call that was greedy under version 4 samples there, if the
model's file says so. So records keep the merged settings."""

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedModel

#: The settings that decide which texts come out.
RECORDED_SETTINGS = (
    "do_sample",
    "temperature",
    "top_k",
    "top_p",
    "num_beams",
    "length_penalty",
    "repetition_penalty",
    "no_repeat_ngram_size",
    "max_new_tokens",
    "max_length",
)
#: Those of RECORDED_SETTINGS that a greedy or beam search does not read.
SAMPLING_SETTINGS = ("temperature", "top_k", "top_p")


def merged_settings(
    model: "PreTrainedModel",
    prompt: Sequence[int],
    config: "GenerationConfig | None" = None,
) -> dict[str, Any]:
    """The settings that `model.generate` would use for a prompt, merged by the library.

    prompt: token ids. config: as the call gets it; None for the model's own. Nothing is
    generated."""
    import torch

    captured: list[GenerationConfig] = []

    def capture(
        model: Any, input_ids: Any, generation_config: Any = None, **inputs: Any
    ) -> Any:
        """What `generate` calls, after its merge, in place of a search of its own."""
        captured.append(generation_config)
        return input_ids

    ids = torch.tensor([list(prompt)], device=next(model.parameters()).device)
    own_config = model.generation_config
    # `generate` refuses texts to stop at without a tokenizer, and we have none here
    model.generation_config = copy.deepcopy(own_config)
    model.generation_config.stop_strings = None
    try:
        model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            generation_config=config,
            custom_generate=capture,
        )
    finally:
        model.generation_config = own_config
    (merged,) = captured
    settings = {name: getattr(merged, name) for name in RECORDED_SETTINGS}
    if not settings["do_sample"]:
        for name in SAMPLING_SETTINGS:
            settings.pop(name)
    return settings
