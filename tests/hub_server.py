"""A small server that speaks the hub's protocol on loopback: downloads, and pushes as huggingface_hub does
them (create, preupload, LFS, commit), with tokens, owners and private repositories."""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar
from urllib.parse import unquote, urlparse

import yaml

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Refusal(Exception):  # noqa: N818 - an answer of the server
    """A status and the code that the hub gives with it."""


class Hub(BaseHTTPRequestHandler):
    """What snapshot_download asks for (a repository's information, its tree, and files with ETag and commit),
    and what HfApi asks for when it pushes.

    repositories: kind/OWNER/NAME to its folder. tokens: whose each token is; one that begins with "read" may
    not write. private: the repositories that only their owner sees. breaks_at: a part of a path, at which the
    connection is dropped. fails_with: the status of every answer. asked: what was asked for, in order."""

    repositories: ClassVar[dict[str, Path]] = {}
    tokens: ClassVar[dict[str, str]] = {}
    private: ClassVar[set[str]] = set()
    place: ClassVar[Path]
    breaks_at: ClassVar[str | None] = None
    fails_with: ClassVar[int | None] = None
    asked: ClassVar[list[str]] = []

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        self.guarded(self.get)

    def do_POST(self):
        self.guarded(self.post)

    def do_PUT(self):
        self.guarded(self.put)

    def guarded(self, answer):
        path = unquote(urlparse(self.path).path).strip("/")
        self.asked.append(f"{self.command} {path}")
        if self.breaks_at and self.breaks_at in path:
            self.close_connection = True
            self.connection.close()
            return
        try:
            if self.fails_with:
                raise Refusal(self.fails_with, "")
            answer(path)
        except Refusal as refusal:
            status, code = refusal.args
            self.send_response(status)
            self.send_header("X-Error-Code", code)
            self.send_header("Content-Length", "0")
            self.end_headers()

    # --- reading

    def get(self, path):
        for name, folder in self.repositories.items():
            kind, _, repo = name.partition("/")
            prefix = repo if kind == "models" else f"{kind}/{repo}"
            resolves = [f"{prefix}/resolve/{revision}/" for revision in ("main", COMMIT)]
            mine = (path == f"api/{name}", path.startswith(f"api/{name}/"), path.startswith(tuple(resolves)))
            if not any(mine):
                continue
            if name in self.private and self.user() != repo.partition("/")[0]:
                break
            files = sorted(p for p in folder.rglob("*") if p.is_file())
            if path.startswith(f"api/{name}/tree/"):
                return self.json([{"type": "file", **self.entry(p, folder)} for p in files])
            if path.startswith("api/"):
                names = [{"rfilename": p.relative_to(folder).as_posix()} for p in files]
                about = {"id": repo, "sha": COMMIT, "private": name in self.private, "siblings": names}
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

    # --- pushing

    def user(self):
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if token and token not in self.tokens:
            raise Refusal(401, "")
        return self.tokens.get(token)

    def writer(self, owner):
        """Raises unless the token may write to this owner's repositories."""
        user, token = self.user(), self.headers.get("Authorization") or ""
        if user is None:
            raise Refusal(401, "")
        if user != owner or token.startswith("Bearer read"):
            raise Refusal(403, "")

    def body(self):
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def post(self, path):
        body = self.body()
        if path == "api/validate-yaml":
            header = json.loads(body)["content"].split("---\n")[1]
            assert isinstance(yaml.safe_load(header), dict)
            return self.json({"warnings": [], "errors": []})
        if path == "api/repos/create":
            return self.create(json.loads(body))
        if path.endswith(".git/info/lfs/objects/batch"):
            self.writer(path.partition("/")[0])
            return self.json(
                {"transfer": "basic", "objects": [*map(self.action, json.loads(body)["objects"])]}
            )
        _, kind, owner, name, what, *_ = path.split("/")
        self.writer(owner)
        if f"{kind}/{owner}/{name}" not in self.repositories:
            raise Refusal(404, "RepoNotFound")
        folder = self.repositories[f"{kind}/{owner}/{name}"]
        if what == "preupload":
            modes = [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular",
                    "shouldIgnore": False,
                    "oid": None,
                }
                for file in json.loads(body)["files"]
            ]
            return self.json({"files": modes})
        assert what == "commit"
        return self.commit(folder, f"{owner}/{name}", [json.loads(line) for line in body.splitlines()])

    def create(self, wanted):
        owner = wanted["organization"] or self.user()
        name = f"{wanted.get('type', 'model')}s/{owner}/{wanted['name']}"
        self.writer(owner)
        if name in self.repositories:
            raise Refusal(409, "")
        self.repositories[name] = self.place / name
        self.repositories[name].mkdir(parents=True)
        (self.repositories[name] / ".gitattributes").write_text("*.safetensors filter=lfs\n")
        if wanted.get("visibility") == "private":
            self.private.add(name)
        self.json({"url": f"{self.address()}/{owner}/{wanted['name']}"})

    def action(self, wanted):
        upload = {"href": f"{self.address()}/lfs/{wanted['oid']}", "header": {}}
        return {"oid": wanted["oid"], "size": wanted["size"], "actions": {"upload": upload}}

    def put(self, path):
        body, oid = self.body(), path.removeprefix("lfs/")
        assert hashlib.sha256(body).hexdigest() == oid
        (self.place / oid).write_bytes(body)
        self.answer(b"", {})

    def commit(self, folder, repo, lines):
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                (folder / value["path"]).write_bytes(base64.b64decode(value["content"]))
            elif line["key"] == "lfsFile":
                (folder / value["path"]).write_bytes((self.place / value["oid"]).read_bytes())
            else:
                assert line["key"] == "header", line
        self.json({"commitUrl": f"{self.address()}/{repo}/commit/{COMMIT}", "commitOid": COMMIT})

    # --- answers

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
def serving(place: Path, **repositories: Path) -> Iterator[str]:
    """The address of a hub without repositories, tokens and faults. place: where what is pushed lies."""
    Hub.repositories, Hub.tokens, Hub.private, Hub.place = dict(repositories), {}, set(), place
    Hub.breaks_at, Hub.asked = None, []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
