"""Twenty steps of GSM8K's preset beside code written from peft's
method_comparison/MetaMathQA (run.py, data.py and utils.py at 5d602fd): prompts, rows,
their order, buckets, padding, labels, loss, optimizer and schedule."""

import json
import math
import random

import peft
import pytest
import torch
from running import begin
from tiny import LLAMA
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    get_cosine_schedule_with_warmup,
)

pytestmark = pytest.mark.parity

STEPS, BATCH, BUCKET_FACTOR, CHAR_LIMIT = 20, 4, 20, 1300
TEMPLATE = "Question: {query} Think step by step.\nAnswer:"
WORDS = [
    "two",
    "three",
    "red",
    "apples",
    "and",
    "pears",
    "cost",
    "more",
    "than",
    "one",
    "box",
    "of",
    "nails",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny Llama, and rows in the formats of MetaMathQA and GSM8K. Every seventh
    solution is too long for the protocol."""
    folder = tmp_path_factory.mktemp("protocol")
    draw = random.Random(0)

    def text(words):
        return " ".join(draw.choices(WORDS, k=words))

    rows = []
    for number in range(190):
        words = 300 if number % 7 == 3 else draw.randint(3, 60)
        query = f"{text(draw.randint(3, 30))} {{{number}}}?"
        response = f"{text(words)}\nThe answer is: {number}"
        rows.append({"query": query, "response": response, "type": "GSM_SV"})
    (folder / "MetaMathQA.json").write_text(json.dumps(rows))
    for split in ("train", "test"):
        questions = [
            json.dumps({"question": f"{text(5)}?", "answer": f"So.\n#### {number}"})
            for number in range(60)
        ]
        (folder / f"{split}.jsonl").write_text("\n".join(questions))
    save_llama(folder / "llama")
    return folder


def save_llama(folder):
    """A tiny random Llama over WORDS. Of a small vocabulary the loss is small, too, and
    float32 has enough digits for 1e-6."""
    words = [
        *WORDS,
        *[
            "Question",
            ":",
            "Think",
            "step",
            "by",
            ".",
            "Answer",
            "The",
            "answer",
            "is",
            "?",
            "{",
            "}",
        ],
    ]
    tokens = dict.fromkeys(["<s>", "</s>", "<unk>", *words])
    vocabulary = {token: number for number, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 0)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
    ).save_pretrained(folder)
    sizes = LLAMA | {"vocab_size": len(vocabulary), "max_position_embeddings": 512}
    torch.manual_seed(7)
    config = LlamaConfig(**sizes, bos_token_id=0, eos_token_id=1)
    LlamaForCausalLM(config).save_pretrained(folder)


def ours(folder, output, dtype):
    """A run of the preset, before its first step. The recipe's dtype is bf16."""
    words = ["experiment=metamath_peft", "method=lora", "seed=0", "model=decoder"]
    words.append("recipe=metamath_peft/llama3_2_3b")
    words += [f"model.path={folder / 'llama'}", f"output={output}", "device=cpu"]
    words += [f"task.data_dir={folder / 'MetaMathQA.json'}", f"model.dtype={dtype}"]
    words += [f"task.test_dir={folder}", "task.decode=none"]
    words += ["task.forgetting_text=none", f"train.max_steps={STEPS}"]
    return begin(words)


def theirs_rows(folder, tokenizer):
    """data.py: the rows of the file that are short enough, tokenised with their
    answers."""
    rows = json.loads((folder / "MetaMathQA.json").read_text())
    kept = [
        row for row in rows if len(f"{row['query']} {row['response']}") <= CHAR_LIMIT
    ]
    texts = [TEMPLATE.format(query=row["query"]) + row["response"] for row in kept]
    return tokenizer(texts)["input_ids"]


def theirs_batches(input_ids):
    """utils.py's BucketIterator: the numbers of the rows of each batch."""
    batches = []
    size = BATCH * BUCKET_FACTOR
    for start in range(0, len(input_ids), size):
        lengths = torch.tensor([len(ids) for ids in input_ids[start : start + size]])
        order = torch.argsort(lengths, descending=True)
        bucket = [start + int(number) for number in order]
        batches += [bucket[i : i + BATCH] for i in range(0, len(bucket), BATCH)]
    return batches


def theirs_inputs(tokenizer, rows, column_more):
    """run.py: padding and labels. column_more: padded one column further than the
    longest row, so that every row has an end token to learn, as their TODO asks for."""
    width = max(map(len, rows)) + column_more
    batch = tokenizer.pad(
        {"input_ids": rows},
        return_tensors="pt",
        padding="max_length",
        max_length=width,
    )
    labels = batch["input_ids"].clone()
    for i, row in enumerate(rows):
        labels[i, len(row) + 1 :] = -100
    return {**batch, "labels": labels}


def theirs_model(folder, ours, dtype=torch.float32):
    """peft's LoRA as in lora/llama-3.2-3B-rank32, with our first values. peft makes the
    adapter float32 over any base, as autocast_adapter_dtype says by default."""
    base = AutoModelForCausalLM.from_pretrained(folder / "llama", dtype=dtype)
    config = peft.LoraConfig(
        r=32, lora_alpha=64, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"
    )
    model = peft.get_peft_model(base, config)
    values = {}
    for name, value in ours.parameters.items():
        site, _, matrix = name.partition(".changes.whole.")
        key = f"base_model.model.{site}.lora_{matrix}.default.weight"
        values[key] = value.detach().clone()
    missing = model.load_state_dict(values, strict=False)
    assert not missing.unexpected_keys
    return model


def theirs_losses(model, tokenizer, input_ids, batches, column_more):
    """run.py's train, without its evaluations."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.1)
    schedule = get_cosine_schedule_with_warmup(
        optimizer, num_warmup_steps=int(0.1 * STEPS), num_training_steps=STEPS
    )
    losses = []
    model.train()
    for numbers in batches[:STEPS]:
        rows = [input_ids[number] for number in numbers]
        batch = theirs_inputs(tokenizer, rows, column_more)
        items = batch["attention_mask"].sum().item()
        optimizer.zero_grad()
        loss = model(**batch, num_items_in_batch=items).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    return losses


def theirs_tokenizer(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder / "llama")
    tokenizer.padding_side = "right"
    tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def test_over_weights_in_bf16_losses_and_adapter_are_pefts_to_the_rounding(
    folder, tmp_path
):
    """model.dtype=bf16 with train.precision=fp32 is their dtype bfloat16 with use_amp
    false: the base computes in bf16, the adapter in float32."""
    tokenizer = theirs_tokenizer(folder)
    run = ours(folder, tmp_path, "bf16")
    dtypes = {p.requires_grad: p.dtype for p in run.raw_model.parameters()}
    assert dtypes == {True: torch.float32, False: torch.bfloat16}
    input_ids = theirs_rows(folder, tokenizer)
    batches = theirs_batches(input_ids)
    model = theirs_model(folder, run, torch.bfloat16)
    theirs = theirs_losses(model, tokenizer, input_ids, batches, column_more=1)
    losses = [float(run.step(batch)) for batch in batches[:STEPS]]
    assert losses == pytest.approx(theirs, rel=2**-9)
    values = model.state_dict()
    for name, value in run.parameters.items():
        site, _, matrix = name.partition(".changes.whole.")
        key = f"base_model.model.{site}.lora_{matrix}.default.weight"
        value = value.detach()
        assert (values[key] - value).norm() < 0.01 * value.norm()


def test_twenty_steps_have_the_losses_of_pefts_code(folder, tmp_path):
    tokenizer = theirs_tokenizer(folder)
    run = ours(folder, tmp_path, "fp32")
    input_ids = theirs_rows(folder, tokenizer)
    # the same rows, in the order of the file; ours have their end token
    end = [tokenizer.eos_token_id]
    assert len(input_ids) < 190
    ours_ids = [ids for ids, _ in run.task._rows["train"]]
    assert ours_ids == [ids + end for ids in input_ids]
    batches = theirs_batches(input_ids)
    every_end = theirs_losses(
        theirs_model(folder, run), tokenizer, input_ids, batches, column_more=1
    )
    as_it_is = theirs_losses(
        theirs_model(folder, run), tokenizer, input_ids, batches, column_more=0
    )
    losses = [float(run.step(batch)) for batch in batches[:STEPS]]
    assert losses == pytest.approx(every_end, abs=1e-6, rel=0)
    # the last steps are of an adapter that has moved
    moved = [value for name, value in run.parameters.items() if name.endswith(".B")]
    assert all(value.abs().max() > 1e-4 for value in moved)
    # what their code leaves out is the loss of the longest rows' end token
    for loss, theirs, batch in zip(losses, as_it_is, batches, strict=False):
        lengths = [len(input_ids[number]) for number in batch]
        longest = lengths.count(max(lengths))
        left_out = (loss - theirs) * sum(lengths) / longest
        assert left_out == pytest.approx(math.log(len(tokenizer)), rel=0.1)
