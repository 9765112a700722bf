"""A server that answers wandb as W&B's would, and keeps what it was told; and others that misbehave."""

import contextlib
import json
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import StreamRequestHandler

#: What a bad server answers to everything.
ERROR = b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 2\r\nConnection: close\r\n\r\nno"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_PUT(self):
        self.body()
        self.answer({})

    do_GET = do_PUT  # noqa: N815

    def do_POST(self):
        body = json.loads(self.body())
        if "graphql" in self.path:
            self.server.told.append(body)
            return self.answer({"data": self.data(body["query"], body.get("variables", {}))})
        if self.path.endswith("file_stream"):
            self.server.streams.append((self.path.split("/")[-2], body))
        return self.answer({})

    def body(self):
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def answer(self, value):
        text = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def data(self, query, variables):
        """W&B's answer to a query, which is known by a word of it."""
        name, view, agent = variables.get("name"), {"id": "VjE="}, {"id": "QWc="}
        if "upsertBucket" in query:
            of = {"id": "UHI=", "name": variables["project"], "entity": {"id": "RW50", "name": "me"}}
            bucket = {"id": "QnU=", "name": name, "config": "{}", "project": of, "historyLineCount": 0}
            return {"upsertBucket": {"bucket": bucket, "inserted": True}}
        if "createAgent" in query:
            return {"createAgent": {"agent": agent}}
        if "agentHeartbeat" in query:
            commands = [self.server.commands.pop(0)] if self.server.commands else []
            return {"agentHeartbeat": {"agent": agent, "commands": json.dumps(commands)}}
        if "sweep(sweepName" in query:
            sweep = {"id": "U3c=", "name": variables["sweep"], "config": self.server.sweep}
            return {"project": {"sweep": sweep | {"runs": {"edges": []}}}}
        if "query ArtifactType" in query:
            return {"project": {"artifact": None}}
        if "createArtifact(" in query:  # one that it has already: nothing is uploaded
            of = {"artifactSequence": {"id": "QXM=", "latestArtifact": None}}
            return {"createArtifact": {"artifact": {"id": "QXI=", "state": "COMMITTED"} | of}}
        if "createRunFiles" in query:
            url = f"http://127.0.0.1:{self.server.server_port}/file"
            files = [{"name": name, "uploadUrl": url} for name in variables["files"]]
            return {"createRunFiles": {"runID": "QnU=", "uploadHeaders": [], "files": files}}
        if "upsertView" in query:
            self.server.view = variables
            return {"upsertView": {"view": view | {"name": name}, "inserted": True}}
        if "allViews" in query:
            view |= {"displayName": "x", "spec": self.server.view["spec"]}
            return {"project": {"allViews": {"edges": [{"node": view}]}}}
        if "viewer" in query:
            names = {"entity": "me", "username": "me", "email": "", "flags": "{}"}
            return {"viewer": {"id": "VXM=", **names, "teams": {"edges": []}}}
        return {}


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_):
        """Nothing: a client that hangs up is no news."""

    def run(self, name):
        """What was told of a run: the variables of its creation, its configuration, history and summary, and
        the exit codes with which it ended."""
        upserts = [told["variables"] for told in self.told if "upsertBucket" in told["query"]]
        made = [each for each in upserts if each["name"] == name]
        config = [json.loads(each["config"]) for each in made if each.get("config")][-1]
        bodies = [body for run_id, body in self.streams if run_id == name]

        def lines(kind):
            files = [(body.get("files") or {}).get(kind, {}) for body in bodies]
            return [json.loads(line) for file in files for line in file.get("content", [])]

        return {
            "made": {key: value for each in made for key, value in each.items() if value is not None},
            "config": {key: of["value"] for key, of in config.items()},
            "history": lines("wandb-history.jsonl"),
            "summary": [{}, *lines("wandb-summary.json")][-1],
            "exit": [body["exitcode"] for body in bodies if body.get("complete")],
            "preempting": any(body.get("preempting") for body in bodies),
        }


@contextlib.contextmanager
def serving(server):
    """The server, which answers in a thread; .url is its address."""
    server.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


def good():
    """A server that keeps what it was told: .told (every GraphQL request), .streams (run id and what was
    streamed). For `wandb agent`: .sweep is the sweep's YAML, .commands what it is given, one each time it
    asks."""
    server = Server(("127.0.0.1", 0), Handler)
    server.sweep, server.commands, server.told, server.streams = "", [], [], []
    return serving(server)


def bad(answer):
    """One that answers everything with these bytes. None: never."""

    class Bad(StreamRequestHandler):
        def handle(self):
            self.request.recv(65536)
            if answer is None:
                time.sleep(300)
            self.request.sendall(answer or b"")

    return serving(Server(("127.0.0.1", 0), Bad))


def refusing():
    """The address of a port where nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return f"http://127.0.0.1:{listener.getsockname()[1]}"
