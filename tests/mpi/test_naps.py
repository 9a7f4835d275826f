"""How a rank sleeps while it waits for the others of its node."""

import ctypes
import time

import pytest

from esmpi.mpi import nodes


@pytest.fixture
def semaphore() -> ctypes.c_void_p:
    memory = ctypes.create_string_buffer(64)
    made = ctypes.c_void_p(ctypes.addressof(memory))
    made.memory = memory  # which lives as long as the semaphore
    assert nodes._libc.sem_init(made, 1, 0) == 0
    return made


def test_a_nap_ends_in_time_whatever_the_wall_clock_says(
    semaphore: ctypes.c_void_p, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 20)  # it is set back by 20 s as soon as it was read
    began = time.monotonic()
    assert nodes.wait_for(semaphore, 0.01) == -1
    assert 0.01 <= time.monotonic() - began < 10
    assert nodes._libc.sem_post(semaphore) == 0
    assert nodes.wait_for(semaphore, 60) == 0
    assert time.monotonic() - began < 10


def test_an_older_c_library(semaphore: ctypes.c_void_p, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nodes, "_MONOTONIC_WAIT", None)
    assert nodes.wait_for(semaphore, 0.01) == -1
    assert nodes._libc.sem_post(semaphore) == 0
    assert nodes.wait_for(semaphore, 60) == 0
