"""A file comes from the index that pip is configured with, by its sha256."""

import base64
import hashlib
import os
import ssl

import pytest
from servers import Handler, Server

from tasks import DataError, fetch

pytestmark = pytest.mark.properties

NAME, WRONG = "own-tiny-1.0.tar.gz", "0" * 64
CONTENT = b"a source archive"
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Index(Handler):
    """Answers with what the server's `pages` hold: path -> bytes, text, JSON, or an
    address to go to."""

    def do_GET(self):  # noqa: N802 - as http.server calls it
        index, given = self.server, self.headers["Authorization"]
        index.asked.append((self.path, given))
        page = index.pages.get(self.path)
        moved = isinstance(page, str) and page.startswith("http")
        status = (
            401
            if index.login and given != index.login
            else 404
            if page is None
            else 302
            if moved
            else 200
        )
        kind = (
            "application/vnd.pypi.simple.v1+json"
            if isinstance(page, dict)
            else "text/html"
        )
        sent = (page or "").encode() if isinstance(page, str | None) else page
        self.send(
            sent, status, **({"Location": page} if moved else {"Content-Type": kind})
        )


@pytest.fixture
def indexes():
    """Two indexes on this machine. login: the header that one wants."""
    with Server(Index) as one, Server(Index) as other:
        for index in (one, other):
            index.pages, index.asked, index.login = {f"/{NAME}": CONTENT}, [], None
        yield one, other


@pytest.fixture
def bare(monkeypatch):
    """pip has no options of this machine's."""
    for name in [
        name
        for name in os.environ
        if name.startswith("PIP_") or name.lower().endswith("_proxy")
    ]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)


@pytest.fixture
def pip(bare, monkeypatch):
    """Sets its options without it: it takes a second to start."""
    found = {}
    monkeypatch.setattr(fetch, "pip_settings", lambda: found)
    return lambda **options: found.update(
        {k.replace("_", "-"): str(v) for k, v in options.items()}
    )


def link(sha256=SHA256, url=f"/{NAME}"):
    return f'<!DOCTYPE html><html><body><a href="{url}#sha256={sha256}">a</a></body></html>'


def listing(url, hashes):
    """PEP 691's JSON."""
    files = [{"filename": NAME, "url": url, "hashes": hashes}]
    return {"meta": {"api-version": "1.0"}, "name": "own-tiny", "files": files}


def fetched(folder, sha256=SHA256):
    target = folder / "new" / NAME
    target.unlink(missing_ok=True)
    fetch.fetch_package("Own_Tiny", sha256, target)
    assert [path.name for path in target.parent.iterdir()] == [NAME]
    return target.read_bytes() == CONTENT


def refused(folder, sha256=WRONG):
    """The one line that says why it could not be fetched; nothing is left behind."""
    with pytest.raises(DataError) as error:
        fetched(folder / "none", sha256)
    assert "\n" not in str(error.value)
    assert (
        f"PIP_INDEX_URL) or folder (PIP_FIND_LINKS) with the file of sha256 {sha256}"
        in str(error.value)
    )
    assert not list((folder / "none" / "new").iterdir())
    return str(error.value)


def test_it_is_found_by_its_hash_once_or_refused(indexes, pip, tmp_path):
    index, other = indexes
    pip(index_url=f"{index.url}/simple")
    for page in (
        link(url=f"../../{NAME}"),
        f'<a href="/{NAME}">{NAME}</a>',
        listing(f"{index.url}/{NAME}", {"sha256": SHA256}),
        listing(f"{index.url}/{NAME}", {"blake2b": "0"}),
    ):
        index.pages["/simple/own-tiny/"] = page
        assert fetched(tmp_path)
    asked = len(index.asked)
    fetch.fetch_package("Own_Tiny", SHA256, tmp_path / "new" / NAME)
    assert len(index.asked) == asked
    index.pages[f"/{NAME}"] = b"other"
    assert SHA256 in refused(tmp_path, SHA256)
    index.pages["/simple/own-tiny/"] = listing(f"/{NAME}", {"sha256": WRONG})
    assert "no index that pip is told to ask lists it" in refused(tmp_path, SHA256)
    other.pages |= {"/own-tiny/": link(url=NAME), f"/own-tiny/{NAME}": CONTENT}
    pip(extra_index_url=other.url)
    assert fetched(tmp_path)
    for option, words in (
        (
            {"index_url": f"{other.url}/gone", "extra_index_url": ""},
            f"{other.url}/gone/own-tiny/",
        ),
        *(
            ({"proxy": "http://127.0.0.1:9"}, ""),
            ({"no_index": 1}, "no index that pip is told to ask"),
        ),
        ({"cert": tmp_path / "none.pem"}, ""),
    ):
        pip(**option)
        assert words in refused(tmp_path)


def test_a_password_goes_to_its_own_host_alone_and_into_no_message(
    indexes, pip, tmp_path
):
    index, other = indexes
    index.login = f"Basic {base64.b64encode(b'me:a@b').decode()}"
    index.pages["/own-tiny/"] = link()
    pip(index_url=index.url)
    assert "401" in refused(tmp_path, SHA256)
    pip(index_url=index.url.replace("//", "//me:a%40b@"))
    assert fetched(tmp_path)
    for page in (link(WRONG, f"{other.url}/{NAME}"), f"{other.url}/moved"):
        index.pages["/own-tiny/"] = page
        assert "a%40b" not in refused(tmp_path)
    assert other.asked == [(f"/{NAME}", None), ("/moved", None)]


@pytest.mark.usefixtures("process")
def test_pips_files_and_environment_count_as_pip_reads_them(
    indexes, bare, monkeypatch, tmp_path
):
    url = indexes[0].url
    indexes[0].pages["/b/own-tiny/"] = link()
    lines = ["[global]", f"index_url = {url}/a", "timeout = 7"]
    lines += ["[download]", f"index-url = {url}/b", "[install]", "no-index = 1"]
    (tmp_path / "pip.conf").write_text("\n".join(lines))
    monkeypatch.setenv("PIP_CONFIG_FILE", str(tmp_path / "pip.conf"))
    assert fetched(tmp_path)
    monkeypatch.setenv("PIP_TIMEOUT", "8")
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", f"{url}/c\n{url}/d")
    finder = fetch.package_finder(fetch.pip_settings())
    assert [source["url"] for source in finder.sources] == [
        f"{url}/{name}" for name in "bcd"
    ]
    assert finder.session.timeout.connect == 8.0
    (tmp_path / "pip").mkdir()
    (tmp_path / "pip" / "__init__.py").write_text("raise SystemExit('broken')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert "pip does not run (broken)" in refused(tmp_path)


def test_folders_and_hosts_are_pips(pip, tmp_path):
    (mirror := tmp_path / "mirror" / "own-tiny").mkdir(parents=True)
    (mirror / NAME).write_bytes(CONTENT)
    (mirror / "index.html").write_text(link(url=NAME))
    for options in (
        {"no_index": 1, "find_links": mirror},
        {"no_index": 0, "index_url": mirror.parent},
    ):
        pip(**options)
        assert fetched(tmp_path)
    authority = ssl.get_default_verify_paths().cafile
    finder = fetch.package_finder(
        {"trusted-host": "a b:8"} | ({"cert": authority} if authority else {})
    )
    assert {"a", "b"} <= {host for _, host, _ in finder.session.iter_secure_origins()}
    (source,) = finder.sources  # unearth's own default
    assert source["url"].startswith("https://")
