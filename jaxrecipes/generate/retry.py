"""Which failed calls of a server are made again, and after how long."""

from __future__ import annotations

import email.utils
import math
import random
import time
from collections.abc import Mapping
from dataclasses import dataclass

_LONGEST_WAIT = 60.0


@dataclass(frozen=True)
class Retries:
    """How often and how fast a call is made again.

    Attributes:
        attempts: Calls for one request, at least 1.
        first_wait: Seconds before the second one; each later wait is twice as long, up to a minute.
        most_asked: The longest wait in seconds that a server may ask for (Retry-After); a request
            for which it asks for more fails.
    """

    attempts: int = 6
    first_wait: float = 1.0
    most_asked: float = 300.0

    def wait(self, failed: int, asked: float | None, chance: random.Random) -> float:
        """Returns the seconds to wait, drawn so that many that failed at once do not come back so.

        Args:
            failed: Calls that failed so far, at least 1.
            asked: What the server asked for; None where it did not.
            chance: Where the draw comes from.

        Returns:
            At least what was asked for; without that, between a half and the whole of the step.
        """
        step = min(self.first_wait * 2.0 ** min(failed - 1, 30), _LONGEST_WAIT)
        jitter = chance.uniform(0.5, 1.0) * step
        return jitter if asked is None else asked + jitter


def is_passing(status: int) -> bool:
    """Whether an HTTP status may be another one in a moment."""
    return status in (408, 409, 425, 429) or status >= 500


def asked_wait(headers: Mapping[str, str], now: float | None = None) -> float | None:
    """Reads how many seconds a server wants to be left alone.

    Args:
        headers: Of its answer, with names in lower case or without regard to it.
        now: Seconds since 1970; None for the clock's.

    Returns:
        0 or more; None where it does not say, or says nothing that can be read.
    """
    milliseconds = _number(headers.get("retry-after-ms"))
    if milliseconds is not None:
        return milliseconds / 1000
    value = headers.get("retry-after")
    if value is None:
        return None
    seconds = _number(value)
    if seconds is not None:
        return seconds
    try:
        at = email.utils.parsedate_to_datetime(value).timestamp()
    except (TypeError, ValueError, OverflowError):
        return None
    return max(0.0, at - (time.time() if now is None else now))


def _number(text: str | None) -> float | None:
    try:
        number = float(text) if text is not None else math.nan
    except ValueError:
        return None
    return number if math.isfinite(number) and number >= 0 else None
