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


def fetch(tmp_path, sha256):
    return package_index.fetch("Own_Tiny", NAME, sha256, tmp_path / "cache")


def refused(tmp_path, sha256):
    """The one line that says why it could not be fetched; nothing is left behind."""
    with pytest.raises(DataError) as error:
        fetch(tmp_path, sha256)
    assert "\n" not in str(error.value)
    assert f"put the file with sha256 {sha256} into {tmp_path / 'cache'}" in str(error.value)
    assert not (tmp_path / "cache").exists() or not list((tmp_path / "cache").iterdir())
    return str(error.value)


PAGES = {
    "HTML, absolute": lambda url, sha: html(f'<a href="{url}/files/a.tar.gz#sha256={sha}">{NAME}</a>'),
    "HTML, relative": lambda url, sha: html(f'<a href="../../files/a.tar.gz#sha256={sha.upper()}">a</a>'),
    "HTML, from the root": lambda url, sha: html(f'<a href="/files/a.tar.gz#sha256={sha}">{NAME}</a>'),
    "HTML, a base": lambda url, sha: html(f'<base href="/files/"><a href="a.tar.gz#sha256={sha}">a</a>'),
    "HTML, no hash": lambda url, sha: html(f'<a href="../../files/{NAME}">{NAME}</a>'),
    "JSON, absolute": lambda url, sha: listing((f"{url}/files/a.tar.gz", NAME, {"sha256": sha})),
    "JSON, relative": lambda url, sha: listing(("../../files/a.tar.gz", NAME, {"sha256": sha})),
    "JSON, no sha256": lambda url, sha: listing((f"{url}/files/a.tar.gz", NAME, {"blake2b": "0"})),
}


@pytest.mark.parametrize("page", PAGES)
def test_it_is_found_by_its_hash_kept_and_never_built(index, pip, archive, tmp_path, page):
    content, sha256 = archive
    index.pages = {"/simple/own-tiny/": PAGES[page](index.url, sha256)}
    index.pages |= dict.fromkeys(("/files/a.tar.gz", f"/files/{NAME}"), ("application/gzip", content))
    pip(index_url=f"{index.url}/simple")
    found = fetch(tmp_path, sha256)
    assert found == tmp_path / "cache" / NAME
    assert found.read_bytes() == content
    assert not (tmp_path / "touched").exists()
    assert [path.name for path in found.parent.iterdir()] == [NAME]
    asked = len(index.asked)
    assert asked == 2
    index.pages, index.login = {}, "nobody:nothing"
    assert fetch(tmp_path, sha256) == found  # from the cache
    assert len(index.asked) == asked


def test_what_lies_in_the_cache_is_checked_too(index, pip, archive, tmp_path):
    content, sha256 = archive
    index.pages = {"/own-tiny/": html(f'<a href="/a#sha256={sha256}">a</a>'), "/a": ("", content)}
    pip(index_url=index.url)
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / NAME).write_bytes(content[:-1])
    assert fetch(tmp_path, sha256).read_bytes() == content


def test_a_tampered_file_is_refused(index, pip, archive, tmp_path):
    content, sha256 = archive
    index.pages = {"/own-tiny/": html(f'<a href="/a#sha256={sha256}">a</a>'), "/a": ("", content + b"\0")}
    pip(index_url=index.url)
    line = refused(tmp_path, sha256)
    assert line.startswith(f"{NAME} could not be fetched: {index.url}/a is another file (its sha256 differs)")


def test_a_file_of_the_same_name_with_another_hash_is_not_fetched(serve, index, pip, archive, tmp_path):
    content, sha256 = archive
    index.pages = {"/own-tiny/": listing((f"/{NAME}", NAME, {"sha256": WRONG})), f"/{NAME}": ("", b"other")}
    pip(index_url=index.url)
    assert f"{index.url}/own-tiny/ lists another file of that name. Name " in refused(tmp_path, sha256)
    assert [path for path, _ in index.asked] == ["/own-tiny/"]
    other = serve()  # which has it
    other.pages = {"/own-tiny/": html(f'<a href="a#sha256={sha256}">a</a>'), "/own-tiny/a": ("", content)}
    pip(extra_index_url=other.url)
    assert fetch(tmp_path, sha256).read_bytes() == content


def test_an_index_without_the_file_or_the_project_says_so(index, pip, tmp_path):
    pip(index_url=index.url)
    assert f"{index.url}/own-tiny/ is not there (404)" in refused(tmp_path, WRONG)
    index.pages = {"/own-tiny/": html('<a href="own-tiny-0.9.tar.gz#sha256=1">own-tiny-0.9.tar.gz</a>')}
    assert f"{index.url}/own-tiny/ lists no such file" in refused(tmp_path, WRONG)
    for text in (b"[" * 100_000, b"[]", b'{"files": [1]}', b"{"):
        index.pages = {"/own-tiny/": (package_index.JSON, text)}
        assert "gives no list of files as an index does" in refused(tmp_path, WRONG)


def test_no_index_and_none_that_answers(pip, tmp_path):
    pip(index_url="http://127.0.0.1:9/simple")
    assert "http://127.0.0.1:9/simple/own-tiny/ cannot be reached (Conn" in refused(tmp_path, WRONG)
    pip(no_index=1)
    assert "pip is told to ask no index (no-index) and has no find-links" in refused(tmp_path, WRONG)


@pytest.mark.usefixtures("process")
def test_a_python_without_pip_is_told_how_to_get_it(monkeypatch, tmp_path):
    for content, why in (("", "No module named pip.__main__"), ("raise SystemExit('broken')", "(broken)")):
        (tmp_path / "pip").mkdir(exist_ok=True)
        (tmp_path / "pip" / "__init__.py").write_text(content)
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
        assert "pip, which knows the package index, does not run" in (line := refused(tmp_path, WRONG))
        assert why in line
        assert ("ensurepip" in line) == ("No module" in why)


def test_a_password_goes_to_its_own_host_alone_and_into_no_message(serve, index, pip, archive, tmp_path):
    content, sha256 = archive
    index.login, other = "me:a@b", serve()
    index.pages = {"/simple/own-tiny/": html(f'<a href="{index.url}/a#sha256={sha256}">a</a>')}
    index.pages["/a"] = ("", content)
    pip(index_url=f"{index.url}/simple")
    assert "refuses to answer (401; a name and password belong into" in refused(tmp_path, sha256)
    known = index.url.replace("//", "//me:a%40b@")
    pip(index_url=f"{known}/simple/")
    assert fetch(tmp_path, sha256).read_bytes() == content
    index.pages["/simple/own-tiny/"] = html(f'<a href="{other.url}/a#sha256={WRONG}">a</a>')
    assert f"{other.url}/a is not there (404)" in (line := refused(tmp_path / "new", WRONG))
    assert "a%40b" not in line
    assert other.asked == [("/a", None)]
    index.pages["/simple/own-tiny/"] = ("redirect", f"{other.url}/moved")
    assert f"{index.url}/simple/own-tiny/ is not there" in (line := refused(tmp_path / "new", WRONG))
    assert "a%40b" not in line
    assert other.asked[1:] == [("/moved", None)]


def test_pips_files_count_as_pip_reads_them(index, real_pip, archive, monkeypatch, tmp_path):
    content, sha256 = archive
    index.pages = {"/b/own-tiny/": html(f'<a href="/a#sha256={sha256}">a</a>'), "/a": ("", content)}
    file = tmp_path / "pip.conf"
    lines = ["[global]", f"index_url = {index.url}/a", "timeout = 7"]
    lines += ["[download]", f"index-url = {index.url}/b", "[install]", "no-index = 1"]
    file.write_text("\n".join(lines))
    monkeypatch.setenv("PIP_CONFIG_FILE", str(file))
    assert fetch(tmp_path, sha256).read_bytes() == content
    assert package_index.pip_settings()["timeout"] == "7"
    real_pip(timeout=8, extra_index_url=f"{index.url}/c\n{index.url}/d")
    assert package_index.pip_settings()["timeout"] == "8"
    pages = package_index._pages(package_index.pip_settings(), "Own_Tiny")
    assert [urlsplit(page).path for page in pages] == ["/b/own-tiny/", "/c/own-tiny/", "/d/own-tiny/"]


def test_pip_tells_a_password(index, real_pip, archive, tmp_path):
    content, sha256 = archive
    index.login = "me:a@b"
    index.pages = {"/own-tiny/": html(f'<a href="a#sha256={sha256}">a</a>'), "/own-tiny/a": ("", content)}
    real_pip(index_url=index.url.replace("//", "//me:a%40b@"))
    assert fetch(tmp_path, sha256).read_bytes() == content


def test_folders_do_as_an_index(pip, archive, tmp_path):
    content, sha256 = archive
    links, mirror = tmp_path / "my-links", tmp_path / "mirror"
    (mirror / "own-tiny").mkdir(parents=True)
    links.mkdir()
    (links / NAME).write_bytes(content)
    pip(no_index=1, find_links=links)
    assert fetch(tmp_path / "one", sha256).read_bytes() == content
    (links / NAME).write_bytes(b"other")
    assert "is another file (its sha256 differs)" in refused(tmp_path, sha256)
    (links / NAME).unlink()
    os.mkfifo(links / NAME)
    assert f"{NAME} is not there" in refused(tmp_path, sha256)
    (mirror / "own-tiny" / "index.html").write_text(f'<a href="kept/a#sha256={sha256}">a</a>')
    (mirror / "own-tiny" / "kept").mkdir()
    (mirror / "own-tiny" / "kept" / "a").write_bytes(content)
    pip(no_index=0, index_url=mirror)
    assert fetch(tmp_path / "two", sha256).read_bytes() == content


def test_a_page_of_the_network_names_no_file_of_this_machine(index, pip, archive, tmp_path):
    content, sha256 = archive
    (tmp_path / "secret").write_bytes(content)
    index.pages = {"/own-tiny/": html(f'<a href="{(tmp_path / "secret").as_uri()}#sha256={sha256}">a</a>')}
    pip(index_url=index.url)
    assert "lists no such file" in refused(tmp_path, sha256)


def test_a_file_without_an_end_is_given_up(index, pip, archive, monkeypatch, tmp_path):
    content, sha256 = archive
    index.pages = {"/own-tiny/": html(f'<a href="/a#sha256={sha256}">a</a>'), "/a": ("", content)}
    monkeypatch.setattr(package_index, "LARGEST", len(content) - 1)
    pip(index_url=index.url)
    assert f"{index.url}/a has more than 0 MB" in refused(tmp_path, sha256)


def test_without_settings_it_is_the_index_that_pip_asks(real_pip):
    settings = package_index.pip_settings()
    assert settings.keys() <= {"config-file"}
    (page,) = package_index._pages(settings, "Own.Tiny")
    assert page == f"{package_index.default_index()}/own-tiny/"
    assert page.startswith("https://")


def test_the_reader_is_set_up_as_pip_is(tmp_path):
    settings = {"cert": "/ca.pem", "client-cert": "/me.pem", "proxy": "http://127.0.0.1:9"}
    reader = package_index._Reader(settings | {"trusted-host": "a b:8", "default-timeout": "3"})
    asked = []

    class Answer:
        status_code, headers, url = 200, {"Content-Type": "text/html"}, ""

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def iter_content(self, _):
            return []

    reader.session.get = lambda address, **more: asked.append(more) or Answer()
    for page in ("https://a:1/", "https://b/", "https://b:8/", "https://c/"):
        assert reader.links(page) == []
    assert [one["verify"] for one in asked] == [False, "/ca.pem", False, "/ca.pem"]
    assert {one["timeout"] for one in asked} == {3.0}
    assert asked[0]["proxies"]["https"] == "http://127.0.0.1:9"
    assert reader.session.cert == "/me.pem"
    with pytest.raises(package_index._UnavailableError, match="cannot be reached"):
        package_index._Reader({"cert": str(tmp_path / "none.pem")}).links("https://127.0.0.1:9/")


def test_a_proxy_that_is_not_there(index, pip, tmp_path):
    pip(index_url=index.url, proxy="http://127.0.0.1:9")
    assert "is behind a proxy that does not answer (PIP_PROXY)" in refused(tmp_path, WRONG)
