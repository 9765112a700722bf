"""Keys have declared roles, and what is derived from the roles: ids, what is published,
and docs/keys.md."""

import copy
import shutil
from functools import cache
from typing import Annotated, get_type_hints

import pytest
import yaml
from keys_page import PAGE, page
from running import refused

from runs.__main__ import main
from runs.config import expand
from runs.config.schema import Launch
from runs.record import cell, configuration, keys
from runs.record.cell import defining_settings, id_of, protocol_of
from runs.record.keys import (
    KEYS,
    PATH,
    RESULT,
    AddedLater,
    ConfigPart,
    Key,
    keys_of_part,
    names_with_role,
    nearest_key,
)
from runs.record.ledger import CONF, PUBLISHED, read_study
from runs.record.redaction import without_paths
from runs.run.identity import run_id
from runs.training.result import deviations

pytestmark = pytest.mark.properties


@cache
def published():
    """Every published record, for reading alone."""
    records = []
    for folder in sorted(PUBLISHED.iterdir()):
        if folder.is_dir():
            records += read_study(folder)
    return records


# --- declarations


def keys_of_files(group):
    """The keys that the files of a group of conf/ set."""
    names = set()
    for path in (CONF / group).glob("*.yaml"):
        names |= set(yaml.safe_load(path.read_text(encoding="utf-8")) or {})
    return names - {"defaults"}


@pytest.mark.parametrize("group", ["model", "task", "method"])
def test_every_key_of_a_file_declares_a_role(group):
    undeclared = {f"{group}.{name}" for name in keys_of_files(group)} - set(KEYS)
    assert undeclared == set()


def test_every_key_of_the_configuration_declares_a_role():
    text = (CONF / "config.yaml").read_text(encoding="utf-8")
    content = yaml.safe_load(text)
    command = set(Launch.model_fields)
    for name, value in content.items():
        if name in {"defaults", *command}:
            continue
        names = (
            [f"{name}.{key}" for key in value] if isinstance(value, dict) else [name]
        )
        assert set(names) <= set(KEYS)


def test_a_key_without_a_role_is_an_error():
    class Forgotten(ConfigPart):
        size: int = 1

    with pytest.raises(TypeError, match=r"task\.size: declare one role"):
        list(keys_of_part(Forgotten, "task"))


def test_a_key_within_a_mapping_has_the_role_of_the_mapping():
    assert nearest_key("model.settings.dropout") == KEYS["model.settings"]
    assert nearest_key("nothing.of.that.name") is None


# --- ids


def test_every_published_id_follows_from_its_record():
    records = published()
    assert len(records) >= 2543
    wrong = []
    for record in records:
        computed = id_of(
            record["config"],
            row=record["cell"]["row"],
            model=record["model"],
            data=record["data"]["content"],
            protocol=protocol_of(record),
            start=(record.get("start") or {}).get("id"),
        )
        if computed != record["id"]:
            wrong.append(record["id"])
    assert wrong == []


@pytest.mark.parametrize("group", ["model", "task"])
def test_no_path_is_in_an_id(group):
    record = published()[0]
    for name in names_with_role(PATH, group):
        moved = copy.deepcopy(record["config"])
        moved[group][name] = "/home/somebody/elsewhere"
        without = copy.deepcopy(record["config"])
        without[group][name] = None
        assert defining_settings(moved) == defining_settings(without), name


def test_a_folder_of_test_problems_counts_by_its_content(tmp_path):
    folders = [tmp_path / "here", tmp_path / "there"]
    folders[0].mkdir()
    rows = '{"question": "2 + 2?", "answer": "It is 4. #### 4"}\n'
    for name in ("train", "test"):
        (folders[0] / f"{name}.jsonl").write_text(rows * 60)
    rows = '[{"query": "1 + 1?", "response": "2 #### 2", "type": "GSM_Rephrased"}]'
    (folders[0] / "MetaMathQA-395K.json").write_text(rows)
    shutil.copytree(*folders)
    overrides = ["model=smollm2", "task=gsm8k", "method=vera"]
    overrides.append(f"task.data_dir={folders[0]}")
    ids = set()
    for folder in folders:
        (run,) = expand([*overrides, f"task.test_dir={folder}"])
        ids.add(run_id(run))
    assert len(ids) == 1


@pytest.mark.parametrize("group", ["model", "task", "method", "train"])
def test_a_new_key_is_in_no_id_at_its_neutral_value(group, monkeypatch):
    (run,) = expand(["model=minilm", "task=reviews", "method=vera"])
    before = defining_settings(run.config)
    name = f"{group}.added_later"
    monkeypatch.setitem(KEYS, name, Key(name, RESULT, "text", AddedLater("as before")))
    uncached = cell.keys_of_group.__wrapped__  # which sees the added key
    monkeypatch.setattr(cell, "keys_of_group", uncached)
    settings = []
    for value in ("as before", "otherwise"):
        config = copy.deepcopy(run.config)
        config[group]["added_later"] = value
        settings.append(defining_settings(config))
    assert settings[0] == before
    assert settings[1] != before


def test_a_marker_says_from_when_on_a_key_counts_in_which_families():
    class Later(ConfigPart):
        grouped: Annotated[bool, RESULT, AddedLater(True, ("glue",))] = True

    (key,) = keys_of_part(Later, "task")
    values_and_families = [(True, "glue"), (False, "glue"), (True, "maths")]
    in_ids = [key.in_ids(*pair) for pair in values_and_families]
    assert in_ids == [False, True, True]


# --- what is published


@pytest.mark.parametrize("name", [key for key in KEYS if KEYS[key].role == PATH])
def test_a_published_record_holds_no_local_path(name):
    secret = "/home/somebody/secret/last_part"
    record = copy.deepcopy(published()[0])
    group, _, key = name.rpartition(".")
    (record["config"][group] if group else record["config"])[key] = secret
    record["overrides"] = [f"{name}={secret}", f"++{name}='{secret}'"]
    clean = repr(without_paths(record))
    assert "secret" not in clean
    assert "last_part" in clean


# --- overrides


def test_an_override_of_the_models_settings_is_a_deviation():
    overrides = ["model=smollm2", "task=alpaca", "method=lora", "recipe=lora/smollm2"]
    (run,) = expand([*overrides, "+model.settings.dropout=0.3"])
    assert "+model.settings.dropout=0.3 given" in deviations(run, [])


@pytest.mark.parametrize(
    ("override", "words"),
    [("seed=a", "seed"), ("train.schedule=cosin", "train.schedule")],
)
@pytest.mark.parametrize("option", [("--cfg", "job"), ("--cfg", "job", "sources=true")])
def test_the_printed_configuration_is_checked_like_a_run(override, words, option):
    with refused(words):
        main(["model=minilm", override, *option])


# --- the reference page


def test_the_page_of_keys_is_that_of_the_declarations():
    assert PAGE.read_text(encoding="utf-8") == page(), "run make keys"


@pytest.mark.parametrize(
    ("named", "declared"),
    [
        (configuration.ModelConfig, keys.ModelKeys),
        (configuration.TaskConfig, keys.TaskKeys),
        (configuration.MethodConfig, keys.MethodKeys),
        (configuration.TrainConfig, keys.TrainKeys),
        (configuration.RewardConfig, keys.RewardKeys),
        (configuration.Configuration, keys.RunKeys),
    ],
)
def test_the_keys_that_code_reads_of_a_configuration_are_declared(named, declared):
    assert set(named.__annotations__) <= set(declared.model_fields)


def test_a_model_s_keys_have_the_types_that_are_declared():
    declared = get_type_hints(keys.ModelKeys)
    for name, kind in get_type_hints(configuration.ModelConfig).items():
        expected = declared[name]
        if name == "quantise":  # declared with its values
            expected = str | None
        assert kind == expected, name
