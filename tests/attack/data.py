"""Data from strangers: tables of texts, GLUE's and E2E's files, instructions, MT-Bench, texts to be scored,
and images."""

import functools
import io
import json
import os
import random
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from attack.cases import Case, Home, WrongError
from bench import write_mt_bench
from PIL import Image
from tiny import save_vit, write_alpaca, write_e2e, write_glue, write_images

import tasks
from runs.config import expand
from tasks import e2e_metrics, mt_bench
from tasks.images.pixels import BadImageError, preprocessing

EITHER, REFUSED, TAKEN = "either", "refused", "taken"
ROWS = [(f"text {i}", i % 2) for i in range(20)]
SCORES = [(f"text {i}", i / 7) for i in range(20)]


def cases(home: Home) -> Iterator[Case]:
    for name, ending, content, expected in tables():
        path = home.file(f"train.{ending}", content)
        yield Case(
            "tables of texts, by hand",
            f"{ending}, {name}",
            _load("text", train_file=path),
            expected,
            folder=path.parent,
        )
    yield from sets(home)
    yield from changed(home)
    yield from judged(home)
    yield from images(home)


@functools.cache
def _config(name: str) -> dict[str, Any]:
    """A task's settings as a run has them."""
    model = {"e2e": "decoder", "alpaca": "decoder", "image_folder": "vision"}.get(name, "encoder")
    return expand(
        [f"task={name}", f"model={model}", "model.path=/x", "task.shots=null"][
            : 4 if model == "vision" else 3
        ]
    )[0].config["task"]


def _load(name: str, **settings: Any) -> Callable[[], Any]:
    config = _config(name) | {
        key: str(value) if isinstance(value, Path) else value for key, value in settings.items()
    }
    return lambda: tasks.load(config)


def _csv(rows: list[tuple[Any, Any]], head: str = "text,label") -> str:
    return "\n".join([head, *(f"{text},{label}" for text, label in rows)]) + "\n"


def _jsonl(rows: list[tuple[Any, Any]]) -> str:
    return "".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in rows)


def tables() -> Iterator[tuple[str, str, bytes | str, str]]:
    """Name, ending, content, and what is to come of it."""
    yield "sound", "csv", _csv(ROWS), TAKEN
    yield "sound", "jsonl", _jsonl(ROWS), TAKEN
    yield "sound numbers", "csv", _csv(SCORES), TAKEN
    # The last: a digit
    for label in ("NaN", "inf", "-inf", "1e400", "9" * 400, "1e39", "", "n/a", "0x10", "\u0661"):
        for ending, mark in (("csv", ","), ("tsv", "\t")):
            text = _csv([*SCORES, ("x", label)]).replace(",", mark)
            yield (
                f"label {label[:9]!a} among fractions",
                ending,
                text,
                EITHER if label == "\u0661" else REFUSED,
            )
    for label in (float("nan"), float("inf"), None, True, [], {}, [1], "x" * 10**5):
        yield (
            f"label {str(label)[:9]} among fractions",
            "jsonl",
            _jsonl([*SCORES, ("x", label)]),
            EITHER if label is True else REFUSED,
        )
        yield f"label {str(label)[:9]} among classes", "jsonl", _jsonl([*ROWS, ("x", label)]), EITHER
    for text in (None, [], {}, 7, True, float("nan"), "", " " * 10**5, "a" * 10**6, "\0", "\ud800", "‮" * 50):
        yield f"text {str(text)[:9]!r}", "jsonl", _jsonl([*ROWS, (text, 1)]), EITHER
    yield "5,000 labels", "csv", _csv([("x", f"l{i}") for i in range(5000)]), EITHER
    yield "one label", "csv", _csv([("x", 1)] * 9), REFUSED
    yield "no rows", "csv", "text,label\n", REFUSED
    yield "empty", "csv", "", REFUSED
    yield "empty", "jsonl", "", REFUSED
    yield "a column twice", "csv", _csv(ROWS, "text,text"), REFUSED
    yield "no such columns", "csv", _csv(ROWS, "a,b"), REFUSED
    yield "5,000 columns", "csv", ",".join(f"c{i}" for i in range(5000)) + "\n", REFUSED
    yield "a row too long", "csv", _csv(ROWS) + "a,b,c\n", REFUSED
    yield "a row too short", "csv", _csv(ROWS) + "a\n", REFUSED
    yield "an open quotation", "csv", _csv(ROWS) + '"a,1\n' * 3, REFUSED
    yield "a line of 50 MB", "csv", _csv(ROWS) + "a" * (50 << 20) + ",1\n", REFUSED
    yield "a line of 50 MB", "jsonl", _jsonl(ROWS) + '{"text": "' + "a" * (50 << 20), REFUSED
    yield "a field of 12 MB", "csv", _csv(ROWS) + '"' + "a\n" * (6 << 20) + '",1\n', REFUSED
    yield "null bytes", "csv", _csv(ROWS).encode() + bytes(100), EITHER
    for encoding in ("utf-16", "utf-32", "utf-8-sig", "latin-1"):
        yield (
            encoding,
            "csv",
            _csv([*ROWS, ("é", 1)]).encode(encoding),
            TAKEN if encoding == "utf-8-sig" else REFUSED,
        )
    yield "cut in a character", "csv", _csv([*ROWS, ("é", 1)]).encode()[:-4], REFUSED
    yield "carriage returns alone", "csv", _csv(ROWS).replace("\n", "\r"), EITHER
    for text in (
        "[" * 200_000,
        '{"a": ' * 5000,
        "{",
        "null",
        "7",
        "[]",
        '{"text": 1e999, "label": 1}',
        "\\",
        "{'text': 1}",
    ):
        yield (
            f"a line {text[:12]}",
            "jsonl",
            _jsonl(ROWS) + text + "\n",
            EITHER if "1e999" in text else REFUSED,
        )
    yield "a key twice", "jsonl", _jsonl(ROWS) + '{"text": "a", "text": "b", "label": 1}\n', EITHER
    yield "no parquet", "parquet", "x", REFUSED
    yield "parquet's ends alone", "parquet", b"PAR1" + bytes(64) + b"PAR1", REFUSED
    yield "another ending", "exe", "x", REFUSED


def sets(home: Home) -> Iterator[Case]:
    """Files that are folders, pipes and links; and data sets of other shapes."""
    ways: dict[str, Callable[[Path], object]] = {
        "a folder": Path.mkdir,
        "a pipe": os.mkfifo,
        "a link to /dev/zero": lambda path: path.symlink_to("/dev/zero"),
        "a link to itself": lambda path: path.symlink_to(path),
        "nothing": lambda path: None,
    }
    for name, how in ways.items():
        for ending in ("csv", "jsonl", "parquet"):
            path = home.place() / f"train.{ending}"
            how(path)
            yield Case(
                "files that are none",
                f"{ending} is {name}",
                _load("text", train_file=path),
                folder=path.parent,
            )
        for task, write, file in (("rte", write_glue, "RTE/train.tsv"), ("e2e", write_e2e, "trainset.csv")):
            place = write(home.place() / "data")
            (place / file).unlink()
            how(place / file)
            yield Case(
                "files that are none",
                f"{task}, {file} is {name}",
                _load(task, data_dir=place),
                folder=place.parent,
            )
    rows = json.loads((write_alpaca(home.place()) / "alpaca_own.json").read_text())
    for name, text in {
        "deep": "[" * 200_000,
        "a mapping": json.dumps({"a": rows}),
        "a row of another kind": json.dumps([*rows, 7]),
        "no output": json.dumps([*rows, {"instruction": "x"}]),
        "an output that is null": json.dumps([*rows, {"instruction": "x", "output": None}]),
        "a lone surrogate": json.dumps([*rows, {"instruction": "\ud800", "output": "x"}]),
        "an instruction of 20 MB": json.dumps([*rows, {"instruction": "x" * (20 << 20), "output": ["x"]}]),
        "cut short": json.dumps(rows)[:-9],
        "empty": "",
    }.items():
        path = home.file("rows.json", text)
        yield Case(
            "instructions, by hand", name, _load("alpaca", data_dir=path, dev_rows=2), folder=path.parent
        )


def changed(home: Home) -> Iterator[Case]:
    """Sound files with bytes changed at random."""
    dice, number = home.dice("data"), 8 if home.short else 60
    glue, e2e, alpaca = write_glue(home.place()), write_e2e(home.place()), write_alpaca(home.place())
    for task, folder, file in (
        ("rte", glue, "RTE/train.tsv"),
        ("stsb", glue, "STS-B/dev.tsv"),
        ("e2e", e2e, "trainset.csv"),
    ):
        content = (folder / file).read_bytes()
        for i in range(number):
            place = (write_e2e if task == "e2e" else write_glue)(home.place())
            (place / file).write_bytes(at_random(content, dice))
            yield Case(
                "files with bytes changed at random",
                f"{task}, {i}",
                _load(task, data_dir=place),
                EITHER,
                folder=place,
            )
    for i in range(number):
        path = home.file("rows.json", at_random((alpaca / "alpaca_own.json").read_bytes(), dice))
        act = _load("alpaca", data_dir=path, dev_rows=2)
        yield Case("files with bytes changed at random", f"alpaca, {i}", act, EITHER, folder=path.parent)


def at_random(content: bytes, dice: random.Random) -> bytes:
    spot, other = sorted(dice.sample(range(len(content)), 2))
    odd = [
        b"\0",
        b"\xff",
        b'"',
        b"\t",
        b"\n",
        b"\r",
        b",",
        "\u2028".encode(),
        b"NaN",
        b"\\ud800",
        b"[" * 9,
        dice.randbytes(9),
    ]
    ways = [
        content[:spot] + dice.choice(odd) + content[spot + 1 :],
        content[:spot] + content[other:],
        content[:spot],
        content[:other] + content[spot:],
    ]
    return dice.choice(ways)


# --- judged answers and scored texts


def judged(home: Home) -> Iterator[Case]:
    def bench(folder: Path) -> None:
        questions = mt_bench.read_questions(folder, "mt_bench")
        mt_bench.prompts(
            folder, "mt_bench", questions, {q.id: ["an answer"] * len(q.turns) for q in questions}
        )

    for file in ("mt_bench/question.jsonl", "mt_bench/reference_answer/gpt-4.jsonl", "judge_prompts.jsonl"):
        for text in ("[" * 200_000, "{}", "[]", "7", "\0",
                     '{"question_id": 1e999, "category": "a", "turns": ["a", "b"]}',
                     '{"question_id": %s, "category": [], "turns": ["a", "b"]}' % ("9" * 5000),
                     '{"question_id": 81, "category": "a", "turns": ["\\ud800", "b"]}',
                     '{"name": "single-v1", "system_prompt": "",'
                     ' "prompt_template": "{question.__class__.__mro__}"}',
                     '{"name": "single-v1", "system_prompt": "",'
                     ' "prompt_template": "{question:>999999999999}"}',
                     '{"name": ["x"], "system_prompt": "", "prompt_template": "x"}',
                     '{"name": "single-v1", "system_prompt": 7, "prompt_template": 7}'):  # fmt: skip
            folder = write_mt_bench(home.place())
            with open(folder / file, "a") as opened:
                opened.write(f"\n{text}\n")
            expected = EITHER if text.startswith(("{}", '{"')) else REFUSED
            yield Case(
                "MT-Bench's files", f"{file} {text[:40]}", lambda f=folder: bench(f), expected, folder=folder
            )
    for reply in (
        "[[" + "1" * 300_000,
        "[" * 300_000,
        "[[5" + "." * 300_000,
        "[[\u0661]]",
        "[[1e5]]",
        "[[nan]]",
        "\0" * 10**6,
        "[[]]",
    ):
        yield Case("a judge's replies", reply[:10], lambda reply=reply: _rated(reply), TAKEN, seconds=2)
    numbers = '"prompt_tokens": 1e999, "completion_tokens": 1}'
    for text in (
        "[" * 200_000,
        "{}",
        "7",
        f'{{"key": 1, "reply": "x", {numbers}',
        f'{{"key": "k", "reply": "x", {numbers}',
        "\ud800",
    ):
        path = home.file("judgments.jsonl", text + "\n")
        yield Case(
            "saved judgments",
            text[:25],
            lambda path=path: mt_bench.read_judgments(path),
            EITHER,
            folder=path.parent,
        )
    texts: dict[str, str | bytes] = {
        "empty": "",
        "blank lines": "\n\n\n\n",
        "null bytes": "\0\n\0\n",
        "separators": "a\u2028b\n",
    }
    texts |= {
        "latin-1": b"\xe9\n",
        "150 MB in a line": "a" * (150 << 20),
        "half a character": "\ud800\n",
        "returns": "a\rb\r",
    }
    readers = {
        "references": e2e_metrics.read_references,
        "hypotheses": lambda path: e2e_metrics.read_hypotheses(path, 2),
    }
    for name, content in texts.items():
        path = home.file("texts.txt", content)
        for what, read in readers.items():
            act = lambda read=read, path=path: read(path)  # noqa: E731
            yield Case("texts to be scored", f"{what}, {name}", act, EITHER, known=(ValueError,))


def _rated(reply: str) -> None:
    rating = mt_bench.rating(reply)
    if rating is not None and not 1 <= rating <= 10:
        raise WrongError(f"a rating of {rating}")


# --- images


def images(home: Home) -> Iterator[Case]:
    vit = preprocessing(save_vit(home.place()))

    def read(path: Path) -> Callable[[], Any]:
        def act() -> None:
            found = vit.read(path)
            if isinstance(found, BadImageError):
                raise found
            if found.shape != (3, 16, 16):
                raise WrongError(f"pixels of {found.shape}")

        return act

    for name, content, expected in pictures(home):
        path = home.file("image.png", content)
        yield Case(
            "images, by hand",
            name,
            read(path),
            expected,
            known=(BadImageError,),
            folder=path.parent,
            seconds=15,
        )
    dice = home.dice("images")
    for i in range(30 if home.short else 300):
        form = dice.choice(["JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF", "PPM"])
        path = home.file("image.png", at_random(encoded(Image.fromarray(noise(40, 30)), form), dice))
        yield Case(
            "images with bytes changed at random",
            f"{i}, {form}",
            read(path),
            EITHER,
            known=(BadImageError,),
            folder=path.parent,
        )
    for name, how in {
        "a pipe": os.mkfifo,
        "a link to /dev/zero": lambda path: path.symlink_to("/dev/zero"),
        "a folder": Path.mkdir,
        "a link to itself": lambda path: path.symlink_to(path),
        "a link to a pipe": lambda path: (
            os.mkfifo(path.with_suffix("")),
            path.symlink_to(path.with_suffix("")),
        ),
        "PostScript": lambda path: path.write_bytes(POSTSCRIPT + home.shell.encode()),
    }.items():
        place = write_images(home.place())
        how(place / "train" / "ant" / "odd.png")

        def act(place: Path = place) -> None:
            _load("image_folder", data_dir=place)().prepare(vit)

        yield Case(
            "image folders with something else",
            name,
            act,
            EITHER if name == "a folder" else REFUSED,
            folder=place,
        )


POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 20 20\n%%EndComments\nshowpage\n%%EOF\n"


def noise(width: int, height: int) -> Any:
    return np.random.default_rng(0).integers(0, 255, (height, width, 3), np.uint8)


def encoded(image: Image.Image, form: str = "PNG", **how: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **how)
    return file.getvalue()


def png(width: int, height: int, body: bytes = b"") -> bytes:
    """A PNG whose header says this size, whatever is in it."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def pictures(home: Home) -> Iterator[tuple[str, bytes, str]]:
    image = Image.fromarray(noise(40, 30))
    for form in ("JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF", "PPM"):
        yield f"a sound {form}", encoded(image, form), TAKEN
        yield (
            f"a {form} cut short",
            encoded(image, form)[:-200],
            EITHER if form in ("GIF", "PPM", "TIFF") else REFUSED,
        )
    for form in ("ICO", "TGA", "PCX", "JPEG2000", "DDS", "PDF", "EPS"):
        yield f"a {form}", encoded(image, form), REFUSED
    yield "PostScript", POSTSCRIPT, REFUSED
    yield (
        "PostScript with a command",
        POSTSCRIPT.replace(b"showpage", f"(%pipe%{home.shell}) (w) file".encode()),
        REFUSED,
    )
    for magic in (
        b"\xc5\xd0\xd3\xc6" + bytes(28),
        b"%PDF-1.4\n",
        b"SIMPLE  =",
        b"\x89HDF\r\n\x1a\n",
        b"GIF89a",
        b"RIFF\0\0\0\0WEBP",
        b"",
    ):
        yield f"the beginning {magic[:9]!r} alone", magic, REFUSED
    yield (
        "SVG that loads",
        b'<svg xmlns="http://www.w3.org/2000/svg"><image href="http://127.0.0.1:9/"/></svg>',
        REFUSED,
    )
    for size in ((60_000, 1), (1, 60_000), (1, 10**6)):
        yield f"thin, {size[0]} x {size[1]}", encoded(Image.new("RGB", size)), EITHER
    yield "10 gigapixels, by its header", png(100_000, 100_000), REFUSED
    yield "2^31 pixels wide", png(2**31 - 1, 1), REFUSED
    yield "a bomb of zeros", png(40_000, 40_000, zlib.compress(bytes(50 << 20), 9)), REFUSED
    for number in (0x7FFFFFFF, 0):
        broken = bytearray(encoded(image, "TIFF"))
        broken[4:8] = struct.pack("<I", number)
        yield f"a TIFF whose directory lies at {number}", bytes(broken), REFUSED
