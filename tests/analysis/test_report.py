"""The report: what is in the page, and what a browser makes of it."""

import html
import itertools
import re
import time
from pathlib import Path

import pytest
from ledgers import apart, halves, ledger, record, seeds
from tiers import ALL_TESTS

from analysis import report, tables
from analysis.render import Number
from analysis.report.__main__ import main

CHROMIUM, DRIVER = Path("/usr/bin/chromium"), Path("/usr/bin/chromedriver")
EVIL = "</script ><img src=x onerror=alert(1)>&lt;{{ 7 * 7 }}"
FAILED = "roberta_base-full-rte-0-0.01-failed"


def mixed():
    """Two methods on two tasks, a cell with too few seeds, another model, other settings, a failed run, a
    trial, a bad file."""
    first, *others = seeds()
    halves(first, (0.58, 0.80, 0.72), (0.58, 0.76, 0.82))  # the same means, and 74 cross-fitted
    records = [first, *others, *seeds("vera", "cola", (0.65, 0.66))]
    records += seeds("lora", "cola", (0.56, 0.57, 0.58, 0.59, 0.60), deviations=["max_length 128"])
    records += seeds("vera", "reviews", (0.84, 0.85, 0.83), model="minilm")
    records += seeds(bests=(0.5, 0.5), lr=0.5, deviations=["lr 0.5"])
    failed = record("full", status="failed", values=(), error="out of memory at batch 32")
    kept = ("schema", "id", "status", "error", "tries", "cell", "label", "config")
    trial = record(seed=7, lr=0.1)
    trial["config"]["task"]["holdout"] = 0.1
    return ledger(
        *records, trial, {key: failed[key] for key in kept}, problems=["records/bad.json: no record"]
    )


def plain(markup):
    return " ".join(html.unescape(re.sub("<[^>]*>", " ", markup)).split())


def part(text, name):
    """From a heading to the next."""
    return re.search(rf'<h2 id="{name}">.*?(?=<h2|<script)', text, re.S)[0]


def cells(text):
    """The markup of each cell, by its number."""
    found = re.split(r'<details class="cell" id="cell-(\d+)"', part(text, "cells"))[1:]
    return dict(zip(found[::2], found[1::2], strict=True))


@pytest.fixture(scope="module")
def page():
    return report.page(mixed())


def test_each_number_of_a_table_leads_to_the_cell_of_its_runs(page):
    links, of, checked = re.findall(r'<a href="#cell-(\d+)">([^<]*)</a>', page), cells(page), 0
    for table in [table for name in tables.TABLES for table in tables.make(name, mixed())]:
        assert f"<summary>{html.escape(table.title, quote=False)}" in html.unescape(page)
        for entry in (entry for row in table.rows for entry in row):
            shown = str(entry).replace("+-", "±")
            assert not isinstance(entry, Number) or shown in plain(page)
            if isinstance(entry, Number) and entry.ids:
                targets = [cell for cell, text in links if text == shown]
                assert any(all(f"<code>{run}</code>" in of[cell] for run in entry.ids) for cell in targets)
                checked += 1
    assert checked == 14


def test_a_verdict_has_both_numbers_and_their_difference(page):
    found = re.search(r'data-key="roberta_base vera rte consistent, wide">(.*?)</tbody>', page, re.S)[1]
    row = {name: plain(text) for name, text in re.findall(r'<td data-label="([^"]*)"[^>]*>(.*?)</td>', found)}
    gap, _, half = apart(([78.0, 79.0, 80.0, 77.0, 78.7], 78.7, 0.7)).partition(" +-")
    expected = {"number": "RTE", "paper": "78.7 ±0.7", "ours": "78.7", "difference": gap, "half": half}
    assert row == expected | {"margin": "1.0", "seeds": "5", "verdict": "consistent, wide"}


def test_a_cell_has_its_runs_curves_and_configuration(page):
    of = cells(page)
    names = [re.search("<summary>(VeRA|LoRA|.*?)[: ]", text)[1] for text in of.values()]
    assert names == ["VeRA"] * 3 + ["LoRA", "VeRA"]  # the last of other settings
    (cell,) = [
        text for text in of.values() if 'data-key="vera VeRA r=1024 roberta_base RoBERTa-base rte' in text
    ]
    words = plain(cell)
    assert "VeRA r=1024 on RTE, RoBERTa-base: 78.7 ±1.1 (5/5) consistent, wide" in words
    assert "95% interval of the median 77.0 to 80.0" in words
    assert "0 roberta_base-vera-rte-0-0.01-done done ours 78.0 2 77.0 74.0 11" in words
    assert cell.count("<polyline") == 5
    for fact in ("config.train.lr 0.01", "code.commit 0123abc", "versions.torch 2.9", "data.content hash"):
        assert fact in words
    assert "somebody" not in page  # where files lay


def test_a_curve_spans_its_picture_and_leaves_out_what_is_no_number():
    assert report.curve({"metric": [0.5, 1.0, None, 0.75]}, 100, 24) == "0.0,22.0 50.0,2.0 100.0,12.0"
    assert report.curve({"metric": [0.5]}) == "0.0,2.0"
    assert report.curve({"metric": []}) == ""


def test_what_is_left_out_is_said_with_its_reason(page):
    text = plain(part(page, "left-out"))
    assert "1 runs: judged on training rows vera on rte, roberta_base: 1" in text
    assert "2 runs: other settings than the cell of the tables vera on rte, roberta_base: 2" in text
    assert f"{FAILED} (full on RTE, RoBERTa-base): failed: out of memory at batch 32" in text
    assert "records/bad.json: no record" in text
    assert "19 runs (17 results, 1 trials, 1 failed); 19 of them ran here" in plain(page)


@pytest.mark.usefixtures("undrawn")
def test_of_a_large_ledger_the_first_cells_show_their_runs(monkeypatch):
    monkeypatch.setattr(report, "RUNS_SHOWN", 7)
    assert [text.count("<polyline") for text in cells(report.page(mixed())).values()] == [3, 2, 0, 0, 0]


@pytest.mark.usefixtures("undrawn")
def test_a_part_that_cannot_be_made_leaves_a_line_and_the_others(monkeypatch):
    def broken(*_):
        raise KeyError("judged")

    monkeypatch.setitem(tables.TABLES, "table4", broken)
    text = report.page(mixed())
    assert "table4 could not be made: KeyError: 'judged'" in plain(part(text, "left-out"))
    assert "Table 2, RoBERTa-base: GLUE dev sets" in plain(text)
    assert "Table 13" in plain(text)


def test_an_empty_ledger_shows_the_papers_numbers(tmp_path, capsys):
    assert main([f"output={tmp_path}"]) == 0
    assert "no records of your own in" in capsys.readouterr().err
    text = (tmp_path / "report.html").read_text()
    assert "from 0 runs" in plain(text)
    assert "94.6 ±0.1" in plain(part(text, "tables"))
    assert "No run here can be compared" in plain(part(text, "findings"))
    assert cells(text) == {}


@pytest.mark.usefixtures("undrawn")
def test_labels_cannot_write_into_the_page():
    records = seeds(model="minilm", task="reviews", deviations=[EVIL], error=EVIL)
    for r in [*records, failed := record("full", status="failed", values=(), error=EVIL)]:
        r["label"] = {"row": EVIL, "model": EVIL, "task": EVIL}
        r["cell"] |= {"model": EVIL, "row": "a b\"'<"}
    text = report.page(ledger(*records, failed, problems=[EVIL]))
    assert plain(text).count(EVIL.replace("&lt;", "<")) + html.unescape(text).count(EVIL) > 10
    assert "<img" not in text
    assert text.count("<script") == text.count("</script") == 1
    assert "49" not in re.findall(r"onerror=alert\(1\).{0,20}", text)


def test_nothing_is_asked_of_the_network(page):
    policy = '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; '
    assert policy in page
    assert all(re.match("#|data:", of) for of in re.findall(r'\s(?:src|href|action|srcset)="([^"]*)"', page))
    assert not re.search(r"@import|url\((?!#)|fetch\(|XMLHttpRequest|import\(", page)


def test_each_link_has_a_target_and_each_picture_its_figure(page):
    ids = re.findall(r'<(?:h2|details)[^>]* id="([^"]*)"', page)
    assert len(ids) == len(set(ids))
    assert {href[1:] for href in re.findall(r'<a href="([^"]*)"', page)} <= set(ids)
    levels = [int(level) for level in re.findall(r"<h(\d)", page)]
    assert levels.count(1) == 1
    assert all(b - a <= 1 for a, b in itertools.pairwise(levels))
    assert re.search(r"<summary>MiniLM on reviews[^<]*</summary>\s*<figure><svg", page)


# --- in a browser


@pytest.fixture(scope="module")
def browser(process, tmp_path_factory):
    if not (CHROMIUM.exists() and DRIVER.exists()) and not ALL_TESTS:
        pytest.skip("no chromium and chromedriver here (CI installs them)")
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options, folder = webdriver.ChromeOptions(), tmp_path_factory.mktemp("chromium")
    options.binary_location = str(CHROMIUM)
    for argument in ("headless=new", "no-sandbox", "no-first-run", "disable-gpu", f"user-data-dir={folder}"):
        options.add_argument(f"--{argument}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, Service(str(DRIVER)))
    yield driver
    driver.quit()


@pytest.fixture(params=[1280, 390])
def opened(request, browser, page, tmp_path):
    (tmp_path / "report.html").write_text(page)
    size = {"width": request.param, "height": 900, "deviceScaleFactor": 1, "mobile": request.param < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.get((tmp_path / "report.html").as_uri())
    yield browser, request.param
    assert browser.get_log("browser") == []


def test_it_is_readable_without_scrolling_sideways(opened):
    browser, width = opened
    assert browser.execute_script("return document.scrollingElement.scrollWidth") == width
    wide = "return [...document.querySelectorAll('.wide')].filter(e => e.scrollWidth > e.clientWidth).length"
    assert browser.execute_script(wide) == 0
    row = "[...document.querySelectorAll('#tables ~ details[open] tr')].find(r => r.querySelector('a'))"
    tops = browser.execute_script(f"return [...{row}.cells].map(c => c.getBoundingClientRect().top)")
    assert len(set(tops)) == (1 if width == 1280 else len(tops))  # below each other
    label = f"return getComputedStyle({row}.cells[2], '::before').content"
    assert ("params" in browser.execute_script(label)) is (width == 390)


def test_a_filter_narrows_a_column_sorts_and_a_number_opens_its_cell(opened):
    browser, width = opened
    shown = "return [...document.querySelectorAll('.cell')].filter(c => c.checkVisibility()).length"
    write = "const i = document.querySelector(arguments[0]); i.value = arguments[1]; i.dispatchEvent(new Event('input'))"
    assert browser.execute_script(shown) == 5
    browser.execute_script(write, "[data-filter='.cell']", "vera COLA")
    assert browser.execute_script(shown) == 1
    browser.execute_script(write, "[data-filter='.cell']", "")
    boxes = shown.replace(".cell", "#verdicts ~ details:has(.verdict)")
    before = browser.execute_script(boxes)
    browser.execute_script(write, "[data-filter='.verdict']", "vera rte wide")
    assert before > browser.execute_script(boxes) == 1
    script = (
        "const t = [...document.querySelectorAll('#statistics ~ details table')].find(t => t.rows.length > 3);"
        "const of = () => [...t.tBodies].map(b => Number(b.rows[0].cells[4].dataset.value));"
        "const press = () => t.tHead.rows[0].cells[4].dispatchEvent(new KeyboardEvent('keydown', {key: 'Enter'}));"
        "press(); const up = of(); press(); return [up, of()]"
    )
    up, down = browser.execute_script(script)
    assert up == sorted(up) == down[::-1]
    assert len(set(up)) > 1
    link = (
        "[...document.querySelectorAll('#tables ~ details[open] a')].find(a => a.textContent === '78.7 ±1.1')"
    )
    browser.execute_script(f"{link}.click()")
    cell = "return document.querySelector(location.hash)"
    for _ in range(100):
        if browser.execute_script(f"{cell}.open"):
            break
        time.sleep(0.05)
    assert browser.execute_script(f"{cell}.open")
    assert "VeRA r=1024 on RTE" in browser.execute_script(f"{cell}.textContent")
