"""The service over HTTP: what it answers, what it refuses, what it tells operators."""

import base64
import io
import json
import logging
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import schemathesis
import torch
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from PIL import Image
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import positive_data_acceptance

from mmlib.data import emoji, scenes
from mmlib.judge import load_judge
from mmlib.marks import mark
from mmlib.serving import app as app_module
from mmlib.serving.app import create_app, server
from mmlib.serving.functions import Function, Job, Limits, Reply, Request, Text
from mmlib.serving.image_search import ImageSearch
from mmlib.serving.scene_caption import CaptionRequest, SceneCaption
from mmlib.serving.scene_painting import ScenePainting
from mmlib.serving.scene_questions import SceneQuestions
from mmlib.serving.settings import Settings
from mmlib.serving.watching import JsonLines, log_to

MULTIPART = {"content-type": "multipart/form-data; boundary=x"}


class EchoRequest(Request):
    text: Text


class EchoReply(Reply):
    text: str


class Echo:
    """Gives back what it is sent; can be held, and can fail."""

    name, title, summary = "echo", "Echo", "Give back what is sent."
    request, reply, takes_picture = EchoRequest, EchoReply, False
    limits = Limits()

    def __init__(self):
        self.open, self.entered, self.sizes = threading.Event(), threading.Event(), []
        self.open.set()

    def load(self):
        pass

    def run(self, jobs):
        self.sizes.append(len(jobs))
        self.entered.set()
        assert self.open.wait(10)
        if any(job.request.text == "fail" for job in jobs):
            raise ZeroDivisionError("a secret of the model")
        return [EchoReply(text=job.request.text) for job in jobs]


def client_of(functions, ready=True, **options):
    client = TestClient(
        create_app(functions, Settings(**options)),
        "http://localhost",
        raise_server_exceptions=False,
    )
    client.__enter__()
    while ready and client.get("/health/ready").status_code != 200:
        assert client.app.state.service.state != "failed"
        time.sleep(0.01)
    return client


@pytest.fixture
def echo():
    return Echo()


@pytest.fixture
def serve(echo):
    """A client of a service with one function that echoes; options are limits."""
    clients = []

    def start(functions=None, **options):
        clients.append(client_of(functions or [echo], **options))
        return clients[-1]

    yield start
    echo.open.set()
    for client in clients:
        client.__exit__(None, None, None)


@pytest.fixture(scope="module")
def real():
    """A client of the real functions, with few pictures to search."""
    functions = [ImageSearch(pictures=24), SceneCaption(), SceneQuestions(), ScenePainting()]
    client = client_of(functions, max_bytes=300_000)
    yield client
    client.__exit__(None, None, None)


def png(size=(32, 32), colour="red", format="PNG"):
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, format)
    return buffer.getvalue()


def scene_png(seed, size=64):
    (scene,) = scenes.sample(1, seed=seed, objects=1)
    pixels = (scenes.render([scene], size)[0] * 255).round().byte().permute(1, 2, 0).numpy()
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return scene, buffer.getvalue()


def upload(data, kind="image/png", name="x.png", **fields):
    return {"files": {"file": (name, data, kind)}, "data": fields}


# ---- what it answers


def test_search_finds_what_the_chapter_finds(real):
    reply = real.post("/v1/search", json={"query": "a cat that laughs", "count": 3})
    assert reply.status_code == 200
    results = reply.json()["results"]
    function = real.app.state.service.functions["search"]
    scores, ids = function._index.search(function._search.encode(["a cat that laughs"]), 3)
    names = emoji.load("all").names
    assert [one["name"] for one in results] == [names[i] for i in ids[0].tolist()]
    assert [one["score"] for one in results] == pytest.approx(scores[0].tolist(), abs=1e-4)
    assert all(one["image"].startswith("data:image/png;base64,") for one in results)


def test_search_keeps_to_the_least_score(real):
    every = real.post("/v1/search", json={"query": "a face", "count": 20}).json()["results"]
    limit = every[4]["score"]
    some = real.post("/v1/search", json={"query": "a face", "count": 20, "min_score": limit})
    assert [one["name"] for one in some.json()["results"]] == [
        one["name"] for one in every if one["score"] >= limit
    ]


def test_captions_tell_what_is_there(real):
    right = 0
    for seed in range(12):
        scene, data = scene_png(seed)
        reply = real.post("/v1/caption", **upload(data))
        assert reply.status_code == 200, reply.text
        right += reply.json()["caption"] == scenes.caption(scene)
    assert right >= 9


def test_questions_are_answered(real):
    right = many = 0
    for seed in range(12):
        scene, data = scene_png(seed)
        for question in scenes.questions(scene, seed, ("shape", "colour", "count", "exist")):
            reply = real.post("/v1/ask", **upload(data, question=question.text))
            assert reply.status_code == 200, reply.text
            right += reply.json()["answer"] == question.answer
            many += 1
    assert many >= 12 and right / many >= 0.75  # without the picture it is about a third


def test_what_is_painted_is_what_was_asked_for(real):
    wanted = scenes.sample(6, seed=2, objects=1)
    pixels = []
    for scene in wanted:
        asked = {"caption": scenes.caption(scene), "candidates": 4}
        reply = real.post("/v1/paint", json=asked)
        assert reply.status_code == 200, reply.text
        kind, _, data = reply.json()["image"].partition(",")
        assert kind == "data:image/png;base64"
        picture = Image.open(io.BytesIO(base64.b64decode(data)))
        assert picture.size == (256, 256)
        small = picture.resize((32, 32), Image.Resampling.NEAREST)
        pixels.append(torch.from_numpy(np.array(small)).permute(2, 0, 1) / 255)
    found = load_judge().read(torch.stack(pixels))
    assert mark(found, wanted).right.sum() >= 3  # nothing by chance
    two = {"caption": "a small red star above a small blue ring", "candidates": 1}
    asked = [real.post("/v1/paint", json={**two, "seed": seed}) for seed in range(4)]
    assert len({reply.text for reply in asked}) > 1
    assert real.post("/v1/paint", json={**two, "seed": 3}).text == asked[3].text


def test_a_batch_says_the_same_as_one_by_one(real):
    functions = real.app.state.service.functions
    search, caption = functions["search"], functions["caption"]
    words = [("a happy face", 2), ("笑脸", 5), ("tears", 1), ("天使", 3)]
    jobs = [Job(search.request(query=query, count=count)) for query, count in words]
    for one, many in zip(jobs, search.run(jobs), strict=True):
        alone = search.run([one])[0]
        assert [m.name for m in alone.results] == [m.name for m in many.results]
        assert len(many.results) == one.request.count
    pictures = [Image.open(io.BytesIO(scene_png(seed, 48)[1])) for seed in range(6)]
    jobs = [
        Job(CaptionRequest(beams=1 + i % 3), picture.convert("RGB"))
        for i, picture in enumerate(pictures)
    ]
    assert caption.run(jobs) == [caption.run([job])[0] for job in jobs]
    ask, paint = functions["ask"], functions["paint"]
    texts = ["what shape is there?", "is there a red star?", "how many objects are there?"]
    jobs = [
        Job(ask.request(question=texts[i % 3]), picture.convert("RGB"))
        for i, picture in enumerate(pictures)
    ]
    alone = [ask.run([job])[0] for job in jobs]
    for one, many in zip(alone, ask.run(jobs), strict=True):
        assert one.answer == many.answer
        assert one.probability == pytest.approx(many.probability, abs=2e-4)
    jobs = [
        Job(paint.request(caption=text, candidates=n, seed=n))
        for n, text in enumerate(["a small red star in the centre", "A large blue ring."], 1)
    ]
    assert paint.run(jobs) == [paint.run([job])[0] for job in jobs]


def test_the_functions_follow_the_protocol(real, echo):
    for function in [*real.app.state.service.functions.values(), echo]:
        assert isinstance(function, Function)


# ---- what it refuses

GOOD = {"query": "a cat"}
JSON = {"content-type": "application/json"}
SEARCH = {
    "no body": (dict(), 422, "body"),
    "empty body": (dict(content=b"", headers=JSON), 422, "body"),
    "not json": (dict(content=b"{query: cat}", headers=JSON), 422, "JSON"),
    "half json": (dict(content=b'{"query": "ca', headers=JSON), 422, "JSON"),
    "deep json": (dict(content=b"[" * 90_000, headers=JSON), 4, ""),
    "not utf-8": (dict(content=b'{"query": "\xff\xfe"}', headers=JSON), 4, ""),
    "a list": (dict(json=["a cat"]), 422, "body"),
    "a string": (dict(json="a cat"), 422, "body"),
    "null": (dict(content=b"null", headers=JSON), 422, "body"),
    "text": (dict(content=b'{"query": "a cat"}', headers={"content-type": "text/plain"}), 422, ""),
    "no type": (dict(content=b'{"query": "a cat"}'), 422, ""),
    "a form": (dict(data=GOOD), 422, ""),
    "no query": (dict(json={}), 422, "query: Field required"),
    "query of a number": (dict(json={"query": 7}), 422, "query"),
    "query of null": (dict(json={"query": None}), 422, "query"),
    "empty query": (dict(json={"query": ""}), 422, "query"),
    "blank query": (dict(json={"query": " \t "}), 422, "query"),
    "long query": (dict(json={"query": "x" * 100_000}), 422, "at most 300"),
    "very long query": (dict(json={"query": "x" * 400_000}), 413, "300000 bytes"),
    "control characters": (dict(json={"query": "a\x00b"}), 422, "U+0000"),
    "half a character": (dict(content=b'{"query": "a\\ud800"}', headers=JSON), 422, "query"),
    "unknown field": (dict(json={**GOOD, "path": "/etc/passwd"}), 422, "path"),
    "count 0": (dict(json={**GOOD, "count": 0}), 422, "count"),
    "count negative": (dict(json={**GOOD, "count": -1}), 422, "count"),
    "count too large": (dict(json={**GOOD, "count": 21}), 422, "count"),
    "count huge": (dict(content=b'{"query":"a","count":1%s}' % (b"0" * 5000), headers=JSON), 4, ""),
    "count broken": (dict(json={**GOOD, "count": 1.5}), 422, "count"),
    "count text": (dict(json={**GOOD, "count": "many"}), 422, "count"),
    "count true": (dict(json={**GOOD, "count": True}), 422, "count"),
    "count in words": (dict(json={**GOOD, "count": "5"}), 422, "count"),
    "count NaN": (dict(content=b'{"query": "a", "count": NaN}', headers=JSON), 422, "count"),
    "score NaN": (
        dict(content=b'{"query": "a", "min_score": NaN}', headers=JSON),
        422,
        "min_score",
    ),
    "score infinite": (
        dict(content=b'{"query":"a","min_score":1e999}', headers=JSON),
        422,
        "score",
    ),
    "score out of range": (dict(json={**GOOD, "min_score": 1.5}), 422, "min_score"),
    "gzip": (dict(content=b"\x1f\x8b\x08", headers={**JSON, "content-encoding": "gzip"}), 4, ""),
    "lying length": (dict(content=b"{}", headers={**JSON, "content-length": "x"}), 400, "Length"),
    "long length": (dict(content=b"{}", headers={**JSON, "content-length": "9" * 9}), 413, "bytes"),
}
PNG = png()
CAPTION = {
    "no body": (dict(), 422, "file"),
    "json": (dict(json={"file": "x"}), 422, "file"),
    "no file": (dict(data={"beams": "1"}), 422, "file"),
    "file as text": (dict(data={"file": "x"}), 422, "file"),
    "no boundary": (dict(content=PNG, headers={"content-type": "multipart/form-data"}), 400, ""),
    "broken form": (dict(content=b"--y\r\n", headers=MULTIPART), 4, ""),
    "form cut off": (dict(content=b"--x\r\nContent-Disposition: form", headers=MULTIPART), 4, ""),
    "empty file": (upload(b""), 422, "empty"),
    "no content type": (upload(PNG, None, "picture"), 415, "must be one of"),
    "wrong type": (upload(PNG, "text/html"), 415, "text/html"),
    "lying type": (upload(PNG, "image/jpeg"), 415, "PNG"),
    "gif": (upload(png(format="GIF"), "image/gif"), 415, "must be one of"),
    "lying gif": (upload(png(format="GIF")), 415, "none of"),
    "svg": (upload(b"<svg/>", "image/svg+xml"), 415, "must be one of"),
    "a program": (upload(b"\x7fELF" + bytes(100)), 415, "none of"),
    "a pickle": (upload(b"\x80\x04cos\nsystem\n(S'id'\ntR."), 415, "none of"),
    "truncated": (upload(png((300, 300))[:-200]), 422, "damaged"),
    "too many pixels": (upload(png((5000, 4000))), 413, "pixels"),
    "too many bytes": (upload(PNG + bytes(300_000)), 413, "300000 bytes"),
    "endless name": (upload(PNG, name="x" * 5000), 400, ""),
    "path-like name, bad file": (upload(b"x", name="../../etc/passwd"), 415, "none of"),
    "beams 0": (upload(PNG, beams="0"), 422, "beams"),
    "beams many": (upload(PNG, beams="1000000"), 422, "beams"),
    "beams NaN": (upload(PNG, beams="NaN"), 422, "beams"),
    "unknown field": (upload(PNG, path="/etc/passwd"), 422, "path"),
}
ASK = {
    "no question": (upload(PNG), 422, "question: Field required"),
    "no file": (dict(data={"question": "what shape is there?"}), 422, "file"),
    "empty question": (upload(PNG, question=""), 422, "question"),
    "long question": (upload(PNG, question="is " * 33_000), 422, "at most 300"),
    "many words": (upload(PNG, question="a " * 33), 422, "at most 32 words"),
    "unknown word": (upload(PNG, question="who is it?"), 422, "question: the model was trained"),
    "another language": (upload(PNG, question="有几个红色的圆？"), 422, "有几个红色的圆"),
    "marks alone": (upload(PNG, question="!!"), 422, "'!'"),
    "no mark is seen": (upload(PNG, question="\u200b"), 422, "never saw"),
    "control characters": (upload(PNG, question="a\x00b"), 422, "U+0000"),
    "truncated": (upload(png((300, 300))[:-200], question="what shape is there?"), 422, "damaged"),
    "wrong type": (upload(PNG, "image/gif", question="what shape is there?"), 415, "image/gif"),
    "unknown field": (upload(PNG, question="what shape is there?", top="3"), 422, "top"),
}
STAR = {"caption": "a small red star in the centre", "candidates": 1}
PAINT = {
    "no caption": (dict(json={}), 422, "caption: Field required"),
    "caption of a list": (dict(json={"caption": ["a star"]}), 422, "caption"),
    "empty caption": (dict(json={**STAR, "caption": " "}), 422, "caption"),
    "only a full stop": (dict(json={**STAR, "caption": " . "}), 422, "no word"),
    "long caption": (dict(json={**STAR, "caption": "a" * 100_000}), 422, "at most 300"),
    "many words": (dict(json={**STAR, "caption": "a " * 15}), 422, "at most 14 words"),
    "unknown word": (dict(json={**STAR, "caption": "a small cat"}), 422, "'cat'"),
    "special token": (dict(json={**STAR, "caption": "<unknown>"}), 422, "'<'"),
    "candidates 0": (dict(json={**STAR, "candidates": 0}), 422, "candidates"),
    "candidates many": (dict(json={**STAR, "candidates": 10**6}), 422, "candidates"),
    "candidates true": (dict(json={**STAR, "candidates": True}), 422, "candidates"),
    "seed negative": (dict(json={**STAR, "seed": -1}), 422, "seed"),
    "seed too large": (dict(json={**STAR, "seed": 2**32}), 422, "seed"),
    "seed NaN": (dict(content=b'{"caption": "a star", "seed": NaN}', headers=JSON), 422, "seed"),
    "unknown field": (dict(json={**STAR, "steps": 5}), 422, "steps"),
    "a form": (dict(data={"caption": "a star"}), 422, ""),
}
GOOD_REQUESTS = {
    "/v1/search": {"json": GOOD},
    "/v1/caption": upload(PNG),
    "/v1/ask": upload(PNG, question="what shape is there?"),
    "/v1/paint": {"json": STAR},
}
TABLE = {f"search: {name}": ("/v1/search", *case) for name, case in SEARCH.items()}
TABLE |= {f"caption: {name}": ("/v1/caption", *case) for name, case in CAPTION.items()}
TABLE |= {f"ask: {name}": ("/v1/ask", *case) for name, case in ASK.items()}
TABLE |= {f"paint: {name}": ("/v1/paint", *case) for name, case in PAINT.items()}


def is_problem(reply, status):
    """Whether an answer is a problem of this status (4: any from 400 to 499), without a trace."""
    assert str(reply.status_code).startswith(str(status)), reply.text
    assert reply.headers["content-type"] == "application/problem+json"
    problem = reply.json()
    assert set(problem) == {"title", "status", "detail", "request_id"}
    assert problem["status"] == reply.status_code
    assert problem["detail"]
    assert len(reply.text) < 1500
    assert not re.search(r"Traceback|\.py|mmlib[./]|site-packages|0x[0-9a-f]{6}", reply.text)
    assert problem["request_id"] == reply.headers["x-request-id"]
    return True


def test_there_are_enough_bad_inputs():
    assert len(TABLE) >= 40


@pytest.mark.parametrize("path, request_, status, words", TABLE.values(), ids=TABLE)
def test_bad_input_is_refused_and_the_next_request_is_answered(real, path, request_, status, words):
    reply = real.post(path, **request_)
    assert is_problem(reply, status)
    assert words in reply.json()["detail"]
    assert real.post(path, **GOOD_REQUESTS[path]).status_code == 200


NAMES = ["../../../etc/passwd", "C:\\x.png", "a\x00b.png", "x" * 500, "..", "猫.png"]


@pytest.mark.parametrize("name", NAMES)
def test_the_name_of_a_file_does_not_matter(real, name):
    assert real.post("/v1/caption", **upload(PNG, name=name)).status_code == 200


@pytest.mark.parametrize(
    "method, path, status",
    [
        ("GET", "/v1/search", 405),
        ("DELETE", "/v1/caption", 405),
        ("GET", "/nowhere", 404),
        ("GET", "/v1/../../etc/passwd", 404),
        ("GET", "/static-offline-docs/..%2f..%2fcore.py", 404),
        ("POST", "/v1/painting", 404),
    ],
)
def test_unknown_addresses_and_methods(real, method, path, status):
    assert is_problem(real.request(method, path), status)


def test_nothing_of_a_request_is_written_to_the_disk(serve, monkeypatch):
    written = []
    monkeypatch.setattr("tempfile.TemporaryFile", lambda *a, **k: written.append(a))
    monkeypatch.setattr("tempfile.SpooledTemporaryFile.rollover", lambda self: written.append(self))
    client = serve([SceneCaption()])
    large = png((1200, 1200)) + bytes(3_000_000)
    assert client.post("/v1/caption", **upload(large)).status_code == 200
    assert written == []


# ---- its limits


def ask_many(client, texts):
    with ThreadPoolExecutor(len(texts)) as threads:
        return list(threads.map(lambda t: client.post("/v1/echo", json={"text": t}), texts))


def test_requests_at_the_same_time_are_answered_together(serve, echo):
    client = serve(max_wait=0.2, max_batch=8)
    replies = ask_many(client, [str(i) for i in range(16)])
    assert [reply.json()["text"] for reply in replies] == [str(i) for i in range(16)]
    assert max(echo.sizes) > 1


def test_a_full_queue_answers_429_and_recovers(serve, echo):
    client = serve(max_batch=1, max_queue=2, max_wait=0.0)
    echo.open.clear()
    with ThreadPoolExecutor(8) as threads:
        asked = [threads.submit(client.post, "/v1/echo", json={"text": "x"}) for _ in range(8)]
        while sum(one.done() for one in asked) < 5:  # one at work, two wait
            time.sleep(0.01)
        echo.open.set()
        replies = [one.result() for one in asked]
    codes = sorted(reply.status_code for reply in replies)
    assert codes == [200] * 3 + [429] * 5
    refused = next(reply for reply in replies if reply.status_code == 429)
    assert is_problem(refused, 429)
    assert refused.headers["retry-after"] == "1"
    assert client.post("/v1/echo", json={"text": "y"}).status_code == 200


def test_a_timeout_answers_504(serve, echo):
    client = serve(timeout=0.05)
    echo.open.clear()
    assert is_problem(client.post("/v1/echo", json={"text": "x"}), 504)
    echo.open.set()
    client.app.state.service._batchers["echo"].timeout = 30.0  # the machine may be busy
    assert client.post("/v1/echo", json={"text": "x"}).status_code == 200


def test_a_failure_answers_500_without_saying_what(serve, echo):
    client = serve()
    reply = client.post("/v1/echo", json={"text": "fail"})
    assert is_problem(reply, 500)
    assert "secret" not in reply.text
    assert client.post("/v1/echo", json={"text": "x"}).status_code == 200


def test_a_slow_function_has_limits_of_its_own(serve, echo):
    slow = Echo()
    slow.name, slow.limits = "slow", Limits(max_batch=1, max_queue=3, timeout=7.0)
    client = serve([echo, slow], max_batch=5, max_queue=9, timeout=2.0)
    found = client.app.state.service._batchers
    sizes = {name: (b.max_batch, b._queue.maxsize, b.timeout) for name, b in found.items()}
    assert sizes == {"echo": (5, 9, 2.0), "slow": (1, 3, 7.0)}


def test_it_refuses_until_it_is_ready(serve, echo):
    class Slow(Echo):
        def load(self):
            assert self.open.wait(10)

    slow = Slow()
    slow.open.clear()
    client = serve([slow], ready=False)
    assert client.get("/health/live").status_code == 200
    for reply in (client.get("/health/ready"), client.post("/v1/echo", json={"text": "x"})):
        assert is_problem(reply, 503)
        assert "loading" in reply.json()["detail"]
    slow.open.set()
    while client.get("/health/ready").status_code != 200:
        time.sleep(0.01)
    assert client.post("/v1/echo", json={"text": "x"}).status_code == 200


def test_if_loading_fails_it_asks_to_be_restarted(serve):
    class Broken(Echo):
        def load(self):
            raise FileNotFoundError("weights")

    client = serve([Broken()], ready=False)
    while client.app.state.service.state == "loading":
        time.sleep(0.01)
    assert is_problem(client.get("/health/live"), 500)
    assert is_problem(client.get("/health/ready"), 503)
    assert is_problem(client.post("/v1/echo", json={"text": "x"}), 503)


def test_a_full_queue_refuses_before_a_picture_is_decoded(serve, monkeypatch):
    monkeypatch.setattr(app_module.Batcher, "full", property(lambda self: True))
    monkeypatch.setattr(app_module, "decode_picture", lambda *a, **k: pytest.fail("decoded"))
    client = serve([SceneCaption()])
    assert is_problem(client.post("/v1/caption", **upload(PNG)), 429)


def test_a_body_that_never_ends_is_cut(serve):
    client = serve(max_bytes=1000)
    taken = []

    def pieces():
        for _ in range(100):
            taken.append(1)
            yield b"x" * 100

    reply = client.post("/v1/echo", content=pieces(), headers=JSON)
    assert is_problem(reply, 413)
    assert reply.headers["connection"] == "close"


@pytest.mark.parametrize("given", [None, "Bearer", "Bearer wrong", "bearer s3cret", "Basic s3cret"])
def test_without_the_token_nothing_is_answered(serve, given):
    client = serve(token="s3cret")
    headers = {} if given is None else {"authorization": given}
    for path in ("/metrics", "/docs", "/openapi.json", "/nowhere"):
        assert is_problem(client.get(path, headers=headers), 401)
    reply = client.post("/v1/echo", json={"text": "x"}, headers=headers)
    assert is_problem(reply, 401)
    assert reply.headers["www-authenticate"] == "Bearer"
    assert client.get("/health/live", headers=headers).status_code == 200
    headers = {"authorization": "Bearer s3cret"}
    assert client.post("/v1/echo", json={"text": "x"}, headers=headers).status_code == 200


@pytest.mark.parametrize(
    "host, status",
    [
        ("localhost", 200),
        ("LOCALHOST:8000", 200),
        ("127.0.0.1:80", 200),
        ("[::1]:80", 200),
        ("[::1]", 200),
        ("evil.example", 421),
        ("localhost.evil.example:8000", 421),
        ("evil.example:localhost", 421),
        ("", 421),
    ],
)
def test_only_known_hosts_are_served(serve, host, status):
    reply = serve().post("/v1/echo", json={"text": "x"}, headers={"host": host})
    assert reply.status_code == status


def test_any_host_where_that_is_asked_for(serve):
    client = serve(hosts=())
    assert client.get("/metrics", headers={"host": "evil.example"}).status_code == 200


BAD_SETTINGS = [
    ({"max_bytes": 0}, "max_bytes"),
    ({"max_pixels": -1}, "max_pixels"),
    ({"max_batch": 0}, "max_batch"),
    ({"max_queue": 0}, "max_queue"),
    ({"timeout": 0.0}, "timeout"),
    ({"body_timeout": float("nan")}, "body_timeout"),
    ({"grace": float("inf")}, "grace"),
    ({"max_wait": -0.1}, "max_wait"),
    ({"token": " "}, "token"),
    ({"token": "ключ"}, "token"),
]


@pytest.mark.parametrize("options, words", BAD_SETTINGS)
def test_bad_settings(options, words):
    with pytest.raises(ValueError, match=words):
        Settings(**options)


def test_functions_must_have_different_names(echo):
    for functions in ([], [echo, Echo()]):
        with pytest.raises(ValueError, match="different names"):
            create_app(functions)


# ---- what operators see


def metrics_of(client):
    text = client.get("/metrics").text
    return dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))


def test_metrics(serve, echo):
    client = serve()
    for text in ("a", "b", ""):
        client.post("/v1/echo", json={"text": text})
    for path in ("/x1", "/x2"):
        client.get(path)
    client.request("BREW", "/x3")
    found = metrics_of(client)

    def count(route, method, status):
        labels = f'method="{method}",route="{route}",status="{status}"'
        return float(found[f"mmlib_requests_total{{{labels}}}"])

    assert count("/v1/echo", "POST", 200) == 2
    assert count("/v1/echo", "POST", 422) == 1
    assert count("unknown", "GET", 404) == 2
    assert count("unknown", "other", 404) == 1
    assert float(found['mmlib_request_seconds_count{route="/v1/echo"}']) == 3
    assert float(found['mmlib_batch_size_sum{function="echo"}']) == 2
    assert float(found['mmlib_waiting{function="echo"}']) == 0
    assert not [name for name in found if "x1" in name]


@pytest.fixture
def log():
    """What the service logs, line by line."""
    stream, loggers = io.StringIO(), [logging.getLogger(n) for n in ("mmlib.serving", "uvicorn")]
    before = [(one, list(one.handlers), one.level, one.propagate) for one in loggers]
    log_to(stream)
    yield lambda: [json.loads(line) for line in stream.getvalue().splitlines()]
    for one, handlers, level, propagate in before:
        one.handlers[:], one.level, one.propagate = handlers, level, propagate


def test_one_line_a_request_without_what_was_asked(serve, log):
    client = serve()
    client.post("/v1/echo", json={"text": "private"}, headers={"x-request-id": "abc-1"})
    (line,) = [one for one in log() if one.get("request_id") == "abc-1"]
    assert (line["event"], line["route"], line["status"]) == ("request", "/v1/echo", 200)
    assert (line["method"], line["level"]) == ("POST", "info")
    assert line["milliseconds"] > 0
    assert "private" not in json.dumps(log())


@pytest.mark.parametrize("given", ["a\u0142", "x" * 65, "a b", '"}', ""])
def test_only_a_plain_id_is_taken_over(serve, given):
    reply = serve().get("/health/live", headers={"x-request-id": given.encode()})
    assert re.fullmatch(r"[0-9a-f]{16}", reply.headers["x-request-id"])


def test_a_failure_is_in_the_log_with_its_trace(serve, log):
    reply = serve().post("/v1/echo", json={"text": "fail"})
    (line,) = [one for one in log() if one["event"] == "failed"]
    assert line["request_id"] == reply.json()["request_id"]
    assert "a secret of the model" in line["trace"]
    (line,) = [one for one in log() if one.get("route") == "/v1/echo"]
    assert line["status"] == 500


def test_a_log_record_is_one_line():
    record = logging.LogRecord("x", logging.INFO, "", 0, "a\n%s", ("b",), None)
    assert "\n" not in JsonLines().format(record)


# ---- the OpenAPI page


def test_the_openapi_page_loads_nothing_from_elsewhere(real):
    page = real.get("/docs").text
    sources = re.findall(r'(?:src|href)="([^"]+)"', page)
    assert len(sources) >= 3
    assert all(source.startswith("/") for source in sources)
    for source in sources:
        assert real.get(source).status_code == 200


def test_the_schema_says_what_is_true(real):
    paths = real.get("/openapi.json").json()["paths"]
    assert {*GOOD_REQUESTS, "/health/live", "/health/ready", "/metrics"} == set(paths)
    for path in ("/v1/caption", "/v1/ask"):
        form = paths[path]["post"]["requestBody"]["content"]
        assert list(form) == ["multipart/form-data"]
    for path in GOOD_REQUESTS:
        assert {"200", "413", "422", "429", "504"} <= set(paths[path]["post"]["responses"])


class Taken:
    """A function that has loaded already."""

    def __init__(self, other):
        self.other = other

    def __getattr__(self, name):
        return getattr(self.other, name)

    def load(self):
        pass


@pytest.fixture(scope="module")
def address(real):
    """The same functions behind a real server."""
    functions = [Taken(one) for one in real.app.state.service.functions.values()]
    app = create_app(functions, Settings(max_queue=1000))
    running = server(app, "127.0.0.1", 0)
    thread = threading.Thread(target=running.run)
    thread.start()
    while not (running.started and app.state.service.state == "ready"):
        assert thread.is_alive()
        time.sleep(0.01)
    yield f"http://127.0.0.1:{running.servers[0].sockets[0].getsockname()[1]}"
    running.should_exit = True
    thread.join()


OPERATIONS = [
    ("/v1/search", "POST"),
    ("/v1/caption", "POST"),
    ("/v1/ask", "POST"),
    ("/v1/paint", "POST"),
    ("/health/live", "GET"),
    ("/health/ready", "GET"),
    ("/metrics", "GET"),
]


@pytest.mark.parametrize("path, method", OPERATIONS)
def test_the_api_keeps_its_word(address, path, method):
    """Requests drawn from the schema, right and wrong ones: the answers are as it says."""
    operation = schemathesis.openapi.from_url(f"{address}/openapi.json")[path][method]
    statuses = set()

    def check(case):
        # A schema cannot say that bytes are a picture, or a text has no control characters.
        reply = case.call_and_validate(excluded_checks=[positive_data_acceptance])
        statuses.add(reply.status_code)

    modes = list(GenerationMode) if method == "POST" else [GenerationMode.POSITIVE]
    for mode in modes:
        drawn = settings(max_examples=20, suppress_health_check=list(HealthCheck))
        drawn(given(operation.as_strategy(generation_mode=mode))(check))()
    if method == "POST":
        assert any(status >= 400 for status in statuses)
    assert 500 not in statuses


def test_the_operations_are_all_of_them(real):
    paths = real.get("/openapi.json").json()["paths"]
    assert {(path, one.upper()) for path in paths for one in paths[path]} == set(OPERATIONS)
