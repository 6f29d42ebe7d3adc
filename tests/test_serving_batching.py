"""The batcher: what is answered together, what is refused, and what happens at the end."""

import asyncio
import threading
import time

import pytest

from mmlib.serving.batching import Batcher, Closed, QueueFull


def double(items):
    return [2 * item for item in items]


class Gate:
    """A function that waits until it is let go, and notes the batches it got."""

    def __init__(self):
        self.open, self.entered, self.batches = threading.Event(), threading.Event(), []

    def __call__(self, items):
        self.batches.append(list(items))
        self.entered.set()
        assert self.open.wait(10)
        return double(items)


async def until(condition):
    """Let the loop run until something holds."""
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.001)


def run(test):
    """Run a coroutine on a new loop."""
    return asyncio.run(asyncio.wait_for(test, 30))


def test_results_come_back_to_those_who_asked():
    async def test():
        batcher = Batcher(double, max_batch=4)
        batcher.start()
        answers = await asyncio.gather(*(batcher.submit(i) for i in range(40)))
        await batcher.close()
        return answers

    assert run(test()) == [2 * i for i in range(40)]


def test_what_arrives_during_a_batch_is_the_next_batch():
    async def test():
        gate, sizes = Gate(), []
        batcher = Batcher(gate, max_batch=3, max_wait=0.0, observe=sizes.append)
        batcher.start()
        asked = [asyncio.create_task(batcher.submit(0))]
        await until(gate.entered.is_set)
        asked += [asyncio.create_task(batcher.submit(i)) for i in range(1, 6)]
        await until(lambda: batcher.waiting == 5)
        gate.open.set()
        assert await asyncio.gather(*asked) == [0, 2, 4, 6, 8, 10]
        await batcher.close()
        assert gate.batches == [[0], [1, 2, 3], [4, 5]]
        assert sizes == [1, 3, 2]

    run(test())


def test_the_first_waits_for_others_but_no_longer_than_it_may():
    async def test():
        batches = []
        batcher = Batcher(lambda items: batches.append(items) or items, max_batch=2, max_wait=20.0)
        batcher.start()
        first = asyncio.create_task(batcher.submit("a"))
        await asyncio.sleep(0.02)
        assert not first.done()
        await asyncio.gather(first, batcher.submit("b"))  # the batch is full: no more waiting
        short = Batcher(lambda items: batches.append(items) or items, max_batch=2, max_wait=0.01)
        short.start()
        await short.submit("c")
        await batcher.close()
        await short.close()
        assert batches == [["a", "b"], ["c"]]

    run(test())


class Jumping(asyncio.SelectorEventLoop):
    """A loop whose clock can be put forward."""

    ahead = 0.0

    def time(self):
        return super().time() + self.ahead


def test_who_has_waited_for_the_batch_before_does_not_wait_again():
    async def test():
        gate = Gate()
        batcher = Batcher(gate, max_batch=2, max_wait=60.0, timeout=1000.0)
        batcher.start()
        asked = [asyncio.create_task(batcher.submit(i)) for i in (0, 1)]  # a full batch
        await until(gate.entered.is_set)
        asked.append(asyncio.create_task(batcher.submit(2)))
        await until(lambda: batcher.waiting == 1)
        asyncio.get_running_loop().ahead += 100
        gate.open.set()
        async with asyncio.timeout(10):
            assert await asyncio.gather(*asked) == [0, 2, 4]
        await batcher.close()

    with asyncio.Runner(loop_factory=Jumping) as runner:
        runner.run(test())


def test_a_full_queue_refuses_and_then_takes_again():
    async def test():
        gate = Gate()
        batcher = Batcher(gate, max_batch=1, max_queue=2)
        batcher.start()
        asked = [asyncio.create_task(batcher.submit(0))]
        await until(gate.entered.is_set)
        asked += [asyncio.create_task(batcher.submit(i)) for i in (1, 2)]
        await until(lambda: batcher.full)
        with pytest.raises(QueueFull, match="2 requests wait"):
            await batcher.submit(3)
        gate.open.set()
        assert await asyncio.gather(*asked) == [0, 2, 4]
        assert await batcher.submit(5) == 10
        await batcher.close()

    run(test())


def test_who_gives_up_while_waiting_costs_no_work():
    async def test():
        gate = Gate()
        batcher = Batcher(gate, max_batch=1, timeout=10.0)
        batcher.start()
        first = asyncio.create_task(batcher.submit(0))
        await until(gate.entered.is_set)
        gone = asyncio.create_task(batcher.submit(1))
        last = asyncio.create_task(batcher.submit(2))
        await until(lambda: batcher.waiting == 2)
        gone.cancel()
        await asyncio.gather(gone, return_exceptions=True)
        gate.open.set()
        assert await asyncio.gather(first, last) == [0, 4]
        await batcher.close()
        assert gate.batches == [[0], [2]]

    run(test())


def test_a_timeout_is_told_to_the_one_who_waits_and_the_next_is_answered():
    async def test():
        gate = Gate()
        batcher = Batcher(gate, timeout=0.05)
        batcher.start()
        with pytest.raises(TimeoutError):
            await batcher.submit(1)
        gate.open.set()
        batcher.timeout = 30.0  # the machine may be busy
        assert await batcher.submit(2) == 4
        await batcher.close()

    run(test())


def test_one_bad_item_fails_for_itself_only():
    def inverse(items):
        return [1 / item for item in items]

    async def test():
        gate = Gate()
        batcher = Batcher(lambda x: gate(x) and inverse(x), max_batch=4, max_wait=0.0)
        batcher.start()
        asked = [asyncio.create_task(batcher.submit(1))]
        await until(gate.entered.is_set)
        asked += [asyncio.create_task(batcher.submit(i)) for i in (2, 0, 4)]
        await until(lambda: batcher.waiting == 3)
        gate.open.set()
        answers = await asyncio.gather(*asked, return_exceptions=True)
        await batcher.close()
        assert answers[:2] + answers[3:] == [1, 0.5, 0.25]
        assert isinstance(answers[2], ZeroDivisionError)

    run(test())


def test_too_few_results_are_an_error_and_nobody_waits_for_ever():
    async def test():
        batcher = Batcher(lambda items: [])
        batcher.start()
        with pytest.raises(RuntimeError, match="0 results for 1 items"):
            await batcher.submit(1)
        await batcher.close()

    run(test())


def test_close_finishes_what_was_accepted_and_takes_nothing_more():
    async def test():
        gate = Gate()
        batcher = Batcher(gate, max_batch=2, max_queue=3)
        batcher.start()
        asked = [asyncio.create_task(batcher.submit(0))]
        await until(gate.entered.is_set)
        asked += [asyncio.create_task(batcher.submit(i)) for i in (1, 2, 3)]  # the queue is full
        await until(lambda: batcher.full)
        closing = asyncio.create_task(batcher.close())
        await asyncio.sleep(0.01)
        with pytest.raises(Closed):
            await batcher.submit(9)
        assert not closing.done()
        gate.open.set()
        assert await asyncio.gather(*asked) == [0, 2, 4, 6]
        await closing
        await batcher.close()  # a second time does nothing

    run(test())


def test_close_gives_up_after_its_grace():
    async def test():
        gate = Gate()
        batcher = Batcher(gate, max_batch=1)
        batcher.start()
        asked = [asyncio.create_task(batcher.submit(0))]
        await until(gate.entered.is_set)
        asked.append(asyncio.create_task(batcher.submit(1)))
        await until(lambda: batcher.waiting == 1)
        await batcher.close(grace=0.05)
        answers = await asyncio.gather(*asked, return_exceptions=True)
        assert [type(answer) for answer in answers] == [Closed, Closed]
        gate.open.set()

    run(test())


def test_close_before_start():
    async def test():
        batcher = Batcher(double)
        waiting = asyncio.create_task(batcher.submit(1))
        await until(lambda: batcher.waiting == 1)
        await batcher.close()
        with pytest.raises(Closed):
            await waiting

    run(test())


def test_the_loop_goes_on_while_the_function_works():
    async def test():
        batcher = Batcher(lambda items: time.sleep(0.2) or items)
        batcher.start()
        waiting, turns = asyncio.create_task(batcher.submit(1)), 0
        while not waiting.done():
            await asyncio.sleep(0.001)
            turns += 1
        await batcher.close()
        return turns

    assert run(test()) > 3


@pytest.mark.parametrize(
    "options, words",
    [
        ({"max_batch": 0}, "max_batch"),
        ({"max_queue": 0}, "max_queue"),
        ({"max_wait": -1.0}, "max_wait"),
        ({"timeout": 0.0}, "timeout"),
    ],
)
def test_bad_limits(options, words):
    with pytest.raises(ValueError, match=words):
        Batcher(double, **options)
