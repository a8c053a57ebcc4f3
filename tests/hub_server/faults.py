"""What can go wrong between a client and the Hub. A fault sees each request and says what becomes of it."""

import random
import re
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Trouble:
    """What is done to a request.

    Args:
        status: Answered in place of what was asked.
        retry_after: Seconds, as a header of that answer.
        drop: "before" the request is carried out, or "after" it, the connection is closed without an answer.
        cut: The answer ends in the middle.
    """

    status: int | None = None
    retry_after: int | None = None
    drop: str | None = None
    cut: bool = False


Fault = Callable[[str], Trouble | None]
""""METHOD /path" -> what is done to it, if anything."""


def failing(share: float, seed: int) -> Fault:
    """This share of all requests is answered with 500; which, depends only on how often that one was made."""
    made: Counter[str] = Counter()

    def fault(request: str) -> Trouble | None:
        made[request] += 1
        chance = random.Random(f"{seed} {request} {made[request]}").random()
        return Trouble(status=500) if chance < share else None

    return fault


def failing_at(pattern: str, times: int = 1) -> Fault:
    """The first requests of a kind are answered with 503."""
    return _first(pattern, times, Trouble(status=503))


def dropped(pattern: str, times: int = 1, when: str = "before") -> Fault:
    """The first requests of a kind lose their connection, before or after they are carried out."""
    return _first(pattern, times, Trouble(drop=when))


def cut_short(pattern: str, times: int = 1) -> Fault:
    """The first answers of a kind end in the middle."""
    return _first(pattern, times, Trouble(cut=True))


def rate_limited(pattern: str, times: int = 1, retry_after: int = 0) -> Fault:
    """The first requests of a kind are told to come again later."""
    return _first(pattern, times, Trouble(status=429, retry_after=retry_after))


def slow(seconds: float) -> Fault:
    """Every request takes this much longer."""
    return lambda request: time.sleep(seconds)


def _first(pattern: str, times: int, trouble: Trouble) -> Fault:
    left = [times]

    def fault(request: str) -> Trouble | None:
        if left[0] == 0 or not re.search(pattern, request):
            return None
        left[0] -= 1
        return trouble

    return fault
