"""A judge behind an OpenAI-compatible endpoint on loopback, which misbehaves as it is told."""

import json
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Reply:
    """What the server does with one request. Status 0: it drops the connection, in the middle of the body if
    there is one."""

    text: str = ""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: Any = None  # in place of a chat completion or an error: JSON, or bytes as they are
    wait: float = 0.0  # seconds before anything is sent, less if the server closes


def score(value: float | str) -> Reply:
    return Reply(f"A fair answer, as far as it goes. Rating: [[{value}]]")


def error(status: int, words: str = "no", code: str | None = None, **headers: str) -> Reply:
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    return Reply(status=status, headers=names, body={"error": {"message": words, "type": "t", "code": code}})


DROP = Reply(status=0)


class JudgeServer:
    """In a with block it listens at `url`. `answer(prompt, nth)` says what to do with the nth request for a
    prompt, from 1.

    A prompt is the text of its last message. `requests` are the bodies in order, with times in `times`;
    `paid` counts the chat completions by prompt that were sent in full."""

    def __init__(self, answer: Callable[[str, int], Reply] = lambda prompt, nth: score(7)):
        self.answer = answer
        self.requests: list[dict] = []
        self.times: list[float] = []
        self.keys: set[str] = set()
        self.paid: Counter[str] = Counter()
        self.busiest = 0
        self._now = 0
        self._lock, self._closing = threading.Lock(), threading.Event()

    def __enter__(self) -> "JudgeServer":
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                server._serve(self)

            def log_message(self, *_) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_port}/v1"
        threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        self._closing.set()
        self._http.shutdown()
        self._http.server_close()

    def _serve(self, handler: BaseHTTPRequestHandler) -> None:
        request = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
        prompt = request["messages"][-1]["content"]
        with self._lock:
            self.requests.append(request)
            self.times.append(time.monotonic())
            self.keys.add(handler.headers["Authorization"])
            self._now += 1
            self.busiest = max(self.busiest, self._now)
            nth = sum(r["messages"][-1]["content"] == prompt for r in self.requests)
        reply = self.answer(prompt, nth) if handler.path == "/v1/chat/completions" else error(404)
        self._closing.wait(reply.wait)
        with self._lock:
            self._now -= 1
        body = reply.body
        if body is None:
            usage = {"prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 120}
            message = {"role": "assistant", "content": reply.text}
            choices = [{"index": 0, "finish_reason": "stop", "message": message}]
            body = {
                "id": "1",
                "object": "chat.completion",
                "created": 0,
                "model": request["model"],
                "choices": choices,
            }
            body["usage"] = usage
        sent = body if isinstance(body, bytes) else json.dumps(body).encode()
        handler.close_connection = reply.status == 0
        try:
            if reply.status:
                handler.send_response(reply.status)
                for name, value in {
                    "Content-Type": "application/json",
                    **reply.headers,
                    "Content-Length": str(len(sent)),
                }.items():
                    handler.send_header(name, value)
                handler.end_headers()
                handler.wfile.write(sent)
            elif reply.text:
                handler.send_response(200)
                handler.send_header("Content-Length", str(len(sent)))
                handler.end_headers()
                handler.wfile.write(sent[: len(sent) // 2])
        except OSError:  # it waited longer than the client, or the client is killed
            return
        if reply.status == 200 and reply.body is None:
            with self._lock:
                self.paid[prompt] += 1
