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
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ValidationError

from tasks.base import DataError
from tasks.files import problem_of
from tasks.mt_bench.questions import Messages, json_hash

if TYPE_CHECKING:
    from openai import APIConnectionError, APIStatusError, AsyncOpenAI
    from tqdm import tqdm

#: The longest part of a judge's name in a file's name.
FILE_NAME_CHARACTERS = 200


@dataclass(frozen=True)
class Judge:
    """A judge. name: its model's name at the endpoint. passes: how often it judges each
    answer. temperature, max_tokens: of its replies."""

    name: str = "gpt-4"
    passes: int = 1
    temperature: float = 0.0
    max_tokens: int = 2048

    def __post_init__(self) -> None:
        if not self.name or self.passes < 1 or self.max_tokens < 1:
            raise DataError("a judge needs a name, and passes and max_tokens above 0")

    def keys(self, messages: Messages) -> list[str]:
        """For each pass the key of its saved judgment: a hash of the request and of the
        pass's number."""
        request = [self.name, messages, float(self.temperature), self.max_tokens]
        return [json_hash([*request, number]) for number in range(1, self.passes + 1)]

    def file(self) -> Path:
        """The default file of its judgments."""
        name = re.sub(r"[^A-Za-z0-9._-]+", "_", self.name)[:FILE_NAME_CHARACTERS]
        return Path("outputs", "judgments", f"{name}.jsonl")


def rating(reply: str) -> float | None:
    """The number in the first [[x]] of a reply, or without one in the first [x]. None
    without either, and for a number outside of the judge's scale of 1 to 10, which FastChat
    would take."""
    # FastChat's \d+\.?\d* takes quadratic time on many digits. These patterns match the same
    # texts in linear time.
    for pattern in (r"\[\[(\d++(?:\.\d*+)?)\]\]", r"\[(\d++(?:\.\d*+)?)\]"):
        match = re.search(pattern, reply, re.ASCII)
        if match:
            value = float(match[1])
            return value if 1 <= value <= 10 else None
    return None


class Judgment(BaseModel):
    """A saved reply of a judge. key: see Judge.keys. The numbers of tokens are 0 where the
    server does not count them. The rating is always computed from the reply: one that a
    file may hold is not read."""

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


# --- the file of judgments


def read_judgments(file: Path) -> dict[str, Judgment]:
    """The saved judgments by key; none without a file. If two processes have saved a key,
    the first one counts. A line that is not whole, as a killed process leaves it, is
    skipped. Raises DataError for another kind of file."""
    judgments: dict[str, Judgment] = {}
    try:
        with open(file, "rb") as opened:
            for number, line in enumerate(opened, 1):
                judgment = _read_judgment(line, f"{file} line {number}")
                if judgment:
                    judgments.setdefault(judgment.key, judgment)
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise DataError(f"{file}: {error.strerror}") from None
    return judgments


def _read_judgment(line: bytes, place: str) -> Judgment | None:
    """The judgment in a line; None for a line that is not whole JSON. place: the file and
    line. Raises DataError for JSON that is no judgment."""
    try:
        return Judgment.model_validate_json(line)
    except ValidationError as error:
        if error.errors()[0]["type"] == "json_invalid":
            return None
        problem = problem_of(error)
        raise DataError(f"{place}: not a judgment ({problem})") from None


def append_line(file: Path, line: bytes) -> None:
    """Appends a line in one write, so that processes can share the file. Starts a new line
    first, where the file ends with a part of one, as a killed process leaves it. line: with
    its \\n; an empty one only checks that the file can be written. Raises DataError."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with open(file, "a+b", buffering=0) as opened:
            size = os.fstat(opened.fileno()).st_size
            # This may also be a line that another process is writing right now. The extra
            # empty line then does no harm
            if size and os.pread(opened.fileno(), 1, size - 1) != b"\n":
                line = b"\n" + line
            written = opened.write(line)
    except OSError as error:
        raise DataError(f"{file}: {error.strerror}") from None
    if written != len(line):
        raise DataError(
            f"{file}: a judgment could not be written in full. Is the disk full?"
        )


# --- asking


class JudgeError(DataError):
    """The judge can give no judgment at all. The message is one line."""


@dataclass
class Outcome:
    """How judging went: how many judgments were requested and saved now (asked), how many
    were there before (cached), and how many failed, by reason."""

    asked: int = 0
    cached: int = 0
    failed: Counter[str] = field(default_factory=Counter)

    def report(self, file: Path) -> str:
        """The lines that a command prints. file: of the judgments."""
        lines = [
            f"{self.asked} judged anew, {self.cached} taken from {file}, "
            f"{self.failed.total()} failed"
        ]
        for reason, count in self.failed.most_common():
            lines.append(f"  {count} not judged: {reason}")
        return "\n".join(lines)


#: The longest time that connecting to a judge may take.
CONNECT_TIMEOUT_S = 10.0


def request_judgments(
    messages: Iterable[Messages],
    judge: Judge,
    file: Path,
    *,
    base_url: str | None = None,
    concurrency: int = 8,
    retries: int = 10,
    timeout: float = 300.0,
    progress: bool = False,
) -> Outcome:
    """Requests every judgment that `file` lacks, and appends each to it at once.

    The openai package retries rate limits, server errors, time-outs and broken connections
    with growing pauses. A request that still fails is counted; the next call repeats it.

    Args:
        messages: the messages of each prompt to the judge.
        base_url: of the judge's server; None for OPENAI_BASE_URL, or OpenAI's own.
        concurrency: how many requests are sent at a time.
        retries: how often a request that fails is repeated.
        timeout: the seconds that a single attempt may take.
        progress: whether a progress bar is shown.

    Returns how judging went. Raises JudgeError at once for what fails every request: a
    wrong key, judge or address, a quota that is used up, a server that is gone. Raises
    DataError for a file that cannot be used."""
    if concurrency < 1 or retries < 0 or not timeout > 0:
        raise JudgeError(
            "concurrency and timeout must be above 0, and retries not below 0"
        )
    saved = read_judgments(file)
    requests = {}
    for request in messages:
        for key in judge.keys(request):
            requests[key] = request
    missing = {key: request for key, request in requests.items() if key not in saved}
    outcome = Outcome(cached=len(requests) - len(missing))
    if not missing:
        return outcome
    url, secret = _endpoint(base_url)
    # Raises before anything is paid, if the file cannot be written
    append_line(file, b"")

    from openai import AsyncOpenAI, Timeout
    from tqdm import tqdm

    limits = Timeout(timeout, connect=min(timeout, CONNECT_TIMEOUT_S))
    title = f"judged by {judge.name}"
    # tqdm takes None for: only at a terminal
    with tqdm(
        total=len(missing), desc=title, disable=None if progress else True
    ) as bar:
        inquiry = _Inquiry(judge, missing, file, outcome, bar)  # counts in outcome
        client = AsyncOpenAI(
            base_url=url, api_key=secret, max_retries=retries, timeout=limits
        )
        try:
            asyncio.run(inquiry.run(client, concurrency))
        except ExceptionGroup as errors:  # of the tasks that ran side by side
            raise errors.exceptions[0] from None
    return outcome


def _endpoint(base_url: str | None) -> tuple[str, str]:
    """The judge's address, as given or from the environment, and the key from the
    environment. Raises JudgeError for invalid ones."""
    secret = os.environ.get("OPENAI_API_KEY", "").strip()
    if not secret:
        raise JudgeError(
            "no key for the judge. Set OPENAI_API_KEY; a local server accepts any text"
        )
    if not (secret.isascii() and secret.isprintable()):
        raise JudgeError("OPENAI_API_KEY holds a character that no key has")
    url = base_url or os.environ.get("OPENAI_BASE_URL") or "https://api.openai.com/v1"
    if not re.fullmatch(r"https?://([^/\s@]*@)?[\w.\[:\]-]+(/[!-~]*)?", url, re.ASCII):
        raise JudgeError(
            f"{_public(url)!r} is no address such as http://localhost:8000/v1"
        )
    return url, secret


@dataclass
class _Inquiry:
    """The requests of one call of `request_judgments`. requests: the messages of each
    judgment that is missing, by its key. file: of the judgments. outcome: counts what is
    judged or fails. bar: the progress bar."""

    judge: Judge
    requests: Mapping[str, Messages]
    file: Path
    outcome: Outcome
    bar: "tqdm"

    async def run(self, client: "AsyncOpenAI", concurrency: int) -> None:
        """Requests all judgments, `concurrency` at a time."""
        async with client:
            # The first request is sent alone and without retries: an error that concerns all
            # requests then shows before the others are paid. Where it fails for another
            # reason, it is repeated with the others
            first_key, *other_keys = self.requests
            result = await _ask(
                client.with_options(max_retries=0),
                self.judge,
                first_key,
                self.requests[first_key],
            )
            remaining = iter(self.requests)
            if isinstance(result, Judgment):
                self._save(result)
                remaining = iter(other_keys)
            async with asyncio.TaskGroup() as group:
                for _ in range(min(concurrency, len(self.requests))):
                    group.create_task(self._ask_in_turn(client, remaining))

    async def _ask_in_turn(self, client: "AsyncOpenAI", keys: Iterator[str]) -> None:
        """Requests judgments one after another. keys: an iterator that several such tasks
        share, so that each key is requested by one of them."""
        for key in keys:
            result = await _ask(client, self.judge, key, self.requests[key])
            if isinstance(result, Judgment):
                self._save(result)
            else:
                self.outcome.failed[result] += 1
                self.bar.update()

    def _save(self, judgment: Judgment) -> None:
        """Appends a judgment to the file, with its rating for people who read the file."""
        row = judgment.model_dump() | {"rating": judgment.rating}
        append_line(self.file, json.dumps(row).encode() + b"\n")
        self.outcome.asked += 1
        self.bar.update()


async def _ask(
    client: "AsyncOpenAI", judge: Judge, key: str, messages: Messages
) -> Judgment | str:
    """Sends a request to the judge. Gives the judgment, or the reason why there is none.
    Raises JudgeError for what fails every request. key: of the judgment."""
    import openai

    settings: Any = {"temperature": judge.temperature, "max_tokens": judge.max_tokens}
    request: Any = {"model": judge.name, "messages": messages, **settings}
    try:
        answer = await client.chat.completions.create(**request)
        reply = answer.choices[0].message.content or ""
        kinds = ("prompt_tokens", "completion_tokens")
        tokens = {kind: int(getattr(answer.usage, kind, 0) or 0) for kind in kinds}
        return Judgment(key=key, judge=judge.name, reply=reply, **settings, **tokens)
    except openai.APIStatusError as error:
        return _refusal(client, judge, error)
    except openai.APIConnectionError as error:
        return _reason_without_reply(client, error)
    except (
        openai.APIError,
        AttributeError,
        LookupError,
        TypeError,
        ValueError,
        RecursionError,
    ):
        return "the reply is no chat completion"


#: A shorter key is a placeholder for a local server, such as "x": it is not hidden, since
#: hiding it would spoil messages.
LEAST_KEY_CHARACTERS = 8


def _refusal(client: "AsyncOpenAI", judge: Judge, error: "APIStatusError") -> str:
    """The reason that a server gives for refusing one request, without the key. Raises
    JudgeError where it would refuse all requests."""
    url = _address(client)
    code = f"HTTP {error.status_code}"
    if error.status_code == 404 or error.code == "model_not_found":
        raise JudgeError(
            f"{url} knows no judge {judge.name!r} ({code}). Does it end in /v1?"
        ) from None
    # Without the server's own message, which may hold a part of the key
    if error.status_code in (401, 403):
        raise JudgeError(f"{url} refuses the key in OPENAI_API_KEY ({code})") from None
    if error.code == "insufficient_quota":
        raise JudgeError(f"{url}: the quota of this key is used up ({code})") from None
    message = str(error.message)
    if isinstance(error.body, dict) and error.body.get("message"):
        message = str(error.body["message"])
    if len(client.api_key) >= LEAST_KEY_CHARACTERS:
        message = message.replace(client.api_key, "***")
    return f"{code}: {on_one_line(message)}"


def _reason_without_reply(client: "AsyncOpenAI", error: "APIConnectionError") -> str:
    """Why a request got no reply. Raises JudgeError where nothing listens at the address."""
    import openai

    # The causes are httpx's or httpx2's exceptions, by the version of openai
    if type(error.__cause__).__name__ in ("ConnectError", "ConnectTimeout"):
        reason = on_one_line(error.__cause__) or "no connection in time"
        raise JudgeError(f"nothing listens at {_address(client)} ({reason})") from None
    if isinstance(error, openai.APITimeoutError):
        return "no reply in time"
    return "the connection broke off"


def _address(client: "AsyncOpenAI") -> str:
    """The judge's address for a message."""
    return _public(str(client.base_url)).rstrip("/")


def _public(url: str) -> str:
    """An address without the user and password in it."""
    return re.sub(r"//[^/]*@", "//", url)


def on_one_line(message: object) -> str:
    """A message on one line, cut after 200 characters."""
    return " ".join(str(message).split())[:200]
