"""The system behind the service: what it answers, what it refuses, and as a process of its own.

- Captions, answers, drawings and finds are what the system itself says, in both languages.
- A batch says the same as one by one; a probability is that of the words that were said.
- Everything that must not be believed is refused in words, and after it comes an honest request.
- ``python -m mmlib.system serve RUN`` starts, answers over HTTP, and ends at SIGTERM.
"""

import base64
import http.client
import io
import json
import math
import os
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from fastapi.testclient import TestClient
from PIL import Image

from mmlib.data import scenes
from mmlib.judge import load_judge
from mmlib.marks import mark
from mmlib.serving.app import create_app
from mmlib.serving.functions import Function, Job
from mmlib.serving.settings import Settings
from mmlib.system.answers import answers
from mmlib.system.commands import main as command
from mmlib.system.profiles import SystemConfig
from mmlib.system.requests import wordings
from mmlib.system.sequence import pad
from mmlib.system.serving import (
    SystemCaption,
    SystemPainting,
    SystemQuestions,
    SystemSearch,
    main,
    system_functions,
)
from mmlib.system.stages import new_system, shipped_system, train_system
from mmlib.system.tasks import Turn


@pytest.fixture(scope="module")
def system():
    return shipped_system()


@pytest.fixture(scope="module")
def client(system):
    app = create_app(list(system_functions(system).values()), Settings(max_bytes=300_000))
    with TestClient(app, "http://localhost", raise_server_exceptions=False) as one:
        while one.get("/health/ready").status_code != 200:
            assert app.state.service.state != "failed"
            time.sleep(0.01)
        yield one


def png(picture, kind="PNG"):
    if isinstance(picture, torch.Tensor):
        picture = Image.fromarray((255 * picture).round().byte().permute(1, 2, 0).numpy())
    buffer = io.BytesIO()
    picture.save(buffer, kind)
    return buffer.getvalue()


def upload(data, kind="image/png", **fields):
    return {"files": {"file": ("x.png", data, kind)}, "data": fields}


def picture_of(address):
    kind, _, data = address.partition(",")
    assert kind == "data:image/png;base64"
    image = Image.open(io.BytesIO(base64.b64decode(data)))
    assert image.size == (256, 256)
    small = image.resize((32, 32), Image.Resampling.NEAREST)
    return torch.from_numpy(np.array(small)).permute(2, 0, 1) / 255


# ---- what it answers


@pytest.mark.parametrize("language", ["en", "zh"])
def test_it_says_what_the_system_says(system, client, language):
    items = scenes.sample(4, seed=11, split="train", objects=1)
    pictures = scenes.render(items, 32)
    seen = system.pictures.look(pictures)
    request = wordings("caption", language)[0]
    wanted = [reply.text for reply in answers(system, [[Turn(request, picture=s)] for s in seen])]
    assert len(set(wanted)) == 4
    for picture, text in zip(pictures, wanted, strict=True):
        reply = client.post("/v1/caption", **upload(png(picture), language=language))
        assert reply.status_code == 200, reply.text
        assert reply.json()["caption"] == text
        assert 0 < reply.json()["probability"] <= 1
    asked = scenes.questions(items[0], 0, ("colour", "shape"))
    texts = [question.text if language == "en" else question.text_zh for question in asked]
    wanted = answers(system, [[Turn(text, picture=seen[0])] for text in texts])
    for text, right in zip(texts, wanted, strict=True):
        reply = client.post("/v1/ask", **upload(png(pictures[0]), question=text))
        assert reply.status_code == 200, reply.text
        assert reply.json()["answer"] == right.text


def test_captions_and_colours_are_mostly_right(client):
    items = scenes.sample(10, seed=12, split="train", objects=1)
    said = right = 0
    for scene, picture in zip(items, scenes.render(items, 64), strict=True):
        caption = client.post("/v1/caption", **upload(png(picture))).json()["caption"]
        said += scene.objects[0].colour in caption and scene.objects[0].shape in caption
        (question,) = scenes.questions(scene, 1, ("colour",))
        answer = client.post("/v1/ask", **upload(png(picture), question=question.text)).json()
        right += answer["answer"] == question.answer
    assert said >= 7 and right >= 7


def test_a_probability_is_that_of_the_words(system, client):
    (scene,) = scenes.sample(1, seed=13, split="train", objects=1)
    picture = scenes.render([scene], 32)
    reply = client.post("/v1/caption", **upload(png(picture[0]))).json()
    turns = [Turn(wordings("caption", "en")[0], picture=system.pictures.look(picture)[0])]
    document = system.writer.dialogue([*turns, Turn(reply["caption"])])
    with torch.no_grad():
        known = system.language(pad([document], system.known.pad))[0]
    chance = 1.0
    for at, (token, wanted) in enumerate(zip(document.ids, document.wanted, strict=True)):
        if wanted:
            chance *= system.language.tell(known[at - 1]).softmax(-1)[token].item()
    assert reply["probability"] == pytest.approx(chance, abs=1e-3)
    assert chance > 0.3


def test_what_is_drawn_is_what_was_asked_for(client):
    wanted = scenes.sample(6, seed=2, split="train", objects=1)
    pictures = []
    for scene in wanted:
        reply = client.post("/v1/paint", json={"caption": scenes.caption(scene)})
        assert reply.status_code == 200, reply.text
        pictures.append(picture_of(reply.json()["image"]))
    assert mark(load_judge().read(torch.stack(pictures)), wanted).colour.sum() >= 4
    two = {"caption": "a small red star above a small blue ring", "candidates": 1}
    drawn = [client.post("/v1/paint", json={**two, "seed": seed}).text for seed in (0, 1, 2, 0)]
    assert len(set(drawn)) > 1 and drawn[0] == drawn[3]


def test_a_search_finds_in_both_languages_and_keeps_to_the_least_score(client):
    english = client.post("/v1/search", json={"query": "a large red star", "count": 20}).json()
    chinese = client.post("/v1/search", json={"query": "红色的大星形", "count": 5})
    assert chinese.status_code == 200, chinese.text
    assert len(english["results"]) == 20 and len(chinese.json()["results"]) == 5
    assert "red" in english["results"][0]["name"]
    assert "红" in chinese.json()["results"][0]["name_zh"]
    scores = [one["score"] for one in english["results"]]
    assert scores == sorted(scores, reverse=True)
    least = scores[3]
    some = client.post("/v1/search", json={"query": "a large red star", "min_score": least})
    assert [one["score"] for one in some.json()["results"]] == scores[:4]
    picture_of(english["results"][0]["image"])


def test_a_folder_of_pictures_is_searched(system, tmp_path, capsys):
    items = scenes.sample(8, seed=4, split="train", objects=1)
    for number, picture in enumerate(scenes.render(items, 64)):
        (tmp_path / f"{number}.png").write_bytes(png(picture))
    (tmp_path / "broken.png").write_bytes(b"no picture")
    (tmp_path / "notes.txt").write_text("no picture either")
    search = SystemSearch(system, tmp_path)
    search.load()
    assert "left out broken.png" in capsys.readouterr().err
    found = 0
    for number, scene in enumerate(items):
        (reply,) = search.run([Job(search.request(query=scenes.caption(scene), count=1))])
        found += reply.results[0].name == str(number)
    assert found >= 6  # one by chance
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="folder must hold"):
        SystemSearch(system, tmp_path / "empty").load()


def test_a_batch_says_the_same_as_one_by_one(system, client):
    functions = client.app.state.service.functions
    pictures = [
        Image.open(io.BytesIO(png(picture)))
        for picture in scenes.render(scenes.sample(6, seed=6, split="train", objects=1), 48)
    ]
    caption, ask = functions["caption"], functions["ask"]
    texts = ["what shape is there?", "有几个物体？", "is there a red star?"]
    for function, requests in (
        (caption, [caption.request(language=("en", "zh")[i % 2]) for i in range(6)]),
        (ask, [ask.request(question=texts[i % 3]) for i in range(6)]),
    ):
        jobs = [Job(request, one) for request, one in zip(requests, pictures, strict=True)]
        for one, many in zip(jobs, function.run(jobs), strict=True):
            (alone,) = function.run([one])
            assert alone.model_dump(exclude={"probability"}) == many.model_dump(
                exclude={"probability"}
            )
            assert math.isclose(alone.probability, many.probability, abs_tol=2e-3)
    search = functions["search"]
    jobs = [
        Job(search.request(query=q, count=n))
        for n, q in enumerate(("a red star", "绿色的小圆环"), 1)
    ]
    for one, many in zip(jobs, search.run(jobs), strict=True):
        assert [m.name for m in search.run([one])[0].results] == [m.name for m in many.results]


def test_the_functions_follow_the_protocol(client):
    functions = client.app.state.service.functions
    assert list(functions) == ["search", "caption", "ask", "paint"]
    for function in functions.values():
        assert isinstance(function, Function)


def test_the_page_has_the_systems_own_examples(system):
    pytest.importorskip("gradio")
    from mmlib.serving.page import mount_page

    functions = list(system_functions(system).values())
    app = create_app(functions, Settings(), mount_page=mount_page)
    with TestClient(app, "http://localhost") as one:
        parts = one.get("/page/config").json()["components"]
    samples = [part["props"]["samples"] for part in parts if part["type"] == "dataset"]
    assert len(samples) == 4  # one a tab
    assert [[text] for text in functions[0].examples] in samples


# ---- what it refuses

PNG = png(Image.new("RGB", (32, 32), "red"))
BAD = {
    "caption: no file": ("caption", dict(data={"language": "en"}), 422, "file"),
    "caption: language": ("caption", upload(PNG, language="fr"), 422, "language"),
    "caption: unknown field": ("caption", upload(PNG, path="/etc/passwd"), 422, "path"),
    "caption: lying type": ("caption", upload(PNG, "image/jpeg"), 415, "PNG"),
    "caption: cut off": ("caption", upload(PNG[:-30]), 422, "damaged"),
    "caption: a program": ("caption", upload(b"\x7fELF" + bytes(99)), 415, "none of"),
    "caption: too many bytes": ("caption", upload(PNG + bytes(300_000)), 413, "300000 bytes"),
    "ask: no question": ("ask", upload(PNG), 422, "question: Field required"),
    "ask: blank": ("ask", upload(PNG, question=" \t"), 422, "question"),
    "ask: unknown word": ("ask", upload(PNG, question="who painted this?"), 422, "'who'"),
    "ask: unknown character": ("ask", upload(PNG, question="这幅图是谁画的？"), 422, "never saw"),
    "ask: many words": ("ask", upload(PNG, question="a " * 25), 422, "at most 24"),
    "ask: long": ("ask", upload(PNG, question="is " * 33_000), 422, "at most 300"),
    "ask: a marker": ("ask", upload(PNG, question="<DRAW>"), 422, "'<'"),
    "ask: control characters": ("ask", upload(PNG, question="a\x00b"), 422, "U+0000"),
    "paint: no caption": ("paint", dict(json={}), 422, "caption: Field required"),
    "paint: a list": ("paint", dict(json={"caption": ["a star"]}), 422, "caption"),
    "paint: unknown word": ("paint", dict(json={"caption": "a small cat"}), 422, "'cat'"),
    "paint: only a full stop": ("paint", dict(json={"caption": " . "}), 422, "no word"),
    "paint: no caption in Chinese": ("paint", dict(json={"caption": "一只猫"}), 422, "cannot read"),
    "paint: candidates": ("paint", dict(json={"caption": "a star", "candidates": 0}), 422, "cand"),
    "paint: as text": ("paint", dict(json={"caption": "a star", "seed": "1"}), 422, "seed"),
    "paint: half a character": (
        "paint",
        dict(content=b'{"caption": "a\\ud800"}', headers={"content-type": "application/json"}),
        422,
        "caption",
    ),
    "search: unknown word": ("search", dict(json={"query": "a cat"}), 422, "'cat'"),
    "search: count": ("search", dict(json={"query": "a star", "count": 0}), 422, "count"),
    "search: score": ("search", dict(json={"query": "a star", "min_score": 2}), 422, "min_score"),
    "search: unknown field": ("search", dict(json={"query": "a star", "top": 1}), 422, "top"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_must_not_be_believed_is_refused_in_words(client, name):
    function, request, status, words = BAD[name]
    reply = client.post(f"/v1/{function}", **request)
    assert reply.status_code == status, reply.text
    assert reply.headers["content-type"] == "application/problem+json"
    assert words in reply.json()["detail"]
    again = client.post("/v1/search", json={"query": "a star", "count": 1})
    assert again.status_code == 200


def test_everything_that_is_asked_of_scenes_may_be_asked(client):
    functions = client.app.state.service.functions
    for scene in scenes.sample(100, 99, split="test", objects=(1, 2)):
        for question in scenes.questions(scene, 5):
            functions["ask"].request(question=question.text)
            functions["ask"].request(question=question.text_zh)
        for language in ("en", "zh"):
            functions["paint"].request(caption=scenes.caption(scene, language))
    for language in ("en", "zh"):
        functions["ask"].request(question=wordings("caption", language, "test")[0])


# ---- the command


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["nowhere"], "there is no run in nowhere"),
        (["--pictures", "nowhere"], "must be a folder"),
        (["--max-queue", "0"], "max_queue"),
    ],
)
def test_bad_arguments_are_told_without_a_trace(given, words, capsys):
    assert main(given) == 2
    error = capsys.readouterr().err
    assert words in error and error.startswith("python -m mmlib.system serve: ")


def test_the_systems_own_command_serves(capsys):
    with pytest.raises(SystemExit) as found:
        command(["serve", "nowhere"])
    assert found.value.code == 2
    assert "there is no run in nowhere" in capsys.readouterr().err


def test_an_unknown_function_is_refused(capsys):
    with pytest.raises(SystemExit):
        main(["--functions", "sing"])
    assert "sing" in capsys.readouterr().err


def test_functions_of_any_system(tmp_path):
    """One that has learned nothing answers in form, whatever it says."""
    shipped = shipped_system()
    pictures = shipped.pictures
    config = SystemConfig(dim=16, heads=2, layers=1)
    system = new_system(config, pictures.clip, pictures.autoencoder)
    system.language.eval()
    for make in (SystemCaption, SystemQuestions, SystemPainting, SystemSearch):
        make(system).load()


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def ask(port, method, path, body=None):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    headers = {"Content-Type": "application/json"} if body else {}
    connection.request(method, path, body and json.dumps(body), headers)
    response = connection.getresponse()
    return response.status, json.loads(response.read())


def test_a_run_is_served_by_a_process_until_sigterm(tmp_path):
    config = SystemConfig(
        pretraining_steps=2, instruction_steps=2, dim=16, heads=2, layers=1, documents=3, pool=20
    )
    train_system(config, tmp_path / "run", progress=False)
    port = free_port()
    started = [sys.executable, "-m", "mmlib.system", "serve", str(tmp_path / "run")]
    started += ["--port", str(port), "--no-page", "--functions", "search", "paint"]
    environment = {**os.environ, "MMLIB_NO_SHAPES": "1"}
    process = subprocess.Popen(started, stderr=subprocess.PIPE, text=True, env=environment)
    try:
        while True:
            assert process.poll() is None, process.stderr.read()
            try:
                if ask(port, "GET", "/health/ready")[0] == 200:
                    break
            except OSError:
                pass
            time.sleep(0.1)
        status, found = ask(port, "POST", "/v1/search", {"query": "a red star", "count": 3})
        assert status == 200 and len(found["results"]) == 3
        status, made = ask(port, "POST", "/v1/paint", {"caption": "红色的小星形", "candidates": 1})
        assert status == 200 and picture_of(made["image"]).shape == (3, 32, 32)
        status, problem = ask(port, "POST", "/v1/paint", {"caption": "a cat"})
        assert status == 422 and "cat" in problem["detail"]
        assert ask(port, "POST", "/v1/caption", {})[0] == 404  # it was not asked for
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) in (0, -signal.SIGTERM)
    finally:
        process.kill()
        process.wait()
        process.stderr.close()
