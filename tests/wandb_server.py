"""A server that answers wandb as W&B's would, and keeps what it was told; and others that misbehave."""

import contextlib
import json
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_GET(self):
        self.answer({})

    def do_PUT(self):
        self.body()
        self.answer({})

    def do_POST(self):
        body = self.body()
        if "graphql" in self.path:
            self.server.told.append(json.loads(body))
            return self.answer({"data": self.data(json.loads(body))})
        if self.path.endswith("file_stream"):
            self.server.streams.append((self.path.split("/")[-2], json.loads(body)))
        return self.answer({})

    def body(self):
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def answer(self, value):
        text = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def data(self, asked):
        query, variables = asked["query"], asked.get("variables", {})
        entity = {"id": "RW50", "name": "me"}
        if "upsertBucket" in query:
            project = {"id": "UHI=", "name": variables["project"], "entity": entity}
            bucket = {
                "id": "QnU=",
                "name": variables["name"],
                "config": "{}",
                "project": project,
                "historyLineCount": 0,
            }
            return {"upsertBucket": {"bucket": bucket, "inserted": True}}
        if "createAgent" in query:
            return {"createAgent": {"agent": {"id": "QWc="}}}
        if "agentHeartbeat" in query:
            commands = [self.server.commands.pop(0)] if self.server.commands else []
            return {"agentHeartbeat": {"agent": {"id": "QWc="}, "commands": json.dumps(commands)}}
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
            return {"upsertView": {"view": {"id": "VjE=", "name": variables["name"]}, "inserted": True}}
        if "allViews" in query:
            node = {"id": "VjE=", "displayName": "x", "spec": self.server.view["spec"]}
            return {"project": {"allViews": {"edges": [{"node": node}]}}}
        if "viewer" in query:
            return {
                "viewer": {
                    "id": "VXM=",
                    "entity": "me",
                    "username": "me",
                    "email": "",
                    "flags": "{}",
                    "teams": {"edges": []},
                }
            }
        return {}


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_):
        """Nothing: a client that hangs up is no news."""


@contextlib.contextmanager
def good():
    """The server: .told (every GraphQL request), .streams (run id and what was streamed), .url.

    For `wandb agent`: .sweep is the sweep's YAML, .commands what it is given, one each time it asks."""
    server = Server(("127.0.0.1", 0), Handler)
    server.sweep, server.commands = "", []
    server.told, server.streams, server.url = [], [], f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


@contextlib.contextmanager
def bad(answer):
    """A port that answers every request with these bytes. None: never. Its address."""
    listener = socket.create_server(("127.0.0.1", 0))
    kept = []

    def serve():
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                if answer is None:
                    kept.append(connection)
                    continue
                with contextlib.suppress(OSError), connection:
                    connection.recv(65536)
                    connection.sendall(answer)

    threading.Thread(target=serve, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        listener.close()
        for connection in kept:
            connection.close()


def refusing():
    """The address of a port where nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return f"http://127.0.0.1:{listener.getsockname()[1]}"
