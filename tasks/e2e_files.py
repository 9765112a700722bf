"""Reads E2E's files (the challenge's CSV, microsoft/LoRA's text, the hub's parquet) into the
pairs of texts that the model gets."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from tasks.base import DataError, quoted, require_columns
from tasks.files import find_file, open_text, read_parquet, split_files
from tasks.tables import read_csv

#: The names of the attributes in LoRA's files, by those of the challenge.
KEYS = {
    "name": "name",
    "eatType": "Type",
    "food": "food",
    "priceRange": "price",
    "customer rating": "customer rating",
    "area": "area",
    "familyFriendly": "family friendly",
    "near": "near",
}
#: Patterns of the hub's file of a split, such as validation-00000.parquet or
#: default/validation/0000.parquet.
HUB_FILES = ("{}*.parquet", "{}/*.parquet", "*/{}*.parquet", "*/{}/*.parquet")
#: Patterns of each split's file by style: the challenge's files, microsoft/LoRA's, and
#: the hub's. Styles are not mixed.
STYLES: Sequence[Mapping[str, Sequence[str]]] = (
    {"train": ["trainset.csv"], "dev": ["devset.csv"], "test": ["testset_w_refs.csv"]},
    {"train": ["train.txt"], "dev": ["valid.txt"], "test": ["test.txt"]},
    {
        "train": [pattern.format("train") for pattern in HUB_FILES],
        "dev": [pattern.format("validation") for pattern in HUB_FILES],
        "test": [pattern.format("test") for pattern in HUB_FILES],
    },
)
#: Examples of tokens in microsoft/LoRA's valid.txt that its test.txt writes differently.
TOKENISED_OTHERWISE = '"isn \'t", "20- £ 25"'

#: A meaning representation (MR) and a reference, as the model reads them.
Pair = tuple[str, str]


def local_files(folder: Path, decode: str) -> dict[str, Path]:
    """The file of each split, all of the first style that is complete. decode: the value of
    task.decode; the test set's file is needed only for "test".

    Raises DataError where no style is complete. It names a file that is missing: of the
    first style that has any file."""
    splits = [split for split in STYLES[0] if split != "test" or decode == "test"]
    # Looks for a complete style, then for one with any file, for which split_files raises
    for suffices in (all, any):
        for style in STYLES:
            if suffices(find_file(folder, *style[split]) for split in splits):
                return split_files({split: style[split] for split in splits}, folder)
    # There is no file at all: split_files raises, and names the training file of each style
    train_files = [pattern for style in STYLES for pattern in style["train"]]
    return split_files({"train": train_files}, folder)


def read_pairs(path: Path) -> Iterator[Pair]:
    """The pairs of a file of any style. Raises DataError with file and line for a wrong
    row, and for a file without rows."""
    count = 0
    for line, mr, reference in READERS[path.suffix](path):
        if not reference.strip():
            raise DataError(f"{path} line {line}: an empty reference")
        if path.suffix != ".txt":
            try:
                mr = linearise(mr)
            except ValueError as error:
                raise DataError(f"{path} line {line}: {error}") from None
            reference = tokenise(reference)
        yield mr, reference
        count += 1
    if not count:
        raise DataError(f"{path}: no rows")


def _read_csv(path: Path) -> Iterator[tuple[int, str, str]]:
    """The line, MR and reference of each row of the challenge's CSV, as they are written
    there."""
    for line, row in read_csv(path, {}):
        require_columns(path, row, ("mr", "ref"), " (E2E's files have mr and ref)")
        yield line, row["mr"], row["ref"]


def _read_lora(path: Path) -> Iterator[tuple[int, str, str]]:
    """The line, MR and reference of each row of LoRA's file, `MR||reference`, where both
    have the model's form already."""
    with open_text(path) as file:
        for line, text in enumerate(file, 1):
            mr, bars, reference = text.strip().partition("||")
            if not bars:
                raise DataError(f"{path} line {line}: no || between MR and reference")
            for attribute in mr.split(" | "):
                key = attribute.partition(" : ")[0]
                if key not in KEYS.values():
                    raise DataError(
                        f"{path} line {line}: {_unknown_attribute(key, KEYS.values())}"
                    )
            yield line, mr, reference.strip()


def _read_hub(path: Path) -> Iterator[tuple[int, str, str]]:
    """The number, MR and reference of each row of the hub's parquet, as they are written
    there."""
    names = ("meaning_representation", "human_reference")
    for number, row in read_parquet(path):
        require_columns(f"{path} row {number}", row, names)
        mr, reference = (row[name] or "" for name in names)
        yield number, mr, reference


#: The function that reads a file, by its ending.
READERS = {".csv": _read_csv, ".txt": _read_lora, ".parquet": _read_hub}


def linearise(mr: str) -> str:
    """The challenge's MR in the form that LoRA's files have: `name[Blue Spice],
    eatType[pub], priceRange[£20-25]` becomes `name : Blue Spice | Type : pub | price : £ 20
    - 25`. Raises ValueError for an MR of another form, or an attribute that E2E does not
    have."""
    # Possessive quantifiers: no backtracking, so linear time
    if not re.fullmatch(
        r"[^\[\],]++\[[^\[\]]*+\](?:\s*+,[^\[\],]++\[[^\[\]]*+\])*+\s*+", mr
    ):
        raise ValueError(
            f"the MR {quoted(mr)} is not written as name[...], eatType[...]"
        )
    attributes = []
    for key, value in re.findall(r"([^\[\],]+)\[([^\[\]]*)\]", mr):
        key = key.strip()
        if key not in KEYS:
            raise ValueError(_unknown_attribute(key, KEYS))
        value = value.replace("£", "£ ")
        value = re.sub(r"(?<=\d)-(?=\d)", " - ", value).strip()
        attributes.append(f"{KEYS[key]} : {value}")
    return " | ".join(attributes)


def _unknown_attribute(key: str, attributes: Iterable[str]) -> str:
    """The message for an attribute that E2E does not have. attributes: those that it
    has."""
    return (
        f"unknown attribute {quoted(key)} in the MR. E2E has: {', '.join(attributes)}"
    )


def tokenise(reference: str) -> str:
    """A reference with spaces around punctuation and before clitics, as LoRA's files
    have it; case is kept.

    The rules are spaCy's English ones of the time of those files: a hyphen is split off
    only between letters (`kid - friendly`, `5-star`). On the challenge's test set the
    result is exactly as long as LoRA's file. LoRA's dev file follows other rules
    (TOKENISED_OTHERWISE): 73 of its 4,672 references differ."""
    tokens = _tokenizer()(reference)
    return " ".join(token.text for token in tokens if not token.is_space)


@cache
def _tokenizer() -> Any:
    """spaCy's English tokenizer, but with its general rules for splits inside a word:
    today's English ones also split off a hyphen after a digit, as in 5-star."""
    import spacy
    from spacy.lang.punctuation import TOKENIZER_INFIXES
    from spacy.util import compile_infix_regex

    tokenizer: Any = spacy.blank("en").tokenizer
    tokenizer.infix_finditer = compile_infix_regex(TOKENIZER_INFIXES).finditer
    return tokenizer
