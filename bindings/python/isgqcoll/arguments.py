# SPDX-License-Identifier: Apache-2.0
"""Numbers and texts as C takes them. ctypes by itself would cut numbers to their size, end texts at a zero byte, and refuse NumPy's integers."""
from __future__ import annotations

import math
import operator
from typing import Any

from .errors import InvalidArgument

INT_MAX = 2**31 - 1
SIZE_MAX = 2**64 - 1
_MILLISECONDS_MAX = 2**32 - 1


def whole(value: Any, what: str, most: int = SIZE_MAX, least: int = 0) -> int:
    """An integer of any library, in its range. `what` names it in the error."""
    try:
        number = operator.index(value)
    except TypeError:
        raise InvalidArgument(f"{what} is {value!r}; it must be a whole number") from None
    if not least <= number <= most:
        raise InvalidArgument(f"{what} is {number}; it must be {least} to {most}")
    return number


def text(value: Any, what: str) -> bytes:
    """A text in UTF-8."""
    if not isinstance(value, str):
        raise InvalidArgument(f"{what} is a text, not {type(value).__name__}")
    if "\0" in value:
        raise InvalidArgument(f"{what} {value!r}: there is a zero byte in its text")
    try:
        return value.encode()
    except UnicodeEncodeError as error:
        raise InvalidArgument(f"{what} {value!r}: {error}") from None


def milliseconds(seconds: Any, what: str) -> int:
    """0, the default, for None."""
    if seconds is None:
        return 0
    try:
        number = float(seconds)
    except (TypeError, ValueError):
        raise InvalidArgument(f"{what} is {seconds!r}; it must be a number of seconds") from None
    if not (math.isfinite(number) and 0 < number <= _MILLISECONDS_MAX / 1000):
        raise InvalidArgument(f"{what} is {seconds}; it must be more than 0 and at most {_MILLISECONDS_MAX // 1000} seconds")
    return max(1, round(number * 1000))
