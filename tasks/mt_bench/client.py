"""Asks a judge behind any OpenAI-compatible endpoint."""

import asyncio
import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tasks.mt_bench.judgments import Judge, Judgment, Messages, append, rating, read_judgments
from tasks.text import LONGEST_LINE


class JudgeError(Exception):
    """No judgment at all can be had. The message is one line."""


@dataclass
class Outcome:
    """How many judgments were asked for anew, and were saved before; why others could not be had, and how
    many."""

    asked: int = 0
    cached: int = 0
    failed: Counter[str] = field(default_factory=Counter)

    def report(self, file: Path) -> str:
        """What a command prints of it; file: where judgments are saved."""
        counts = f"{self.asked} judged anew, {self.cached} taken from {file}, {self.failed.total()} failed"
        return "\n".join([counts, *(f"  {n} not judged: {why}" for why, n in self.failed.most_common())])


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
    url, secret = _endpoint(base_url, api_key)
    append(file, b"")  # what cannot be saved is not paid for

    from openai import AsyncOpenAI, Timeout
    from tqdm import tqdm

    limits = Timeout(timeout, connect=min(timeout, 10.0))
    with tqdm(total=len(todo), desc=f"judged by {by.name}", disable=None if progress else True) as bar:

        async def run() -> None:
            options: Any = {"max_retries": retries, "timeout": limits}
            async with AsyncOpenAI(base_url=url, api_key=secret, **options) as client:
                await _ask_all(client, by, todo, file, outcome, bar, concurrency)

        try:
            asyncio.run(run())
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None
    return outcome


def _endpoint(base_url: str | None, api_key: str | None) -> tuple[str, str]:
    """The judge's address and key, as given or from the environment. Raises JudgeError for what cannot be
    one."""
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
    return url, secret


async def _ask_all(
    client: Any, by: Judge, todo: Mapping[str, Messages], file: Path, outcome: Outcome, bar: Any, tasks: int
) -> None:
    """Asks for the judgments of `todo`, by their keys, `tasks` at a time."""

    async def one(client: Any, key: str) -> str | None:
        """Saves a judgment; or says why there is none."""
        answer = await _ask(client, by, todo[key])
        if isinstance(answer, str):
            return answer
        row = {"key": key, "judge": by.name, "temperature": by.temperature, "max_tokens": by.max_tokens}
        line = json.dumps(row | asdict(answer)).encode() + b"\n"
        if len(line) > LONGEST_LINE:  # the file could not be read any more
            return f"a reply that is too long to be saved: more than {LONGEST_LINE:,} bytes"
        append(file, line)
        outcome.asked += 1
        bar.update()
        return None

    async def work(keys: Iterator[str]) -> None:
        for key in keys:
            reason = await one(client, key)
            if reason:
                outcome.failed[reason] += 1
                bar.update()

    # One goes ahead, and is not retried: what dooms all shows there, before the others are paid or waited
    # for.
    first, *rest = todo
    again = [first] if await one(client.with_options(max_retries=0), first) else []
    keys = iter([*again, *rest])
    async with asyncio.TaskGroup() as group:
        for _ in range(min(tasks, len(todo))):
            group.create_task(work(keys))


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
