"""Small servers on loopback: a judge behind OpenAI's protocol and the hub, which fail
as a test asks, and W&B, which keeps what it was told."""

import contextlib
import hashlib
import json
import re
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import unquote, urlparse

import pytest


class Handler(BaseHTTPRequestHandler):
    def received(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def send(self, content: Any, status: int = 200, **headers: str) -> None:
        """Bytes, or a value as JSON."""
        sent = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for key, value in ({"Content-Length": str(len(sent))} | headers).items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(sent)

    def log_message(self, *_) -> None:
        pass


class Server(ThreadingHTTPServer):
    """In a with block it listens at `url`; from its end on nobody does."""

    def __init__(self, handler: type[Handler]) -> None:
        super().__init__(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self.server_port}"

    def __enter__(self):
        threading.Thread(
            target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True
        ).start()
        return self

    def server_close(self) -> None:
        self.shutdown()
        super().server_close()


# --- a judge


@dataclass
class Reply:
    """What the server does with one request. Status 0: it drops the connection."""

    text: str = ""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    # in place of a chat completion or an error: JSON, or bytes as they are
    body: Any = None
    wait: float = 0.0  # seconds before anything is sent, less if the server closes


def score_reply(value: float | str) -> Reply:
    return Reply(f"A fair answer, as far as it goes. Rating: [[{value}]]")


def error_reply(status: int, words: str = "no", code: str | None = None) -> Reply:
    body = {"error": {"message": words, "type": "t", "code": code}}
    return Reply(status=status, headers={"retry-after": "0.01"}, body=body)


DROP = Reply(status=0)


class JudgeHandler(Handler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        server, request = self.server, json.loads(self.received())
        prompt = request["messages"][-1]["content"]
        with server.lock:
            server.requests.append(request)
            server.keys.add(self.headers["Authorization"])
            server.now += 1
            server.busiest = max(server.busiest, server.now)
            nth = sum(r["messages"][-1]["content"] == prompt for r in server.requests)
        reply = (
            server.answer(prompt, nth)
            if self.path == "/v1/chat/completions"
            else error_reply(404)
        )
        server.closing.wait(reply.wait)
        with server.lock:
            server.now -= 1
        message = {"role": "assistant", "content": reply.text}
        choices = [{"index": 0, "finish_reason": "stop", "message": message}]
        usage = {"prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 120}
        body = {
            "id": "1",
            "object": "chat.completion",
            "created": 0,
            "model": request["model"],
        }
        body |= {"choices": choices, "usage": usage}
        self.close_connection = reply.status == 0
        # it waited longer than the client, or the client is killed
        with contextlib.suppress(OSError):
            if reply.status:
                content = body if reply.body is None else reply.body
                self.send(
                    content,
                    reply.status,
                    **{"Content-Type": "application/json", **reply.headers},
                )
                if reply.status == 200 and reply.body is None:
                    with server.lock:
                        server.paid[prompt] += 1


class JudgeServer(Server):
    """`answer(prompt, nth)` says what to do with the nth request for a prompt, from 1.
    A prompt is the text of its last message.

    `requests` are the bodies in order; `keys` those that came with them; `paid` counts
    the chat completions by prompt that were sent in full; `busiest` is the most that
    were here at once."""

    def __init__(
        self, answer: Callable[[str, int], Reply] = lambda prompt, nth: score_reply(7)
    ):
        super().__init__(JudgeHandler)
        self.url += "/v1"
        self.answer, self.requests = answer, list[dict]()
        self.keys, self.paid, self.busiest, self.now = set[str](), Counter[str](), 0, 0
        self.lock, self.closing = threading.Lock(), threading.Event()

    def server_close(self) -> None:
        self.closing.set()
        super().server_close()


# --- the hub

COMMIT = "0123456789abcdef0123456789abcdef01234567"
#: Of its API or of files: the repository, what of it is asked for, and the path of a
#: file.
ADDRESS = re.compile(
    r"(api/)?((?:(?:models|datasets|spaces)/)?[^/]+/[^/]+)(?:/(\w+)/[^/]+(?:/(.*))?)?"
)


class Hub(Handler):
    """What snapshot_download asks for: a repository's information, its tree, and files
    with ETag and commit.

    repositories: kind/OWNER/NAME to its folder. breaks_at: a part of a path, at which
    the connection is dropped. fails_with: the status of every answer."""

    repositories: ClassVar[dict[str, Path]] = {}
    breaks_at: ClassVar[str | None] = None
    fails_with: ClassVar[int | None] = None

    def do_GET(self):
        path = unquote(urlparse(self.path).path).strip("/")
        if self.breaks_at and self.breaks_at in path:
            self.close_connection = True
            self.connection.close()
        elif self.fails_with:
            self.refuse(self.fails_with, "")
        else:
            self.get(path)

    do_HEAD = do_GET  # noqa: N815

    def refuse(self, status, code):
        self.send(b"", status, **{"X-Error-Code": code})

    def get(self, path):
        match = ADDRESS.fullmatch(path)
        api, repo, what, file = match.groups() if match else ("", "", "", "")
        name = repo if repo.count("/") == 2 else f"models/{repo}"
        if (folder := self.repositories.get(name)) is None:
            return self.refuse(404, "RepoNotFound")
        files = {
            p.relative_to(folder).as_posix(): p
            for p in sorted(folder.rglob("*"))
            if p.is_file()
        }
        tags = {
            file: hashlib.sha1(p.read_bytes()).hexdigest() for file, p in files.items()
        }
        if not api:
            if file not in files:
                return self.refuse(404, "EntryNotFound")
            headers = {"ETag": f'"{tags[file]}"', "X-Repo-Commit": COMMIT}
            return self.send(files[file].read_bytes(), **headers)
        sizes = {
            file: {"size": p.stat().st_size, "oid": tags[file]}
            for file, p in files.items()
        }
        tree = [{"type": "file", "path": file, **of} for file, of in sizes.items()]
        siblings = [{"rfilename": file} for file in files]
        about = {
            "id": name.partition("/")[2],
            "sha": COMMIT,
            "private": False,
            "siblings": siblings,
        }
        return self.send(
            tree if what == "tree" else about, **{"Content-Type": "application/json"}
        )


@contextlib.contextmanager
def serving(**repositories: Path) -> Iterator[str]:
    """The address of a hub with these repositories and no faults."""
    Hub.repositories, Hub.breaks_at, Hub.fails_with = dict(repositories), None, None
    with Server(Hub) as server:
        yield server.url


# --- W&B

#: The address of a port where nobody listens.
NOBODY = "http://127.0.0.1:1"


class WandbHandler(Handler):
    def do_POST(self):
        server, body = self.server, self.received()
        if server.status is None:
            time.sleep(300)
        answer = {}
        if "graphql" in self.path:
            server.told.append(json.loads(body))
            answer = {
                "data": self.data(
                    server.told[-1]["query"], server.told[-1].get("variables", {})
                )
            }
        elif self.path.endswith("file_stream"):
            server.streams.append((self.path.split("/")[-2], json.loads(body)))
        self.send(answer, server.status)

    do_GET = do_PUT = do_POST  # noqa: N815

    def data(self, query, variables):
        """W&B's answers to all that is asked here: wandb reads the one to its query."""
        server, name, agent = self.server, variables.get("name"), {"id": "QWc="}
        due = (
            [server.commands.pop(0)]
            if "agentHeartbeat" in query and server.commands
            else []
        )
        if "upsertView" in query:
            server.view = variables
        of = {
            "id": "UHI=",
            "name": variables.get("project"),
            "entity": {"id": "RW50", "name": "me"},
        }
        bucket = {
            "id": "QnU=",
            "name": name,
            "config": "{}",
            "project": of,
            "historyLineCount": 0,
        }
        sweep = {
            "id": "U3c=",
            "name": variables.get("sweep"),
            "config": server.sweep,
            "runs": {"edges": []},
        }
        # One that it has already: nothing is uploaded
        artifact = {"id": "QXI=", "state": "COMMITTED"}
        artifact["artifactSequence"] = {"id": "QXM=", "latestArtifact": None}
        files = [
            {"name": file, "uploadUrl": f"{server.url}/file"}
            for file in variables.get("files", [])
        ]
        view = {
            "id": "VjE=",
            "name": name,
            "displayName": "x",
            "spec": server.view.get("spec"),
        }
        me = {
            "id": "VXM=",
            "entity": "me",
            "username": "me",
            "email": "",
            "flags": "{}",
        }
        return {
            "viewer": me | {"teams": {"edges": []}},
            "upsertBucket": {"bucket": bucket, "inserted": True},
            "createAgent": {"agent": agent},
            "agentHeartbeat": {"agent": agent, "commands": json.dumps(due)},
            "createArtifact": {"artifact": artifact},
            "createRunFiles": {"runID": "QnU=", "uploadHeaders": [], "files": files},
            "upsertView": {"view": view, "inserted": True},
            "project": {
                "artifact": None,
                "sweep": sweep,
                "allViews": {"edges": [{"node": view}]},
            },
        }


class WandbServer(Server):
    def run(self, name):
        """What was told of a run: the variables of its creation, its configuration,
        history and summary, and the exit codes with which it ended."""
        upserts = [
            told["variables"] for told in self.told if "upsertBucket" in told["query"]
        ]
        made = {
            key: value
            for of in upserts
            if of["name"] == name
            for key, value in of.items()
            if value
        }
        bodies = [body for run_id, body in self.streams if run_id == name]

        def lines(kind):
            files = [(body.get("files") or {}).get(kind, {}) for body in bodies]
            return [
                json.loads(line) for file in files for line in file.get("content", [])
            ]

        return {
            "made": made,
            "config": {
                key: of["value"] for key, of in json.loads(made["config"]).items()
            },
            "history": lines("wandb-history.jsonl"),
            "summary": [{}, *lines("wandb-summary.json")][-1],
            "exit": [body["exitcode"] for body in bodies if body.get("complete")],
            "preempting": any(body.get("preempting") for body in bodies),
        }


@contextlib.contextmanager
def logged_in(status=200):
    """Logs in to a server that answers with this status, or never (None). It keeps
    .told (GraphQL) and .streams (run id, content). For `wandb agent`: .sweep, its YAML,
    and .commands, one each time it asks."""
    server = WandbServer(WandbHandler)
    server.status, server.sweep, server.view = status, "", {}
    server.commands, server.told, server.streams = [], [], []
    with server, pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_BASE_URL", server.url)
        patch.setenv("WANDB_API_KEY", "a" * 40)
        # wandb keeps the address that it read first in this process
        if "wandb" in sys.modules:
            sys.modules["wandb"].teardown()
        yield server
