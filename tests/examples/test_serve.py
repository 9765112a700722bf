"""The example server, with requests for different adapters at the same time; and once for real, on a port of
the loopback."""

import copy
import hashlib
import importlib.util
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
import torch
from fastapi.testclient import TestClient
from support import written
from tiny import save_tiny
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import vera

pytestmark = pytest.mark.contract

SERVE = Path(__file__).parents[2] / "examples" / "serve.py"
TEXTS = [
    "the dog sees the cat .",
    "the river is calm .",
    "a farmer likes a bird and the train is loud .",
    "who ?",
]
#: Of one adapter the classes have names.
CLASSES = {"a3": ["bad", "good"]}


def example():
    spec = importlib.util.spec_from_file_location("serve", SERVE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def base_model(place, labels=2):
    torch.manual_seed(0)
    return AutoModelForSequenceClassification.from_pretrained(place, num_labels=labels).eval()


def write_adapter(base, folder, size, classes=None):
    return written(base, vera.VeRA(rank=12), folder, size=size, labels=classes)[0]


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A client, its application, the model of each adapter alone, the tokenizer, and the shared model."""
    folder = tmp_path_factory.mktemp("serve")
    place = save_tiny(folder / "model", "bert")
    base, tokenizer = base_model(place), AutoTokenizer.from_pretrained(place)
    model = copy.deepcopy(base)
    adapters, alone = vera.Adapters(model), {None: base}
    for i in range(5):
        name = f"a{i}"
        alone[name] = write_adapter(base, folder / name, 0.1 * (i + 1), CLASSES.get(name))
        adapters.add(name, folder / name / "adapter.safetensors", folder / name / "head.safetensors")
    app = example().build(model, tokenizer, adapters)
    with TestClient(app) as client:
        yield client, app, alone, tokenizer, model


def post(client, **body) -> dict:
    answer = client.post("/classify", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def until(true) -> None:
    end = time.monotonic() + 120
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_requests_for_different_adapters_share_batches_and_get_their_own_answers(served):
    """Whoever shares the batch: those of one text, of two, and of more than the model reads."""
    client, app, alone, tokenizer, _ = served
    names = list(alone)
    work = [{"adapter": names[i % len(names)], "text": TEXTS[i % len(TEXTS)]} for i in range(60)]
    work = [{**body, **({"text_pair": TEXTS[0]} if i % 7 < 3 else {})} for i, body in enumerate(work)]
    work[8]["text"] = "dog " * 5000
    app.state.batches.clear()
    with ThreadPoolExecutor(30) as pool:
        answers = list(pool.map(lambda body: post(client, **body), work))
    assert sum(app.state.batches) == 60
    assert max(app.state.batches) > 1
    for body, answer in zip(work, answers, strict=True):
        texts = [body["text"], *([body["text_pair"]] if "text_pair" in body else [])]
        batch = tokenizer(*texts, truncation=True, max_length=48, return_tensors="pt")
        with torch.no_grad():
            expected = alone[body["adapter"]](**batch).logits.softmax(-1)[0]
        probabilities, label = expected.tolist(), int(expected.argmax())
        if classes := CLASSES.get(body["adapter"]):
            probabilities, label = dict(zip(classes, probabilities, strict=True)), classes[label]
        assert answer["probabilities"] == pytest.approx(probabilities, abs=1e-5)
        assert answer["label"] == label


def test_a_wrong_request_is_refused_and_what_is_served_can_be_asked(served):
    client, *_ = served
    for body, code in (
        ('{"adapter": "nobody", "text": "a"}', 404),
        ('{"adapter": "a1"}', 422),
        ('{"text": 3}', 422),
        ('{"text": "a", "text_par": "b"}', 422),  # and not the answer for one text
        # What JSON cannot repeat
        ("[NaN]", 422),
    ):
        answer = client.post("/classify", content=body, headers={"content-type": "application/json"})
        assert answer.status_code == code
        assert post(client, adapter="a1", text=TEXTS[0])["probabilities"]
    assert client.get("/adapters").json() == ["a0", "a1", "a2", "a3", "a4"]
    assert client.get("/health").json() == {"status": "ok", "adapters": 5, "waiting": 0}
    assert client.get("/").url.path == "/docs"


def test_beyond_the_queue_the_answer_is_503_and_those_that_wait_are_answered(served, monkeypatch):
    client, app, *_, model = served
    began, go = threading.Event(), threading.Event()

    def hold(*_):  # the model computes a first request's batch, and ends none before `go` is set
        began.set()
        go.wait(30)

    hook = model.register_forward_pre_hook(hold)
    monkeypatch.setattr(app.state.waiting, "_maxsize", 3)
    with ThreadPoolExecutor(20) as pool:
        first = pool.submit(post, client, adapter="a0", text=TEXTS[0])
        assert began.wait(30)
        waiting = [pool.submit(post, client, adapter="a1", text=TEXTS[i]) for i in range(3)]
        until(lambda: app.state.waiting.qsize() == 3)
        full = client.post("/classify", json={"adapter": "a1", "text": "a"})
        go.set()
        assert (full.status_code, int(full.headers["retry-after"]) > 0) == (503, True)
        assert [answer.result()["adapter"] for answer in [first, *waiting]] == ["a0", "a1", "a1", "a1"]
    hook.remove()


def test_a_regression_answers_with_a_number(tmp_path):
    place = save_tiny(tmp_path / "model", "bert")
    base, tokenizer = base_model(place, labels=1), AutoTokenizer.from_pretrained(place)
    alone, adapters = write_adapter(base, tmp_path / "stars", 0.3), vera.Adapters(base)
    adapters.add("stars", *(tmp_path / "stars" / f"{part}.safetensors" for part in ("adapter", "head")))
    with torch.inference_mode():
        score = alone(**tokenizer(TEXTS[0], return_tensors="pt")).logits.item()
    with TestClient(example().build(base, tokenizer, adapters)) as client:
        answer = post(client, adapter="stars", text=TEXTS[0])
    assert answer == {"adapter": "stars", "score": pytest.approx(score, abs=1e-5)}


@pytest.mark.usefixtures("process")
def test_a_real_server_reads_no_large_body_and_needs_its_base_file_no_more(tmp_path):
    """Which may be overwritten or cut: no answer changes."""
    place = save_tiny(tmp_path / "model", "bert")
    base = base_model(place)
    write_adapter(base, tmp_path / "whole", 0.1, ["bad", "good"])
    write_adapter(base, tmp_path / "headless", 0.1)
    (tmp_path / "headless" / "head.safetensors").unlink()
    folders = [f"films={tmp_path / 'whole'}", *(tmp_path / name for name in ("whole", "headless"))]
    command = [sys.executable, SERVE, "--model", place, "--port", "0", *folders]
    log = tmp_path / "log"
    with log.open("w") as out, subprocess.Popen(command, stdout=out, stderr=out) as server:
        try:
            until(lambda: server.poll() is not None or "running on" in log.read_text())
            assert server.poll() is None, log.read_text()
            url = re.search(r"running on (http\S+)", log.read_text())[1]
            client = httpx.Client(base_url=url, timeout=30, trust_env=False)
            answer = post(client, adapter="whole", text=TEXTS[0])
            assert answer["label"] in answer["probabilities"].keys() == {"bad", "good"}
            assert post(client, adapter="films", text=TEXTS[0]) == answer | {"adapter": "films"}
            for how in ("content-length: 400000000", "transfer-encoding: chunked"):
                lines = ["POST /classify HTTP/1.1", "host: here", "content-type: application/json", how]
                with socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])), 30) as raw:
                    raw.sendall("\r\n".join([*lines, "", ""]).encode())
                    if "chunked" in how:  # without an end
                        raw.sendall(b"".join(b"%x\r\n%s\r\n" % (300_000, b" " * 300_000) for _ in range(4)))
                    assert raw.recv(100).startswith(b"HTTP/1.1 413 ")
            weights = place / "model.safetensors"
            with weights.open("r+b") as file:
                file.seek(weights.stat().st_size // 4)
                file.write(os.urandom(weights.stat().st_size * 3 // 4))
            assert post(client, adapter="whole", text=TEXTS[0]) == answer
            os.truncate(weights, 0)
            assert post(client, adapter="whole", text=TEXTS[0]) == answer
            headless = client.post("/classify", json={"text": "a"})
            assert headless.status_code == 422
            assert "name an adapter" in headless.json()["detail"]
        finally:
            server.terminate()
    assert "headless: no head.safetensors" in log.read_text()
    assert "2 adapters on cpu: films, whole\n" in log.read_text()


def test_an_adapter_has_a_name_of_its_own_or_its_folders(tmp_path, monkeypatch):
    named_folder = example().named_folder
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lr=1").mkdir()
    assert named_folder("films=runs/7f") == ("films", Path("runs/7f"))
    assert named_folder("runs/7f/") == ("7f", Path("runs/7f"))
    assert named_folder("lr=1") == ("lr=1", Path("lr=1"))  # a folder that is there
    assert named_folder("runs/lr=2/7f") == ("7f", Path("runs/lr=2/7f"))


def test_a_file_that_is_not_the_one_of_the_run_s_record_is_not_served(tmp_path):
    folder, record = tmp_path / "runs" / "7f", tmp_path / "records" / "7f.json"
    check_record = example().check_record
    folder.mkdir(parents=True)
    record.parent.mkdir()
    (folder / "adapter.safetensors").write_bytes(b"epoch 2")
    check_record(folder)  # there is no record
    named = {"adapter.safetensors": hashlib.sha256(b"epoch 2").hexdigest()}
    for files in (None, ["adapter.safetensors"], named):
        record.write_text(json.dumps({"files": files}))
        check_record(folder)
    (folder / "adapter.safetensors").write_bytes(b"epoch 6")
    with pytest.raises(vera.AdapterError, match=r"7f/adapter\.safetensors: not the file"):
        check_record(folder)
