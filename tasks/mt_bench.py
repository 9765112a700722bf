"""MT-Bench and Vicuna-bench: questions, answer files, and judging by a model behind any OpenAI-compatible
endpoint.

    python -m tasks.mt_bench judge ANSWERS [ANSWERS ...] [--bench mt_bench] [--judge gpt-4] [--passes 1]
    python -m tasks.mt_bench show ANSWERS [ANSWERS ...]

The key is read from OPENAI_API_KEY, the endpoint from --base-url or OPENAI_BASE_URL. ANSWERS are files in
FastChat's format. A judgment is saved as it comes in, by what was asked: judging again, or after a kill, pays
only for what is missing. show asks for nothing. Exit codes: 0; 1 where the judge failed at some; 2 for an
error, in one line.

The protocol is single-answer grading of lm-sys/FastChat's llm_judge, and so are all file formats; its
questions, prompts and reference answers are read from a copy of its data folder."""

import argparse
import asyncio
import hashlib
import json
import os
import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from string import Formatter
from typing import Any

import numpy as np

from tasks.base import DataError, parse_json, quoted
from tasks.text import LONGEST_LINE, Lines, open_text

#: How many turns a question has.
BENCHES = {"mt_bench": 2, "vicuna_bench": 1}
#: Categories that are judged beside a reference answer.
REFERENCED = ("math", "reasoning", "coding")
TEMPERATURES = {
    "writing": 0.7,
    "roleplay": 0.7,
    "extraction": 0.0,
    "math": 0.0,
    "coding": 0.0,
    "reasoning": 0.0,
}
TEMPERATURES |= {"stem": 0.1, "humanities": 0.1}
INSTEAD = (
    "Give a local copy of FastChat's data: task.mt_bench_dir=/where/FastChat/fastchat/llm_judge/data (here"
    " --data)"
)

Messages = list[dict[str, str]]


@dataclass(frozen=True)
class Question:
    id: int
    category: str
    turns: tuple[str, ...]


def temperature(category: str) -> float:
    """At which an answer is sampled (FastChat's gen_model_answer.py); 0 is greedy."""
    return TEMPERATURES.get(category, 0.7)


# --- files


def data_folder(settings: Mapping[str, Any]) -> Path:
    """The folder with judge_prompts.jsonl and one folder for each bench: settings["mt_bench_dir"], else from
    the hub.

    Raises DataError where there is none.
    """
    if settings.get("mt_bench_dir"):
        folder = Path(settings["mt_bench_dir"])
        found = next((f for f in (folder, folder / "data") if (f / "judge_prompts.jsonl").is_file()), None)
        if found is None:
            raise DataError(f"{folder}: no judge_prompts.jsonl in it. {INSTEAD}")
        return found
    from tasks.fetch.hub import snapshot

    names = ("question.jsonl", "reference_answer/gpt-4.jsonl")
    patterns = ["data/judge_prompts.jsonl", *(f"data/{bench}/{name}" for bench in BENCHES for name in names)]
    return snapshot("lmsys/mt-bench", None, patterns, "space", INSTEAD) / "data"


def read_questions(folder: Path, bench: str) -> list[Question]:
    """The questions of a bench, as the file has them. Raises DataError with the line that is wrong."""
    if bench not in BENCHES:
        raise DataError(f"no bench {bench!r}. Known: {', '.join(BENCHES)}")
    path, found = folder / bench / "question.jsonl", dict[int, Question]()
    for where, row in _rows(path, "question_id", "category", "turns"):
        number, turns = _answer(where, row)
        if number in found:
            raise DataError(f"{where}: question {number} a second time")
        if len(turns) != BENCHES[bench]:
            raise DataError(f"{where}: question {number} has {_turns(turns)}, {bench} has {BENCHES[bench]}")
        if not all(turn.strip() for turn in turns):
            raise DataError(f"{where}: question {number} has an empty turn")
        found[number] = Question(number, str(row["category"]), tuple(turns))
    if not found:
        raise DataError(f"{path}: no questions")
    return list(found.values())


def read_answers(
    path: Path, questions: Sequence[Question], model: str | None = None
) -> tuple[str, dict[int, list[str]]]:
    """The model's id, and its answers by question, a text for each turn (of the first choice, as FastChat
    judges it).

    Raises DataError for answers of two models (or of another than `model`), missing, unknown or repeated
    questions, and another number of turns."""
    asked, found = {q.id: q for q in questions}, dict[int, list[str]]()
    for where, row in _rows(path, "question_id", "model_id", "choices"):
        number, turns = _answer(where, row)
        model = str(row["model_id"]) if model is None else model
        if row["model_id"] != model:
            raise DataError(
                f"{where}: an answer of {quoted(row['model_id'])} in an answer file of {quoted(model)}"
            )
        if number not in asked:
            raise DataError(f"{where}: the bench has no question {number}")
        if number in found:
            raise DataError(f"{where}: an answer to question {number} a second time")
        if len(turns) != len(asked[number].turns):
            raise DataError(
                f"{where}: {_turns(turns)} for question {number}, which has {len(asked[number].turns)}"
            )
        found[number] = turns
    missing = [number for number in asked if number not in found]
    if missing or model is None:
        some = ", ".join(map(str, missing[:5])) + (", ..." if len(missing) > 5 else "")
        raise DataError(f"{path}: no answer to {len(missing)} of {len(asked)} questions: {some}")
    return model, {number: found[number] for number in asked}


def write_answers(
    path: Path, model_id: str, answers: Mapping[int, Sequence[str]], questions: Sequence[Question]
) -> None:
    """Writes an answer file, whole or not at all. Raises ValueError for answers that do not fit the
    questions, and OSError."""
    if {q.id: len(q.turns) for q in questions} != {number: len(turns) for number, turns in answers.items()}:
        raise ValueError("the answers do not fit the questions and their turns")
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(
        "w", encoding="utf-8", dir=path.parent, prefix=f".{path.name}.", delete=False
    ) as file:
        try:
            for question in questions:
                turns = list(answers[question.id])
                row = {"question_id": question.id, "answer_id": _hash([model_id, question.id, turns])[:22]}
                row |= {
                    "model_id": model_id,
                    "choices": [{"index": 0, "turns": turns}],
                    "tstamp": time.time(),
                }
                file.write(json.dumps(row) + "\n")
            file.close()
            os.chmod(file.name, 0o644)  # a temporary file is its owner's alone
            os.replace(file.name, path)
        except BaseException:
            os.unlink(file.name)
            raise


def _rows(path: Path, *keys: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects of a JSONL file, each after its place in words. Raises DataError for what lacks one of the
    keys."""
    with open_text(path) as file:
        for number, line in enumerate(file, 1):
            where = f"{path} line {number}"
            if not line.strip():
                continue
            row = parse_json(line, where)
            for key in keys:
                if not isinstance(row, dict) or key not in row:
                    raise DataError(f"{where}: no {key!r}")
            yield where, row


def _answer(where: str, row: Mapping[str, Any]) -> tuple[int, list[str]]:
    """The question's number and the turns, of a question, or of the first choice of an answer."""
    try:
        number, turns = row["question_id"], (row["choices"][0] if "choices" in row else row)["turns"]
        if type(number) is not int or number.bit_length() > 63 or type(turns) is not list or not turns:
            raise TypeError
        "".join(turns).encode()
    except UnicodeEncodeError:
        raise DataError(f"{where}: half a character (a lone surrogate), which no judge can be sent") from None
    except (LookupError, TypeError):
        raise DataError(f"{where}: question_id is to be a whole number, turns a list of texts") from None
    return number, turns


def _turns(turns: Sequence[str]) -> str:
    return f"{len(turns)} turn{'s' * (len(turns) != 1)}"


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


# --- what a judge is asked, and what it says


def prompts(
    folder: Path, bench: str, questions: Sequence[Question], answers: Mapping[int, Sequence[str]]
) -> dict[tuple[int, int], Messages]:
    """What the judge is sent for each (question, turn), turns from 1 (FastChat's gen_judgment.py, mode
    single).

    Math, reasoning and coding take the prompts with GPT-4's reference answers; turn 2 shows the judge both
    turns. Raises DataError for a prompt or a reference answer that is missing."""
    path = folder / "judge_prompts.jsonl"
    templates = dict[str, dict[str, str]]()
    for where, row in _rows(path, *_PROMPT):
        if not all(isinstance(row[key], str) for key in _PROMPT):
            raise DataError(f"{where}: {', '.join(_PROMPT)} are to be texts")
        templates[row["name"]] = row
    references, known = dict[int, list[str]](), folder / bench / "reference_answer" / "gpt-4.jsonl"
    if any(q.category in REFERENCED for q in questions):
        references = dict(_answer(where, row) for where, row in _rows(known, "question_id", "choices"))
    found = {}
    for q in questions:
        shown = {"question": q.turns, "answer": answers[q.id]}
        if q.category in REFERENCED:
            if len(references.get(q.id, ())) < len(q.turns):
                raise DataError(
                    f"{known}: no reference answer to each turn of question {q.id} ({q.category})"
                )
            shown["ref_answer"] = references[q.id]
        for turn in range(1, len(q.turns) + 1):
            name = f"single-{'math-' * (q.category in REFERENCED)}v1{'-multi-turn' * (turn > 1)}"
            if name not in templates:
                raise DataError(f"{path}: no prompt {name!r}")
            fields = {
                f"{what}_{n}": texts[n - 1] for what, texts in shown.items() for n in range(1, turn + 1)
            }
            if turn == 1:
                fields |= {"question": fields["question_1"], "answer": fields["answer_1"]}
            text = _filled(templates[name]["prompt_template"], fields, f"{path}: prompt {name!r}")
            system = templates[name]["system_prompt"]
            found[q.id, turn] = [{"role": "system", "content": system}] * bool(system) + [
                {"role": "user", "content": text}
            ]
    return found


#: What a prompt of the judge has.
_PROMPT = ("name", "system_prompt", "prompt_template")


def _filled(template: str, fields: Mapping[str, str], where: str) -> str:
    """A template with its placeholders filled in. DataError for one that is not just a known name in braces:
    what else format() obeys would look into objects, or pad to any width."""
    try:
        asked = [
            (name, spec or conversion)
            for _, name, spec, conversion in Formatter().parse(template)
            if name is not None
        ]
        odd = next((name for name, more in asked if name not in fields or more), None)
        if odd is None:
            return template.format(**fields)  # once: what it fills in may hold braces
        reason = quoted(odd)
    except ValueError as error:
        reason = str(error)
    raise DataError(f"{where} has a placeholder that cannot be filled ({reason})")


def rating(reply: str) -> float | None:
    """The first [[x]] of a reply, else the first [x]; None without one.

    None, too, for a number outside of 1 to 10, the scale that the judge is told; FastChat would take it.
    """
    # FastChat's are \d+\.?\d*, which take quadratic time on many digits; these match the same in linear time.
    for pattern in (r"\[\[(\d++(?:\.\d*+)?)\]\]", r"\[(\d++(?:\.\d*+)?)\]"):
        match = re.search(pattern, reply, re.ASCII)
        if match:
            value = float(match[1])
            return value if 1 <= value <= 10 else None
    return None


@dataclass(frozen=True)
class Judge:
    """Who judges, and how often: each pass asks for everything once more."""

    name: str = "gpt-4"
    passes: int = 1
    temperature: float = 0.0
    max_tokens: int = 2048

    def __post_init__(self) -> None:
        if not self.name or self.passes < 1 or self.max_tokens < 1:
            raise DataError("a judge needs a name, and passes and max_tokens above 0")

    def keys(self, messages: Messages) -> list[str]:
        """What a judgment is saved by, for each pass: a hash of all that defines it."""
        asked = [self.name, messages, float(self.temperature), self.max_tokens]
        return [_hash([*asked, number]) for number in range(1, self.passes + 1)]

    def file(self) -> Path:
        """Where its judgments are saved, unless another file is named."""
        return Path("outputs", "judgments", re.sub(r"[^A-Za-z0-9._-]+", "_", self.name)[:200] + ".jsonl")


@dataclass(frozen=True)
class Judgment:
    """A reply that was paid for, whether or not a rating can be read from it, and its tokens, where the
    server counts."""

    reply: str
    rating: float | None
    prompt_tokens: int = 0
    completion_tokens: int = 0


def read_judgments(file: Path) -> dict[str, Judgment]:
    """The saved judgments by key, none where there is no file. The first counts, should two processes have
    asked at once.

    A line that a kill cut off is passed over. Raises DataError for a file of something else.
    """
    found = dict[str, Judgment]()
    try:
        with open(file, "rb") as opened:
            for number, line in enumerate(Lines(file, opened), 1):
                judgment = _judgment(line, f"{file} line {number}")
                if judgment is not None:
                    found.setdefault(*judgment)
    except FileNotFoundError:
        return found
    except OSError as error:
        raise DataError(f"{file}: {error.strerror}") from None
    return found


def _judgment(line: bytes, where: str) -> tuple[str, Judgment] | None:
    """A judgment after its key; None for a line that is no JSON."""
    try:
        row = json.loads(line)
    except ValueError:
        return None
    except RecursionError:
        row = None
    try:
        tokens = int(row["prompt_tokens"]), int(row["completion_tokens"])
        key, reply = row["key"], row["reply"]
        if type(key) is not str or type(reply) is not str:
            raise TypeError
        return key, Judgment(reply, rating(reply), *tokens)
    except (LookupError, TypeError, ValueError, OverflowError):
        raise DataError(f"{where}: not a judgment") from None


def _append(file: Path, line: bytes) -> None:
    """Appends a line in one write, so that processes may share the file, after one that a kill cut off.
    Raises DataError."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(file, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            size = os.fstat(descriptor).st_size
            # A line that another process is in the middle of writing looks cut off, too: an empty line more
            # does no harm.
            if size and os.pread(descriptor, 1, size - 1) != b"\n":
                line = b"\n" + line
            if os.write(descriptor, line) != len(line):
                raise DataError(f"{file}: a judgment could not be written in full. Is the disk full?")
        finally:
            os.close(descriptor)
    except OSError as error:
        raise DataError(f"{file}: {error.strerror}") from None


# --- judging


class JudgeError(Exception):
    """No judgment at all can be had. The message is one line."""


@dataclass
class Outcome:
    """How many judgments were asked for anew, and were saved before; why others could not be had, and how
    many."""

    asked: int = 0
    cached: int = 0
    failed: Counter[str] = field(default_factory=Counter)


def judge(
    messages: Iterable[Messages],
    by: Judge,
    file: Path,
    *,
    base_url: str | None = None,
    api_key: str | None = None,
    concurrency: int = 8,
    retries: int = 10,
    timeout: float = 300.0,
    progress: bool = False,
) -> Outcome:
    """Asks for every judgment that `file` lacks, `concurrency` at a time, and appends each to it as it comes
    in.

    Rate limits, server errors, time-outs (seconds, for one try) and broken connections are retried by the
    openai package with a growing pause. A prompt that still fails is counted, and asked again the next time.
    What is bound to fail for all raises JudgeError at once: a wrong key, judge or address, a quota that is
    used up, or a server that is gone for good. A file that cannot be used raises DataError. Whatever ends it,
    what came in is saved."""
    if concurrency < 1 or retries < 0 or not timeout > 0:
        raise JudgeError("concurrency and timeout are to be above 0, and retries not below")
    saved = read_judgments(file)
    wanted = {key: prompt for prompt in messages for key in by.keys(prompt)}
    todo = {key: prompt for key, prompt in wanted.items() if key not in saved}
    outcome = Outcome(cached=len(wanted) - len(todo))
    if not todo:
        return outcome
    secret = (api_key or os.environ.get("OPENAI_API_KEY", "")).strip()
    if not secret:
        raise JudgeError("no key for the judge. Set OPENAI_API_KEY; a local server takes any word")
    if not (secret.isascii() and secret.isprintable()):
        raise JudgeError("OPENAI_API_KEY holds a character that no key has")
    url = base_url or os.environ.get("OPENAI_BASE_URL") or "https://api.openai.com/v1"
    if not re.fullmatch(
        r"https?://([^/\s@]*@)?([\w.-]+|\[[\da-fA-F:]+\])(:\d{1,5})?(/[!-~]*)?", url, re.ASCII
    ):
        raise JudgeError(
            f"{_public(url)!r} is no address such as http://localhost:8000/v1 (--base-url or OPENAI_BASE_URL)"
        )
    _append(file, b"")  # what cannot be saved is not paid for

    from openai import AsyncOpenAI, Timeout
    from tqdm import tqdm

    async def run(bar: Any) -> None:
        limits = Timeout(timeout, connect=min(timeout, 10.0))

        async def one(client: AsyncOpenAI, key: str) -> str | None:
            answer = await _ask(client, by, todo[key])
            if isinstance(answer, str):
                return answer
            row = {"key": key, "judge": by.name, "temperature": by.temperature, "max_tokens": by.max_tokens}
            line = json.dumps(row | asdict(answer)).encode() + b"\n"
            if len(line) > LONGEST_LINE:  # the file could not be read any more
                return f"a reply that is too long to be saved: more than {LONGEST_LINE:,} bytes"
            _append(file, line)
            outcome.asked += 1
            bar.update()
            return None

        async def work(client: AsyncOpenAI, keys: Iterator[str]) -> None:
            for key in keys:
                reason = await one(client, key)
                if reason:
                    outcome.failed[reason] += 1
                    bar.update()

        async with AsyncOpenAI(base_url=url, api_key=secret, max_retries=retries, timeout=limits) as client:
            # One goes ahead, and is not retried: what dooms all shows there, before the others are paid or
            # waited for.
            first, *rest = todo
            again = [first] if await one(client.with_options(max_retries=0), first) else []
            keys = iter([*again, *rest])
            async with asyncio.TaskGroup() as group:
                for _ in range(min(concurrency, len(todo))):
                    group.create_task(work(client, keys))

    with tqdm(total=len(todo), desc=f"judged by {by.name}", disable=None if progress else True) as bar:
        try:
            asyncio.run(run(bar))
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None
    return outcome


async def _ask(client: Any, by: Judge, messages: Messages) -> Judgment | str:
    """A judgment, or why there is none of this prompt. Raises JudgeError where there would be none of any."""
    import openai

    url = _public(str(client.base_url)).rstrip("/")
    how: Any = {
        "model": by.name,
        "messages": messages,
        "temperature": by.temperature,
        "max_tokens": by.max_tokens,
    }
    try:
        answer = await client.chat.completions.create(**how)
        reply = answer.choices[0].message.content or ""
        tokens = [int(getattr(answer.usage, f"{what}_tokens", 0) or 0) for what in ("prompt", "completion")]
        return Judgment(reply, rating(reply), *tokens)
    except openai.APIStatusError as error:
        code, body = f"HTTP {error.status_code}", error.body
        if error.status_code == 404 or error.code == "model_not_found":
            raise JudgeError(
                f"{url} knows no judge {by.name!r} ({code}). Most addresses end in /v1"
            ) from None
        if error.status_code in (401, 403):  # without the server's words, which may hold a part of the key
            raise JudgeError(f"{url} refuses the key in OPENAI_API_KEY ({code})") from None
        if error.code == "insufficient_quota":
            raise JudgeError(f"{url}: the quota of this key is used up ({code})") from None
        words = str(body["message"] if isinstance(body, dict) and body.get("message") else error.message)
        if len(client.api_key) > 7:  # a word for a local server is no secret
            words = words.replace(client.api_key, "***")
        return f"{code}: {_line(words)}"
    except openai.APIConnectionError as error:
        # The exceptions underneath are httpx's or httpx2's, by the version of openai.
        if type(error.__cause__).__name__ in ("ConnectError", "ConnectTimeout"):
            raise JudgeError(
                f"nothing listens at {url} ({_line(error.__cause__) or 'no connection in time'})"
            ) from None
        return "no reply in time" if isinstance(error, openai.APITimeoutError) else "the connection broke off"
    except (openai.APIError, AttributeError, LookupError, TypeError, ValueError, RecursionError):
        return "the reply is no chat completion"


def _public(url: str) -> str:
    return re.sub(r"//[^/]*@", "//", url)  # a password may stand there


def _line(words: object) -> str:
    return " ".join(str(words).split())[:200]


# --- scores


def summary(
    folder: Path, bench: str, answers: Mapping[int, Sequence[str]], by: Judge, saved: Mapping[str, Judgment]
) -> dict[str, Any]:
    """The scores of a model's answers by the judgments saved: 1 to 10, None where there is nothing to
    average.

    n scores are wanted, judged of them have a reply, n_valid a rating. The mean is over all valid ones, of
    all turns and passes; low and high bound 95% of it over 10,000 resamples of the questions, each with all
    its turns and passes."""
    questions = read_questions(folder, bench)
    wanted = prompts(folder, bench, questions, answers)
    category = {q.id: q.category for q in questions}
    replies = [
        ((number, str(turn), category[number], sitting), saved[key])
        for (number, turn), messages in wanted.items()
        for sitting, key in enumerate(by.keys(messages))
        if key in saved
    ]
    valid = [(place, judgment.rating) for place, judgment in replies if judgment.rating is not None]

    def scores(part: int, value: Any) -> list[float]:
        return [score for place, score in valid if place[part] == value]

    def means(part: int, values: Iterable[Any]) -> dict[Any, float | None]:
        return {value: _mean(scores(part, value)) for value in values}

    low, high = _interval([scores(0, number) for number in category])
    return {
        "bench": bench,
        "judge": by.name,
        "passes": by.passes,
        "n": len(wanted) * by.passes,
        "judged": len(replies),
        "n_valid": len(valid),
        "mean": _mean([score for _, score in valid]),
        "low": low,
        "high": high,
        "turns": means(1, [str(turn + 1) for turn in range(BENCHES[bench])]),
        "categories": means(2, category.values()),
        "pass_means": list(means(3, range(by.passes)).values()),
        "answers": _hash([[q.id, list(answers[q.id])] for q in questions])[:16],
        "tokens": {
            "prompt": sum(judgment.prompt_tokens for _, judgment in replies),
            "completion": sum(judgment.completion_tokens for _, judgment in replies),
        },
    }


def _mean(scores: Sequence[float]) -> float | None:
    return float(np.mean(scores)) if scores else None


def _interval(
    scores: Sequence[Sequence[float]], resamples: int = 10_000
) -> tuple[float | None, float | None]:
    """The 2.5th and 97.5th percentile of the pooled mean, over resamples of the items; each has its
    scores."""
    scores = [item for item in scores if item]
    if not scores:
        return None, None
    sums, counts = np.array([sum(item) for item in scores]), np.array([len(item) for item in scores])
    drawn = np.random.Generator(np.random.Philox(0)).integers(0, len(scores), (resamples, len(scores)))
    low, high = np.percentile(sums[drawn].sum(1) / counts[drawn].sum(1), [2.5, 97.5])
    return float(low), float(high)


def table(summaries: Sequence[Mapping[str, Any]]) -> str:
    """A line for each summary (with its "model") under a heading, and one below for each that is
    incomplete."""

    def cell(value: float | None) -> str:
        return "-" if value is None else f"{value:.2f}"

    turns, categories = list(summaries[0]["turns"]), list(summaries[0]["categories"])
    rows = [["model", "judge", "mean", "95% interval", *(f"turn {t}" for t in turns), *categories, "valid"]]
    for s in summaries:
        interval = "-" if s["low"] is None else f"{s['low']:.2f} to {s['high']:.2f}"
        means = [*s["turns"].values(), *s["categories"].values()]
        rows.append(
            [
                s["model"],
                s["judge"],
                cell(s["mean"]),
                interval,
                *map(cell, means),
                f"{s['n_valid']} of {s['n']}",
            ]
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(c.ljust(w) if i < 2 else c.rjust(w) for i, (c, w) in enumerate(zip(r, widths, strict=True)))
        for r in rows
    ]
    for s in summaries:
        if s["judged"] < s["n"]:
            lines.append(f"{s['model']}: incomplete, {s['judged']} of {s['n']} judged by {s['judge']}")
    return "\n".join(lines)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tasks.mt_bench",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("action", choices=["judge", "show"])
    add("answers", type=Path, nargs="+")
    add("--data", metavar="FOLDER", help="FastChat's fastchat/llm_judge/data; without it, from the hub")
    add("--bench", choices=list(BENCHES), default="mt_bench")
    add("--judge", default="gpt-4", help="the judge's name at the endpoint")
    add("--passes", type=int, default=1, help="how often everything is judged")
    add("--max-tokens", type=int, default=2048, help="of a judge's reply")
    add("--concurrency", type=int, default=8, help="prompts at the judge at a time")
    add("--retries", type=int, default=10, help="of a prompt that fails, before it is left for the next time")
    add("--timeout", type=float, default=300.0, help="seconds that one try may take")
    add("--base-url", help="of an OpenAI-compatible endpoint; without it, OPENAI_BASE_URL, or OpenAI's own")
    add(
        "--judgments",
        type=Path,
        metavar="FILE",
        help="where judgments are saved; without it, outputs/judgments/JUDGE.jsonl",
    )
    add("--json", action="store_true", help="one JSON object instead of a table")
    options = parser.parse_intermixed_args(arguments)
    file = options.judgments
    try:
        by = Judge(options.judge, options.passes, max_tokens=options.max_tokens)
        file = file or by.file()
        folder = data_folder({"mt_bench_dir": options.data})
        questions = read_questions(folder, options.bench)
        models = [(path, *read_answers(path, questions)) for path in options.answers]
        outcome = Outcome()
        if options.action == "judge":
            messages = [
                m for _, _, a in models for m in prompts(folder, options.bench, questions, a).values()
            ]
            how = {name: getattr(options, name) for name in ("base_url", "concurrency", "retries", "timeout")}
            outcome = judge(messages, by, file, progress=True, **how)
        saved = read_judgments(file)
        found = [
            {"model": m, "file": str(path)} | summary(folder, options.bench, a, by, saved)
            for path, m, a in models
        ]
    except (DataError, JudgeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(
            f"stopped. What was judged is saved in {file}; the same command goes on from there",
            file=sys.stderr,
        )
        return 130
    failed = outcome.failed.total()
    if options.json:
        counts = {
            "asked": outcome.asked,
            "cached": outcome.cached,
            "failed": failed,
            "reasons": dict(outcome.failed),
        }
        print(json.dumps(({"judging": counts} if options.action == "judge" else {}) | {"models": found}))
        return 1 if failed else 0
    if options.action == "judge":
        print(f"{outcome.asked} judged anew, {outcome.cached} taken from {file}, {failed} failed")
        for reason, count in outcome.failed.most_common():
            print(f"  {count} not judged: {reason}")
    print(table(found))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
