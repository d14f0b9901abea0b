"""Runs the job of a request in a thread, and gives its results to the event loop."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import Executor
from typing import TypeAlias

from starlette.types import Receive

from ..decoding.job import Job
from ..transcript import Segment, Transcript

Item: TypeAlias = Segment | Transcript | BaseException


class Work:
    """A running job: gives its segments as they are finished, then its transcript or its error."""

    def __init__(self, job: Job, executor: Executor) -> None:
        self._job, self._loop = job, asyncio.get_running_loop()
        self._items: asyncio.Queue[Item] = asyncio.Queue()
        self._submitted = time.perf_counter()
        self.queue_seconds = 0.0  # until reading of its audio began
        self.ended = asyncio.Event()
        self._begun = executor.submit(self._run)

    def _run(self) -> None:
        self.queue_seconds = time.perf_counter() - self._submitted
        found: Item
        try:
            found = self._job.run(self._put)
        except BaseException as error:
            found = error
        self._put(found)
        self._call(self.ended.set)

    def _put(self, item: Item) -> None:
        self._call(self._items.put_nowait, item)

    def _call(self, *call: object) -> None:
        try:
            self._loop.call_soon_threadsafe(*call)  # pyright: ignore
        except RuntimeError:  # the loop is closed, so the results are not needed
            self._job.cancel()

    async def next(self, receive: Receive, seconds: float | None = None) -> Item | None:
        """The next item; None if ``seconds`` pass without one.

        Raises ``ConnectionResetError`` if the client disconnects.
        """
        gone = asyncio.ensure_future(_gone(receive))
        item = asyncio.ensure_future(self._items.get())
        try:
            await asyncio.wait({gone, item}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            if item.done():
                return item.result()
            if gone.done():
                raise ConnectionResetError
            return None
        finally:
            gone.cancel()
            item.cancel()

    async def end(self) -> None:
        """Cancel the job, and wait until its audio is no longer read."""
        self._job.cancel()
        if not self._begun.cancel():  # it has a thread; else it never begins
            await self.ended.wait()


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
