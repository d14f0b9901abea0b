"""What is opened on use and let go of when idle."""

from __future__ import annotations

import threading
import time
import weakref

import pytest

from ark_asr_onnx.errors import ClosedError
from ark_asr_onnx.model.resident import Resident


class Thing:
    """Stands for a model."""


def wait_until(done: object) -> None:
    assert callable(done)
    for _ in range(500):
        if done():
            return
        time.sleep(0.01)
    raise AssertionError("did not happen within five seconds")


def test_it_is_opened_once_for_all_users() -> None:
    opened: list[Thing] = []
    started = threading.Barrier(4)

    def open_it() -> Thing:
        opened.append(Thing())
        return opened[-1]

    resident = Resident(open_it)
    seen: list[Thing] = []

    def use() -> None:
        started.wait()
        with resident.use() as thing:
            seen.append(thing)

    threads = [threading.Thread(target=use) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(opened) == 1
    assert seen == opened * 4
    assert resident.is_open


def test_an_idle_one_is_let_go_and_opened_again() -> None:
    things: list[weakref.ref[Thing]] = []

    def open_it() -> Thing:
        thing = Thing()
        things.append(weakref.ref(thing))
        return thing

    resident = Resident(open_it, idle_seconds=0.02)
    with resident.use():
        time.sleep(0.1)  # longer than the idle time: in use, it stays
        assert resident.is_open
    wait_until(lambda: not resident.is_open)
    assert things[0]() is None
    with resident.use():
        assert len(things) == 2


def test_use_stops_the_clock() -> None:
    resident = Resident(Thing, idle_seconds=0.3)
    with resident.use() as first:
        pass
    for _ in range(4):
        time.sleep(0.1)
        with resident.use() as thing:
            assert thing is first


def test_closing_waits_for_users_and_is_final() -> None:
    resident = Resident(Thing, idle_seconds=0.01)
    with resident.use():
        resident.close()
        assert resident.is_open
    assert not resident.is_open
    resident.close()
    with pytest.raises(ClosedError, match="load the model again"), resident.use():
        pass


def test_what_cannot_be_opened_is_tried_again() -> None:
    calls: list[int] = []

    def open_it() -> Thing:
        calls.append(1)
        if len(calls) == 1:
            raise OSError("not yet")
        return Thing()

    resident = Resident(open_it)
    with pytest.raises(OSError, match="not yet"), resident.use():
        pass
    with resident.use() as thing:
        assert isinstance(thing, Thing)


def test_negative_idle_times_are_refused() -> None:
    with pytest.raises(ValueError, match="must not be negative"):
        Resident(Thing, -1)
