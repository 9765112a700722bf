"""A small server that speaks the hub's protocol for downloads, on loopback."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar
from urllib.parse import unquote, urlparse

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Refusal(Exception):  # noqa: N818 - an answer of the server
    """A status and the code that the hub gives with it."""


class Hub(BaseHTTPRequestHandler):
    """What snapshot_download asks for: a repository's information, its tree, and files with ETag and commit.

    repositories: kind/OWNER/NAME to its folder. breaks_at: a part of a path, at which the connection is
    dropped. fails_with: the status of every answer."""

    repositories: ClassVar[dict[str, Path]] = {}
    breaks_at: ClassVar[str | None] = None
    fails_with: ClassVar[int | None] = None

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        path = unquote(urlparse(self.path).path).strip("/")
        if self.breaks_at and self.breaks_at in path:
            self.close_connection = True
            self.connection.close()
            return
        try:
            if self.fails_with:
                raise Refusal(self.fails_with, "")
            self.get(path)
        except Refusal as refusal:
            status, code = refusal.args
            self.send_response(status)
            self.send_header("X-Error-Code", code)
            self.send_header("Content-Length", "0")
            self.end_headers()

    def get(self, path):
        for name, folder in self.repositories.items():
            kind, _, repo = name.partition("/")
            prefix = repo if kind == "models" else f"{kind}/{repo}"
            resolves = [f"{prefix}/resolve/{revision}/" for revision in ("main", COMMIT)]
            mine = (path == f"api/{name}", path.startswith(f"api/{name}/"), path.startswith(tuple(resolves)))
            if not any(mine):
                continue
            files = sorted(p for p in folder.rglob("*") if p.is_file())
            if path.startswith(f"api/{name}/tree/"):
                return self.json([{"type": "file", **self.entry(p, folder)} for p in files])
            if path.startswith("api/"):
                names = [{"rfilename": p.relative_to(folder).as_posix()} for p in files]
                about = {"id": repo, "sha": COMMIT, "private": False, "siblings": names}
                return self.json(about)
            file = folder / next(path.removeprefix(r) for r in resolves if path.startswith(r))
            if not file.is_file():
                raise Refusal(404, "EntryNotFound")
            return self.file(file)
        raise Refusal(404, "RepoNotFound")

    @staticmethod
    def tag(path):
        return hashlib.sha1(path.read_bytes()).hexdigest()

    def entry(self, path, folder):
        return {
            "path": path.relative_to(folder).as_posix(),
            "size": path.stat().st_size,
            "oid": self.tag(path),
        }

    def address(self):
        return f"http://{self.headers['Host']}"

    def json(self, value):
        self.answer(json.dumps(value).encode(), {"Content-Type": "application/json"})

    def file(self, path):
        self.answer(path.read_bytes(), {"ETag": f'"{self.tag(path)}"', "X-Repo-Commit": COMMIT})

    def answer(self, body, headers):
        self.send_response(200)
        for key, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_):
        pass


@contextmanager
def serving(**repositories: Path) -> Iterator[str]:
    """The address of a hub with these repositories and no faults."""
    Hub.repositories, Hub.breaks_at, Hub.fails_with = dict(repositories), None, None
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
