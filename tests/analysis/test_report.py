"""The report: what is in the page, and what a browser makes of it."""

import base64
import itertools
import json
import re
import time
from html.parser import HTMLParser
from pathlib import Path

import pytest
from ledgers import apart, halves, ledger, record, seeds
from tiers import ALL_TESTS

from analysis import report, results, tables
from analysis.report.__main__ import main
from runs.record import write_record

CHROMIUM, DRIVER = Path("/usr/bin/chromium"), Path("/usr/bin/chromedriver")
EVIL = "</script ><img src=x onerror=alert(1)>&lt;"


class Page(HTMLParser):
    """A page's elements in order (tag, attributes), its links with their texts, and its data."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text, self.elements, self.links, self.words = text, [], [], []
        self.feed(text)
        found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)
        self.data = json.loads(found.group(1))

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag == "a":
            self.links.append([dict(attrs)["href"], ""])

    def handle_data(self, data):
        self.words.append(data)
        if self.links:
            self.links[-1][1] = self.links[-1][1] or data

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


def demo(row, n, bests, **changes):
    found = seeds(row, "reviews", bests, model="minilm", **changes)
    for r in found:
        r["parameters"]["adapter"], r["cell"]["paper"] = n, "demo"
    return found


def mixed():
    """Two methods on two tasks, a cell with too few seeds, other settings, a failed run, a trial, a demo, a
    bad file."""
    first, *others = seeds()
    halves(first, (0.58, 0.80, 0.72), (0.58, 0.76, 0.82))  # the same means, and 74 cross-fitted
    records = [
        first,
        *others,
        *seeds("lora", "cola", (0.56, 0.57, 0.58, 0.59, 0.60), deviations=["max_length 128"]),
    ]
    records += [*seeds("vera", "cola", (0.65, 0.66)), *seeds(bests=(0.5, 0.5), lr=0.5, deviations=["lr 0.5"])]
    failed = record("full", status="failed", values=(), error="out of memory at batch 32")
    records += [
        {key: failed[key] for key in ("schema", "id", "status", "error", "tries", "cell", "label", "config")}
    ]
    trial = record(seed=7, lr=0.1)
    trial["config"]["train"]["max_steps"] = 5
    records += [trial, *demo("vera", 7680, (0.84, 0.85, 0.83)), *demo("lora", 73728, (0.85, 0.86, 0.84))]
    return ledger(*records, problems=["records/bad.json: not a record"])


@pytest.fixture(scope="module")
def page():
    return Page(report.page(mixed()))


def test_each_number_of_a_table_leads_to_its_records(page):
    numbers = {text: href for href, text in page.links}
    place = {run["id"]: i for i, cell in enumerate(page.data["cells"]) for run in cell["runs"]}
    assert len(place) == len(mixed().records)
    checked = 0
    for table in [*tables.table2(mixed(), "paper"), *tables.demo_table(mixed(), "paper")]:
        for cell in (cell for row in table.rows for cell in row if cell.ids):
            cells = list(dict.fromkeys(place[name] for name in cell.ids))
            target = f"#cell-{cells[0]}" if len(cells) == 1 else f"#cells-{'.'.join(map(str, cells))}"
            assert [target, cell.text.replace("+-", "±")] in page.links
            assert all(f"#run-{name}" in numbers.values() for name in cell.ids)
            checked += 1
    assert checked == 23
    for href, _ in page.links:
        if href.startswith("#cell-"):
            assert page.data["cells"][int(href.removeprefix("#cell-"))]["runs"]


def test_a_cell_has_its_curve_configuration_provenance_and_cost(page):
    (cell,) = [c for c in page.data["cells"] if (c["r"], c["t"], c["kind"]) == ("vera", "rte", "")]
    assert (cell["seeds"], cell["word"], cell["printed"]) == ("5/5", "consistent, wide", 78.7)
    gap, _, half = apart(([78.0, 79.0, 80.0, 77.0, 78.7], 78.7, 0.7)).partition(" +-")
    between = f"-{half} to +{half}"  # the 95% interval of the difference, wider than the margin
    assert cell["found"] == [["table2", "RTE", "78.7 ±0.7", "78.7", gap, between, "±1.0", "consistent, wide"]]
    # Medians over the seeds
    assert (cell["facts"]["crossfit"], cell["facts"]["optimism"]) == ("78.7", "+0.0")
    facts = [page.data["pool"][k] for k in cell["f"]]
    for fact in (
        "config.train.lr\t0.01",
        "code.commit\t0123abc",
        "versions.torch\t2.9",
        "device.name\ta CPU",
        "data.content\thash",
    ):
        assert fact in facts
    first = cell["runs"][0]
    assert first["c"] == {"n": 3, "m": [5800, 7800, 7700], "tl": [1.0, 0.5, 0.3333], "dl": [1.5, 0.75, 0.5]}
    assert (first["b"], first["be"], first["l"], first["u"]) == (78.0, 2.0, 77.0, 74.0)
    assert first["cost"][0] == "10.0"
    assert "seeds.training\t0" in [page.data["pool"][k] for k in first["f"]]
    assert "somebody" not in page.text  # where files lay


@pytest.mark.usefixtures("undrawn")
def test_a_lora_rank_is_labelled_with_its_alpha_as_in_the_tables():
    """Two rows of one rank, by a constant and by a proportional alpha, are told apart."""
    records = [*seeds("lora_r2", bests=(0.5,)), *seeds("lora_r2", bests=(0.6,), lr=0.02)]
    for r, alpha in zip(records, (8, 2), strict=True):
        r["config"]["method"] = {"kind": "lora", "rank": 2, "alpha": alpha, "label": "LoRA r=2"}
        r["config"]["recipe"] = {"rank": 8, "alpha": 8}
        r["label"]["row"] = "LoRA r=2"
    data = Page(report.page(ledger(*records))).data
    labels = ["LoRA r=2, alpha=8", "LoRA r=2, alpha=r"]
    assert [cell["lr"] for cell in data["cells"]] == labels
    assert [data["names"]["row"][row] for row in ("lora_r2", "lora_r2_proportional")] == labels


@pytest.mark.usefixtures("undrawn")
def test_what_a_table_shows_is_never_called_left_out():
    """Own runs stand in a table beside the published ones of other settings."""
    published, own = seeds("vera", "mrpc"), seeds("vera", "mrpc", bests=(0.775,), lr=0.5)
    for one in own:
        one["deviations"] = ["another rate"]
    both = ledger(*published, *own)
    both.origin |= dict.fromkeys((one["id"] for one in published), "a_study")
    page = Page(report.page(both))
    assert "77.5" in " ".join(page.words)
    assert "Other settings than the cell of the tables." not in " ".join(page.words)


def test_what_is_left_out_is_said(page):
    text = " ".join(page.words)
    assert "records/bad.json: not a record" in text
    assert "(full on rte, roberta_base, seed 0): failed: out of memory at batch 32" in text
    assert "vera on rte, roberta_base, lr=0.5: 2 runs. Other settings than the cell of the tables." in text
    assert "vera on rte, roberta_base, lr=0.1: 1 run. A trial" in text
    words = {(c["r"], c["t"]): c["word"] for c in page.data["cells"] if not c["kind"]}
    assert words["vera", "cola"] == "incomplete"
    assert words["lora", "reviews"] == "other model"


@pytest.mark.usefixtures("undrawn")
def test_ablations_and_figures_of_measures_lead_to_their_runs():
    records = [r for row in ("vera", "vera_only_d") for r in seeds(row, model="roberta_large")]
    (old,) = seeds(bests=(0.5,), model="roberta_large", id="of another protocol")
    records = [*(r | {"protocol": 2} for r in records), old]
    one = records[0]
    of = [{key: one[key] for key in ("id", "cell", "label")}]
    measure = {"schema": 1, "id": "lengths", "kind": "magnitude", "of": of, "settings": {}, "seeds": {}}
    measure["values"] = {"layer": [0, 1], "site": ["query", "query"], "d": [0.25, 0.5], "b": [0.1, 0.2]}
    made = ledger(*records, measures=[measure])
    found = Page(report.page(made))
    place = {run["id"]: i for i, cell in enumerate(found.data["cells"]) for run in cell["runs"]}
    vectors = tables.table6(made, "paper")[0]
    numbers = [cell for row in vectors.rows for cell in row if cell.ids]
    assert len(numbers) == 4
    for cell in numbers:
        assert [f"#cell-{place[cell.ids[0]]}", cell.text.replace("+-", "±")] in found.links
    part = found.text.partition("Figure 3: change of d by layer")[2].partition("Figure 4")[0]
    assert "<img" in part
    assert f'<a href="#cell-{place[one["id"]]}">0.25</a>' in part
    assert part.count(f'<a href="#run-{one["id"]}">') == 1  # and not once for each layer
    text = " ".join(found.words)
    assert "vera on rte: runs of protocol 1 are not mixed with those of 2." in text
    assert "Protocol 1, and the cell of the tables is of a newer one." in text


@pytest.mark.usefixtures("undrawn")
def test_records_of_one_seed_and_numbers_that_are_none_are_said():
    silent = record(seed=1)
    silent["result"]["protocols"] = {}
    text = " ".join(Page(report.page(ledger(record(), record() | {"id": "again"}, silent))).words)
    assert re.search(
        r"counted once.*again \(vera on rte.*, roberta_base-vera-rte-0-0.01-done \(vera on rte", text, re.S
    )
    assert "Finished without the number" in text
    assert "roberta_base-vera-rte-1-0.01-done" in text


@pytest.mark.usefixtures("undrawn")
def test_of_a_large_ledger_the_newest_runs_are_shown_one_by_one(monkeypatch):
    """And of older ones the cell; what the tables are made of is always whole, however old."""
    monkeypatch.setattr("analysis.report.data.RUNS_SHOWN", 7)
    monkeypatch.setattr("analysis.report.data.CELLS_SHOWN", 3)
    monkeypatch.setattr("analysis.report.sections.LINES_SHOWN", 1)
    tried = [[record(seed=seed, lr=lr) for seed in (0, 1)] for lr in (0.1, 0.2, 0.3)]
    changed = {r["id"]: float(i) for i, pair in enumerate(tried) for r in pair}
    page = Page(report.page(ledger(*seeds(), *itertools.chain(*tried)), changed))
    assert len(page.data["cells"]) == 3
    assert [len(cell["runs"]) for cell in page.data["cells"] if not cell["kind"]] == [5]
    others = [cell for cell in page.data["cells"] if cell["kind"]]
    assert sorted(len(cell["runs"]) for cell in others) == [0, 2]
    (older,) = [cell for cell in others if not cell["runs"]]
    assert older["ids"] == [r["id"] for r in tried[1]]
    assert older["facts"]["median"] != "-"
    text = " ".join(page.words)
    assert "Not listed: 1 cell of older runs, in no table." in text
    assert "and 2 more" in text  # of three cells in no table


@pytest.mark.usefixtures("undrawn")
def test_a_table_that_cannot_be_made_does_not_hide_the_others(monkeypatch):
    def broken(*_):
        raise KeyError("judged")

    monkeypatch.setitem(tables.TABLES, "table4", broken)
    text = " ".join(Page(report.page(mixed())).words)
    assert "table4 could not be made: KeyError: 'judged'" in text
    assert "Table 2, RoBERTa-base: GLUE dev sets" in text


def test_an_empty_ledger_shows_the_papers_numbers(tmp_path, capsys):
    assert main([f"output={tmp_path}"]) == 0
    said = capsys.readouterr()
    assert "no records of your own in" in said.err
    page = Page((tmp_path / "report.html").read_text())
    assert page.data["cells"] == []
    assert "Until runs have finished there are only the paper's numbers" in page.text
    assert "94.6 ±0.1" in page.words
    assert "There are no finished runs." in page.text


@pytest.mark.usefixtures("undrawn")
def test_published_records_are_told_from_ones_own():
    made = ledger(*seeds())
    made.origin[next(iter(made.records))] = "glue_minilm"
    page = Page(report.page(made))
    assert (
        "5 records (5 finished) in 1 cells, 1 of them published by the project and not run here." in page.text
    )
    said = "Not done here, but published by the project in runs/records: all runs (1 of glue_minilm)."
    assert said in page.text
    assert [cell["here"] for cell in page.data["cells"]] == [True]
    made.origin |= dict.fromkeys(made.records, "glue_minilm")
    assert [cell["here"] for cell in Page(report.page(made)).data["cells"]] == [False]
    assert "Table 2, RoBERTa-base: GLUE dev sets (published)" in page.text


def test_labels_cannot_write_into_the_page():
    records = seeds(deviations=[EVIL], error=EVIL)
    for r in records:
        r["label"] = {"row": EVIL, "model": EVIL, "task": EVIL}
        r["cell"] |= {"model": EVIL, "row": "a b\"'<", "task": EVIL}
        r["cell"]["task"] = "reviews"
    found = Page(report.page(ledger(*records, problems=[EVIL])))
    assert found.data["cells"][0]["lr"] == EVIL
    raw = found.text.partition('id="data">')[2].partition("</script>")[0]
    assert not set(raw) & set("<>&")
    assert not [a for tag, a in found.elements if "onerror" in a or (tag == "img" and a.get("src") == "x")]
    assert len(found.all("script")) == 2


def test_line_breaks_of_labels_and_deviations_are_spaces():
    records = seeds(model="minilm", deviations=["a\n\u2028b"])
    for r in records:
        r["label"] = {"row": "r\r\n1", "model": "m\t1", "task": "t\n\n1"}
    found = Page(report.page(ledger(*records, problems=["p\n1"])))
    cell = found.data["cells"][0]
    assert (cell["lr"], cell["lm"], cell["lt"], cell["dev"]) == ("r 1", "m 1", "t 1", ["a b"])
    raw = found.text.partition('id="data">')[0]
    assert "deviation: a b (" in raw
    assert ">r 1<" in raw
    assert "p 1" in found.text


def test_nothing_is_asked_of_the_network(page):
    for _, attributes in page.elements:
        for key in ("src", "href", "action", "srcset", "data"):
            assert re.match(r"#|data:|$", attributes.get(key) or ""), attributes
    policy = next(a["content"] for a in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'")
    assert "@import" not in page.text
    assert not re.search(r"url\(|fetch\(|XMLHttpRequest|import\(", re.sub(r"base64,[^\"]*", "", page.text))


def test_each_figure_has_its_numbers_behind_it(page):
    pictures = page.all("img")
    assert pictures
    for picture in pictures:
        assert picture["alt"]
        assert b"<svg" in base64.b64decode(picture["src"].partition(",")[2])
    after = page.text.split("<img ")[1:]
    assert all("<summary>Numbers of this figure</summary>" in part and "<table>" in part for part in after)
    assert after[0].count("<tr>") >= 2


def test_a_figures_points_show_their_values(page):
    """A circle for each number of ours that is drawn, with the method and the values as its title."""
    part = page.text[page.text.rindex("<h3>MiniLM on reviews") :]
    picture = part[: part.index("</figure>")]
    titles = re.findall(r'<circle cx="[\d.]+%" cy="[\d.]+%" r="7"><title>([^<]*)</title>', picture)
    for one in ("VeRA r=1024: 7,680, 84", "LoRA r=8: 73,728, 85"):
        assert one in titles


def test_it_opens_with_what_was_found_and_folds_what_has_not_run(page):
    headings = [re.sub("<[^>]*>", "", text) for text in re.findall(r"<h2[^>]*>(.*?)</h2>", page.text)]
    assert headings[:3] == ["What was found", "Cells", "Beside the paper"]
    part = page.text[page.text.index('id="findings"') : page.text.index('id="cells"')]
    near = "VeRA is near LoRA with fewer parameters"
    tried = [claim for claim in results.claims(mixed()) if claim.claim.startswith(near)]
    assert tried
    assert f'<tr><th scope="row" class="words">{near}</th><td>{len(tried)}</td>' in part
    assert part.count(f'<th scope="row" class="words">{near}</th><td class="words"><a href="#cells-') == len(
        tried
    )
    without = re.search(
        r"<details><summary>Without runs: (\d+) not run and (\d+) quoted</summary>", page.text
    )
    rows = [a for tag, a in page.elements if tag == "tr" and "data-word" in a]
    for count, word in zip(without.groups(), ("not run", "quoted"), strict=True):
        assert int(count) == sum(row["data-word"] == word for row in rows)
    # Every number without runs is in a part that is closed
    depth, open_ = [], []
    for found in re.finditer(
        r'<details([^>]*)>|</details>|<tr data-[^>]*data-word="(not run|quoted)"', page.text
    ):
        if found[0].startswith("<details"):
            depth.append("open" in found[1])
        elif found[0] == "</details>":
            depth.pop()
        else:
            open_.append(all(depth))
    assert open_
    assert not any(open_)


def test_the_markup_is_readable_by_a_screen_reader(page):
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(b - a <= 1 for a, b in itertools.pairwise(levels))
    ids = [a["id"] for _, a in page.elements if a.get("id")]
    assert len(ids) == len(set(ids))
    assert page.all("html")[0]["lang"] == "en"
    assert all(a.get("scope") in ("col", "row") for a in page.all("th"))
    assert len(page.all("caption")) == len(page.all("table"))
    assert page.text.count("<label>") == len(page.all("select")) == 5
    assert all(
        a.get("aria-label") and a.get("tabindex") == "0" for a in page.all("div") if a.get("class") == "wide"
    )
    assert any(a.get("aria-live") == "polite" for a in page.all("p"))
    targets = {href[1:] for href, _ in page.links if not re.match("#(cells?|run)-", href)}
    assert targets <= set(ids)


def luminance(colour):
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(a, b):
    light, dark = sorted((luminance(a), luminance(b)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def test_colours_have_enough_contrast_in_light_and_dark():
    """WCAG 2.2: 4.5 for text (1.4.3), 3 for lines of a chart and focus (1.4.11)."""
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    style = (Path(report.__file__).parent / "report.html").read_text()
    schemes = [
        dict(re.findall(r"--([a-z0-9]+): (#[0-9a-f]{6})", block))
        for block in re.findall(r":root \{(.*?)\}", style, re.S)
    ]
    assert len(schemes) == 3  # and one for paper, of short colours
    for scheme in schemes[:2]:
        for ground in (scheme["paper"], scheme["raised"]):
            for text in ("ink", "quiet", "link", "good", "bad", "part"):
                assert contrast(scheme[text], ground) >= 4.5, (text, ground)
            for line in ("s0", "s1", "s2", "s3", "s4", "focus"):
                assert contrast(scheme[line], ground) >= 3, (line, ground)


# --- in a browser


@pytest.fixture(scope="module")
def browser(process, tmp_path_factory):
    if not (CHROMIUM.exists() and DRIVER.exists()) and not ALL_TESTS:
        pytest.skip("no chromium and chromedriver here (CI installs them)")
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    quiet = ("background-networking", "component-update", "sync", "default-apps", "gpu")
    for argument in (
        "headless=new",
        "no-sandbox",
        "no-first-run",
        "window-size=1280,900",
        *(f"disable-{what}" for what in quiet),
    ):
        options.add_argument(f"--{argument}")
    options.add_argument(f"--user-data-dir={tmp_path_factory.mktemp('chromium')}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, Service(str(DRIVER)))
    yield driver
    driver.quit()


@pytest.fixture
def opened(browser, tmp_path):
    for r in mixed():
        write_record(tmp_path, r)
    assert main([f"output={tmp_path}"]) == 0
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size(1280, 900))
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "", "features": []})
    browser.get("about:blank")
    browser.get_log("browser")
    browser.get((tmp_path / "report.html").as_uri())
    until(browser, "return Boolean(document.getElementById('found')?.textContent)")  # a busy machine is slow
    yield browser
    assert browser.get_log("browser") == []


def size(width, height):
    return {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}


def choose(browser, **filters):
    for key, value in filters.items():
        script = "const s = document.getElementById(arguments[0]); s.value = arguments[1]; "
        browser.execute_script(
            script + "s.dispatchEvent(new Event('change', {bubbles: true}))", f"f-{key}", value
        )


def listed(browser):
    script = (
        "return [...document.querySelectorAll('#list tr')].map(r => [...r.children].slice(0, 3).map(c =>"
        " c.textContent))"
    )
    return [tuple(row) for row in browser.execute_script(script)]


def until(browser, script):
    for _ in range(100):
        if browser.execute_script(script):
            return
        time.sleep(0.05)
    raise AssertionError(script)


def test_filters_narrow_cells_verdicts_and_tables(opened):
    status = "return document.getElementById('found').textContent"
    everything = opened.execute_script(status)
    assert everything.startswith("8 of 8 cells, 212 verdicts")
    choose(opened, row="vera", task="cola")
    assert listed(opened) == [("VeRA r=1024", "cola", "RoBERTa-base")]
    assert opened.execute_script(status).startswith("1 of 8 cells")
    assert (
        opened.execute_script("return document.querySelectorAll('tr[data-word]:not([hidden])').length") == 3
    )  # table 2, twice, and 7
    choose(opened, row="", task="", model="minilm")
    assert {row[2] for row in listed(opened)} == {"MiniLM"}
    visible = (
        "return [...document.querySelectorAll('#tables [data-about]:not([hidden]) h3')].map(h =>"
        " h.textContent)"
    )
    assert opened.execute_script(visible) == ["reviews (MiniLM, median of 3 seeds): dev accuracy"]
    choose(opened, model="", word="consistent, wide")
    assert listed(opened) == [("VeRA r=1024", "RTE", "RoBERTa-base")]
    choose(opened, word="", here="no")
    assert listed(opened) == []
    choose(opened, here="yes")
    assert len(listed(opened)) == 8
    opened.execute_script("document.querySelector('.filters button').click()")
    until(opened, f"return document.getElementById('found').textContent === {json.dumps(everything)}")
    assert len(listed(opened)) == 8


def test_columns_sort_by_number_or_word(opened):
    """The list of cells over all its pages, and a table with the rows that belong together."""
    press = "document.querySelectorAll('#cells-head button')[arguments[0]].click()"
    medians = "return [...document.querySelectorAll('#list tr')].map(r => r.cells[4].textContent)"
    opened.execute_script(press, 4)
    numbers = [float(text) for text in opened.execute_script(medians) if text != "-"]
    assert numbers == sorted(numbers)
    assert opened.execute_script(medians)[-1] == "-"  # of a failed run
    opened.execute_script(press, 4)
    assert [float(text) for text in opened.execute_script(medians) if text != "-"] == numbers[::-1]
    assert opened.execute_script(medians)[-1] == "-"
    opened.execute_script(press, 1)
    tasks = [task for _, task, _ in listed(opened)]
    assert tasks == sorted(tasks, key=str.lower)
    table = (
        "const t = [...document.querySelectorAll('#tables table')].find(t => t.rows.length > 6);"
        "const rows = () => [...t.tBodies[0].rows].map(r => r.textContent);"
        "const before = rows(); const button = t.tHead.querySelector('button');"
        "button.click(); const up = rows(); button.click(); return [before, up, rows()]"
    )
    before, up, down = opened.execute_script(table)
    assert sorted(before) == sorted(up) == sorted(down)
    assert up != down


def test_a_number_opens_its_cell_by_keyboard_and_escape_goes_back(opened):
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    link = next(a for a in opened.find_elements(By.CSS_SELECTOR, "#tables a") if a.text == "78.7 ±1.1")
    link.send_keys(Keys.ENTER)
    until(opened, "return document.querySelector('dialog').open")
    dialog = opened.find_element(By.TAG_NAME, "dialog")
    assert dialog.find_element(By.TAG_NAME, "h2").text == "VeRA r=1024 on RTE, RoBERTa-base"
    assert opened.execute_script("return document.activeElement.id") == "cell-title"
    text = opened.execute_script("return document.getElementById('cell').textContent")
    for part in (
        "consistent, wide",
        "77.0 to 80.0",
        "config.train.lr",
        "0123abc",
        "a CPU",
        "roberta_base-vera-rte-4-0.01-done",
    ):
        assert part in text
    charts = opened.execute_script(
        "return [...document.querySelectorAll('svg.chart')].map(s => s.querySelectorAll('path.ours').length)"
    )
    assert charts == [5, 5, 5]
    first = opened.execute_script("return document.querySelector('svg.chart path.ours').getAttribute('d')")
    assert first.count("L") == 2
    assert "NaN" not in first
    opened.switch_to.active_element.send_keys(Keys.ESCAPE)
    until(opened, "return !document.querySelector('dialog').open")
    assert "#" not in opened.current_url
    assert opened.execute_script("return document.activeElement.textContent") == "78.7 ±1.1"


def test_a_run_id_leads_to_its_run_and_a_failed_one_tells_its_error(opened):
    opened.execute_script("location.hash = 'run-roberta_base-vera-rte-3-0.01-done'")
    until(opened, "return document.querySelector('dialog tr.chosen') !== null")
    chosen = opened.execute_script("return document.querySelector('dialog tr.chosen').textContent")
    assert chosen.startswith("3roberta_base-vera-rte-3-0.01-donedone77.00")
    opened.execute_script("location.hash = 'run-roberta_base-full-rte-0-0.01-failed'")
    until(opened, "return document.getElementById('cell').textContent.includes('out of memory at batch 32')")
    opened.execute_script("location.hash = 'cells-0.1'")
    until(opened, "return document.getElementById('cell-title').textContent === 'A number made of 2 cells'")


def test_a_phone_scrolls_down_and_not_sideways_and_dark_is_dark(opened):
    opened.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size(375, 800))
    assert opened.execute_script("return document.scrollingElement.scrollWidth") == 375
    opened.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": "dark"}]}
    )
    ground = "return getComputedStyle(document.body).backgroundColor"
    assert opened.execute_script(ground) == "rgb(20, 22, 26)"


def test_paper_shows_what_is_folded_and_no_filters(opened):
    opened.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    shown = "return getComputedStyle(document.querySelector(arguments[0])).display"
    assert opened.execute_script(shown, ".filters") == opened.execute_script(shown, "nav") == "none"
    folded = "return document.querySelectorAll('details:not([open])').length"
    before = opened.execute_script(folded)
    opened.execute_script("dispatchEvent(new Event('beforeprint'))")
    assert before > opened.execute_script(folded) == 0
    opened.execute_script("dispatchEvent(new Event('afterprint'))")
    assert opened.execute_script(folded) == before
    made = base64.b64decode(opened.execute_cdp_cmd("Page.printToPDF", {"preferCSSPageSize": True})["data"])
    assert made.startswith(b"%PDF")
