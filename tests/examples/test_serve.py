"""The example server, for real: on a port of the loopback, with requests for different adapters at the same
time."""

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
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
import uvicorn
from fastapi.testclient import TestClient
from tiny import save_tiny, shake
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


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    folder = tmp_path_factory.mktemp("serve")
    place = save_tiny(folder / "model", "bert")
    torch.manual_seed(0)
    base = AutoModelForSequenceClassification.from_pretrained(place).eval()
    tokenizer = AutoTokenizer.from_pretrained(place)
    model = copy.deepcopy(base)
    adapters, alone = vera.Adapters(model), {None: base}
    for i in range(5):
        one, method = copy.deepcopy(base), vera.VeRA(rank=12)
        method.adapt(one)
        shake(one, 0.1 * (i + 1))
        vera.save(one, method, folder / "adapter")
        vera.save_head(one, folder / "head", CLASSES.get(f"a{i}"))
        adapters.add(f"a{i}", folder / "adapter", folder / "head")
        alone[f"a{i}"] = one.eval()
    app = example().build(model, tokenizer, adapters)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=port, log_level="warning"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{port}", app, alone, tokenizer, model
    server.should_exit = True
    thread.join(10)


@pytest.fixture
def held(served):
    """The server, busy: its model computes a first request's batch, and ends no batch before `go` is set."""
    url, app, *_, model = served
    began, go = threading.Event(), threading.Event()

    def hold(*_):
        began.set()
        go.wait(30)

    hook = model.register_forward_pre_hook(hold)
    app.state.batches.clear()
    with ThreadPoolExecutor(20) as pool:
        first = pool.submit(post, url, adapter="a0", text=TEXTS[0])
        assert began.wait(30)
        yield url, app, pool, go
        go.set()
        assert first.result()["probabilities"]
    hook.remove()


def until(true) -> None:
    end = time.monotonic() + 120
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


def post(url: str, raw: bytes = b"", **body) -> dict:
    kind = {"content-type": "application/json"}
    request = urllib.request.Request(f"{url}/classify", raw or json.dumps(body).encode(), kind)
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)


def refused(url: str, raw: bytes) -> urllib.error.HTTPError:
    with pytest.raises(urllib.error.HTTPError) as error:
        post(url, raw)
    return error.value


def test_requests_for_different_adapters_share_batches_and_get_their_own_answers(served):
    """Whoever shares the batch: those of one text, of two, and of more than the model reads."""
    url, app, alone, tokenizer, *_ = served
    names = list(alone)
    work = [{"adapter": names[i % len(names)], "text": TEXTS[i % len(TEXTS)]} for i in range(60)]
    work = [{**body, **({"text_pair": TEXTS[0]} if i % 7 < 3 else {})} for i, body in enumerate(work)]
    work[8]["text"] = "dog " * 5000
    app.state.batches.clear()
    with ThreadPoolExecutor(30) as pool:
        answers = list(pool.map(lambda body: post(url, **body), work))
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


def test_a_wrong_request_is_refused_and_the_server_goes_on(served):
    url, *_ = served
    for body, code in (
        (b'{"adapter": "nobody", "text": "a"}', 404),
        (b'{"adapter": "a1"}', 422),
        (b'{"text": 3}', 422),
        (b'{"text": "a", "text_par": "b"}', 422),  # and not the answer for one text
        # What JSON cannot repeat
        (b'{"adapter": "a1", "text": NaN}', 422),
        (b'{"adapter": "a1", "text": "\\ud800"}', 422),
        (b'{"adapter": "\\udfff", "text": "a"}', 422),
        (b"[NaN]", 422),
    ):
        assert refused(url, body).code == code
    for how in ("content-length: 400000000", "transfer-encoding: chunked"):  # too large: not read to its end
        start = ["POST /classify HTTP/1.1", "host: here", "content-type: application/json", how, "", ""]
        with socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])), timeout=30) as client:
            client.sendall("\r\n".join(start).encode())
            if "chunked" in how:  # without an end
                client.sendall(b"".join(b"%x\r\n%s\r\n" % (300_000, b" " * 300_000) for _ in range(4)))
            assert client.recv(100).startswith(b"HTTP/1.1 413 ")
    assert post(url, adapter="a1", text=TEXTS[0])["probabilities"]


def test_what_it_serves_can_be_asked(served):
    url, *_ = served

    def ask(path):
        with urllib.request.urlopen(f"{url}{path}", timeout=30) as answer:
            return answer.url if not path else json.load(answer)

    assert ask("/adapters") == ["a0", "a1", "a2", "a3", "a4"]
    assert ask("/health") == {"status": "ok", "adapters": 5, "waiting": 0}
    assert ask("") == f"{url}/docs"


def test_beyond_the_queue_the_answer_is_503_and_those_that_wait_are_answered(held, monkeypatch):
    url, app, pool, go = held
    monkeypatch.setattr(app.state.waiting, "_maxsize", 3)
    waiting = [pool.submit(post, url, adapter="a1", text=TEXTS[i]) for i in range(3)]
    until(lambda: app.state.waiting.qsize() == 3)
    full = refused(url, b'{"adapter": "a1", "text": "a"}')
    assert full.code == 503
    assert int(full.headers["retry-after"]) > 0
    go.set()
    assert all(answer.result()["adapter"] == "a1" for answer in waiting)


def test_a_regression_answers_with_a_number(tmp_path):
    place = save_tiny(tmp_path / "model", "bert")
    model = AutoModelForSequenceClassification.from_pretrained(place, num_labels=1)
    method = vera.VeRA(rank=12)
    method.adapt(model)
    shake(model, 0.3)
    vera.save(model, method, tmp_path / "adapter")
    vera.save_head(model, tmp_path / "head")
    tokenizer = AutoTokenizer.from_pretrained(place)
    with torch.inference_mode():
        alone = model.eval()(**tokenizer(TEXTS[0], return_tensors="pt")).logits.item()
    base = AutoModelForSequenceClassification.from_pretrained(place, num_labels=1).eval()
    adapters = vera.Adapters(base)
    adapters.add("stars", tmp_path / "adapter", tmp_path / "head")
    with TestClient(example().build(base, tokenizer, adapters)) as client:
        answer = client.post("/classify", json={"adapter": "stars", "text": TEXTS[0]}).json()
    assert answer == {"adapter": "stars", "score": pytest.approx(alone, abs=1e-5)}


@pytest.mark.usefixtures("process")
def test_a_base_file_that_is_overwritten_or_cut_changes_no_answer(tmp_path):
    place = save_tiny(tmp_path / "model", "bert")
    torch.manual_seed(0)
    model, method = AutoModelForSequenceClassification.from_pretrained(place), vera.VeRA(rank=12)
    method.adapt(model)
    for name in ("whole", "headless"):
        (tmp_path / name).mkdir()
        vera.save(model, method, tmp_path / name / "adapter.safetensors")
    vera.save_head(model, tmp_path / "whole" / "head.safetensors", ["bad", "good"])
    folders = [f"films={tmp_path / 'whole'}", *(tmp_path / name for name in ("whole", "headless"))]
    command = [sys.executable, SERVE, "--model", place, "--port", "0", *folders]
    log = tmp_path / "log"
    with log.open("w") as out, subprocess.Popen(command, stdout=out, stderr=out) as server:
        try:
            until(lambda: server.poll() is not None or "running on" in log.read_text())
            assert server.poll() is None, log.read_text()
            url = re.search(r"running on (http\S+)", log.read_text())[1]
            answer = post(url, adapter="whole", text=TEXTS[0])
            assert answer["label"] in answer["probabilities"].keys() == {"bad", "good"}
            assert post(url, adapter="films", text=TEXTS[0]) == answer | {"adapter": "films"}
            weights = place / "model.safetensors"
            with weights.open("r+b") as file:
                file.seek(weights.stat().st_size // 4)
                file.write(os.urandom(weights.stat().st_size * 3 // 4))
            assert post(url, adapter="whole", text=TEXTS[0]) == answer
            os.truncate(weights, 0)
            assert post(url, adapter="whole", text=TEXTS[0]) == answer
            headless = refused(url, b'{"text": "a"}')
            assert headless.code == 422
            assert "name an adapter" in json.load(headless)["detail"]
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
