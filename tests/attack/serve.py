"""examples/serve.py, and clients that mean it no good."""

import contextlib
import http.client
import json
import runpy
import socket
import sys
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from attack.cases import HOSTILE, Case, Home, WrongError
from tiny import save_tiny
from transformers import AutoModelForSequenceClassification

import vera

SERVE = Path(__file__).parents[2] / "examples" / "serve.py"
GOOD = json.dumps({"adapter": "a0", "text": "the dog sees the cat .", "text_pair": "who ?"}).encode()


def cases(home: Home) -> Iterator[Case]:
    place, dice = home.folder("server"), home.dice("serve")
    save_tiny(place / "model", "bert")
    model, method = AutoModelForSequenceClassification.from_pretrained(place / "model"), vera.VeRA(rank=4)
    method.adapt(model)
    vera.save(model, method, home.folder("server/a0") / "adapter.safetensors")
    vera.save_head(model, place / "a0" / "head.safetensors")
    changed = []
    for _ in range(150):
        spot, odd = dice.randrange(len(GOOD)), dice.choice(HOSTILE["odd_bytes"]).encode()
        changed.append(GOOD[:spot] + odd + GOOD[spot + dice.randrange(9) :])
    long = ["[" * 10**5, '{"a":' * 50_000, '{"adapter": "' + "a" * 5000 + '", "text": "a"}']
    bodies = [body.encode("latin-1") for body in [*HOSTILE["bodies"], *long]]
    names = [json.dumps({"adapter": name, "text": "a"}).encode() for name in [*HOSTILE["names"], "a" * 255]]
    for kind, sent, codes in (
        ("sound requests", [GOOD], [200]),
        ("bodies that are no question", bodies, [400, 422]),
        ("adapters that are not there", names, [404]),
        ("bodies with bytes changed at random", changed, [200, 400, 404, 422]),
    ):
        act = partial(attacked, place, sent, codes)
        limits = {"seconds": 60, "megabytes": 900, "network": True}
        yield Case(f"server, {kind}", "examples/serve.py", act, expected="taken", tried=len(sent), **limits)


def attacked(place: Path, sent: list[bytes], codes: list[int], folder: Path) -> None:
    """The server, in a thread. Each body is answered with one of the codes; and after it a good request as
    before, within 15 seconds."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    sys.argv = ["serve.py", "--model", str(place / "model"), "--port", str(port), str(place / "a0")]
    threading.Thread(target=runpy.run_path, args=(str(SERVE), None, "__main__"), daemon=True).start()
    while True:
        with contextlib.suppress(ConnectionError):
            good = post(port, GOOD)
            break
        time.sleep(0.05)
    for content in sent:
        if (status := post(port, content)[0]) not in codes:
            raise WrongError(f"{content[:100]!r} is answered {status}")
        since = time.monotonic()
        if post(port, GOOD) != good or good[0] != 200 or time.monotonic() - since > 15:
            raise WrongError(f"after {content[:100]!r} the next request waits, or is answered otherwise")


def post(port: int, body: bytes) -> tuple[int, bytes]:
    client = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    client.request("POST", "/classify", body, {"content-type": "application/json"})
    answer = client.getresponse()
    return answer.status, answer.read()
