"""A server that answers wandb as W&B's would, and keeps what it was told; or that misbehaves."""

import contextlib
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

#: The address of a port where nobody listens.
NOBODY = "http://127.0.0.1:1"


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        server, body = self.server, self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if server.status is None:
            time.sleep(300)
        answer = {}
        if "graphql" in self.path:
            server.told.append(json.loads(body))
            answer = {"data": self.data(server.told[-1]["query"], server.told[-1].get("variables", {}))}
        elif self.path.endswith("file_stream"):
            server.streams.append((self.path.split("/")[-2], json.loads(body)))
        self.send_response(server.status)
        self.end_headers()
        self.wfile.write(json.dumps(answer).encode())

    do_GET = do_PUT = do_POST  # noqa: N815

    def data(self, query, variables):
        """W&B's answers to all that is asked here: wandb reads the one to its query."""
        server, name, agent = self.server, variables.get("name"), {"id": "QWc="}
        due = [server.commands.pop(0)] if "agentHeartbeat" in query and server.commands else []
        if "upsertView" in query:
            server.view = variables
        of = {"id": "UHI=", "name": variables.get("project"), "entity": {"id": "RW50", "name": "me"}}
        bucket = {"id": "QnU=", "name": name, "config": "{}", "project": of, "historyLineCount": 0}
        sweep = {"id": "U3c=", "name": variables.get("sweep"), "config": server.sweep, "runs": {"edges": []}}
        # One that it has already: nothing is uploaded
        artifact = {"id": "QXI=", "state": "COMMITTED"}
        artifact["artifactSequence"] = {"id": "QXM=", "latestArtifact": None}
        files = [{"name": file, "uploadUrl": f"{server.url}/file"} for file in variables.get("files", [])]
        view = {"id": "VjE=", "name": name, "displayName": "x", "spec": server.view.get("spec")}
        me = {"id": "VXM=", "entity": "me", "username": "me", "email": "", "flags": "{}"}
        return {
            "viewer": me | {"teams": {"edges": []}},
            "upsertBucket": {"bucket": bucket, "inserted": True},
            "createAgent": {"agent": agent},
            "agentHeartbeat": {"agent": agent, "commands": json.dumps(due)},
            "createArtifact": {"artifact": artifact},
            "createRunFiles": {"runID": "QnU=", "uploadHeaders": [], "files": files},
            "upsertView": {"view": view, "inserted": True},
            "project": {"artifact": None, "sweep": sweep, "allViews": {"edges": [{"node": view}]}},
        }


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def server_close(self):
        """From now on nobody listens here."""
        self.shutdown()
        super().server_close()

    def run(self, name):
        """What was told of a run: the variables of its creation, its configuration, history and summary, and
        the exit codes with which it ended."""
        upserts = [told["variables"] for told in self.told if "upsertBucket" in told["query"]]
        made = {key: value for of in upserts if of["name"] == name for key, value in of.items() if value}
        bodies = [body for run_id, body in self.streams if run_id == name]

        def lines(kind):
            files = [(body.get("files") or {}).get(kind, {}) for body in bodies]
            return [json.loads(line) for file in files for line in file.get("content", [])]

        return {
            "made": made,
            "config": {key: of["value"] for key, of in json.loads(made["config"]).items()},
            "history": lines("wandb-history.jsonl"),
            "summary": [{}, *lines("wandb-summary.json")][-1],
            "exit": [body["exitcode"] for body in bodies if body.get("complete")],
            "preempting": any(body.get("preempting") for body in bodies),
        }


@contextlib.contextmanager
def logged_in(status=200):
    """Logs in to a server that answers with this status, or never (None). It keeps .told (GraphQL) and
    .streams (run id, content). For `wandb agent`: .sweep, its YAML, and .commands, one each time it asks."""
    server = Server(("127.0.0.1", 0), Handler)
    server.url, server.status = f"http://127.0.0.1:{server.server_port}", status
    server.sweep, server.view, server.commands, server.told, server.streams = "", {}, [], [], []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with server, pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_BASE_URL", server.url)
        patch.setenv("WANDB_API_KEY", "a" * 40)
        yield server
