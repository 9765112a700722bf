"""README and docs: every command exists as it is written, every block of Python runs,
every link leads to a file. Commands are read by the readers that they have, and not
run."""

import ast
import functools
import importlib.util
import re
import shlex
import sys
import tomllib
from collections.abc import Iterable
from pathlib import Path

import pytest
import support
import torch
import yaml
from ledgers import ledger, seed_records
from running import ROOT
from tiers import slow_except
from tiny import tiny

import runs.command.parser
import vera
from analysis.figures import NAMES
from analysis.records import flat_runs
from analysis.tables import TABLES
from runs.command.errors import UserError
from runs.config import Files, read_command
from runs.config.compose import Composer
from runs.config.grid import read_grid
from runs.export import FORMATS
from runs.plan import main as plan
from runs.run.definition import overrides_of
from runs.tune import searches_of_command
from tasks.mt_bench.__main__ import _parser as judge_parser
from vera.methods.contract import METHODS
from vera_bench import COMMANDS
from vera_bench.__main__ import split_command

pytestmark = pytest.mark.properties

#: All but the page of results, whose text is that of the studies' notes.
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *(page for page in sorted(ROOT.glob("docs/*.md")) if page.name != "results.md"),
]
OWN = ROOT / "docs" / "own_method.md"
MAKEFILE = (ROOT / "Makefile").read_text()
TARGETS = set(re.findall(r"^([a-z0-9-]+):(?!=)", MAKEFILE, re.M)) | {
    name
    for line in re.findall(r"^([a-z0-9 -]+):$", MAKEFILE, re.M)
    for name in line.split()
}
VARIABLES = set(
    re.findall(
        r"[A-Z_]+", re.search(r"^unexport (.*?[^\\])$", MAKEFILE, re.M | re.S)[1]
    )
)
#: Pages of the site that .ci/pages.py writes.
GENERATED = {f"api/{room}.md" for room in ("vera", "tasks", "runs", "analysis")}
GENERATED |= {"data/README.md"}
#: Presets whose costs docs/gpu.md names.
COSTS = ["table4_llama2_13b", "table5_base", "table6_scaling_vectors"]
#: Programs that are not this project's.
OTHERS = {"git", "cd", "cp", "hf", "curl", "docker", "wandb", "eval", "export", "."}


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(), re.M | re.S)


def commands(page: Path) -> list[str]:
    """The lines of a page's shell blocks, and what stands as a command within its
    text."""
    lines = []
    for block in blocks(page, "sh"):
        lines += block.replace("\\\n", " ").splitlines()
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.M | re.S)
    spans = [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", text)]
    lines += [
        s
        for s in spans
        if re.match(r"(make [a-z]|([A-Z_]+=\S+ )?(python|torchrun|vera-bench) )", s)
    ]
    return [line for line in lines if line.strip() and not line.startswith("#")]


class ReadError(BaseException):
    """Ends a command once its line has been read; holds the line."""


def read_line(name: str, words: list[str]) -> runs.command.parser.CommandLine:
    """A command's line as its own reader parses it; nothing after that is done."""
    module = importlib.import_module(
        f"{name}.__main__" if (ROOT / name.replace(".", "/")).is_dir() else name
    )
    real = runs.command.parser.CommandLine

    def ends(**parts):
        raise ReadError(real(**parts))

    with pytest.MonkeyPatch.context() as own:
        own.setattr("runs.command.parser.CommandLine", ends)
        with pytest.raises(ReadError) as line:
            module.main(words)
    return line.value.args[0]


def first_and_last(
    overrides: Iterable[str], folder: str | None
) -> set[tuple[str, ...]]:
    """Commands of one run each: of the first value of every list, and of the last.
    (test_methods.py has each value with each.)"""
    with Composer(Files(folder)) as composer:
        grid = read_grid(overrides, composer)
    return {(*cell, *grid.seeds[:1]) for cell in (grid.cells[0], grid.cells[-1])}


@functools.cache
def compose(words: tuple[str, ...], folder: str | None) -> None:
    """Once for all pages."""
    read_command(words, folder)


#: What the first word of these commands may be.
WORDS = {
    "analysis.tables": TABLES,
    "analysis.stats": TABLES,
    "analysis.figures": [*NAMES, "all", "curve"],
}
WORDS |= {"runs.measure": ["magnitude", "similarity", "matrix_fit"]}


def check_module(name: str, words: list[str], options: list[str]) -> None:
    if name == "pytest":
        assert all(
            (ROOT / word).exists() for word in words if word.startswith("tests")
        ), words
    elif name == "pip":
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
            "optional-dependencies"
        ]
        assert set(re.findall(r"\[(\w+)\]", " ".join(words))) <= set(extras)
    elif name == "tasks.mt_bench":
        judge_parser().parse_args(words)
    elif name.startswith("tasks.") or (not words and name != "runs"):
        assert importlib.util.find_spec(name), name
    else:
        line = read_line(name, [*words, *options] if name == "runs" else words)
        assert not line.positional or line.positional[0] in WORDS.get(
            name, line.positional
        ), line.positional
        if name == "runs.export":  # leaderboard= needs no format
            assert set(line.positional[1:2]) <= set(FORMATS)
        folder, overrides = (
            options[0].partition("=")[2] if options else line.config_dir,
            [*line.overrides],
        )
        if name == "runs":
            overrides = [
                *overrides_of({"id": line.settings.rerun, "cell": {"seed": 0}}),
                *overrides,
            ]
            if {
                "--hydra-help",
                "--version",
                "--info",
                "--shell-completion",
            } & line.options.keys():
                return
        if name == "runs.tune":
            searches_of_command(overrides, folder)
        elif overrides or name == "runs":
            for of in first_and_last(overrides, folder):
                compose(of, folder)


def check(line: str, options: list[str]) -> None:
    """Raises what the command would, or AssertionError, for a line that is not a
    command of this project."""
    for part in re.split(r" && ", line):
        words = shlex.split(part, comments=True)
        while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
            del words[0]
        if not words or words[0] in OTHERS:
            continue
        program, *rest = words
        if program == "make":
            assert {word for word in rest if "=" not in word} <= TARGETS, rest
            assert {
                word.partition("=")[0] for word in rest if "=" in word
            } <= VARIABLES, rest
        elif program == "vera-bench":
            name, rest = split_command(rest)
            module = COMMANDS[name].module.removesuffix(".__main__")
            if module != "vera_bench.serve":
                check_module(module, rest, options)
        elif program == "pip":
            check_module(program, rest, options)
        elif "-m" in rest:  # of python, or of torchrun
            at = rest.index("-m")
            check_module(rest[at + 1], rest[at + 2 :], options)
        elif rest[:1] == ["-c"]:
            ast.parse(rest[1])
        else:
            assert rest, f"{program}: which program is this?"
            assert program == "python"
            script = (ROOT / rest[0]).read_text()
            assert all(
                f'"{word}"' in script for word in rest if word.startswith("--")
            ), rest


@pytest.fixture
def svft(tmp_path, monkeypatch):
    """The methods of docs/own_method.md as a reader would make them: an importable
    package, and a folder for --config-dir, where inside is the file of a clone."""
    svft, *_, ssf = blocks(OWN, "python")
    inside, outside = blocks(OWN, "yaml")
    files = {"my_package/svft.py": svft, "my_package/ssf.py": ssf}
    files |= {"conf/method/inside.yaml": inside, "conf/method/svft.yaml": outside}
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    modules = [
        importlib.import_module(f"my_package.{name}").__name__
        for name in ("svft", "ssf")
    ]
    yield f"--config-dir={tmp_path / 'conf'}"
    del METHODS["svft"], METHODS["site_ssf"]
    for name in ("my_package", *modules):
        del sys.modules[name]


@pytest.mark.parametrize(
    "page", slow_except(PAGES, ROOT / "README.md"), ids=lambda page: page.stem
)
def test_every_command_exists_as_it_is_written(page, request):
    options = [request.getfixturevalue("svft")] if page.stem == "own_method" else []
    found = commands(page)
    assert len(found) > 12 or page.stem != "README"
    for line in found:
        try:
            check(line, options)
        except (
            UserError,
            vera.AdapterError,
            AssertionError,
            OSError,
            SystemExit,
        ) as error:
            pytest.fail(f"{page.name}: {line}\n{error}")


@pytest.mark.parametrize(
    "wrong",
    [
        "make demmo",
        "make demo METHOD=vera",
        "OMP_NUM_THREADS=1 python -m runs method=vera train.epoch=1 # a comment",
        "python -m runs.tune method=vera train.lrr=1,2",
        "python -m runs.export ID onnx FOLDER",
        "python -m analysis.tables tabel2",
        "python -m analysis.tabels table2",
        "python examples/serve.py --modle FOLDER",
        "pip install -e '.[srve]'",
        "bnech",
    ],
)
def test_a_wrong_command_would_be_noticed(wrong):
    with pytest.raises((UserError, AssertionError, ImportError, SystemExit)):
        check(wrong, [])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_to_files(page):
    text = re.sub(r"^```.*?^```$|`[^`]*`", "", page.read_text(), flags=re.M | re.S)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        where, _, anchor = link.partition("#")
        if link.startswith("https://"):
            continue
        target = page.parent / where if where else page
        assert target.exists(), f"{page.name}: {link}"
        titles = re.findall(r"^#+ (.*)$", target.read_text(), re.M) if anchor else []
        slugs = {
            re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles
        }
        assert not anchor or anchor in slugs, f"{page.name}: {link}"


def test_the_site_leads_to_every_page():
    nav = yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]
    linked = set(re.findall(r"[\w/]+\.md", yaml.safe_dump(nav)))
    pages = {
        path.relative_to(ROOT / "docs").as_posix() for path in ROOT.glob("docs/**/*.md")
    }
    # parts of results.md
    pages = {path for path in pages if not path.startswith("bench/")}
    assert linked - pages == {"index.md", "CONTRIBUTING.md", "CHANGELOG.md", *GENERATED}
    assert not pages - linked


def test_the_card_of_the_data_names_columns_that_are_there():
    card = (ROOT / ".ci" / "data.md").read_text()
    named = re.findall(r"`(\w+)`", card.partition("\n- `kind`")[2])
    words = {"result", "trial", "stopped", "failed", "no"}  # values
    frame = flat_runs(ledger(*seed_records("vera")))
    assert {"kind", *named} - words <= {*frame}
    # as its code says
    cells = frame[(frame.kind == "result") & (frame.left_out == "no")]
    assert cells.groupby(["model", "task", "row"]).value.agg(
        ["count", "median", "std"]
    )["count"].tolist() == [5]


def test_readme_is_short_and_narrow():
    lines = (ROOT / "README.md").read_text().splitlines()
    assert len(lines) <= 130
    assert max(map(len, lines)) <= 100
    code = [
        line
        for block in blocks(ROOT / "README.md", "[a-z]*")
        for line in block.splitlines()
    ]
    assert max(map(len, code)) <= 95


def test_the_search_of_the_site_puts_guides_first():
    """A word in a heading counts a thousand times as much as one in a text."""
    spec = importlib.util.spec_from_file_location("pages", ROOT / ".ci" / "pages.py")
    site = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(site)
    paths = ("sweeps.md", "records.md", "api/vera.md")
    guide, reference, api = map(site.boost_of, paths)
    assert guide > reference > 1_000 * api
    assert site.boost_of("CHANGELOG.md") == api
    assert {f"{name}.md" for name in site.GUIDES} <= {
        "index.md",
        *(path.name for path in (ROOT / "docs").glob("*.md")),
    }


@pytest.mark.slow  # ten seconds each
@pytest.mark.parametrize("preset", COSTS)
def test_the_costs_on_the_gpu_page_are_the_plans(preset, capsys):
    page = (ROOT / "docs" / "gpu.md").read_text()
    row = re.search(rf"^\| {preset} \| (.*) \|$", page, re.M)[1].split(" | ")
    plan([f"experiment={preset}", "card=H100"])
    out = capsys.readouterr().out
    found = re.search(
        r"forecast for (\S+) runs?: (\S+) steps, (\S+) tokens, (\S+) FLOP\n", out
    )
    assert row == [*found.groups(), re.search(r"est. (.*) left on one H100", out)[1]]


def test_the_costs_of_the_readme_are_those_of_the_gpu_page():
    page = (ROOT / "docs" / "gpu.md").read_text()
    readme = " ".join((ROOT / "README.md").read_text().split())
    sentence = r"whole table is (\d+) runs: at least ([\d.]+h) on one H100"
    runs, hours = re.search(sentence, readme).groups()
    (row,) = re.findall(r"^\| table2_base \| .*$", page, re.M)
    assert row.startswith(f"| table2_base | {runs} | ")
    assert row.endswith(f"| {hours} |")


# --- Python


@pytest.mark.usefixtures("svft")
@pytest.mark.parametrize("architecture", ["BERT", "GPT-2"])
def test_the_methods_of_the_docs_train_save_load_and_merge(architecture, capsys):
    _, script, row, _ = blocks(OWN, "python")
    (make,) = eval(f"{{{row}}}", {"vera": vera}).values()
    assert make(architecture) == vera.make_method("svft", rank=4)
    for method in (make(architecture), vera.make_method("site_ssf")):
        model = support.adapted(architecture, method)
        assert sum(
            p.numel() for p in method.adapter_parameters(model).values()
        ) == method.count(model)
        for behaviour in (support.train, support.merge, support.save):
            behaviour(model, method, architecture)
    assert vera.check(vera.make_method("site_ssf"), tiny(architecture), start=0.01)
    capsys.readouterr()
    exec(script, {})
    assert capsys.readouterr().out == "True\n"
    with pytest.raises(vera.AdapterError, match=r"rank 33: .* has 32 singular vectors"):
        vera.make_method("svft", rank=33).adapt(tiny(architecture))


def run_block(text: str, folder: Path, **names) -> dict:
    """Runs a block of a page on a tiny model in place of RoBERTa."""
    text = text.replace("path/to/roberta-base", str(folder)).replace(
        "FOLDER", str(folder)
    )
    text = text.replace("rank=1024", "rank=12").replace(
        "max_new_tokens=64", "max_new_tokens=4"
    )
    exec(compile(text, "a page", "exec"), names)
    return names


def test_python_of_readme_and_serving_runs(tiny_roberta, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (front,) = blocks(ROOT / "README.md", "python")
    names = run_block(front, tiny_roberta)
    assert names["method"] == vera.VeRA(rank=12)
    first, of_a_run, second = blocks(ROOT / "docs" / "serving.md", "python")
    names = run_block(first, tiny_roberta)
    assert (tmp_path / "merged" / "config.json").is_file()
    run = tmp_path / "outputs" / "runs" / "ID"
    run.mkdir(parents=True)
    (run / "adapter.safetensors").write_bytes(
        (tmp_path / "adapter.safetensors").read_bytes()
    )
    vera.save_head(tiny("RoBERTa"), run / "head.safetensors", ["poor", "lovely"])
    run_block(of_a_run, tiny_roberta, **names)
    assert capsys.readouterr().out in ("poor\n", "lovely\n")
    for name in ("alice", "bob"):
        (tmp_path / f"{name}.safetensors").write_bytes(
            (tmp_path / "adapter.safetensors").read_bytes()
        )
    (tmp_path / "alice_head.safetensors").write_bytes(
        (tmp_path / "head.safetensors").read_bytes()
    )
    batch = {
        "input_ids": torch.randint(5, 20, (3, 8)),
        "attention_mask": torch.ones(3, 8, dtype=torch.long),
    }
    model = (
        names["AutoModelForSequenceClassification"].from_pretrained(tiny_roberta).eval()
    )
    with torch.no_grad():
        names = run_block(second, tiny_roberta, model=model, batch=batch)
    assert names["logits"].shape == (3, 2)
    assert list(names["adapters"]) == ["alice", "bob"]


def test_python_of_table_3_runs(tiny_gpt2, capsys):
    (block,) = blocks(ROOT / "docs" / "texts.md", "python")
    run_block(block, tiny_gpt2)
    assert capsys.readouterr().out.strip()
