"""Fetches a source archive from the package index of pip's configuration, by its sha256, without building it.

pip cannot: to download a source archive it also runs its setup.py, with the newest setuptools. So this file
reads the index (PEP 503's HTML, PEP 691's JSON) with the settings of `pip config list`, and fetches the one
file. pip's own classes are private and change; `pip config list`, the default index in `pip download --help`
and the two PEPs are public. pip's keyring is not supported: the error then says how to fetch by hand.
"""

import ast
import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote, urldefrag, urljoin, urlsplit, urlunsplit
from urllib.request import url2pathname

from tasks.base import DataError
from tasks.files import whole

#: The most bytes of a page or an archive. The largest pages of an index have 30 MB.
LARGEST = 100_000_000
JSON = "application/vnd.pypi.simple.v1+json"
#: The Accept header for a page of an index, by PEP 691.
PAGES = f"{JSON}, application/vnd.pypi.simple.v1+html;q=0.2, text/html;q=0.1"


class Link(NamedTuple):
    """A file that an index lists."""

    address: str
    name: str
    sha256: str | None  # None: the index gives none
    page: str  # the page that lists it, with the password of its request


class _UnavailableError(Exception):
    """A page or a file is not available. The message is a predicate: "is not there"."""


def fetch(project: str, name: str, sha256: str, folder: Path) -> Path:
    """The file `name` of `project` in `folder`, which is fetched unless it is there already. Raises DataError
    where no index has the file with this sha256."""
    target = folder / name
    if target.is_file() and digest(target) == sha256:
        return target
    mend = f"Name another index (PIP_INDEX_URL), or put the file with sha256 {sha256} into {folder}"
    try:
        settings = pip_settings()
        pages = list(_pages(settings, project))
    except _UnavailableError as failure:
        raise DataError(f"{name}: {failure}. {mend}") from None
    if not pages:
        raise DataError(f"{name}: pip is told to ask no index (no-index) and has no find-links. {mend}")
    reader, why, links = _Reader(settings), list[str](), list[Link]()
    for page in pages:
        try:
            named = [link for link in reader.links(page) if link.sha256 == sha256 or link.name == name]
        except _UnavailableError as failure:
            why.append(f"{shown(page)} {failure}")
            continue
        fitting = [link for link in named if link.sha256 in (sha256, None)]
        if not fitting:
            why.append(f"{shown(page)} lists {'another file of that name' if named else 'no such file'}")
        links += fitting
    for link in sorted(links, key=lambda link: link.sha256 is None):  # those with a hash first
        try:
            with whole(target) as partial:
                with open(partial, "wb") as file:
                    file.writelines(reader.read(link.address, link.page))
                if digest(partial) != sha256:
                    raise _UnavailableError("is another file (its sha256 differs)")
            return target
        except _UnavailableError as failure:
            why.append(f"{shown(link.address)} {failure}")
    raise DataError(f"{name} could not be fetched: {'; '.join(dict.fromkeys(why))}. {mend}")


def pip_settings() -> dict[str, str]:
    """pip's settings for a download: [global] and [download] of its files, and the environment's."""
    sections: dict[str, dict[str, str]] = {"global": {}, "download": {}, ":env:": {}}
    for line in _pip("config", "list").splitlines():
        key, equals, value = line.partition("=")
        section, _, option = key.rpartition(".")
        if equals and section in sections:
            sections[section][option] = str(ast.literal_eval(value))
    return sections["global"] | sections["download"] | sections[":env:"]


def default_index() -> str:
    """pip's default index, from its help."""
    text = _pip("download", "--help")
    match = re.search(r"--index-url\b.*?\(default\s+(\S+?)\)", text, re.DOTALL)
    if match is None:
        raise _UnavailableError("pip's help names no default index")
    return match[1]


def shown(address: str) -> str:
    """An address without the name and password in it."""
    return urlunsplit(urlsplit(address)._replace(netloc=_host(address), fragment=""))


def _pip(*words: str) -> str:
    command = [sys.executable, "-m", "pip", *words]
    environment = {**os.environ, "COLUMNS": "10000"}  # without line breaks in the help
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        mend = ": python -m ensurepip installs it" if "No module named pip" in last else ""
        raise _UnavailableError(f"pip, which knows the package index, does not run ({last}){mend}")
    return done.stdout


def _pages(settings: dict[str, str], project: str) -> Iterator[str]:
    """The addresses of the pages that may list the project's files: the indexes', then find-links."""
    if settings.get("no-index", "").lower() not in ("1", "true", "yes", "on", "y", "t"):
        indexes = [settings.get("index-url") or default_index(), *settings.get("extra-index-url", "").split()]
        for index in indexes:
            yield f"{_address(index).rstrip('/')}/{re.sub(r'[-_.]+', '-', project).lower()}/"
    yield from map(_address, settings.get("find-links", "").split())


def _address(given: str) -> str:
    """A URL as it is given, or that of a path."""
    return given if re.match(r"\w{2,}:", given) else Path(given).expanduser().absolute().as_uri()


class _Reader:
    """Reads pages and files with pip's certificates, proxy, trusted hosts, timeout and passwords."""

    def __init__(self, settings: dict[str, str]) -> None:
        import ssl

        import requests
        from requests.adapters import HTTPAdapter

        class SystemToo(HTTPAdapter):
            """Trusts the system's certificates beside those of requests, as pip does."""

            def init_poolmanager(self, *words: Any, **more: Any) -> None:
                super().init_poolmanager(*words, **more, ssl_context=ssl.create_default_context())

            def proxy_manager_for(self, proxy: str, **more: Any) -> Any:
                more["ssl_context"] = ssl.create_default_context()
                return super().proxy_manager_for(proxy, **more)

        self.errors = requests.exceptions
        self.session = requests.Session()
        self.session.mount("https://", SystemToo(max_retries=2))
        self.trusted = set(settings.get("trusted-host", "").split())
        for host in self.trusted:
            self.session.mount(f"https://{host}", HTTPAdapter(max_retries=2))
        self.certificate: str | bool = settings.get("cert") or True
        self.session.cert = settings.get("client-cert") or None
        proxy = settings.get("proxy")
        self.proxies = {"http": proxy, "https": proxy} if proxy else None
        try:
            self.timeout = float(settings.get("timeout") or settings.get("default-timeout") or 15)
        except ValueError:
            self.timeout = 15.0

    def links(self, page: str) -> list[Link]:
        """The files that a page lists, or those of a folder without index.html. Raises _UnavailableError."""
        local = _local(page)
        if local is not None and local.is_dir():
            if not (local / "index.html").is_file():
                paths = sorted(path.absolute() for path in local.iterdir())
                return [Link(path.as_uri(), path.name, None, page) for path in paths]
            local = local / "index.html"
        head = {"type": "", "address": page}
        if local:
            page = head["address"] = local.absolute().as_uri()
        content, base = b"".join(self.read(page, page, head)), head["address"]
        if head["type"].startswith(JSON):
            files = list(_of_json(content))
        else:
            reader = _Anchors()
            reader.feed(content.decode("utf-8", "replace"))
            base, files = urljoin(base, reader.base), [_of_anchor(href) for href in reader.links]
        links = [Link(urljoin(base, address), name, digest, page) for address, name, digest in files]
        # A page of the network names no file of this machine.
        allowed = ("http", "https", "file") if local else ("http", "https")
        return [link for link in links if urlsplit(link.address).scheme in allowed]

    def read(self, address: str, page: str, head: dict[str, str] | None = None) -> Iterator[bytes]:
        """The content in parts. head: for a page; gets its type, and its address after redirections."""
        local = _local(address)
        if local is not None:
            if not local.is_file():
                raise _UnavailableError("is not there")
            yield local.read_bytes()
            return
        headers = {"Accept-Encoding": "identity"} if head is None else {"Accept": PAGES}
        parts = urlsplit(address)
        more: dict[str, Any] = {"stream": True, "timeout": self.timeout, "proxies": self.proxies}
        more["verify"] = False if {_host(address), parts.hostname} & self.trusted else self.certificate
        more["auth"] = _login(address) or (_login(page) if _origin(page) == _origin(address) else None)
        try:
            with self.session.get(shown(address), headers=headers, **more) as answer:
                _check_status(answer.status_code)
                if head is not None:
                    head |= {"type": answer.headers.get("Content-Type", ""), "address": answer.url}
                size = 0
                for part in answer.iter_content(1 << 20):
                    size += len(part)
                    if size > LARGEST:
                        raise _UnavailableError(f"has more than {LARGEST // 10**6} MB")
                    yield part
        except self.errors.SSLError:
            why = "has a certificate that is not trusted (PIP_CERT names the file of its authority)"
            raise _UnavailableError(why) from None
        except self.errors.ProxyError:
            raise _UnavailableError("is behind a proxy that does not answer (PIP_PROXY)") from None
        except self.errors.Timeout:
            raise _UnavailableError(f"does not answer within {self.timeout:g} s") from None
        except (self.errors.RequestException, OSError, ValueError) as error:  # such as a certificate's path
            raise _UnavailableError(f"cannot be reached ({type(error).__name__})") from None


def _check_status(status: int) -> None:
    if status in (401, 403, 407):
        mend = "a name and password belong into the index's address, or into ~/.netrc"
        raise _UnavailableError(f"refuses to answer ({status}; {mend})")
    if status == 404:
        raise _UnavailableError("is not there (404)")
    if status >= 400:
        raise _UnavailableError(f"answers with an error ({status})")


def _host(address: str) -> str:
    """Host, and port if there is one."""
    return urlsplit(address).netloc.rpartition("@")[2]


def _origin(address: str) -> tuple[str, str]:
    """The scheme and host that a password belongs to. It is sent nowhere else."""
    return urlsplit(address).scheme, _host(address)


def _login(address: str) -> tuple[str, str] | None:
    parts = urlsplit(address)
    return None if parts.username is None else (unquote(parts.username), unquote(parts.password or ""))


class _Anchors(HTMLParser):
    """The links of a page, and its base address if it gives one."""

    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []
        self.base = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        href = dict(attrs).get("href")
        if tag == "base" and href and not self.base:
            self.base = href
        elif tag == "a" and href:
            self.links.append(href)


def _of_anchor(href: str) -> tuple[str, str, str | None]:
    address, fragment = urldefrag(href)
    match = re.search(r"(?:^|&)sha256=([0-9a-fA-F]{64})", fragment)
    return address, unquote(urlsplit(address).path.rpartition("/")[2]), match[1].lower() if match else None


def _of_json(content: bytes) -> Iterator[tuple[str, str, str | None]]:
    try:
        for file in json.loads(content)["files"]:
            digest = file["hashes"].get("sha256")
            yield str(file["url"]), str(file["filename"]), str(digest).lower() if digest else None
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise _UnavailableError("gives no list of files as an index does") from None


def _local(address: str) -> Path | None:
    parts = urlsplit(address)
    return Path(url2pathname(parts.path)) if parts.scheme == "file" else None


def digest(path: Path) -> str:
    """The SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
