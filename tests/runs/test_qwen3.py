"""Qwen3: its sizes, and a run on problems in the form of a chat, without thinking."""

import pytest
import torch
from running import refused, train_here
from tiny import write_maths
from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

from runs import evaluate
from runs.config import expand
from runs.counts import count_of_entry
from runs.run.identity import run_id

pytestmark = pytest.mark.properties

#: The parts of Qwen3's own template that matter here.
TEMPLATE = (
    "{%- for m in messages %}"
    "{{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}"
    "{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}"
    "{%- if enable_thinking is defined and enable_thinking is false %}"
    "{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}{%- endif %}"
)


@pytest.fixture
def tiny_qwen3(tiny_llama, tmp_path):
    """A tiny random Qwen3 with a chat template, over the tokenizer of tiny_llama."""
    folder = tmp_path / "qwen3"
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        intermediate_size=48,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    Qwen3ForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture
def qwen3_words(tiny_qwen3, tmp_path):
    data = write_maths(tmp_path / "rows")
    return [
        "experiment=metamath_peft",
        "model=qwen3_0_6b",
        f"model.path={tiny_qwen3}",
        "model.architecture=null",
        "method=vera",
        "seed=0",
        f"task.data_dir={data}",
        f"task.test_dir={data}",
        "task.chat_template=true",
        "task.max_new_tokens=4",
        "task.forgetting_text=none",
        "train.max_steps=2",
        "device=cpu",
        f"output={tmp_path / 'outputs'}",
    ]


@pytest.mark.parametrize(
    ("model", "vera", "lora"),
    [
        # layers x (2 rank + outputs of query and value); layers x rank x all widths
        ("qwen3_0_6b", 28 * (512 + 2048 + 1024), 28 * 32 * (2 * 1024 + 2048 + 1024)),
        ("qwen3_4b", 36 * (512 + 4096 + 1024), 36 * 32 * (2 * 2560 + 4096 + 1024)),
    ],
)
def test_its_parameters_are_counted_as_the_formulas_say(model, vera, lora):
    for method, rank, expected in (("vera", 256, vera), ("lora", 32, lora)):
        entry = {"model": model, "method": method, "settings": {"rank": rank}}
        assert count_of_entry(entry) == (rank, expected, expected)


def test_it_trains_and_answers_in_the_form_of_a_chat_without_thinking(qwen3_words):
    record = train_here(qwen3_words)
    assert record["status"] == "done"
    assert record["config"]["model"]["chat"] == {"enable_thinking": False}
    assert record["config"]["model"]["dtype"] == "bf16"
    context = evaluate.restore(record, record["config"]["output"])
    item = context.task.items[0]
    assert item.prompt.startswith("<|im_start|>user\nQuestion: ")
    assert item.prompt.endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")
    # trained on the same form
    prompt, response = context.task.splits["train"][0]
    assert prompt.endswith("</think>\n\n")
    assert "<|im_start|>" not in response
    assert record["texts"]["scores"][0]["exact_match"] is not None


def test_what_the_template_gets_is_part_of_the_run(qwen3_words, tiny_llama):
    thinking = [*qwen3_words, "model.chat={enable_thinking:true}"]
    ids = [run_id(expand(words)[0]) for words in (qwen3_words, thinking)]
    assert ids[0] != ids[1]
    plain = [word for word in qwen3_words if "model.path" not in word]
    with refused("no chat template"):
        train_here([*plain, f"model.path={tiny_llama}"])
