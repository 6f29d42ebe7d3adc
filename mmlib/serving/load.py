"""A load on a service: many clients at once, each asking again when it has its answer.

``python -m mmlib.serving.load --clients 64 --seconds 60`` asks a service that runs on this machine
and prints what came back. The clients are a few lines on sockets: a full HTTP library would need
more of the processor than the service that is measured. :func:`running_service` starts one as a
process of its own, so that on two cores the service has one and the clients have the other.
"""

import argparse
import asyncio
import http.client
import io
import itertools
import json
import os
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from PIL import Image

from mmlib.data import scenes

__all__ = ["Load", "caption_messages", "load", "message", "percentile", "running_service"]


@dataclass(frozen=True)
class Load:
    """What came back.

    Attributes:
        statuses: How often each HTTP status; 0 for a connection that broke.
        latencies: Seconds of each request with status 200, sorted.
        seconds: How long it was measured.
    """

    statuses: Counter
    latencies: list[float]
    seconds: float

    @property
    def rate(self) -> float:
        """Requests answered with 200 in a second."""
        return len(self.latencies) / self.seconds


def percentile(ordered: Sequence[float], share: float) -> float:
    """The smallest value that at least this share of the values does not exceed.

    Args:
        ordered: Values in ascending order, at least one.
        share: In (0, 1]; 0.5 for the median, 0.99 for p99.

    Raises:
        ValueError: there are no values, or ``share`` is out of its range.

    >>> percentile([1.0, 2.0, 3.0, 4.0], 0.5), percentile([1.0, 2.0, 3.0, 4.0], 0.99)
    (2.0, 4.0)
    """
    if not ordered:
        raise ValueError("ordered must not be empty")
    if not 0 < share <= 1:
        raise ValueError(f"share must lie in (0, 1]: got {share}")
    # Whole numbers: 0.99 times 100 is a little above 99 in floating point.
    rank = -(-round(share * 1_000_000) * len(ordered) // 1_000_000)
    return ordered[rank - 1]


def message(path: str, body: bytes, content_type: str = "application/json") -> bytes:
    """A POST request as it goes over the wire.

    >>> message("/v1/search", b"{}").decode().splitlines()[0]
    'POST /v1/search HTTP/1.1'
    """
    head = (
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {content_type}\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def caption_messages(count: int = 32) -> list[bytes]:
    """Requests for captions of different scenes."""
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
def running_service(*arguments: str) -> Iterator[tuple[subprocess.Popen, int]]:
    """A service that is ready, as a process on a free port; ended at the end.

    Args:
        arguments: Of ``python -m mmlib.serving``.

    Yields:
        The process and its port.

    Raises:
        RuntimeError: It ended before it was ready.
    """
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    command = [sys.executable, "-m", "mmlib.serving", "--port", str(port), "--no-page", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MMLIB_NO_SHAPES": "1"}
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment
    )
    try:
        while not _is_ready(port):
            if process.poll() is not None:
                raise RuntimeError(f"the service ended with exit code {process.returncode}")
            time.sleep(0.2)
        yield process, port
    finally:
        process.terminate()
        process.wait(30)


def _is_ready(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/health/ready")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


async def load(
    port: int,
    messages: Sequence[bytes],
    *,
    clients: int = 64,
    seconds: float = 60.0,
    pause: float | None = None,
    host: str = "127.0.0.1",
) -> Load:
    """Ask a service with many clients at once.

    Args:
        port: Where it listens.
        messages: Requests (:func:`message`), taken in turn.
        clients: How many ask at once.
        seconds: For how long.
        pause: Seconds that a client waits after an answer that is not 200; without, as many as
            the answer's Retry-After asks for.
        host: Where it runs.

    Raises:
        ValueError: there are no messages, or a number is not above 0.
    """
    if not messages:
        raise ValueError("messages must not be empty")
    if clients < 1 or seconds <= 0:
        raise ValueError(
            f"clients and seconds must be above 0: got {clients} clients, {seconds} seconds"
        )
    statuses: Counter = Counter()
    latencies: list[float] = []
    turns = itertools.cycle(messages)
    started = time.perf_counter()
    end = started + seconds
    await asyncio.gather(
        *(_client(host, port, turns, end, pause, statuses, latencies) for _ in range(clients))
    )
    return Load(statuses, sorted(latencies), time.perf_counter() - started)


async def _client(
    host: str,
    port: int,
    turns: Iterator[bytes],
    end: float,
    pause: float | None,
    statuses: Counter,
    latencies: list[float],
) -> None:
    writer = None
    while (start := time.perf_counter()) < end:
        try:
            if writer is None:
                reader, writer = await asyncio.open_connection(host, port)
            writer.write(next(turns))
            head = await reader.readuntil(b"\r\n\r\n")
            lines = head.decode("latin-1").split("\r\n")
            status = int(lines[0].split(" ")[1])
            fields = dict(line.lower().split(": ", 1) for line in lines[1:] if line)
            await reader.readexactly(int(fields["content-length"]))
            if fields.get("connection") == "close":
                writer.close()
                writer = None
            told = float(fields.get("retry-after", 0))
        except (OSError, asyncio.IncompleteReadError):
            status, writer, told = 0, None, 0.05
        statuses[status] += 1
        if status == 200:
            latencies.append(time.perf_counter() - start)
        else:
            left = end - time.perf_counter()
            await asyncio.sleep(max(0.0, min(told if pause is None else pause, left)))
    if writer is not None:
        writer.close()


def main() -> None:
    """Ask the search, and print what came back."""
    options = argparse.ArgumentParser("python -m mmlib.serving.load", description=__doc__)
    options.add_argument("--port", type=int, default=8000)
    options.add_argument("--clients", type=int, default=64)
    options.add_argument("--seconds", type=float, default=60.0)
    given = options.parse_args()
    words = ["a cat", "red fruit", "someone laughs", "下雨", "an animal that lives in the sea"]
    messages = [message("/v1/search", json.dumps({"query": word}).encode()) for word in words]
    done = asyncio.run(load(given.port, messages, clients=given.clients, seconds=given.seconds))
    print(f"{done.rate:.1f} answers a second; {dict(sorted(done.statuses.items()))} by status")
    if done.latencies:
        p50, p99 = (1000 * percentile(done.latencies, share) for share in (0.5, 0.99))
        print(f"p50 {p50:.1f} ms, p99 {p99:.1f} ms")


if __name__ == "__main__":
    main()
