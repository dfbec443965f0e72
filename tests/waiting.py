"""Waiting in tests: for an event, never for a time."""

import time

WAIT_S = 120  # a hanging test fails; a slow machine does not


def until(ready, what="it", timeout_s=WAIT_S):
    """The value of `ready()` once it is true."""
    end = time.monotonic() + timeout_s
    while not (value := ready()):
        assert time.monotonic() < end, f"waited {timeout_s} s for {what}"
        time.sleep(0.01)
    return value
