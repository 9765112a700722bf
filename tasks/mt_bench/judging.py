"""A judge behind any OpenAI-compatible endpoint: its ratings, and the file that they
are saved in."""

import asyncio
import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from tasks.base import DataError
from tasks.files import problem_of
from tasks.mt_bench.questions import Messages, digest


@dataclass(frozen=True)
class Judge:
    """A judge. passes: how often it judges each answer."""

    name: str = "gpt-4"
    passes: int = 1
    temperature: float = 0.0
    max_tokens: int = 2048

    def __post_init__(self) -> None:
        if not self.name or self.passes < 1 or self.max_tokens < 1:
            raise DataError("a judge needs a name, and passes and max_tokens above 0")

    def keys(self, messages: Messages) -> list[str]:
        """The key of the saved judgment of each pass: a hash of the request."""
        request = [self.name, messages, float(self.temperature), self.max_tokens]
        return [digest([*request, number]) for number in range(1, self.passes + 1)]

    def file(self) -> Path:
        """The default file of its judgments."""
        return Path(
            "outputs",
            "judgments",
            re.sub(r"[^A-Za-z0-9._-]+", "_", self.name)[:200] + ".jsonl",
        )


def rating(reply: str) -> float | None:
    """The first [[x]] of a reply, else the first [x]; None without one, or for a number
    outside of the judge's scale of 1 to 10, which FastChat would take."""
    # FastChat's \d+\.?\d* takes quadratic time on many digits. These match the same in
    # linear time.
    for pattern in (r"\[\[(\d++(?:\.\d*+)?)\]\]", r"\[(\d++(?:\.\d*+)?)\]"):
        match = re.search(pattern, reply, re.ASCII)
        if match:
            value = float(match[1])
            return value if 1 <= value <= 10 else None
    return None


class Judgment(BaseModel):
    """A reply, its key, judge and tokens if the server counts them. The rating in a
    file is not read."""

    key: str
    judge: str = ""
    temperature: float = 0.0
    max_tokens: int = 0
    reply: str
    prompt_tokens: int = 0
    completion_tokens: int = 0

    @property
    def rating(self) -> float | None:
        """The reply's rating, if it has one."""
        return rating(self.reply)


def read_judgments(file: Path) -> dict[str, Judgment]:
    """The saved judgments by key; none without a file. If two processes saved the same
    one, the first counts. A line that a kill cut off is skipped. Raises DataError for
    another kind of file."""
    judgments = dict[str, Judgment]()
    try:
        with open(file, "rb") as opened:
            for number, line in enumerate(opened, 1):
                try:
                    judgment = Judgment.model_validate_json(line)
                    judgments.setdefault(judgment.key, judgment)
                except ValidationError as error:
                    if error.errors()[0]["type"] != "json_invalid":
                        problem = problem_of(error)
                        raise DataError(
                            f"{file} line {number}: not a judgment ({problem})"
                        ) from None
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise DataError(f"{file}: {error.strerror}") from None
    return judgments


def append(file: Path, line: bytes) -> None:
    """Appends a line in one write, so that processes can share the file. Starts a new
    line after one that a kill cut off. Raises DataError."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with open(file, "a+b", buffering=0) as opened:
            size = os.fstat(opened.fileno()).st_size
            # A line that another process is writing looks cut off, too. An extra empty
            # line does no harm.
            if size and os.pread(opened.fileno(), 1, size - 1) != b"\n":
                line = b"\n" + line
            if opened.write(line) != len(line):
                raise DataError(
                    f"{file}: a judgment could not be written in full. Is the disk full?"
                )
    except OSError as error:
        raise DataError(f"{file}: {error.strerror}") from None


# --- asking


class JudgeError(DataError):
    """The judge can give no judgment at all. The message is one line."""


@dataclass
class Outcome:
    """How many judgments are new (asked), saved before (cached), and failed, by
    reason."""

    asked: int = 0
    cached: int = 0
    failed: Counter[str] = field(default_factory=Counter)

    def report(self, file: Path) -> str:
        """The lines that a command prints. file: of the judgments."""
        counts = f"{self.asked} judged anew, {self.cached} taken from {file}, {self.failed.total()} failed"
        return "\n".join(
            [
                counts,
                *(f"  {n} not judged: {why}" for why, n in self.failed.most_common()),
            ]
        )


def judge(
    messages: Iterable[Messages],
    by: Judge,
    file: Path,
    *,
    base_url: str | None = None,
    concurrency: int = 8,
    retries: int = 10,
    timeout: float = 300.0,
    progress: bool = False,
) -> Outcome:
    """Requests every judgment that `file` lacks, `concurrency` at a time, and appends
    each to it at once.

    The openai package retries rate limits, server errors, time-outs (seconds, for one
    try) and broken connections with growing pauses. A request that still fails is
    counted; the next call repeats it. Raises JudgeError at once for what fails every
    request: a wrong key, judge or address, a quota that is used up, a server that is
    gone. Raises DataError for a file that cannot be used."""
    if concurrency < 1 or retries < 0 or not timeout > 0:
        raise JudgeError(
            "concurrency and timeout are to be above 0, and retries not below"
        )
    saved = read_judgments(file)
    requests = {key: prompt for prompt in messages for key in by.keys(prompt)}
    todo = {key: prompt for key, prompt in requests.items() if key not in saved}
    outcome = Outcome(cached=len(requests) - len(todo))
    if not todo:
        return outcome
    url, secret = _endpoint(base_url)
    append(file, b"")  # raises before anything is paid if the file cannot be written

    from openai import Timeout
    from tqdm import tqdm

    limits = Timeout(timeout, connect=min(timeout, 10.0))
    how = {
        "base_url": url,
        "api_key": secret,
        "max_retries": retries,
        "timeout": limits,
    }
    with tqdm(
        total=len(todo), desc=f"judged by {by.name}", disable=None if progress else True
    ) as bar:
        try:
            asyncio.run(_ask_all(by, todo, file, outcome, bar, concurrency, how))
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None
    return outcome


async def _ask_all(
    by: Judge,
    todo: Mapping[str, Messages],
    file: Path,
    outcome: Outcome,
    bar: Any,
    tasks: int,
    how: Any,
) -> None:
    """Requests the judgments of `todo`, by their keys, `tasks` at a time. how: of the
    client."""
    from openai import AsyncOpenAI

    async def one(client: Any, key: str, final: bool = True) -> bool:
        """Saves a judgment, or counts the reason why there is none, unless it is asked
        for again."""
        answer = await _ask(client, by, key, todo[key])
        if isinstance(answer, Judgment):
            row = answer.model_dump() | {"rating": answer.rating}
            append(file, json.dumps(row).encode() + b"\n")
            outcome.asked += 1
        elif final:
            outcome.failed[answer] += 1
        else:
            return False
        bar.update()
        return True

    async def work(client: Any, keys: Iterator[str]) -> None:
        for key in keys:
            await one(client, key)

    async with AsyncOpenAI(**how) as client:
        # The first runs alone and without retries: an error of all shows there, before
        # the others are paid
        first, *rest = todo
        saved_first = await one(client.with_options(max_retries=0), first, final=False)
        keys = iter(rest if saved_first else todo)
        async with asyncio.TaskGroup() as group:
            for _ in range(min(tasks, len(todo))):
                group.create_task(work(client, keys))


def _endpoint(base_url: str | None) -> tuple[str, str]:
    """The judge's address and key, as given or from the environment. Raises JudgeError
    for invalid ones."""
    secret = os.environ.get("OPENAI_API_KEY", "").strip()
    if not secret:
        raise JudgeError(
            "no key for the judge. Set OPENAI_API_KEY; a local server takes any word"
        )
    if not (secret.isascii() and secret.isprintable()):
        raise JudgeError("OPENAI_API_KEY holds a character that no key has")
    url = base_url or os.environ.get("OPENAI_BASE_URL") or "https://api.openai.com/v1"
    if not re.fullmatch(r"https?://([^/\s@]*@)?[\w.\[:\]-]+(/[!-~]*)?", url, re.ASCII):
        raise JudgeError(
            f"{_public(url)!r} is no address such as http://localhost:8000/v1"
        )
    return url, secret


async def _ask(client: Any, by: Judge, key: str, messages: Messages) -> Judgment | str:
    """A judgment, or the reason why there is none. Raises JudgeError for an error of
    all requests."""
    import openai

    url = _public(str(client.base_url)).rstrip("/")
    asked: Any = {"temperature": by.temperature, "max_tokens": by.max_tokens}
    try:
        answer = await client.chat.completions.create(
            model=by.name, messages=messages, **asked
        )
        reply = answer.choices[0].message.content or ""
        kinds = ("prompt_tokens", "completion_tokens")
        tokens = {kind: int(getattr(answer.usage, kind, 0) or 0) for kind in kinds}
        return Judgment(key=key, judge=by.name, reply=reply, **asked, **tokens)
    except openai.APIStatusError as error:
        code, body = f"HTTP {error.status_code}", error.body
        if error.status_code == 404 or error.code == "model_not_found":
            raise JudgeError(
                f"{url} knows no judge {by.name!r} ({code}). Does it end in /v1?"
            ) from None
        # the server's own message may hold a part of the key
        if error.status_code in (401, 403):
            raise JudgeError(
                f"{url} refuses the key in OPENAI_API_KEY ({code})"
            ) from None
        if error.code == "insufficient_quota":
            raise JudgeError(
                f"{url}: the quota of this key is used up ({code})"
            ) from None
        words = str(
            body["message"]
            if isinstance(body, dict) and body.get("message")
            else error.message
        )
        if len(client.api_key) > 7:  # a shorter one is a placeholder for a local server
            words = words.replace(client.api_key, "***")
        return f"{code}: {_line(words)}"
    except openai.APIConnectionError as error:
        # The causes are httpx's or httpx2's exceptions, by the version of openai
        if type(error.__cause__).__name__ in ("ConnectError", "ConnectTimeout"):
            why = _line(error.__cause__) or "no connection in time"
            raise JudgeError(f"nothing listens at {url} ({why})") from None
        return (
            "no reply in time"
            if isinstance(error, openai.APITimeoutError)
            else "the connection broke off"
        )
    except (
        openai.APIError,
        AttributeError,
        LookupError,
        TypeError,
        ValueError,
        RecursionError,
    ):
        return "the reply is no chat completion"


def _public(url: str) -> str:
    return re.sub(r"//[^/]*@", "//", url)  # without a password


def _line(words: object) -> str:
    return " ".join(str(words).split())[:200]
