r"""Requests that come one by one, answered in batches (动态批处理).

A model answers a batch of :math:`n` requests in about :math:`a + b n` seconds. One by one it
answers :math:`1 / (a + b)` requests a second, in batches :math:`n / (a + b n)`, which tends to
:math:`1/b`: worth it where the fixed part :math:`a` is large, as on a GPU, or where a recurrent
decoder takes a step for each word. The batch is whatever has arrived while the one before was at
work, or within ``max_wait`` seconds of its first request: an idle service answers at once, and a
busy one works in large batches.

What is waiting has a bound. Without one a service that is asked more than it can answer makes
everybody wait until all time out, and answers nobody; with it those who are let in are answered,
and the others know at once.
"""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

__all__ = ["Batcher", "Closed", "QueueFull"]

_STOP = object()


class QueueFull(Exception):
    """As many requests wait as may."""


class Closed(Exception):
    """The batcher takes nothing more."""


class Batcher:
    """A queue before a function that answers batches, in a thread of its own.

    All methods belong to one event loop; ``run`` is called in the thread, one batch at a time.

    Args:
        run: Gives as many results as it is given items, in their order. Where it raises on a
            batch, each item is tried alone, so that one bad item fails for itself only.
        max_batch: Most items of a batch.
        max_wait: Seconds from the arrival of a batch's first item in which others may join it.
            If it has waited as long for the batch before, there is no more waiting.
        max_queue: Most items that wait.
        timeout: Seconds from :meth:`submit` to the result.
        observe: Called with the number of items of each batch.

    Raises:
        ValueError: a number out of its range.
    """

    def __init__(
        self,
        run: Callable[[list[Any]], Sequence[Any]],
        *,
        max_batch: int = 16,
        max_wait: float = 0.002,
        max_queue: int = 64,
        timeout: float = 10.0,
        observe: Callable[[int], None] = lambda size: None,
    ) -> None:
        if max_batch < 1 or max_queue < 1:
            raise ValueError(
                "max_batch and max_queue must be at least 1: "
                f"got max_batch={max_batch}, max_queue={max_queue}"
            )
        if max_wait < 0 or timeout <= 0:
            raise ValueError(
                "max_wait must be at least 0 and timeout above 0: "
                f"got max_wait={max_wait}, timeout={timeout}"
            )
        self.max_batch, self.max_wait, self.timeout = max_batch, max_wait, timeout
        self._run, self._observe = run, observe
        self._queue: asyncio.Queue = asyncio.Queue(max_queue)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="batcher")
        self._worker: asyncio.Task | None = None
        self._closing = False

    @property
    def waiting(self) -> int:
        """How many items wait; those at work are not counted."""
        return self._queue.qsize()

    @property
    def full(self) -> bool:
        """Whether one more item would be refused."""
        return self._queue.full()

    def start(self) -> None:
        """Begin to work; inside a running event loop."""
        self._worker = asyncio.create_task(self._work())

    async def submit(self, item: Any) -> Any:
        """The result for an item.

        Raises:
            QueueFull: Too many wait already.
            Closed: :meth:`close` was called.
            TimeoutError: There was no result in time. An item that is still waiting then, or
                whose task was cancelled, is never worked on.
            Exception: What ``run`` raised for this item.
        """
        if self._closing:
            raise Closed("the batcher is closed")
        loop = asyncio.get_running_loop()
        result: asyncio.Future = loop.create_future()
        try:
            self._queue.put_nowait((item, result, loop.time()))
        except asyncio.QueueFull:
            raise QueueFull(f"{self._queue.maxsize} requests wait already") from None
        async with asyncio.timeout(self.timeout):
            return await result  # a timeout cancels the future

    async def close(self, grace: float = 20.0) -> None:
        """Take nothing more, finish what was taken, then stop.

        Args:
            grace: Seconds after which what is not finished is given up: it raises :class:`Closed`.
        """
        if self._closing:
            return
        self._closing = True
        if self._worker is not None:
            try:
                async with asyncio.timeout(grace):
                    await self._queue.put((_STOP, None, 0.0))
                    await asyncio.shield(self._worker)
            except TimeoutError:
                self._worker.cancel()
                await asyncio.gather(self._worker, return_exceptions=True)
        while not self._queue.empty():
            _, result, _ = self._queue.get_nowait()
            if result is not None and not result.done():
                result.set_exception(Closed("the service stopped before it came to this"))
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _work(self) -> None:
        stopping = False
        while not stopping:
            batch, stopping = await self._collect()
            # Those who gave up while they waited cost nothing.
            batch = [(item, result) for item, result in batch if not result.done()]
            if batch:
                try:
                    await self._answer(batch)
                finally:
                    for _, result in batch:  # of a worker that was cancelled at work
                        if not result.done():
                            result.set_exception(Closed("the service stopped during this"))

    async def _collect(self) -> tuple[list[tuple[Any, asyncio.Future]], bool]:
        """The next batch, and whether it is the last."""
        batch, deadline = [], None
        while len(batch) < self.max_batch:
            try:
                item, result, arrived = self._queue.get_nowait()
            except asyncio.QueueEmpty:
                try:
                    async with asyncio.timeout_at(deadline):  # without a limit for the first
                        item, result, arrived = await self._queue.get()
                except TimeoutError:
                    break
            if item is _STOP:
                return batch, True
            batch.append((item, result))
            if deadline is None:
                deadline = arrived + self.max_wait
        return batch, False

    async def _answer(self, batch: list[tuple[Any, asyncio.Future]]) -> None:
        self._observe(len(batch))
        loop, items = asyncio.get_running_loop(), [item for item, _ in batch]
        try:
            results = list(await loop.run_in_executor(self._thread, self._run, items))
            if len(results) != len(items):
                raise RuntimeError(f"run gave {len(results)} results for {len(items)} items")
        except Exception as error:
            if len(batch) > 1:
                for one in batch:
                    await self._answer([one])
            elif not batch[0][1].done():
                batch[0][1].set_exception(error)
            return
        for (_, result), value in zip(batch, results, strict=True):
            if not result.done():
                result.set_result(value)
