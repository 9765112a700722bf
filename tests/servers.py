"""Small servers on loopback for tests: a judge with OpenAI's protocol, the hub, and W&B. The
first two fail as a test wants, and all keep what they were sent."""

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
    """Answers one request. Subclasses define do_GET or do_POST."""

    def received(self) -> bytes:
        """The request's body."""
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def send(self, content: Any, status: int = 200, **headers: str) -> None:
        """Sends a response. content: bytes, or a value that is sent as JSON."""
        body = content
        if not isinstance(content, bytes):
            body = json.dumps(content).encode()
        self.send_response(status)
        for key, value in ({"Content-Length": str(len(body))} | headers).items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_) -> None:
        """Prints nothing."""


class Server(ThreadingHTTPServer):
    """A server that listens at `url` during a with block, in a thread."""

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
    """What the judge's server does with one request.

    text: the judge's reply. status: the HTTP status; 0 drops the connection. body: is sent in
    place of a chat completion, as JSON, or as it is if it is bytes. wait: seconds before
    anything is sent, less if the server closes."""

    text: str = ""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: Any = None
    wait: float = 0.0


def score_reply(value: float | str) -> Reply:
    """A reply with this rating."""
    return Reply(f"A fair answer, as far as it goes. Rating: [[{value}]]")


def error_reply(status: int, words: str = "no", code: str | None = None) -> Reply:
    """An error as OpenAI's servers send it. words: its message."""
    body = {"error": {"message": words, "type": "t", "code": code}}
    return Reply(status=status, headers={"retry-after": "0.01"}, body=body)


#: Drops the connection.
DROP = Reply(status=0)


class JudgeHandler(Handler):
    """Answers a request for a judgment as its JudgeServer says."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        server = self.server
        request = json.loads(self.received())
        prompt = prompt_of(request)
        with server.lock:
            server.requests.append(request)
            server.keys.add(self.headers["Authorization"])
            server.active += 1
            server.busiest = max(server.busiest, server.active)
            nth = sum(prompt_of(earlier) == prompt for earlier in server.requests)
        reply = error_reply(404)
        if self.path == "/v1/chat/completions":
            reply = server.answer(prompt, nth)
        server.closing.wait(reply.wait)
        with server.lock:
            server.active -= 1
        self.close_connection = reply.status == 0
        # The client may have stopped waiting, or was killed
        with contextlib.suppress(OSError):
            if reply.status:
                is_completion = reply.body is None
                content = (
                    chat_completion(request, reply) if is_completion else reply.body
                )
                headers = {"Content-Type": "application/json", **reply.headers}
                self.send(content, reply.status, **headers)
                if reply.status == 200 and is_completion:
                    with server.lock:
                        server.paid[prompt] += 1


def prompt_of(request: dict[str, Any]) -> str:
    """The text of a request's last message."""
    return request["messages"][-1]["content"]


def chat_completion(request: dict[str, Any], reply: Reply) -> dict[str, Any]:
    """A reply in OpenAI's format."""
    message = {"role": "assistant", "content": reply.text}
    return {
        "id": "1",
        "object": "chat.completion",
        "created": 0,
        "model": request["model"],
        "choices": [{"index": 0, "finish_reason": "stop", "message": message}],
        "usage": {"prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 120},
    }


class JudgeServer(Server):
    """A judge. `answer(prompt, nth)` says what to do with the nth request (from 1) for a
    prompt, which is the text of its last message.

    requests: the bodies, in order. keys: the Authorization headers that came with them. paid:
    by prompt, how many chat completions were sent in full. busiest: the most requests that
    were here at one time. active: how many are here now."""

    def __init__(
        self, answer: Callable[[str, int], Reply] = lambda prompt, nth: score_reply(7)
    ):
        super().__init__(JudgeHandler)
        self.url += "/v1"
        self.answer = answer
        self.requests = list[dict]()
        self.keys = set[str]()
        self.paid = Counter[str]()
        self.busiest = 0
        self.active = 0
        self.lock = threading.Lock()
        self.closing = threading.Event()

    def server_close(self) -> None:
        """Closes the server. Ends the waits of its replies."""
        self.closing.set()
        super().server_close()


# --- the hub

#: The commit of every repository.
COMMIT = "0123456789abcdef0123456789abcdef01234567"
#: The path of a request. Its groups: api/ or nothing (then it is for a file); the
#: repository; the kind of request, such as tree; and the path of a file.
ADDRESS = re.compile(
    r"(api/)?((?:(?:models|datasets|spaces)/)?[^/]+/[^/]+)(?:/(\w+)/[^/]+(?:/(.*))?)?"
)


class Hub(Handler):
    """The requests that snapshot_download sends: for a repository's information, its tree,
    and files with ETag and commit.

    repositories: the folder of each, by kind/OWNER/NAME (kind: models, datasets or spaces).
    breaks_at: a request with this in its path is dropped; None for no request. fails_with:
    the status of every answer; None for answers without faults."""

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
        """Refuses a request. code: the hub's own name of the error."""
        self.send(b"", status, **{"X-Error-Code": code})

    def get(self, path):
        """Answers a request for a path, without faults."""
        match = ADDRESS.fullmatch(path)
        api, repo, kind, file = match.groups() if match else ("", "", "", "")
        name = repo if repo.count("/") == 2 else f"models/{repo}"
        folder = self.repositories.get(name)
        if folder is None:
            return self.refuse(404, "RepoNotFound")
        contents = {}
        for child in sorted(folder.rglob("*")):
            if child.is_file():
                contents[child.relative_to(folder).as_posix()] = child.read_bytes()
        hashes = {
            path: hashlib.sha1(content).hexdigest()
            for path, content in contents.items()
        }
        if not api:
            if file not in contents:
                return self.refuse(404, "EntryNotFound")
            headers = {"ETag": f'"{hashes[file]}"', "X-Repo-Commit": COMMIT}
            return self.send(contents[file], **headers)
        headers = {"Content-Type": "application/json"}
        if kind == "tree":
            tree = []
            for path, content in contents.items():
                entry = {"type": "file", "path": path}
                tree.append(entry | {"size": len(content), "oid": hashes[path]})
            return self.send(tree, **headers)
        information = {
            "id": name.partition("/")[2],
            "sha": COMMIT,
            "private": False,
            "siblings": [{"rfilename": path} for path in contents],
        }
        return self.send(information, **headers)


@contextlib.contextmanager
def serving(**repositories: Path) -> Iterator[str]:
    """During the with block, a hub with these repositories. Gives its address. A test may
    set Hub.breaks_at and Hub.fails_with in the block.

    repositories: as Hub has them."""
    Hub.repositories, Hub.breaks_at, Hub.fails_with = dict(repositories), None, None
    with Server(Hub) as server:
        yield server.url


# --- W&B

#: The address of a port where nobody listens.
NOBODY = "http://127.0.0.1:1"


class WandbHandler(Handler):
    """Answers the requests of the package wandb, and keeps them in its WandbServer."""

    def do_POST(self):
        server, body = self.server, self.received()
        if server.status is None:
            time.sleep(300)
        answer = {}
        if "graphql" in self.path:
            request = json.loads(body)
            server.told.append(request)
            data = self.data(request["query"], request.get("variables", {}))
            answer = {"data": data}
        elif self.path.endswith("file_stream"):
            server.streams.append((self.path.split("/")[-2], json.loads(body)))
        self.send(answer, server.status)

    do_GET = do_PUT = do_POST  # noqa: N815

    def data(self, query, variables):
        """The answers to every query that the tests cause, all in one dictionary: wandb
        reads only the one to its query."""
        server, name, agent = self.server, variables.get("name"), {"id": "QWc="}
        commands = []
        if "agentHeartbeat" in query and server.commands:
            commands = [server.commands.pop(0)]
        if "upsertView" in query:
            server.view = variables
        project = {
            "id": "UHI=",
            "name": variables.get("project"),
            "entity": {"id": "RW50", "name": "me"},
        }
        bucket = {
            "id": "QnU=",
            "name": name,
            "config": "{}",
            "project": project,
            "historyLineCount": 0,
        }
        sweep = {
            "id": "U3c=",
            "name": variables.get("sweep"),
            "config": server.sweep,
            "runs": {"edges": []},
        }
        # As if the server had it already, so that nothing is uploaded
        artifact = {
            "id": "QXI=",
            "state": "COMMITTED",
            "artifactSequence": {"id": "QXM=", "latestArtifact": None},
        }
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
        viewer = {
            "id": "VXM=",
            "entity": "me",
            "username": "me",
            "email": "",
            "flags": "{}",
            "teams": {"edges": []},
        }
        return {
            "viewer": viewer,
            "upsertBucket": {"bucket": bucket, "inserted": True},
            "createAgent": {"agent": agent},
            "agentHeartbeat": {"agent": agent, "commands": json.dumps(commands)},
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
    """W&B. See `logged_in` for what it keeps."""

    def run(self, name):
        """What was sent about a run: the variables of its creation (made), its
        configuration, history and last summary, the exit codes with which it ended (exit),
        and whether it said that it is preempted."""
        made = {}
        for request in self.told:
            variables = request.get("variables", {})
            if "upsertBucket" in request["query"] and variables["name"] == name:
                made |= {key: value for key, value in variables.items() if value}
        bodies = [body for run_id, body in self.streams if run_id == name]

        def lines(file_name):
            """The JSON lines that were sent for a file of the run."""
            sent = []
            for body in bodies:
                file = (body.get("files") or {}).get(file_name, {})
                sent += [json.loads(line) for line in file.get("content", [])]
            return sent

        config = json.loads(made["config"])
        return {
            "made": made,
            "config": {key: entry["value"] for key, entry in config.items()},
            "history": lines("wandb-history.jsonl"),
            "summary": [{}, *lines("wandb-summary.json")][-1],
            "exit": [body["exitcode"] for body in bodies if body.get("complete")],
            "preempting": any(body.get("preempting") for body in bodies),
        }


@contextlib.contextmanager
def logged_in(status=200):
    """During the with block, this process and its children are logged in to a WandbServer.

    status: of every answer; None for a server that does not answer. The server keeps the
    GraphQL requests (told) and what was streamed (streams: run id and body). For `wandb
    agent` a test may set .sweep, the YAML of its sweep, and .commands, of which the agent
    gets one each time it asks."""
    server = WandbServer(WandbHandler)
    server.status, server.sweep, server.view = status, "", {}
    server.commands, server.told, server.streams = [], [], []
    with server, pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_BASE_URL", server.url)
        patch.setenv("WANDB_API_KEY", "a" * 40)
        # Otherwise wandb would use the address that it read first in this process
        if "wandb" in sys.modules:
            sys.modules["wandb"].teardown()
        yield server
