"""The report: what is in the page, and what a browser makes of it."""

import html
import itertools
import re
from pathlib import Path

import pandas as pd
import pytest
import yaml
from ledgers import expected_difference, ledger, record, seed_records, with_halves
from tiers import ALL_TESTS

from analysis import figures, report, tables
from analysis.frame import runs
from analysis.render import Number
from analysis.report import main
from analysis.rows import RowMaker, RunRow
from analysis.variants import every_variant
from runs.record.ledger import read_ledger, write_record

pytestmark = pytest.mark.properties

ROOT = Path(__file__).parents[1]
CHROMIUM, DRIVER = Path("/usr/bin/chromium"), Path("/usr/bin/chromedriver")
EVIL = "</script ><img src=x onerror=alert(1)>{{ 7 * 7 }}"


def mixed():
    """Two methods on two tasks, a cell with too few seeds, another model, other
    settings, a failed run, a trial, a bad file."""
    first, *others = seed_records()
    # the same means, and 74 cross-fitted
    with_halves(first, (0.58, 0.80, 0.72), (0.58, 0.76, 0.82))
    records = [
        first,
        *others,
        *seed_records("vera", "cola", (0.65, 0.66)),
        record(seed=7, lr=0.1),
    ]
    records[-1]["config"]["task"]["holdout"] = 0.1
    records += seed_records(
        "lora", "cola", (0.56, 0.57, 0.58, 0.59, 0.60), deviations=["max_length 128"]
    )
    records += seed_records("vera", "reviews", (0.84, 0.85, 0.83), model="minilm")
    records += seed_records(bests=(0.5, 0.5), lr=0.5, deviations=["lr 0.5"])
    failed = record(
        "full", status="failed", values=(), error="out of memory at batch 32"
    )
    kept = ("schema", "id", "status", "error", "tries", "cell", "label", "config")
    return ledger(
        *records,
        {key: failed[key] for key in kept},
        problems=["records/bad.json: no record"],
    )


def plain(markup):
    return " ".join(html.unescape(re.sub("<[^>]*>", " ", markup)).split())


def part(text, name):
    return re.search(rf'<h2 id="{name}">.*?(?=<h2|<script)', text, re.S)[0]


def cells(text):
    """The markup of each cell, by its number."""
    found = re.split(r'<details class="cell" id="cell-(\d+)"', part(text, "cells"))[1:]
    return dict(zip(found[::2], found[1::2], strict=True))


@pytest.fixture(scope="module")
def page_and_tables():
    """The page with one figure and the tables that numbers of `mixed` are in, by name.
    The last test has all of each."""
    found, make = {}, tables.tables_of_ledger
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("analysis.figures.FIGURES", {"demo": figures.FIGURES["demo"]})
        patch.setattr(tables, "TABLES", ("table2", "table6", "table7", "demo"))
        patch.setattr(
            tables,
            "tables_of_ledger",
            lambda name, *of: found.setdefault(name, make(name, *of)),
        )
        return report.page(mixed()), found


@pytest.fixture(scope="module")
def page(page_and_tables):
    return page_and_tables[0]


def test_each_number_of_a_table_leads_to_the_cell_of_its_runs(page_and_tables):
    page, found = page_and_tables
    assert len(found) == 4
    links, of, checked = (
        re.findall(r'<a href="#cell-(\d+)">([^<]*)</a>', page),
        cells(page),
        0,
    )
    for table in itertools.chain(*found.values()):
        assert table.title in plain(page)
        for entry in (
            entry for row in table.rows for entry in row if isinstance(entry, Number)
        ):
            shown = str(entry).replace("+-", "±")
            assert f">{shown}<" in page
            targets = [cell for cell, text in links if text == shown and entry.ids]
            checked += bool(targets)
            assert not entry.ids or any(
                all(f">{run}<" in of[cell] for run in entry.ids) for cell in targets
            )
    assert checked == 14


def test_a_verdict_has_both_numbers_and_their_difference(page):
    found = re.search(
        r'data-key="roberta_base vera rte inconclusive">(.*?)</tbody>', page, re.S
    )[1]
    row = {
        name: plain(text)
        for name, text in re.findall(r'<td data-label="([^"]*)"[^>]*>(.*?)</td>', found)
    }
    gap, _, half = expected_difference(
        ([78.0, 79.0, 80.0, 77.0, 78.7], 78.7, 0.7)
    ).partition(" +-")
    expected = {
        "number": "RTE",
        "paper": "78.7 ±0.7",
        "ours": "78.7",
        "difference": gap,
        "half-width": half,
    }
    assert row == expected | {
        "margin": "1.0",
        "seeds": "5",
        "verdict": "inconclusive",
    }


def test_a_cell_has_its_runs_curves_and_configuration(page):
    words = [plain(text.partition(">")[2]) for text in cells(page).values()]
    # the last of other settings
    assert [text[:4] for text in words] == ["VeRA"] * 3 + ["LoRA", "VeRA"]
    name = "VeRA r=1024, lr 0.01 on RTE, RoBERTa-base: 78.7 ±1.1 (5/5) inconclusive"
    (cell,) = [text for text in words if text.startswith(name)]
    run = "0 roberta_base-vera-rte-0-0.01-done done ours 78.0 2 77.0 74.0 11"
    facts = (
        "95% interval of the median 77.0 to 80.0",
        run,
        "config.train.lr 0.01",
        "code.commit 0123abc",
    )
    assert [fact for fact in facts if fact not in cell] == []
    assert "somebody" not in page  # where files lay
    # A curve spans its picture, and leaves out what is no number
    assert (
        report.curve_points([0.5, 1.0, None, 0.75], 100, 24)
        == "0.0,22.0 50.0,2.0 100.0,12.0"
    )
    assert (report.curve_points([0.5]), report.curve_points([])) == (
        "0.0,2.0",
        "",
    )


def test_what_is_left_out_is_said_with_its_reason(page):
    assert "19 runs (17 results, 1 trial, 1 failed); 19 of them ran here" in plain(page)
    text = plain(part(page, "left-out"))
    assert (
        "1 run: trials, scored on held-out training rows roberta_base-vera-rte-7-0.1-done ("
        in text
    )
    assert (
        "2 runs: other settings than the table's roberta_base-vera-rte-0-0.5-done ("
        in text
    )
    assert "0.01-failed (full on RTE, RoBERTa-base): out of memory at batch 32" in text
    assert "records/bad.json: no record" in text


def test_a_page_is_the_same_from_rows_as_from_records(tmp_path, monkeypatch):
    """Curves, configurations and test rows are read again from the records."""
    monkeypatch.setattr("runs.record.ledger.PUBLISHED", tmp_path / "studies")
    monkeypatch.setattr("analysis.figures.FIGURES", {})
    monkeypatch.setattr(tables, "TABLES", ("table2",))
    for one in mixed():
        write_record(tmp_path, one)
    of_rows = read_ledger(tmp_path, make_row=RowMaker())
    assert {type(row) for row in of_rows} == {RunRow}
    assert report.page(of_rows) == report.page(read_ledger(tmp_path))


def test_of_a_large_ledger_the_first_cells_alone_show_their_runs(monkeypatch):
    monkeypatch.setattr(report, "MAX_RUNS_SHOWN", 5)
    of, none = (
        mixed(),
        pd.DataFrame({"ran": [], "ids": [], "verdict": []}, dtype=object),
    )
    found = report.cell_views(
        of, every_variant(runs(of), keep_nearest_name=True), none.astype({"ran": bool})
    )
    assert [len(cell.runs) for cell in found] == [3, 2, 0, 0, 0]


def test_an_empty_ledger_shows_the_papers_numbers(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(tables, "TABLES", ("table2", "lm_eval", "demo"))
    assert main([f"output={tmp_path}"]) == 0
    assert "no records of your own in" in capsys.readouterr().err
    text = (tmp_path / "report.html").read_text()
    assert re.search("from 0 runs.*No run here can be compared.*94.6 ±0.1", plain(text))
    assert cells(text) == {}


@pytest.mark.usefixtures("undrawn")
def test_labels_cannot_write_into_the_page(monkeypatch):
    """The browser's test below has every table."""
    monkeypatch.setattr(tables, "TABLES", ("demo",))
    monkeypatch.setattr(figures, "FIGURES", {"demo": figures.FIGURES["demo"]})
    records = [*seed_records(model="minilm", task="reviews", deviations=[EVIL])]
    for r in [
        *records,
        failed := record("full", status="failed", values=(), error=EVIL),
    ]:
        r["label"] = {"row": EVIL, "model": EVIL, "task": EVIL}
        r["cell"] |= {"model": EVIL, "row": "a b\"'<"}
    text = report.page(ledger(*records, failed, problems=[EVIL]))
    assert html.unescape(text).count(EVIL) > 10
    assert [text.count(tag) for tag in ("<img", "<script", "</script")] == [0, 1, 1]


def test_nothing_is_asked_of_the_network_and_each_link_has_a_target(page):
    assert (
        'http-equiv="Content-Security-Policy" content="default-src \'none\'; ' in page
    )
    assert not re.findall(r'\s(?:src|action|srcset|href)="(?!#|data:)', page)
    assert not re.search(r"@import|url\((?!#)|fetch\(|XMLHttpRequest|import\(", page)
    ids = re.findall(r'<(?:h2|details)[^>]* id="([^"]*)"', page)
    assert len(ids) == len(set(ids))
    assert {href[1:] for href in re.findall(r'<a href="([^"]*)"', page)} <= set(ids)
    assert re.search(r"<summary>MiniLM on reviews[^<]*</summary>\s*<figure><svg", page)


@pytest.fixture(scope="module")
def browser(process, tmp_path_factory):
    if not (CHROMIUM.exists() and DRIVER.exists()) and not ALL_TESTS:
        pytest.skip("no chromium and chromedriver here (CI installs them)")
    from selenium import webdriver

    options, folder = webdriver.ChromeOptions(), tmp_path_factory.mktemp("chromium")
    options.binary_location = str(CHROMIUM)
    for argument in (
        "headless=new",
        "no-sandbox",
        "no-first-run",
        "disable-gpu",
        f"user-data-dir={folder}",
    ):
        options.add_argument(f"--{argument}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    with webdriver.Chrome(options, webdriver.ChromeService(str(DRIVER))) as driver:
        yield driver


def load(browser, page, path):
    """`get` returns now and then before a long page is read to its end (3 of 60 times
    beside other work)."""
    path.write_text(page)
    browser.get(path.as_uri())
    whole = "document.readyState === 'complete'"
    browser.execute_async_script(
        f"{whole} ? arguments[0]() : addEventListener('load', () => arguments[0]())"
    )


@pytest.mark.parametrize("width", [1280, 390])
def test_it_filters_sorts_opens_cells_and_scrolls_down_alone(
    browser, page, tmp_path, width
):
    size = {
        "width": width,
        "height": 900,
        "deviceScaleFactor": 1,
        "mobile": width < 600,
    }
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    load(browser, page, tmp_path / "report.html")
    run = browser.execute_script
    assert run("return document.scrollingElement.scrollWidth") <= width
    row = "[...document.querySelectorAll('#tables ~ details[open] tr')].find(r => r.querySelector('a'))"
    assert run(
        "return [...document.querySelectorAll('.wide')].every(e => e.scrollWidth <= e.clientWidth)"
    )
    tops = run(f"return [...{row}.cells].map(c => c.getBoundingClientRect().top)")
    # on a phone below each other, with labels
    assert len(set(tops)) == (1 if width == 1280 else len(tops))
    assert (
        "params" in run(f"return getComputedStyle({row}.cells[2], '::before').content")
    ) is (width == 390)
    shown = "return [...document.querySelectorAll(arguments[0])].filter(c => c.checkVisibility()).length"
    write = "arguments[0].value = arguments[1]; arguments[0].dispatchEvent(new Event('input'))"
    filters = run("return document.querySelectorAll('[data-filter]')")
    for field, of in zip(filters, ("details:has(.verdict)", ".cell"), strict=True):
        before = run(shown, of)
        run(write, field, "vera COLA incomplete")
        assert before > run(shown, of) == 1
    table = "const t = [...document.querySelectorAll('.cell table')].find(t => t.tBodies.length === 5); "
    of = "[...t.tBodies].map(b => Number(b.rows[0].cells[4].dataset.value))"
    press = "t.tHead.rows[0].cells[4].dispatchEvent(new KeyboardEvent('keydown', {key: 'Enter'})); "
    up, down = (run(f"{table}{press}return {of}") for _ in range(2))
    assert up == sorted(set(up)) == down[::-1]
    link = (
        "[...document.querySelectorAll('a')].find(a => a.textContent === '78.7 ±1.1')"
    )
    browser.execute_async_script(
        f"addEventListener('hashchange', () => arguments[0]()); {link}.click()"
    )
    assert "0.01 on RTE" in run(
        "return document.querySelector(location.hash + '[open]').textContent"
    )
    assert browser.get_log("browser") == []


def with_payloads(node, payloads):
    """A record of whose texts each holds one, but for those that are compared with
    words of our own."""
    if isinstance(node, dict):
        kept = ("reported", "id", "status", "kind", "metric", "select", "schema")
        return {
            key: v if key in kept else with_payloads(v, payloads)
            for key, v in node.items()
        }
    if isinstance(node, list):
        return [with_payloads(value, payloads) for value in node]
    return node + next(payloads) if isinstance(node, str) else node


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("policy", [True, False])
def test_no_text_of_a_stranger_runs_in_a_browser(browser, tmp_path, policy):
    """Every drawer is opened, and every place visited. A payload that does run is
    noticed."""
    words = yaml.safe_load(
        (ROOT / "attack" / "hostile.yaml").read_text(encoding="utf-8")
    )["payloads"]
    payloads = [payload.replace("RUN", "window.ran=1") for payload in words]
    of, rows, tasks = (
        itertools.cycle(payloads),
        ("vera", "lora", "bitfit"),
        ("rte", "cola", "reviews"),
    )
    records = [
        with_payloads(record(rows[i % 3], tasks[i % 3], i), of) | {"id": f"{i:012x}"}
        for i in range(60)
    ]
    text = report.page(ledger(*records))
    if not policy:
        text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", text)
    for page, runs_it in (
        (text, False),
        (text.replace("</body>", payloads[0] + "</body>"), True),
    ):
        load(browser, page, tmp_path / "report.html")
        places, ran, elements = browser.execute_async_script(
            (ROOT / "attack" / "visit.js").read_text()
        )
        assert places > 10
        assert (bool(ran), bool(elements)) == (runs_it, runs_it)
