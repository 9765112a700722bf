"""A source archive comes from the index that pip is configured with, by its sha256, and is not run."""

import base64
import hashlib
import http.server
import io
import json
import os
import tarfile
import threading
from urllib.parse import urlsplit

import pytest

from tasks import DataError
from tasks.fetch import package_index

pytestmark = pytest.mark.properties

NAME = "own-tiny-1.0.tar.gz"
WRONG = "0" * 64


class Index(http.server.ThreadingHTTPServer):
    """Answers with what `pages` holds: path -> (type, content). `login`: the name:password that it wants."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.pages, self.asked, self.login = {}, [], None
        self.url = f"http://127.0.0.1:{self.server_port}"


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        index, path = self.server, urlsplit(self.path).path
        index.asked.append((path, self.headers["Authorization"]))
        wanted = index.login and f"Basic {base64.b64encode(index.login.encode()).decode()}"
        kind, content = index.pages.get(path, ("missing", b""))
        status = {"missing": 404, "redirect": 302}.get(kind, 200)
        self.send_response(401 if wanted and self.headers["Authorization"] != wanted else status)
        header = ("Location", content) if status == 302 else ("Content-Type", kind)
        self.send_header(*header)
        self.end_headers()
        if status == 200:
            self.wfile.write(content)

    def log_message(self, *_):
        pass


@pytest.fixture
def serve():
    """Starts an index on this machine."""
    running = []

    def start():
        running.append(Index())
        threading.Thread(target=running[-1].serve_forever, daemon=True).start()
        return running[-1]

    yield start
    for index in running:
        index.shutdown()
        index.server_close()


@pytest.fixture
def index(serve):
    return serve()


@pytest.fixture
def real_pip(process, monkeypatch):
    """Sets options of pip, which has no others: not this machine's. It takes a second to start."""
    for name in [name for name in os.environ if name.startswith("PIP_") or name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)

    def settings(**options):
        for key, value in options.items():
            monkeypatch.setenv(f"PIP_{key.upper()}", str(value))

    return settings


@pytest.fixture
def pip(monkeypatch):
    """The same without pip."""
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    found = {}
    monkeypatch.setattr(package_index, "pip_settings", lambda: found)

    def settings(**options):
        found.update({key.replace("_", "-"): str(value) for key, value in options.items()})

    return settings


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


def html(*lines):
    body = "".join(lines)
    return "text/html; charset=utf-8", f"<!DOCTYPE html><html><body>{body}</body></html>".encode()


def listing(*files):
    """PEP 691's JSON. files: (url, name, hashes)."""
    of = [{"filename": name, "url": url, "hashes": hashes} for url, name, hashes in files]
    answer = {"meta": {"api-version": "1.0"}, "name": "own-tiny", "files": of}
    return "application/vnd.pypi.simple.v1+json", json.dumps(answer).encode()


def fetch(folder, sha256):
    package_index.fetch("Own_Tiny", sha256, folder / "new" / NAME)
    assert [path.name for path in (folder / "new").iterdir()] == [NAME]
    return (folder / "new" / NAME).read_bytes()


def refused(tmp_path, sha256):
    """The one line that says why it could not be fetched; nothing is left behind."""
    with pytest.raises(DataError) as error:
        fetch(tmp_path / "none", sha256)
    assert "\n" not in str(error.value)
    assert f"PIP_INDEX_URL) or folder (PIP_FIND_LINKS) with the file of sha256 {sha256}" in str(error.value)
    assert not list((tmp_path / "none" / "new").iterdir())
    return str(error.value)


PAGES = {
    "HTML, relative": lambda url, sha: html(f'<a href="../../files/{NAME}#sha256={sha}">a</a>'),
    "HTML, no hash": lambda url, sha: html(f'<a href="../../files/{NAME}">{NAME}</a>'),
    "JSON, absolute": lambda url, sha: listing((f"{url}/files/{NAME}", NAME, {"sha256": sha})),
    "JSON, no sha256": lambda url, sha: listing((f"{url}/files/{NAME}", NAME, {"blake2b": "0"})),
}


@pytest.mark.parametrize("page", PAGES)
def test_it_is_found_by_its_hash_kept_and_never_built(index, pip, archive, tmp_path, page):
    content, sha256 = archive
    index.pages = {"/simple/own-tiny/": PAGES[page](index.url, sha256)}
    index.pages[f"/files/{NAME}"] = ("application/gzip", content)
    pip(index_url=f"{index.url}/simple")
    assert fetch(tmp_path, sha256) == content
    assert not (tmp_path / "touched").exists()


def test_another_file_is_refused_whatever_its_name(serve, index, pip, archive, tmp_path):
    content, sha256 = archive
    index.pages = {"/own-tiny/": html(f'<a href="/{NAME}#sha256={sha256}">a</a>'), f"/{NAME}": ("", b"other")}
    pip(index_url=index.url)
    assert sha256 in refused(tmp_path, sha256)
    index.pages["/own-tiny/"] = listing((f"/{NAME}", NAME, {"sha256": WRONG}))
    refused(tmp_path, sha256)
    other = serve()  # which has it
    other.pages = {"/own-tiny/": html(f'<a href="{NAME}#sha256={sha256}">a</a>')}
    other.pages[f"/own-tiny/{NAME}"] = ("", content)
    pip(extra_index_url=other.url)
    assert fetch(tmp_path, sha256) == content


def test_an_index_that_has_nothing_or_does_not_answer_is_one_line(index, pip, tmp_path):
    pip(index_url=index.url)
    assert f"{index.url}/own-tiny/" in refused(tmp_path, WRONG)
    index.pages = {"/own-tiny/": html('<a href="own-tiny-0.9.tar.gz#sha256=1">own-tiny-0.9.tar.gz</a>')}
    assert "no index that pip is told to ask lists it" in refused(tmp_path, WRONG)
    pip(index_url="http://127.0.0.1:9/simple")
    refused(tmp_path, WRONG)
    pip(index_url=index.url, proxy="http://127.0.0.1:9")
    refused(tmp_path, WRONG)
    pip(no_index=1)
    assert "no index that pip is told to ask" in refused(tmp_path, WRONG)
    pip(cert=tmp_path / "none.pem")
    refused(tmp_path, WRONG)


@pytest.mark.usefixtures("process")
def test_a_python_without_pip_is_one_line(monkeypatch, tmp_path):
    (tmp_path / "pip").mkdir()
    (tmp_path / "pip" / "__init__.py").write_text("raise SystemExit('broken')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert "pip does not run (broken)" in refused(tmp_path, WRONG)


def test_a_password_goes_to_its_own_host_alone_and_into_no_message(serve, index, pip, archive, tmp_path):
    content, sha256 = archive
    index.login, other = "me:a@b", serve()
    index.pages = {"/simple/own-tiny/": html(f'<a href="{index.url}/{NAME}#sha256={sha256}">a</a>')}
    index.pages[f"/{NAME}"] = ("", content)
    pip(index_url=f"{index.url}/simple")
    assert "401" in refused(tmp_path, sha256)
    pip(index_url=f"{index.url.replace('//', '//me:a%40b@')}/simple/")
    assert fetch(tmp_path, sha256) == content
    index.pages["/simple/own-tiny/"] = html(f'<a href="{other.url}/{NAME}#sha256={WRONG}">a</a>')
    assert "a%40b" not in refused(tmp_path, WRONG)
    assert other.asked == [(f"/{NAME}", None)]
    index.pages["/simple/own-tiny/"] = ("redirect", f"{other.url}/moved")
    assert "a%40b" not in refused(tmp_path, WRONG)
    assert other.asked[1:] == [("/moved", None)]


def test_pips_files_and_environment_count_as_pip_reads_them(index, real_pip, archive, monkeypatch, tmp_path):
    content, sha256 = archive
    index.pages = {
        "/b/own-tiny/": html(f'<a href="/{NAME}#sha256={sha256}">a</a>'),
        f"/{NAME}": ("", content),
    }
    file = tmp_path / "pip.conf"
    lines = ["[global]", f"index_url = {index.url}/a", "timeout = 7"]
    lines += ["[download]", f"index-url = {index.url}/b", "[install]", "no-index = 1"]
    file.write_text("\n".join(lines))
    monkeypatch.setenv("PIP_CONFIG_FILE", str(file))
    assert fetch(tmp_path, sha256) == content
    real_pip(timeout=8, extra_index_url=f"{index.url}/c\n{index.url}/d")
    finder = package_index.package_finder(package_index.pip_settings())
    assert [source["url"] for source in finder.sources] == [f"{index.url}/{name}" for name in "bcd"]
    assert finder.session.timeout.connect == 8.0
    index.login = "me:a@b"
    real_pip(index_url=f"{index.url.replace('//', '//me:a%40b@')}/b", extra_index_url="")
    assert fetch(tmp_path, sha256) == content


def test_folders_do_as_an_index(pip, archive, tmp_path):
    content, sha256 = archive
    links, mirror = tmp_path / "my-links", tmp_path / "mirror"
    (mirror / "own-tiny" / "kept").mkdir(parents=True)
    links.mkdir()
    (links / NAME).write_bytes(content)
    pip(no_index=1, find_links=links)
    assert fetch(tmp_path, sha256) == content
    assert (links / NAME).read_bytes() == content
    (links / NAME).write_bytes(b"other")
    refused(tmp_path, sha256)
    (links / NAME).unlink()
    (mirror / "own-tiny" / "index.html").write_text(f'<a href="kept/{NAME}#sha256={sha256}">a</a>')
    (mirror / "own-tiny" / "kept" / NAME).write_bytes(content)
    pip(no_index=0, index_url=mirror)
    assert fetch(tmp_path, sha256) == content


def test_certificates_hosts_and_the_index_are_pip_s(tmp_path):
    import ssl

    authority = ssl.get_default_verify_paths().cafile
    settings = {"trusted-host": "a b:8", "default-timeout": "3"} | ({"cert": authority} if authority else {})
    finder = package_index.package_finder(settings)
    secure = {host for _, host, _ in finder.session.iter_secure_origins()}
    assert {"a", "b"} <= secure
    assert finder.session.timeout.connect == 3.0
    (source,) = finder.sources  # unearth's own default
    assert source["url"].startswith("https://")
