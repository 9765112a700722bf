"""A source archive comes from the index that pip is configured with, by its sha256, and is not run."""

import base64
import hashlib
import http.server
import io
import json
import os
import ssl
import tarfile
import threading

import pytest

from tasks import DataError
from tasks.fetch import package_index

pytestmark = pytest.mark.properties

NAME, WRONG = "own-tiny-1.0.tar.gz", "0" * 64


class Index(http.server.ThreadingHTTPServer):
    """Answers with what `pages` holds: path -> content, JSON, or an address to go to. `login`: the
    name:password that it wants."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.pages, self.asked, self.login = {}, [], None
        self.url = f"http://127.0.0.1:{self.server_port}"


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        index, given = self.server, self.headers["Authorization"]
        index.asked.append((self.path, given))
        wanted = index.login and f"Basic {base64.b64encode(index.login.encode()).decode()}"
        page = index.pages.get(self.path)
        moved = isinstance(page, str) and page.startswith("http")
        status = 404 if page is None else 302 if moved else 200
        self.send_response(401 if wanted and given != wanted else status)
        kind = "application/vnd.pypi.simple.v1+json" if isinstance(page, dict) else "text/html"
        self.send_header(*(("Location", page) if moved else ("Content-Type", kind)))
        self.end_headers()
        content = json.dumps(page) if isinstance(page, dict) else page or ""
        self.wfile.write(content if isinstance(content, bytes) else content.encode())

    def log_message(self, *_):
        pass


@pytest.fixture
def serve():
    """Starts an index on this machine."""
    running = []

    def start():
        running.append(Index())
        threading.Thread(target=running[-1].serve_forever, args=(0.01,), daemon=True).start()
        return running[-1]

    yield start
    for index in running:
        index.shutdown()
        index.server_close()


@pytest.fixture
def index(serve):
    return serve()


@pytest.fixture
def bare(monkeypatch):
    """pip has no options of this machine's."""
    for name in [name for name in os.environ if name.startswith("PIP_") or name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)


@pytest.fixture
def pip(bare, monkeypatch):
    """Sets its options without it: it takes a second to start."""
    found = {}
    monkeypatch.setattr(package_index, "pip_settings", lambda: found)
    return lambda **options: found.update({k.replace("_", "-"): str(v) for k, v in options.items()})


@pytest.fixture
def archive(tmp_path):
    """A source archive whose setup.py would leave a file behind, and its sha256."""
    content = io.BytesIO()
    setup = f"open({str(tmp_path / 'touched')!r}, 'w')\nimport setuptools\nsetuptools.setup()\n"
    with tarfile.open(fileobj=content, mode="w:gz") as file:
        member = tarfile.TarInfo("own-tiny-1.0/setup.py")
        member.size = len(setup)
        file.addfile(member, io.BytesIO(setup.encode()))
    return content.getvalue(), hashlib.sha256(content.getvalue()).hexdigest()


def link(sha256, url=f"/{NAME}"):
    return f'<!DOCTYPE html><html><body><a href="{url}#sha256={sha256}">a</a></body></html>'


def listing(url, hashes):
    """PEP 691's JSON."""
    files = [{"filename": NAME, "url": url, "hashes": hashes}]
    return {"meta": {"api-version": "1.0"}, "name": "own-tiny", "files": files}


def fetch(folder, sha256):
    package_index.fetch("Own_Tiny", sha256, folder / "new" / NAME)
    assert [path.name for path in (folder / "new").iterdir()] == [NAME]
    return (folder / "new" / NAME).read_bytes()


def refused(tmp_path, sha256=WRONG):
    """The one line that says why it could not be fetched; nothing is left behind."""
    with pytest.raises(DataError) as error:
        fetch(tmp_path / "none", sha256)
    assert "\n" not in str(error.value)
    assert f"PIP_INDEX_URL) or folder (PIP_FIND_LINKS) with the file of sha256 {sha256}" in str(error.value)
    assert not list((tmp_path / "none" / "new").iterdir())
    return str(error.value)


def test_it_is_found_by_its_hash_and_never_built(serve, index, pip, archive, tmp_path):
    content, sha256 = archive
    pip(index_url=f"{index.url}/simple")
    for page in (
        link(sha256, f"../../{NAME}"),
        f'<a href="/{NAME}">{NAME}</a>',
        listing(f"{index.url}/{NAME}", {"sha256": sha256}),
        listing(f"{index.url}/{NAME}", {"blake2b": "0"}),
    ):
        index.pages = {"/simple/own-tiny/": page, f"/{NAME}": content}
        assert fetch(tmp_path, sha256) == content
    assert not (tmp_path / "touched").exists()
    index.pages[f"/{NAME}"] = b"other"
    assert sha256 in refused(tmp_path, sha256)
    index.pages["/simple/own-tiny/"] = listing(f"/{NAME}", {"sha256": WRONG})
    assert "no index that pip is told to ask lists it" in refused(tmp_path, sha256)
    other = serve()  # which has it
    other.pages = {"/own-tiny/": link(sha256, NAME), f"/own-tiny/{NAME}": content}
    pip(extra_index_url=other.url)
    assert fetch(tmp_path, sha256) == content


def test_an_index_that_does_not_answer_and_settings_that_do_not_do_are_one_line(index, pip, tmp_path):
    pip(index_url=index.url)
    assert f"{index.url}/own-tiny/" in refused(tmp_path)
    pip(proxy="http://127.0.0.1:9")
    refused(tmp_path)
    pip(no_index=1)
    assert "no index that pip is told to ask" in refused(tmp_path)
    pip(cert=tmp_path / "none.pem")
    refused(tmp_path)


def test_a_password_goes_to_its_own_host_alone_and_into_no_message(serve, index, pip, archive, tmp_path):
    content, sha256 = archive
    index.login, other = "me:a@b", serve()
    index.pages = {"/own-tiny/": link(sha256), f"/{NAME}": content}
    pip(index_url=index.url)
    assert "401" in refused(tmp_path, sha256)
    pip(index_url=index.url.replace("//", "//me:a%40b@"))
    assert fetch(tmp_path, sha256) == content
    for page in (link(WRONG, f"{other.url}/{NAME}"), f"{other.url}/moved"):
        index.pages["/own-tiny/"] = page
        assert "a%40b" not in refused(tmp_path)
    assert other.asked == [(f"/{NAME}", None), ("/moved", None)]


@pytest.mark.usefixtures("process")
def test_pips_files_and_environment_count_as_pip_reads_them(index, bare, archive, monkeypatch, tmp_path):
    content, sha256 = archive
    index.pages = {"/b/own-tiny/": link(sha256), f"/{NAME}": content}
    lines = ["[global]", f"index_url = {index.url}/a", "timeout = 7"]
    lines += ["[download]", f"index-url = {index.url}/b", "[install]", "no-index = 1"]
    (tmp_path / "pip.conf").write_text("\n".join(lines))
    monkeypatch.setenv("PIP_CONFIG_FILE", str(tmp_path / "pip.conf"))
    assert fetch(tmp_path, sha256) == content
    monkeypatch.setenv("PIP_TIMEOUT", "8")
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", f"{index.url}/c\n{index.url}/d")
    finder = package_index.package_finder(package_index.pip_settings())
    assert [source["url"] for source in finder.sources] == [f"{index.url}/{name}" for name in "bcd"]
    assert finder.session.timeout.connect == 8.0
    (tmp_path / "pip").mkdir()
    (tmp_path / "pip" / "__init__.py").write_text("raise SystemExit('broken')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert "pip does not run (broken)" in refused(tmp_path)


def test_folders_and_hosts_are_pips(pip, archive, tmp_path):
    (content, sha256), links, mirror = archive, tmp_path / "my-links", tmp_path / "mirror"
    (mirror / "own-tiny").mkdir(parents=True)
    links.mkdir()
    (links / NAME).write_bytes(content)
    pip(no_index=1, find_links=links)
    assert fetch(tmp_path, sha256) == content
    assert (links / NAME).read_bytes() == content
    (links / NAME).unlink()
    (mirror / "own-tiny" / "index.html").write_text(link(sha256, NAME))
    (mirror / "own-tiny" / NAME).write_bytes(content)
    pip(no_index=0, index_url=mirror)
    assert fetch(tmp_path, sha256) == content
    authority = ssl.get_default_verify_paths().cafile
    settings = {"trusted-host": "a b:8"} | ({"cert": authority} if authority else {})
    finder = package_index.package_finder(settings)
    assert {"a", "b"} <= {host for _, host, _ in finder.session.iter_secure_origins()}
    (source,) = finder.sources  # unearth's own default
    assert source["url"].startswith("https://")
