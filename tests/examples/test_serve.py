"""The example server, with requests for different adapters at the same time; and once
for real, on a port of the loopback."""

import functools
import hashlib
import importlib.util
import json
import os
import re
import signal
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
from running import wait_for
from support import write_adapter
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
#: Of the adapters: the method, the number of classes, and their names, where they have
#: some.
ADAPTERS = {
    **{
        f"a{i}": (vera.VeRA(rank=12), 2, ["bad", "good"] if i == 3 else None)
        for i in range(4)
    },
    **{f"lora{i}": (vera.LoRA(rank=4), 2, None) for i in range(2)},
    "narrow": (vera.VeRA(rank=6), 3, ["bad", "so so", "good"]),
    "stars": (vera.LoRA(rank=2), 1, None),
}
TOKEN = "aé-secret"


@functools.cache
def example():
    if str(SERVE.parent) not in sys.path:  # As Python does for a script
        sys.path.insert(0, str(SERVE.parent))
    spec = importlib.util.spec_from_file_location("serve", SERVE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_help_fits_a_screen_of_80_columns(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(sys, "argv", ["vera-bench serve", "--help"])
    with pytest.raises(SystemExit):
        example().read_options()
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 42
    assert max(map(len, lines)) <= 80
    assert any("docs/serving.md" in line for line in lines)


def base_model(place, labels=2):
    torch.manual_seed(0)
    return AutoModelForSequenceClassification.from_pretrained(
        place, num_labels=labels
    ).eval()


def write(place, folder, method=None, labels=2, classes=None, size=0.3):
    """A folder with an adapter and a head; the model that has them alone."""
    folder.parent.mkdir(exist_ok=True)
    return write_adapter(
        base_model(place, labels),
        method or vera.VeRA(rank=12),
        folder,
        2,
        size,
        classes,
    )[0]


def serving(place, *words, **more):
    """The application and its registry, around adapters of these folders."""
    registry = example().Registry(base_model(place), True, [*map(str, words)], **more)
    registry.read()
    return example().build(
        registry, AutoTokenizer.from_pretrained(place), TOKEN
    ), registry


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A client, its application, the model of each adapter alone, the tokenizer, and
    the registry."""
    folder = tmp_path_factory.mktemp("serve")
    place = save_tiny(folder / "model", "bert")
    alone = {None: base_model(place)}
    for i, (name, about) in enumerate(ADAPTERS.items()):
        alone[name] = write(place, folder / "runs" / name, *about, size=0.1 * (i + 1))
    # Of a regression, whose labels were scaled
    vera.save_head(
        alone["stars"],
        folder / "runs" / "stars" / "head.safetensors",
        scaling=(200.0, 30.0),
    )
    app, registry = serving(place, folder / "runs" / "*")
    with TestClient(app) as client:
        yield client, app, alone, AutoTokenizer.from_pretrained(place), registry


@pytest.fixture
def own(tmp_path):
    """A client, the registry, the base model's folder, and a folder with the adapter
    "a"."""
    place, root = save_tiny(tmp_path / "model", "bert"), tmp_path / "root"
    write(place, root / "a")
    app, registry = serving(place, root / "*", root=root)
    with TestClient(
        app, headers={"authorization": b"Bearer " + TOKEN.encode()}
    ) as client:
        yield client, registry, place, root


def post(client, **body) -> dict:
    answer = client.post("/classify", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_requests_for_different_adapters_share_batches_and_get_their_own_answers(
    served,
):
    """Whoever shares the batch: VeRA's, LoRA's, of other ranks and numbers of classes,
    a regression in the units of its labels; those of one text, of two, and of more than
    the model reads. All are on the same weights."""
    client, app, alone, tokenizer, registry = served
    names = list(alone)
    work = [
        {"adapter": names[i % len(names)], "text": TEXTS[i % len(TEXTS)]}
        for i in range(60)
    ]
    work = [
        {**body, **({"text_pair": TEXTS[0]} if i % 7 < 3 else {})}
        for i, body in enumerate(work)
    ]
    work[8]["text"] = "dog " * 5000
    weights = [
        {p.data_ptr() for p in m.model.bert.embeddings.parameters()}
        for m in registry.models.values()
    ]
    assert len(weights) == 4
    assert all(one == weights[0] for one in weights)
    app.state.batches.clear()
    with ThreadPoolExecutor(30) as pool:
        answers = list(pool.map(lambda body: post(client, **body), work))
    assert sum(app.state.batches) == 60
    assert max(app.state.batches) > 1
    for body, answer in zip(work, answers, strict=True):
        texts = [body["text"], *([body["text_pair"]] if "text_pair" in body else [])]
        batch = tokenizer(*texts, truncation=True, max_length=48, return_tensors="pt")
        with torch.no_grad():
            (logits,) = alone[body["adapter"]](**batch).logits
        if body["adapter"] == "stars":
            assert answer == {
                "adapter": "stars",
                "score": pytest.approx(200 + 30 * logits.item(), rel=1e-5),
            }
            continue
        expected = logits.softmax(-1)
        probabilities, label = expected.tolist(), int(expected.argmax())
        if classes := ADAPTERS.get(body["adapter"], [None])[-1]:
            probabilities, label = (
                dict(zip(classes, probabilities, strict=True)),
                classes[label],
            )
        assert answer["probabilities"] == pytest.approx(probabilities, abs=1e-5)
        assert answer["label"] == label


def test_an_unknown_key_is_refused_and_what_is_served_can_be_asked(served):
    """Other wrong requests are those of tests/attack."""
    client, *_ = served
    assert (
        client.post("/classify", json={"text": "a", "text_par": "b"}).status_code == 422
    )
    assert client.get("/adapters").json() == [*ADAPTERS]
    assert client.get("/health").json() == {"status": "ok", "adapters": 8, "waiting": 0}
    assert client.get("/").url.path == "/docs"


def test_a_list_of_texts_is_answered_in_its_order_and_in_shared_batches(served):
    client, app, *_ = served
    texts = [TEXTS[i % 4] for i in range(150)]
    pairs = [TEXTS[i % 3] for i in range(150)]
    alone = {
        (text, pair): post(client, adapter="a3", text=text, text_pair=pair)
        for text, pair in {*zip(texts, pairs, strict=True)}
    }
    app.state.batches.clear()
    answers = post(client, adapter="a3", text=texts, text_pair=pairs)
    assert len(answers) == 150
    assert max(app.state.batches) == example().LARGEST_BATCH
    for answer, asked in zip(answers, zip(texts, pairs, strict=True), strict=True):
        expected = alone[asked]
        assert answer["label"] == expected["label"]
        assert answer["probabilities"] == pytest.approx(
            expected["probabilities"], abs=1e-5
        )
    (only,) = post(client, adapter="stars", text=[TEXTS[0]])
    assert only["score"] == pytest.approx(
        post(client, adapter="stars", text=TEXTS[0])["score"], rel=1e-5
    )
    for body in (
        {"text": []},
        {"text": ["a"] * 257},
        {"text": ["a", 1]},
        {"text": ["a", "b"], "text_pair": ["c"]},
        {"text": ["a"], "text_pair": "c"},
        {"text": "a", "text_pair": ["c"]},
    ):
        assert client.post("/classify", json=body).status_code == 422, body


def held(registry, name):
    """The model of an adapter computes its next batch, and ends none before the second
    event."""
    began, go = threading.Event(), threading.Event()

    def hold(*_):
        began.set()
        go.wait(30)

    return (
        began,
        go,
        registry.residents[name].adapters.model.register_forward_pre_hook(hold),
    )


def test_beyond_the_queue_the_answer_is_503_and_those_that_wait_are_answered(
    served, monkeypatch
):
    client, app, *_, registry = served
    began, go, hook = held(registry, "a0")
    monkeypatch.setattr(example(), "LONGEST_QUEUE", 3)
    with ThreadPoolExecutor(20) as pool:
        first = pool.submit(post, client, adapter="a0", text=TEXTS[0])
        assert began.wait(30)
        waiting = [
            pool.submit(post, client, adapter="a1", text=TEXTS[i]) for i in range(3)
        ]
        wait_for(lambda: len(app.state.waiting) == 3)
        full = client.post("/classify", json={"adapter": "a1", "text": "a"})
        monkeypatch.setattr(example(), "LONGEST_QUEUE", 4)
        many = client.post("/classify", json={"adapter": "a1", "text": ["a", "b"]})
        assert many.status_code == 503
        assert len(app.state.waiting) == 3
        go.set()
        assert (full.status_code, int(full.headers["retry-after"]) > 0) == (503, True)
        assert [answer.result()["adapter"] for answer in [first, *waiting]] == [
            "a0",
            "a1",
            "a1",
            "a1",
        ]
    hook.remove()


def put(client, name, folder, code=204):
    answer = client.put(f"/adapters/{name}", json={"folder": str(folder)})
    assert answer.status_code == code, answer.text
    return answer


def test_requests_in_flight_keep_the_adapter_that_they_began_with(own):
    """One that is computed and one that waits, while theirs is replaced, removed, and
    another one comes."""
    client, registry, place, root = own
    old = post(client, adapter="a", text=TEXTS[0])
    write(place, root / "b", vera.LoRA(rank=4), 3)
    began, go, hook = held(registry, "a")
    with ThreadPoolExecutor(9) as pool:
        first = pool.submit(post, client, adapter="a", text=TEXTS[0])
        assert began.wait(30)
        waits = pool.submit(post, client, adapter="a", text=TEXTS[0])
        wait_for(lambda: client.get("/health").json()["waiting"] == 1)
        put(client, "a", "b")
        go.set()
        assert first.result() == waits.result() == old
    hook.remove()
    now = post(client, adapter="a", text=TEXTS[0])
    assert len(now["probabilities"]) == 3
    post(client, adapter="a", text=TEXTS[0])
    wait_for(
        lambda: [len(adapters) for adapters in registry.models.values()] == [0, 1]
    )  # the old one is gone


def test_the_last_adapter_of_a_kind_goes_while_the_next_one_comes(own):
    """The model is the base model again before it takes the next one: PUT waits for
    that."""
    client, registry, place, root = own
    write(place, root / "b", size=0.5)
    put(client, "only", "b")
    expected = post(client, adapter="only", text=TEXTS[0])["probabilities"]
    registry.replace("only")
    adapters, (began, go) = (
        registry.residents["a"].adapters,
        (threading.Event(), threading.Event()),
    )
    forget = adapters.unload

    def slowly():
        adapters.vectors.clear()
        began.set()
        go.wait(30)
        forget()

    adapters.unload = slowly
    with ThreadPoolExecutor(2) as pool:
        gone = pool.submit(client.delete, "/adapters/a")
        assert began.wait(30)
        comes = pool.submit(put, client, "only", "b")
        time.sleep(0.3)
        go.set()
        assert (gone.result().status_code, comes.result().status_code) == (204, 204)
    assert post(client, adapter="only", text=TEXTS[0])[
        "probabilities"
    ] == pytest.approx(expected)


def test_adapters_are_put_replaced_and_deleted_and_a_damaged_one_leaves_what_was_there(
    own, tmp_path
):
    client, registry, place, root = own
    old = post(client, adapter="a", text=TEXTS[0])
    put(client, "films", root / "a")
    assert post(client, adapter="films", text=TEXTS[0]) == old | {"adapter": "films"}
    write(place, root / "b", size=0.5)
    put(client, "films", "b")
    new = post(client, adapter="films", text=TEXTS[0])
    assert new["probabilities"] != old["probabilities"]
    whole = (root / "b" / "adapter.safetensors").read_bytes()
    (root / "b" / "adapter.safetensors").write_bytes(whole[:-1] + b"x")
    write(place, tmp_path / "outside")
    (root / "link").symlink_to(tmp_path / "outside")
    (root / "loop").symlink_to(root / "loop")
    (root / "file").mkdir()
    (root / "file" / "adapter.safetensors").symlink_to(
        tmp_path / "outside" / "adapter.safetensors"
    )
    wrong = [
        "b",
        "none",
        "link",
        "loop",
        "file",
        "../outside",
        ".",
        "",
        "a\0",
        "a" * 4000,
    ]
    for folder in (*wrong, tmp_path / "outside"):
        assert "\n" not in put(client, "films", folder, 422).json()["detail"]
        assert post(client, adapter="films", text=TEXTS[0]) == new
    for name in ("a%0d%0ab", "a%00", "%e2%80%aea", "%ef%bb%bf", "a" * 256):
        assert "255 printable" in put(client, name, "c", 422).json()["detail"]
    registry.patterns = [str(root / "a"), str(root / "loop")]
    registry.read()
    # the signal leaves it, too
    assert post(client, adapter="films", text=TEXTS[0]) == new
    assert client.delete("/adapters/films").status_code == 204
    assert client.delete("/adapters/films").status_code == 404
    assert client.get("/adapters").json() == ["a"]
    assert (
        client.post("/classify", json={"adapter": "films", "text": "a"}).status_code
        == 404
    )
    # in place of the command line's, until its file is gone
    write(place, root / "c", size=0.5)
    put(client, "a", "c")
    assert (
        post(client, adapter="a", text=TEXTS[0])["probabilities"]
        != old["probabilities"]
    )
    (root / "c" / "adapter.safetensors").unlink()
    registry.read()
    assert post(client, adapter="a", text=TEXTS[0]) == old


def test_who_has_not_the_token_changes_nothing(own):
    client, registry, place, root = own
    ask = [("PUT", {"json": {"folder": "a"}}), ("DELETE", {})]
    for given in (
        "",
        "Bearer",
        f"Bearer {TOKEN[:-1]}",
        f"Bearer {TOKEN} ",
        f"Basic {TOKEN}",
        TOKEN,
    ):
        for method, body in ask:
            answer = client.request(
                method, "/adapters/a", headers={"authorization": given.encode()}, **body
            )
            assert answer.status_code == 401
    tokenless = example().build(registry, AutoTokenizer.from_pretrained(place))
    with TestClient(tokenless, headers={"authorization": "Bearer None"}) as other:
        assert {
            other.request(method, "/adapters/a", **body).status_code
            for method, body in ask
        } == {403}
    assert client.get("/adapters").json() == ["a"]
    registry.root = None
    put(client, "b", root / "a", 422)


def test_the_folders_are_read_again(own, capsys):
    client, registry, place, root = own
    for name in ("b", "damaged"):
        write(place, root / name)
    registry.read()
    old = {
        name: post(client, adapter=name, text=TEXTS[0])
        for name in ("a", "b", "damaged")
    }
    kept = registry.residents["b"]
    for part in ("adapter", "head"):
        (root / "a" / f"{part}.safetensors").unlink()
    write(place, root / "new", vera.LoRA(rank=4), 3)
    (root / "damaged" / "head.safetensors").write_bytes(b"")
    capsys.readouterr()
    registry.read()
    out, err = capsys.readouterr()
    assert client.get("/adapters").json() == ["b", "damaged", "new"]
    assert post(client, adapter="damaged", text=TEXTS[0]) == old["damaged"]
    assert registry.residents["b"] is kept  # unchanged, it is not read anew
    assert re.search(r"as it was: .*damaged/head\.safetensors", err)
    assert (
        out
        == "3 adapters on cpu: 'b', 'damaged', 'new'\n2 adapters changed: 'a', 'new'\n"
    )
    write(place, root / "b", size=0.6)
    registry.read()
    assert post(client, adapter="b", text=TEXTS[0]) != old["b"]


@pytest.mark.usefixtures("process")
def test_a_real_server_reads_no_large_body_and_needs_its_base_file_no_more(tmp_path):
    """Which may be overwritten or cut: no answer changes."""
    place = save_tiny(tmp_path / "model", "bert")
    write(place, tmp_path / "whole", classes=["bad", "good"])
    write(place, tmp_path / "headless")
    (tmp_path / "headless" / "head.safetensors").unlink()
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    folders = [
        f"films={tmp_path / 'whole'}",
        *(tmp_path / name for name in ("whole", "headless")),
    ]
    command = [sys.executable, SERVE, "--model", place, "--port", "0", *folders]
    command += ["--token-file", tmp_path / "token", "--adapters-root", tmp_path]
    log = tmp_path / "log"
    with (
        log.open("w") as out,
        subprocess.Popen(command, stdout=out, stderr=out) as server,
    ):
        try:
            wait_for(
                lambda: server.poll() is not None or "running on" in log.read_text()
            )
            assert server.poll() is None, log.read_text()
            url = re.search(r"running on (http\S+)", log.read_text())[1]
            client = httpx.Client(base_url=url, timeout=30, trust_env=False)
            answer = post(client, adapter="whole", text=TEXTS[0])
            assert answer["label"] in answer["probabilities"].keys() == {"bad", "good"}
            assert post(client, adapter="films", text=TEXTS[0]) == answer | {
                "adapter": "films"
            }
            client.headers = {"authorization": b"Bearer " + TOKEN.encode()}
            put(client, "other", "whole")
            (tmp_path / "headless" / "head.safetensors").hardlink_to(
                tmp_path / "whole" / "head.safetensors"
            )
            server.send_signal(signal.SIGHUP)
            wait_for(lambda: "headless" in client.get("/adapters").json())
            for how in ("content-length: 400000000", "transfer-encoding: chunked"):
                lines = [
                    "POST /classify HTTP/1.1",
                    "host: here",
                    "content-type: application/json",
                    how,
                ]
                with socket.create_connection(
                    ("127.0.0.1", int(url.rpartition(":")[2])), 30
                ) as raw:
                    raw.sendall("\r\n".join([*lines, "", ""]).encode())
                    if "chunked" in how:  # without an end
                        raw.sendall(
                            b"".join(
                                b"%x\r\n%s\r\n" % (300_000, b" " * 300_000)
                                for _ in range(4)
                            )
                        )
                    assert raw.recv(100).startswith(b"HTTP/1.1 413 ")
            weights = place / "model.safetensors"
            with weights.open("r+b") as file:
                file.seek(weights.stat().st_size // 4)
                file.write(os.urandom(weights.stat().st_size * 3 // 4))
            assert post(client, adapter="whole", text=TEXTS[0]) == answer
            os.truncate(weights, 0)
            assert post(client, adapter="whole", text=TEXTS[0]) == answer
            nameless = client.post("/classify", json={"text": "a"})
            assert nameless.status_code == 422
            assert "name an adapter" in nameless.json()["detail"]
        finally:
            server.terminate()
    assert "headless: no head.safetensors" in log.read_text()
    assert "2 adapters on cpu: 'films', 'whole'\n" in log.read_text()
    assert log.read_text().count("changed") == 1  # by the signal


def test_a_file_that_is_not_the_one_of_the_run_s_record_is_not_served(tmp_path):
    folder, record = tmp_path / "runs" / "7f", tmp_path / "records" / "7f.json"
    example()  # the registry is beside it
    check_record = importlib.import_module("adapter_registry").check_record
    folder.mkdir(parents=True)
    record.parent.mkdir()
    (folder / "adapter.safetensors").write_bytes(b"epoch 2")
    check_record(folder)  # there is no record
    named = {"adapter.safetensors": hashlib.sha256(b"epoch 2").hexdigest()}
    for files in (None, ["adapter.safetensors"], named):
        record.write_text(json.dumps({"files": files}))
        check_record(folder)
    (folder / "adapter.safetensors").write_bytes(b"epoch 6")
    with pytest.raises(
        vera.AdapterError, match=r"7f/adapter\.safetensors: not the file"
    ):
        check_record(folder)
