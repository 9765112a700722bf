"""The record of a tiny run of each family: its keys, their order and types, and its
numbers."""

import re

import pytest
from running import train_here

from nets.golden import same_json

pytestmark = pytest.mark.nets

#: What another machine, day, folder or version changes; its type stands instead.
ELSEWHERE = re.compile(
    r"\.(reach\.effect|id|cell_id|config_hash|model|content|selection|commit|dirty|hash|sha256|output|path|data_dir|mt_bench_dir|cache_dir)$"
    r"|\.(versions|device|cost|files|predictions|sources|determinism)\.[\w.-]+$"
)


def masked(value, where=""):
    # may be null
    if where.endswith((".cuda", ".commit", ".dirty", ".upstream", ".altered")):
        return "masked"
    if ELSEWHERE.search(where) and not isinstance(value, dict):
        return type(value).__name__
    if isinstance(value, dict):
        return {key: masked(inner, f"{where}.{key}") for key, inner in value.items()}
    if isinstance(value, list):
        return [masked(inner, where) for inner in value]
    return re.sub("=/.*", "=path", value) if where.endswith(".overrides") else value


@pytest.mark.parametrize("family", ["glue", "e2e", "instruct", "images"])
def test_the_record_of_a_tiny_run(family, request, monkeypatch, drawn):
    fixture = {
        "glue": "words",
        "e2e": "e2e_words",
        "instruct": "alpaca_words",
        "images": "image_words",
    }[family]
    words = request.getfixturevalue(fixture)
    # Java may be here or not
    monkeypatch.setattr("tasks.e2e_metrics.shutil.which", lambda name: None)
    record = train_here([*words, "seed=1"])
    if family == "e2e":  # texts of a model that has learned nothing hang on a rounding
        for scores in record["texts"]["scores"]:
            scores |= dict.fromkeys(("bleu", "nist"), "float")
    same_json(f"records/{family}.json", masked(record))
