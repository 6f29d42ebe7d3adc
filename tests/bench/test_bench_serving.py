"""The service under load: what it answers, what it refuses, and what batching is worth.

The service is a process of its own and the clients are another, so on two cores each has one.
"""

import asyncio
import http.client
import io
import os
import socket
import subprocess
import sys
import time
from contextlib import contextmanager

import psutil
from PIL import Image

from mmlib.data import scenes
from mmlib.serving.load import load, message, percentile

SECONDS = 60


def caption_requests(count=32):
    """Uploads of different scenes, as they go over the wire."""
    made = []
    for scene in scenes.sample(count, seed=0, split="test", objects=(1, 2)):
        pixels = (scenes.render([scene], 64)[0] * 255).round().byte().permute(1, 2, 0).numpy()
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "PNG")
        head = (
            b'--x\r\nContent-Disposition: form-data; name="file"; filename="x.png"\r\n'
            b"Content-Type: image/png\r\n\r\n"
        )
        body = head + buffer.getvalue() + b"\r\n--x--\r\n"
        made.append(message("/v1/caption", body, "multipart/form-data; boundary=x"))
    return made


@contextmanager
def service(*arguments):
    """A running service: its process and its port."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    command = [sys.executable, "-m", "mmlib.serving", "--port", str(port), "--no-page"]
    command += ["--functions", "caption", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MMLIB_NO_SHAPES": "1"}
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment
    )
    try:
        while True:
            assert process.poll() is None
            try:
                connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
                connection.request("GET", "/health/ready")
                if connection.getresponse().status == 200:
                    break
            except OSError:
                pass
            time.sleep(0.2)
        yield process, port
    finally:
        process.terminate()
        process.wait(30)


def told(name, done):
    p50, p99 = (1000 * percentile(done.latencies, share) for share in (0.5, 0.99))
    print(f"{name}: {done.rate:.1f}/s, p50 {p50:.0f} ms, p99 {p99:.0f} ms, {dict(done.statuses)}")


def test_sixty_four_clients(benchmark):
    """More clients than may wait: the rest is refused, and capacity is not lost."""
    benchmark.pedantic(lambda: None)
    messages = caption_requests()
    with service("--max-queue", "32") as (process, port):
        memory = psutil.Process(process.pid).memory_info
        # What it can do: as many clients as may wait, and no refusals.
        asyncio.run(load(port, messages, clients=16, seconds=5))
        capacity = asyncio.run(load(port, messages, clients=32, seconds=15))
        told("capacity", capacity)
        before = memory().rss
        done = asyncio.run(load(port, messages, clients=64, seconds=SECONDS))
        told("64 clients", done)
        after = memory().rss
    assert set(capacity.statuses) == {200}
    assert set(done.statuses) <= {200, 429}
    assert done.rate >= 0.9 * capacity.rate
    print(f"memory {before / 2**20:.0f} MiB before, {after / 2**20:.0f} MiB after")
    assert after < 1.05 * before + 2**24


def test_what_batching_is_worth(benchmark):
    benchmark.pedantic(lambda: None)
    messages, rates = caption_requests(), {}
    for size in ("1", "16"):
        with service("--max-batch", size) as (_, port):
            asyncio.run(load(port, messages, clients=16, seconds=3))
            done = asyncio.run(load(port, messages, clients=16, seconds=15))
        told(f"batches of at most {size}", done)
        assert set(done.statuses) == {200}
        rates[size] = done.rate
    assert rates["16"] > 1.2 * rates["1"]
