"""The report of records with payloads in every text: parsed, and opened in a browser where there is one."""

import copy
import re
import tempfile
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from ledgers import record
from tiers import ALL_TESTS

from analysis.report import main
from attack.cases import Case, Home, WrongError
from runs.record import write_record

CHROMIUM, DRIVER = Path("/usr/bin/chromium"), Path("/usr/bin/chromedriver")
RUN = "window.ran=1"
PAYLOADS = [
    f"<img src=x onerror={RUN}>",
    f"</script ><script>{RUN}</script>",
    f"<!--<script>{RUN}//--></script>",
    f"\"'><svg onload={RUN}>",
    f"javascript:{RUN}",
    f'" autofocus onfocus="{RUN}" x="',
    f"&lt;img src=x onerror={RUN}&gt;",
    f"&#60;script&#62;{RUN}&#60;/script&#62;",
    f"<iframe srcdoc='<script>parent.{RUN}</script>'>",
    f"</title></style></textarea><script>{RUN}</script>",
    f"<a href=javascript:{RUN}>x</a>",
    f"'-({RUN})-'",
    f"${{{RUN}}}",
    f'\\"+({RUN})+\\"',
    f"\u2028{RUN}\u2029",
    f"\ufeff<\u017fcript>{RUN}</\u017fcript>",
    f"<base href=http://127.0.0.1:9/><meta http-equiv=refresh content=0;url=javascript:{RUN}>",
]
#: Texts that the commands compare with words of their own: another value would only take the record out of
#: the page.
KEPT = ("reported", "id", "status", "kind", "metric", "select", "schema")


def cases(home: Home) -> Iterator[Case]:
    number, place = 120 if home.short else 500, home.place()
    dice = home.dice("page")
    for i in range(number):
        made = record(row=["vera", "lora", "bitfit"][i % 3], seed=i, task=["rte", "cola", "reviews"][i % 3])
        made["id"] = f"{i:012x}"
        write_record(place, poisoned(made, dice, always=i % 2 == 0))
    benign = home.place()
    write_record(benign, record())
    paths = {}
    for name, output in (("hostile", place), ("benign", benign)):
        if main([f"output={output}"]):
            raise WrongError("the report is not made")
        paths[name] = output / "report.html"
    text = paths["hostile"].read_text()
    bare = home.file("bare.html", re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", text))
    control = home.file("control.html", bare.read_text().replace("</body>", PAYLOADS[0] + "</body>"))
    kind = f"labels, ids and errors of {number} records"
    yield Case(kind, "parsed", lambda: parsed(text, paths["benign"].read_text()), "taken", number)
    if (CHROMIUM.exists() and DRIVER.exists()) or ALL_TESTS:
        known: dict[str, Any] = {
            "expected": "taken",
            "seconds": 60,
            "patience": 200,
            "megabytes": float("inf"),
            "network": True,
        }
        yield Case(
            f"{kind}, in chromium", "as it is", lambda: opened(paths["hostile"]), tried=number, **known
        )
        yield Case(f"{kind}, in chromium", "without its policy", lambda: opened(bare), tried=number, **known)
        yield Case("a payload that does run is noticed", "control", lambda: noticed(control), **known)


def poisoned(node: Any, dice: Any, always: bool) -> Any:
    """A record whose texts hold payloads: all of them, or half of them."""
    if isinstance(node, dict):
        return {
            key: value if key in KEPT else poisoned(value, dice, always)
            for key, value in copy.copy(node).items()
        }
    if isinstance(node, list):
        return [poisoned(value, dice, always) for value in node]
    if isinstance(node, str) and (always or dice.random() < 0.3):
        return node + dice.choice(PAYLOADS)
    return node


class Elements(HTMLParser):
    """The kinds of elements of a page with their attributes, and where they lead."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.kinds: set[tuple[str, ...]] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.kinds |= {(tag, name) for name, _ in attrs} | {(tag,)}
        for name, value in attrs:
            if name in ("src", "href", "action", "srcset") and not re.match(r"#|data:image/|$", value or ""):
                self.kinds.add((tag, name, value or ""))
            if name.startswith("on"):
                self.kinds.add((tag, name, value or ""))


def parsed(text: str, benign: str) -> None:
    """The page has the kinds of elements and attributes of one without payloads, and two scripts."""
    more = Elements(text).kinds - Elements(benign).kinds
    plain = {
        ("th", "rowspan"),
        ("ol",),
        ("li",),
        ("ul",),
        ("details",),
        ("summary",),
        ("p", "class"),
        ("td", "class"),
    }
    strange = {
        kind
        for kind in more - plain
        if kind[0] in ("script", "iframe", "svg", "base", "meta", "title") or len(kind) == 3
    }
    strange |= {kind for kind in more if kind[-1] in ("onerror", "onload", "onfocus", "srcdoc", "autofocus")}
    if strange or len(re.findall(r"<script", text)) != len(re.findall(r"<script", benign)):
        raise WrongError(f"elements that are not the page's: {sorted(strange)[:5]}")


def browser() -> Any:
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for word in (
        "headless=new",
        "no-sandbox",
        "no-first-run",
        "disable-gpu",
        "disable-background-networking",
    ):
        options.add_argument(f"--{word}")
    options.add_argument(f"--user-data-dir={tempfile.mkdtemp()}")
    return webdriver.Chrome(options, Service(str(DRIVER)))


VISIT = """
const done = arguments[0];
(async () => {
  const pause = () => new Promise(go => setTimeout(go, 5));
  const all = [...document.querySelectorAll('[id]')], step = Math.ceil(all.length / 200);
  const places = all.filter((_, i) => i % step === 0);
  for (const place of places) { location.hash = place.id; await pause(); }
  for (const details of document.querySelectorAll('details')) details.open = true;
  for (const field of document.querySelectorAll('[data-filter]')) for (const words of ['vera', '<b>', '']) {
    field.value = words; field.dispatchEvent(new Event('input', {bubbles: true})); await pause(); }
  dispatchEvent(new Event('beforeprint'));
  const strangers = document.querySelectorAll('img[src=x], svg[onload], iframe, base').length;
  done([places.length, window.ran || 0, strangers]);
})();
"""


def opened(path: Path) -> None:
    """Every drawer is opened, 200 places visited, each filter typed into: nothing of the payloads has run."""
    driver = browser()
    try:
        driver.set_script_timeout(150)
        driver.get(path.as_uri())
        places, ran, elements = driver.execute_async_script(VISIT)
    finally:
        driver.quit()
    if ran or elements or places < 20:
        raise WrongError(
            f"of {places} places that were opened: executed {ran}, elements of payloads {elements}"
        )


def noticed(path: Path) -> None:
    """A page whose payload does run is told apart: the check can fail."""
    try:
        opened(path)
    except WrongError as error:
        if "executed 1" in str(error):
            return
    raise WrongError("a payload that runs is not noticed")
