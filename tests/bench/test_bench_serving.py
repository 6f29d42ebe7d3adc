"""The service under load: what it answers, what it refuses, and what batching is worth.

The service is a process of its own and the clients are another, so on two cores each has one.
"""

import asyncio
from statistics import mean

import psutil

from mmlib.serving.load import caption_messages, load, percentile, running_service

AREA = "The service (chapter 15)"

SECONDS = 60
CAPTION = ("--functions", "caption")


def told(name, done):
    p50, p99 = (1000 * percentile(done.latencies, share) for share in (0.5, 0.99))
    print(f"{name}: {done.rate:.1f}/s, p50 {p50:.0f} ms, p99 {p99:.0f} ms, {dict(done.statuses)}")


def test_sixty_four_clients(goal):
    """More clients than may wait: the rest is refused, waits as it is told, and nothing is lost."""
    messages = caption_messages()
    with running_service(*CAPTION, "--max-queue", "32") as (process, port):
        memory = psutil.Process(process.pid).memory_info
        # What it can do: as many clients as may wait, and no refusals.
        asyncio.run(load(port, messages, clients=16, seconds=3))
        capacities = [asyncio.run(load(port, messages, clients=32, seconds=10))]
        before = memory().rss
        done = asyncio.run(load(port, messages, clients=64, seconds=SECONDS))
        after = memory().rss
        # Once more, because the machine is not always as quick.
        capacities.append(asyncio.run(load(port, messages, clients=32, seconds=10)))
        told("64 clients", done)
    for capacity in capacities:
        told("capacity", capacity)
        assert set(capacity.statuses) == {200}
    assert set(done.statuses) <= {200, 429}
    share = done.rate / mean(capacity.rate for capacity in capacities)
    goal("answered with refusals, as a share of what is answered without", share, at_least=0.9)
    print(f"memory {before / 2**20:.0f} MiB before, {after / 2**20:.0f} MiB after")
    goal(
        "memory after a minute: 1.05 times what it was, and 16 MiB",
        after / 2**20,
        at_most=1.05 * before / 2**20 + 16,
        unit="MiB",
    )


def test_what_batching_is_worth(goal):
    messages, rates = caption_messages(), {}
    for size in ("1", "16"):
        with running_service(*CAPTION, "--max-batch", size) as (_, port):
            asyncio.run(load(port, messages, clients=16, seconds=3))
            done = asyncio.run(load(port, messages, clients=16, seconds=10))
        told(f"batches of at most {size}", done)
        assert set(done.statuses) == {200}
        rates[size] = done.rate
    goal("answers with batches of 16 beside 1", rates["16"] / rates["1"], at_least=1.2, unit="×")
