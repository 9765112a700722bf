"""Files of E2E: the challenge's CSV, microsoft/LoRA's text, the hub's parquet; MRs and references as the
model reads them."""

import csv
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from tasks.base import DataError, listed, quoted
from tasks.text import open_text, read_parquet, read_rows

#: The challenge's names of the attributes, and those in LoRA's files.
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
#: How each split is called by the challenge, by microsoft/LoRA, and on the hub.
FILES = {
    "train": ("trainset.csv", "train.txt", "train"),
    "dev": ("devset.csv", "valid.txt", "validation"),
    "test": ("testset_w_refs.csv", "test.txt", "test"),
}
#: What microsoft/LoRA's valid.txt has, and its test.txt has not.
OTHERWISE = '"isn \'t", "20- £ 25"'

#: An MR and a reference, as the model reads them.
Pair = tuple[str, str]


def local_files(folder: Path, decode: str) -> dict[str, Path]:
    """The file of each split: all by the challenge's names, or all by LoRA's, or all the hub's parquet
    files."""
    if folder.is_file():
        raise DataError(f"{folder}: a file: task.data_dir takes the folder that holds it")
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder (task.data_dir)")
    wanted = [split for split in FILES if split != "test" or decode == "test"]
    missing: list[str] = []
    for style in range(3):
        found = {split: _named(folder, FILES[split][style]) for split in wanted}
        if all(found.values()):
            return {split: path for split, path in found.items() if path}
        if any(found.values()):
            missing += [FILES[split][style] for split, path in found.items() if not path]
    if missing:
        raise DataError(f"{folder / missing[0]}: no such file")
    styles = " or ".join(", ".join(FILES[split][style] for split in wanted) for style in range(2))
    raise DataError(f"{folder}: holds neither {styles}, nor the hub's parquet files (task.data_dir)")


def _named(folder: Path, name: str) -> Path | None:
    """A file by its name, or the hub's parquet file of a split: validation-00000.parquet,
    default/validation/0000.parquet."""
    above = ("", "*/") if "." not in name else ()
    patterns = [f"{folders}{name}{end}" for folders in above for end in ("*.parquet", "/*.parquet")] or [name]
    found = sorted({path for pattern in patterns for path in folder.glob(pattern) if path.is_file()})
    if len(found) > 1:
        names = ", ".join(str(path.relative_to(folder)) for path in found)
        raise DataError(f"{folder}: {len(found)} parquet files for {name}, one is expected: {names}")
    return found[0] if found else None


def read_pairs(path: Path) -> Iterator[Pair]:
    """Pairs of a file, as the model reads them. Raises DataError with file and line, and for a file without
    rows."""
    count = 0
    for line, mr, reference in _rows(path):
        if not reference.strip():
            raise DataError(f"{path} line {line}: an empty reference")
        try:
            yield (mr, reference) if path.suffix == ".txt" else (linearise(mr), tokenise(reference))
        except ValueError as error:
            raise DataError(f"{path} line {line}: {error}") from None
        count += 1
    if not count:
        raise DataError(f"{path}: no rows")


def count(path: Path) -> tuple[int, int]:
    """How many pairs a file has, and of how many MRs; without tokenising, which takes seconds."""
    mrs = [mr for _, mr, _ in _rows(path)]
    return len(mrs), len(set(mrs))


def _rows(path: Path) -> Iterator[tuple[int, str, str]]:
    """Line, MR and reference, as the file has them."""
    return {".csv": _read_csv, ".txt": _read_lora, ".parquet": _read_hub}[path.suffix](path)


def _read_csv(path: Path) -> Iterator[tuple[int, str, str]]:
    with open_text(path) as file:
        reader = csv.DictReader(file, strict=True)
        for column in ("mr", "ref"):
            if column not in (reader.fieldnames or []):
                known = listed(reader.fieldnames or []) or "nothing"
                raise DataError(
                    f"{path}: no column {column!r}. It has: {known} (E2E's files have mr and ref)"
                )
        try:
            for line, row in read_rows(path, reader):
                yield line, row["mr"], row["ref"]
        except csv.Error as error:
            raise DataError(f"{path} after line {reader.line_num}: {error}") from None


def _read_lora(path: Path) -> Iterator[tuple[int, str, str]]:
    """`MR||reference` a line, both written as the model reads them."""
    with open_text(path) as file:
        for line, text in enumerate(file, 1):
            mr, bars, reference = text.strip().partition("||")
            if not bars:
                raise DataError(f"{path} line {line}: no || between MR and reference")
            for attribute in mr.split(" | "):
                key = attribute.partition(" : ")[0]
                if key not in KEYS.values():
                    raise DataError(f"{path} line {line}: {_unknown(key, KEYS.values())}")
            yield line, mr, reference.strip()


def _read_hub(path: Path) -> Iterator[tuple[int, str, str]]:
    for row, columns in read_parquet(path):
        for column in ("meaning_representation", "human_reference"):
            if columns.get(column) is None:
                raise DataError(f"{path} row {row}: no column {column!r}. It has: {listed(columns)}")
        yield row, columns["meaning_representation"], columns["human_reference"]


def linearise(mr: str) -> str:
    """`name[Blue Spice], eatType[pub], priceRange[£20-25]` as `name : Blue Spice | Type : pub | price : £ 20
    - 25`.

    Raises ValueError for another form, or an attribute that E2E does not have.
    """
    # In linear time: each part takes what it can and gives nothing back.
    found = re.fullmatch(r"[^\[\],]++\[[^\[\]]*+\](?:\s*+,[^\[\],]++\[[^\[\]]*+\])*+\s*+", mr)
    if not found:
        raise ValueError(f"the MR {quoted(mr)} is not written as name[...], eatType[...]")
    parts = []
    for key, value in re.findall(r"([^\[\],]+)\[([^\[\]]*)\]", mr):
        if key.strip() not in KEYS:
            raise ValueError(_unknown(key.strip(), KEYS))
        value = re.sub(r"(?<=\d)-(?=\d)", " - ", value.replace("£", "£ ")).strip()
        parts.append(f"{KEYS[key.strip()]} : {value}")
    return " | ".join(parts)


def _unknown(key: str, known: Any) -> str:
    return f"unknown attribute {quoted(key)} in the MR. E2E has: {', '.join(known)}"


def tokenise(reference: str) -> str:
    """Spaces around punctuation and before clitics, case kept: as the references of LoRA's files are written.

    spaCy's English rules, but with a hyphen split off only between letters (`kid - friendly`, `5-star`): the
    rules that spaCy had when those files were made. On the challenge's test set the result is as long as
    LoRA's file, to the character. LoRA's dev file was made by other rules (OTHERWISE): of its 4,672
    references 73 differ from these."""
    return " ".join(token.text for token in _tokenizer()(reference) if not token.is_space)


@cache
def _tokenizer() -> Any:
    import spacy
    from spacy.lang.punctuation import TOKENIZER_INFIXES
    from spacy.util import compile_infix_regex

    tokenizer: Any = spacy.blank("en").tokenizer
    tokenizer.infix_finditer = compile_infix_regex(TOKENIZER_INFIXES).finditer
    return tokenizer
