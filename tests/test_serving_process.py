"""The service as a process of its own: it starts, answers, and ends well."""

import asyncio
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager

import numpy as np
import pytest

from mmlib.serving.__main__ import main, parser, settings_of
from mmlib.serving.load import caption_messages, load, message, percentile, running_service
from mmlib.serving.settings import LOOPBACK

# One function that takes two seconds, so that a signal comes while it works.
SLOW = """
import sys, time
from mmlib.serving.app import create_app, server
from mmlib.serving.functions import Limits, Reply, Request, Text
from mmlib.serving.settings import Settings
from mmlib.serving.watching import log_to

class Ask(Request):
    text: Text

class Answer(Reply):
    text: str

class Slow:
    name, title, summary = "slow", "Slow", "Take two seconds."
    request, reply, takes_picture, limits = Ask, Answer, False, Limits()
    def load(self):
        pass
    def run(self, jobs):
        time.sleep(2)
        return [Answer(text=job.request.text) for job in jobs]

log_to()
settings = Settings(max_batch=1, timeout=30.0, body_timeout=1.0)
server(create_app([Slow()], settings), "127.0.0.1", int(sys.argv[1]), settings.grace).run()
"""


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def ask(port, method, path, body=None, timeout=60.0):
    """Status and JSON of an answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
    headers = {"Content-Type": "application/json"} if body else {}
    connection.request(method, path, body and json.dumps(body), headers)
    response = connection.getresponse()
    return response.status, json.loads(response.read())


def wait_ready(process, port):
    while True:
        assert process.poll() is None, process.stderr.read()
        try:
            if ask(port, "GET", "/health/ready")[0] == 200:
                return
        except OSError:
            pass
        time.sleep(0.1)


@contextmanager
def running():
    """A running service and its port; its log goes to a pipe."""
    port = free_port()
    environment = {**os.environ, "MMLIB_NO_SHAPES": "1"}
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW, str(port)],
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    try:
        wait_ready(process, port)
        yield process, port
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


@pytest.fixture(scope="module")
def port():
    """Of one service for all tests that leave it running."""
    with running() as (_, port):
        yield port


def waiting(port):
    """How many requests wait, as the service itself says."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("GET", "/metrics")
    text = connection.getresponse().read().decode()
    return float(re.search(r'mmlib_waiting{function="slow"} (\S+)', text)[1])


def test_a_signal_ends_it_after_what_it_accepted():
    with running() as (process, port):
        ask_and_stop(process, port)


def ask_and_stop(process, port):
    answers = []

    def one(i):
        answers.append(ask(port, "POST", "/v1/slow", {"text": f"request {i}"}))

    threads = [threading.Thread(target=one, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    while waiting(port) < 2:  # the third is at work
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    for thread in threads:
        thread.join()
    assert sorted(answers, key=str) == [(200, {"text": f"request {i}"}) for i in range(3)]
    # uvicorn ends with the signal that it was sent, once it has shut down.
    assert process.wait(30) in (0, -signal.SIGTERM)
    with pytest.raises(OSError):
        ask(port, "GET", "/health/live")
    lines = [json.loads(line) for line in process.stderr.read().splitlines()]
    assert [one["status"] for one in lines if one.get("route") == "/v1/slow"] == [200] * 3
    assert not [one for one in lines if one["level"] == "error"]


def test_a_body_that_does_not_come_is_given_up(port):
    with socket.create_connection(("127.0.0.1", port), timeout=30) as one:
        head = "POST /v1/slow HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        one.sendall(f"{head}Content-Length: 100\r\n\r\n{{".encode())
        answer = one.recv(65536).decode()
    assert answer.startswith("HTTP/1.1 408")
    assert ask(port, "POST", "/v1/slow", {"text": "x"})[0] == 200


def test_what_is_no_http_is_refused(port):
    for garbage in (
        b"\x16\x03\x01\x02\x00\x01",
        b"GET / HTTP/9.9\r\n\r\n",
        b"\r\n" * 50 + b"x y\r\n",
    ):
        with socket.create_connection(("127.0.0.1", port), timeout=30) as one:
            one.sendall(garbage)
            one.shutdown(socket.SHUT_WR)
            answer = one.recv(65536)
        assert answer == b"" or answer.startswith(b"HTTP/1.1 4")
    assert ask(port, "POST", "/v1/slow", {"text": "x"})[0] == 200


# ---- the command line


def test_it_listens_to_this_machine_alone_unless_told_otherwise():
    options = parser().parse_args([])
    assert options.host == "127.0.0.1"
    assert settings_of(options).hosts == LOOPBACK
    assert settings_of(options).token is None
    options = parser().parse_args(["--allow-host", "pictures.example"])
    assert settings_of(options).hosts == (*LOOPBACK, "pictures.example")
    assert settings_of(parser().parse_args(["--allow-host", "*"])).hosts == ()


def test_the_token_comes_from_a_file_or_the_environment(tmp_path, monkeypatch):
    (tmp_path / "token").write_text("from a file\n")
    monkeypatch.setenv("MMLIB_TOKEN", "from the environment")
    assert settings_of(parser().parse_args([])).token == "from the environment"
    arguments = ["--token-file", str(tmp_path / "token")]
    assert settings_of(parser().parse_args(arguments)).token == "from a file"


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--max-queue", "0"], "max_queue"),
        (["--timeout", "nan"], "timeout"),
        (["--token-file", "nowhere"], "nowhere"),
    ],
)
def test_bad_arguments_are_told_without_a_trace(arguments, words, capsys):
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert words in error
    assert "Traceback" not in error


def test_an_unknown_function_is_refused(capsys):
    with pytest.raises(SystemExit):
        parser().parse_args(["--functions", "sing"])
    assert "sing" in capsys.readouterr().err


# ---- the load that is put on it


def test_load_counts_what_comes_back(port):
    body = json.dumps({"text": "x"}).encode()
    done = asyncio.run(
        load(
            port,
            [message("/v1/slow", body), message("/v1/slow", b"{}")],
            clients=2,
            seconds=0.5,
            pause=0.01,
        )
    )
    assert set(done.statuses) == {200, 422}
    assert len(done.latencies) == done.statuses[200]
    assert done.latencies == sorted(done.latencies)
    assert done.latencies[0] >= 2  # the function takes two seconds
    assert done.rate == pytest.approx(len(done.latencies) / done.seconds)


def test_a_broken_connection_is_counted():
    done = asyncio.run(load(free_port(), [message("/", b"")], clients=1, seconds=0.1, pause=0.02))
    assert set(done.statuses) == {0}
    assert done.latencies == []


@pytest.mark.parametrize("pause, least, most", [(None, 3, 3), (0.05, 6, 60)])
def test_a_client_waits_as_long_as_it_is_told(pause, least, most):
    async def refuse(reader, writer):
        while await reader.read(1000):
            writer.write(b"HTTP/1.1 429 No\r\nRetry-After: 5\r\nContent-Length: 0\r\n\r\n")

    async def run():
        server = await asyncio.start_server(refuse, "127.0.0.1", 0)
        address = server.sockets[0].getsockname()
        return await load(address[1], [message("/", b"")], clients=3, seconds=0.5, pause=pause)

    done = asyncio.run(run())
    assert set(done.statuses) == {429}
    assert done.seconds < 2  # and no longer than there is time
    assert least <= done.statuses[429] <= most


def test_percentiles_equal_numpys():
    values = sorted(np.random.default_rng(0).random(977).tolist())
    for share in (0.01, 0.5, 0.9, 0.99, 1.0):
        wanted = np.quantile(values, share, method="inverted_cdf")
        assert percentile(values, share) == wanted
    assert percentile([float(i) for i in range(1, 101)], 0.99) == 99.0


@pytest.mark.parametrize("ordered, share", [([], 0.5), ([1.0], 0.0), ([1.0], 1.1)])
def test_bad_percentiles(ordered, share):
    with pytest.raises(ValueError, match="ordered|share"):
        percentile(ordered, share)


@pytest.mark.parametrize(
    "options, words",
    [
        ({"messages": []}, "messages"),
        ({"messages": [b"x"], "clients": 0}, "clients"),
        ({"messages": [b"x"], "seconds": 0.0}, "seconds"),
    ],
)
def test_bad_loads(options, words):
    with pytest.raises(ValueError, match=words):
        asyncio.run(load(1, **options))


def test_a_service_of_captions_is_started_asked_and_ended():
    with running_service("--functions", "caption", "--max-batch", "4") as (process, port):
        done = asyncio.run(load(port, caption_messages(3), clients=2, seconds=0.5))
    assert set(done.statuses) == {200} and done.rate > 0
    assert process.returncode in (0, -signal.SIGTERM)


def test_a_service_that_cannot_start_is_told():
    with pytest.raises(RuntimeError, match="exit code 2"), running_service("--max-batch", "0"):
        pass
