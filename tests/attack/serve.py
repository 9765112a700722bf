"""examples/serve.py, and clients that mean it no good: one server for all of them, asked again after each."""

import contextlib
import json
import multiprocessing
import os
import random
import re
import runpy
import signal
import socket
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from tiny import save_tiny, shake
from transformers import AutoModelForSequenceClassification

import vera
from attack.cases import Case, Home, WrongError

ROOT = Path(__file__).parents[2]
GOOD = {"adapter": "a0", "text": "the dog sees the cat ."}
#: Seconds within which a good request is answered, whatever the others do; by how many MB the server may
#: grow; lines it may write of a bad request.
SOON, MEGABYTES, LINES = 15.0, 400.0, 1


class Server:
    def __init__(self, home: Home) -> None:
        self.place = home.place()
        self.model, folders = save_tiny(self.place / "model", "bert"), []
        torch.manual_seed(0)
        for i in range(3):
            model, method = AutoModelForSequenceClassification.from_pretrained(self.model), vera.VeRA(rank=4)
            method.adapt(model)
            shake(model)
            folders.append(self.place / f"a{i}")
            folders[-1].mkdir()
            vera.save(model, method, folders[-1] / "adapter.safetensors")
            vera.save_head(model, folders[-1] / "head.safetensors")
        self.folders, self.log = folders, self.place / "log"
        self.process = multiprocessing.get_context("fork").Process(target=self._serve)
        self.process.start()
        end = time.monotonic() + 60
        while not (
            found := re.search(
                r"listening on http://127.0.0.1:(\d+)", self.log.read_text() if self.log.exists() else ""
            )
        ):
            if time.monotonic() > end or not self.process.is_alive():
                raise WrongError(f"the server does not start: {self.log.read_text()[-300:]}")
            time.sleep(0.05)
        self.port = int(found[1])
        self.answer = self.good()
        self.begun = self.memory()

    def _serve(self) -> None:
        output = os.open(self.log, os.O_WRONLY | os.O_CREAT)
        for stream, name in ((1, "stdout"), (2, "stderr")):
            os.dup2(output, stream)
            setattr(sys, name, os.fdopen(stream, "w", buffering=1, closefd=False))
        sys.argv = ["serve.py", "--model", str(self.model), "--port", "0", *map(str, self.folders)]
        runpy.run_path(str(ROOT / "examples" / "serve.py"), run_name="__main__")

    def memory(self) -> float:
        found = re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{self.process.pid}/status").read_text())
        return int(found[1]) / 1024 if found else 0.0

    def post(self, body: bytes, **headers: str) -> tuple[int, bytes]:
        url = f"http://127.0.0.1:{self.port}/classify"
        request = urllib.request.Request(url, body, {"content-type": "application/json", **headers})
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()

    def good(self) -> Any:
        status, body = self.post(json.dumps(GOOD).encode())
        if status != 200:
            raise WrongError(f"a good request is answered {status}")
        return json.loads(body)

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=20)

    def raw(self, content: bytes) -> bytes:
        """What comes back on a connection of its own."""
        with self.connect() as client, contextlib.suppress(OSError):
            client.sendall(content)
            return client.recv(4096)
        return b""


def head(*lines: str, first: str = "POST /classify HTTP/1.1") -> bytes:
    return "\r\n".join([first, "host: here", "content-type: application/json", *lines, "", ""]).encode(
        "latin-1"
    )


def cases(home: Home) -> Iterator[Case]:
    server = Server(home)
    dice = home.dice("serve")
    try:
        for kind, name, attack in attacks(server, dice, home):
            yield Case(
                kind,
                name,
                lambda attack=attack: held(server, attack),
                "taken",
                network=True,
                seconds=60,
                patience=150,
            )
        yield Case(
            "afterwards", "the server's memory, log and life", lambda: whole(server), "taken", network=True
        )
    finally:
        if server.process.pid:
            os.kill(server.process.pid, signal.SIGKILL)
        server.process.join()


def held(server: Server, attack: Callable[[], object]) -> None:
    """An attack, after which a good request is answered as before, and soon."""
    attack()
    since = time.monotonic()
    if server.good() != server.answer:
        raise WrongError("the answer is another than before")
    if time.monotonic() - since > SOON:
        raise WrongError(f"the next request waited {time.monotonic() - since:.0f} s")


def whole(server: Server) -> None:
    text, grown = server.log.read_text(errors="replace"), server.memory() - server.begun
    if "Traceback" in text:
        raise WrongError(f"a traceback in the log: {text[text.index('Traceback') :][-400:]}")
    if grown > MEGABYTES:
        raise WrongError(f"the server grew by {grown:.0f} MB")
    if max(map(len, text.splitlines())) > 2000:
        raise WrongError(f"a line of {max(map(len, text.splitlines()))} characters in the log")


def attacks(
    server: Server, dice: random.Random, home: Home
) -> Iterator[tuple[str, str, Callable[[], object]]]:
    def refused(body: bytes, *codes: int) -> Callable[[], None]:
        def act() -> None:
            before = len(server.log.read_text(errors="replace").splitlines())
            status, _ = server.post(body)
            lines = len(server.log.read_text(errors="replace").splitlines()) - before
            if status not in codes or lines > LINES:
                raise WrongError(f"answered {status}, with {lines} lines in the log")

        return act

    bodies = [
        b"",
        b"[",
        b"[]",
        b"null",
        b"7",
        b"NaN",
        b"[NaN]",
        b'{"adapter": "a0", "text": NaN}',
        b"\xff\xfe",
        b"[" * 100_000,
    ]
    bodies += [
        b'{"text": {"a": 1}}',
        b'{"adapter": "a0", "text": "\\ud800"}',
        b'{"adapter": "\\udfff", "text": "a"}',
        b"{}" * 1000,
    ]
    bodies += [
        b'{"adapter": ["a0"], "text": "a"}',
        b'{"adapter": "a0"}',
        b'{"adapter": "a0", "text": [-Infinity]}',
        b"\0" * 1000,
    ]
    bodies += [
        b'{"adapter": "' + b"a" * 5000 + b'", "text": "a"}',
        b'{"adapter": "a0", "text": 1e999}',
        b'{"a":' * 50_000,
    ]
    for body in bodies:
        yield "bodies that are no question", f"{body[:30]!r}", refused(body, 422, 400)
    for name in ("nobody", "../a0", "a0\n\nINFO: x", "\u2028", "a" * 255, "%s%n", "<script>"):
        yield (
            "adapters that are not there",
            repr(name)[:30],
            refused(json.dumps({"adapter": name, "text": "a"}).encode(), 404),
        )
    for i in range(20 if home.short else 150):
        good = json.dumps(GOOD | {"text_pair": "who ?"}).encode()
        spot = dice.randrange(len(good))
        wrong = (
            good[:spot]
            + dice.choice([b"\0", b"\xff", b'"', b"NaN", b"\\ud800", b"[", b"{", b""])
            + good[spot + 1 :]
        )
        yield "bodies with a byte changed at random", f"{i}", refused(wrong, 200, 400, 404, 422)
    lines = [
        ["content-length: -1"],
        ["content-length: 99999999999999999999"],
        ["transfer-encoding: x"],
        ["a: " + "b" * 200_000],
    ]
    lines += [
        ["content-length: 5", "transfer-encoding: chunked"],
        ["content-length: 5", "content-length: 6"],
        ["x" * 200],
    ]
    lines += [
        ["expect: 100-continue", "content-length: 9"],
        ["a: b"] * 5000,
        ["connection: upgrade", "upgrade: websocket"],
    ]
    for line in lines:
        yield (
            "heads that are odd",
            f"{line[0][:40]}",
            lambda line=line: server.raw(head(*line) + b"5\r\nhello\r\n0\r\n\r\n"),
        )
    for first in (
        "GET /../../etc/passwd HTTP/1.1",
        "GET http://127.0.0.1:9/ HTTP/1.1",
        "X" * 100_000,
        "POST /classify HTTP/9.9",
        "\0",
    ):
        yield "heads that are odd", first[:40], lambda first=first: server.raw(head(first=first))

    def large(how: str) -> None:
        with server.connect() as client, contextlib.suppress(OSError):
            client.sendall(head(how))
            block = b" " * (1 << 20)
            for _ in range(400):
                client.sendall(b"100000\r\n" + block + b"\r\n" if "chunked" in how else block)

    for how in ("content-length: 400000000", "transfer-encoding: chunked"):
        yield "bodies of 400 MB", how, lambda how=how: large(how)

    def leave() -> None:
        body = json.dumps({"adapter": "a1", "text": "dog " * 20_000}).encode()
        clients = [server.connect() for _ in range(100 if home.short else 300)]
        for client in clients:
            client.sendall(head(f"content-length: {len(body)}") + body)
        for client in clients:
            client.close()

    yield "clients that leave", "with 80 kB each", leave

    def slow() -> None:
        clients = [server.connect() for _ in range(150 if home.short else 400)]
        for client in clients:
            client.sendall(head("content-length: 100")[: dice.randrange(5, 60)])
        server.good()
        for client in clients:
            client.close()

    yield "clients that are slow", "half a head each", slow

    def load() -> None:
        texts = ["the dog .", "dog " * 5000, "who ?"]

        def ask(i: int) -> int:
            return server.post(json.dumps({"adapter": f"a{i % 3}", "text": texts[i % 3]}).encode())[0]

        with ThreadPoolExecutor(60) as pool:
            codes = set(pool.map(ask, range(150 if home.short else 600)))
        if codes - {200, 503}:
            raise WrongError(f"answers {sorted(codes)}")

    yield "many requests", "60 at a time", load

    def overwrite() -> None:
        path = server.model / "model.safetensors"
        with path.open("r+b") as file:
            file.seek(path.stat().st_size // 4)
            file.write(os.urandom(path.stat().st_size * 3 // 4))

    yield "files under the server", "the base is overwritten", overwrite
    yield (
        "files under the server",
        "the base is cut",
        lambda: os.truncate(server.model / "model.safetensors", 0),
    )
    yield (
        "files under the server",
        "an adapter is cut",
        lambda: os.truncate(server.folders[0] / "adapter.safetensors", 0),
    )
