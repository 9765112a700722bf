"""A judge behind an OpenAI-compatible endpoint on loopback, which misbehaves as it is told."""

import json
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Reply:
    """What the server does with one request. Status 0: it drops the connection."""

    text: str = ""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: Any = None  # in place of a chat completion or an error: JSON, or bytes as they are
    wait: float = 0.0  # seconds before anything is sent, less if the server closes


def score(value: float | str) -> Reply:
    return Reply(f"A fair answer, as far as it goes. Rating: [[{value}]]")


def error(status: int, words: str = "no", code: str | None = None) -> Reply:
    body = {"error": {"message": words, "type": "t", "code": code}}
    return Reply(status=status, headers={"retry-after": "0.01"}, body=body)


DROP = Reply(status=0)


class JudgeServer(ThreadingHTTPServer):
    """In a with block it listens at `url`. `answer(prompt, nth)` says what to do with the nth request for a
    prompt, from 1. A prompt is the text of its last message.

    `requests` are the bodies in order; `keys` those that came with them; `paid` counts the chat completions
    by prompt that were sent in full; `busiest` is the most that were here at once."""

    daemon_threads = True

    def __init__(self, answer: Callable[[str, int], Reply] = lambda prompt, nth: score(7)):
        super().__init__(("127.0.0.1", 0), Handler)
        self.answer, self.url = answer, f"http://127.0.0.1:{self.server_port}/v1"
        self.requests: list[dict] = []
        self.keys: set[str] = set()
        self.paid: Counter[str] = Counter()
        self.busiest = self.now = 0
        self.lock, self.closing = threading.Lock(), threading.Event()
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    def __exit__(self, *_) -> None:
        self.closing.set()
        self.shutdown()
        self.server_close()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: JudgeServer

    def do_POST(self) -> None:
        judge = self.server
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        prompt = request["messages"][-1]["content"]
        with judge.lock:
            judge.requests.append(request)
            judge.keys.add(self.headers["Authorization"])
            judge.now += 1
            judge.busiest = max(judge.busiest, judge.now)
            nth = sum(r["messages"][-1]["content"] == prompt for r in judge.requests)
        reply = judge.answer(prompt, nth) if self.path == "/v1/chat/completions" else error(404)
        judge.closing.wait(reply.wait)
        with judge.lock:
            judge.now -= 1
        body = reply.body
        if body is None:
            message = {"role": "assistant", "content": reply.text}
            body = {"id": "1", "object": "chat.completion", "created": 0, "model": request["model"]}
            body["choices"] = [{"index": 0, "finish_reason": "stop", "message": message}]
            body["usage"] = {"prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 120}
        sent = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.close_connection = reply.status == 0
        try:
            if reply.status:
                self.send_response(reply.status)
                headers = {"Content-Type": "application/json", "Content-Length": str(len(sent))}
                for name, value in (headers | reply.headers).items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(sent)
        except OSError:  # it waited longer than the client, or the client is killed
            return
        if reply.status == 200 and reply.body is None:
            with judge.lock:
                judge.paid[prompt] += 1

    def log_message(self, *_) -> None:
        pass
