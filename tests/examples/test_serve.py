"""The example server, for real: on a port of the loopback, with requests for different adapters at the same time."""

import copy
import importlib.util
import json
import socket
import threading
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
import uvicorn
from tiny import save_tiny, shake
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import vera

SERVE = Path(__file__).parents[2] / "examples" / "serve.py"
TEXTS = ["the dog sees the cat .", "the river is calm .", "a farmer likes a bird and the train is loud .", "who ?"]


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
        vera.save_head(one, folder / "head")
        adapters.add(f"a{i}", folder / "adapter", folder / "head")
        alone[f"a{i}"] = one.eval()
    app = example().build(model, tokenizer, adapters)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=port, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{port}", app, alone, tokenizer
    server.should_exit = True
    thread.join(10)


def post(url: str, **body) -> dict:
    request = urllib.request.Request(f"{url}/classify", json.dumps(body).encode(), {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)


def test_requests_for_different_adapters_share_batches_and_get_their_own_answers(served):
    url, app, alone, tokenizer = served
    names = list(alone)
    work = [(names[i % len(names)], TEXTS[i % len(TEXTS)]) for i in range(60)]
    app.state.batches.clear()
    with ThreadPoolExecutor(30) as pool:
        answers = list(pool.map(lambda job: post(url, adapter=job[0], text=job[1]), work))
    assert sum(app.state.batches) == 60
    assert max(app.state.batches) > 1
    for (name, text), answer in zip(work, answers, strict=True):
        with torch.no_grad():
            expected = alone[name](**tokenizer(text, return_tensors="pt")).logits.softmax(-1)[0]
        assert answer["probabilities"] == pytest.approx(expected.tolist(), abs=1e-5)
        assert answer["label"] == int(expected.argmax())


def test_an_unknown_adapter_is_not_found_and_the_server_goes_on(served):
    url, *_ = served
    for body, code in (({"adapter": "nobody", "text": "a"}, 404), ({"adapter": "a1"}, 422), ({"text": 3}, 422)):
        with pytest.raises(urllib.error.HTTPError) as error:
            post(url, **body)
        assert error.value.code == code
    assert post(url, adapter="a1", text=TEXTS[0])["probabilities"]
    with urllib.request.urlopen(f"{url}/adapters", timeout=30) as answer:
        assert json.load(answer) == ["a0", "a1", "a2", "a3", "a4"]


def test_an_answer_does_not_depend_on_who_shares_the_batch(served):
    url, app, alone, tokenizer = served
    work = [{"adapter": "a2", "text": TEXTS[i % 4], **({"text_pair": TEXTS[0]} if i % 3 else {})} for i in range(40)]
    work[7]["text"] = "dog " * 5000  # longer than the model reads
    app.state.batches.clear()
    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(lambda body: post(url, **body), work))
    assert max(app.state.batches) > 1
    for body, answer in zip(work, answers, strict=True):
        words = [body["text"], *([body["text_pair"]] if "text_pair" in body else [])]
        batch = tokenizer(*words, truncation=True, max_length=48, return_tensors="pt")
        with torch.no_grad():
            expected = alone["a2"](**batch).logits.softmax(-1)[0].tolist()
        assert answer["probabilities"] == pytest.approx(expected, abs=1e-5)
