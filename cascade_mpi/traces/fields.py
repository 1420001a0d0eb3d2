"""The fields of a request: under which names they go, and what their values may be.

Covers names, token counts, times, block ids and sessions of all formats; what is wrong with one is a
`FieldError`. Does not cover where in a file a field stands (see `tables`, `json_records`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from typing import Any, NoReturn

import msgspec

from cascade_mpi.traces.source import FieldError

MAX_TOKENS = 1 << 24  # a hundred times the longest contexts there are: more is a wrong column or a damaged line
MAX_TIME = 1 << 63  # in the file's unit; nanoseconds since 1970 are below it until 2262
TIME_UNITS = {"s": 1, "ms": 1000, "us": 10**6, "ns": 10**9}  # in a second

REQUIRED = ("timestamp", "input_tokens", "output_tokens")
OPTIONAL = ("hash_ids", "session")

# Compared in lower case with underscores; a name of a time may end in its unit, as in arrival_ms.
ALIASES: dict[str, tuple[str, ...]] = {
    "timestamp": (
        "timestamp",
        "time",
        "ts",
        "arrival",
        "arrival_time",
        "arrival_timestamp",
        "arrived_at",
        "request_time",
        "start_time",
    ),
    "input_tokens": (
        "input_tokens",
        "input_length",
        "input_len",
        "isl",
        "prompt_tokens",
        "prompt_length",
        "prompt_len",
        "prompt_size",
        "num_prompt_tokens",
        "num_prefill_tokens",
        "context_tokens",
        "contexttokens",
        "request_tokens",
    ),
    "output_tokens": (
        "output_tokens",
        "output_length",
        "output_len",
        "osl",
        "generated_tokens",
        "generatedtokens",
        "completion_tokens",
        "num_decode_tokens",
        "response_tokens",
        "token_size",
    ),
    "hash_ids": ("hash_ids", "block_ids", "block_hashes"),
    "session": ("session", "session_id", "conversation", "conversation_id", "chat_id"),
}
_UNIT_SUFFIX = re.compile(r"(?:_\(?|\()(s|sec|seconds|ms|us|ns)\)?$")
_EPOCHS = ((1e17, "ns"), (1e14, "us"), (1e11, "ms"), (0.0, "s"))  # a time of this century is above it in that unit
_IDS = msgspec.json.Decoder(tuple[int, ...])


def refuse(field: str, what: str) -> NoReturn:
    """Local. FieldError of this field or column."""
    raise FieldError(f"field {field!r}: {what}")


def shown(value: object) -> str:
    """Local. A value for a message: short, whatever it is."""
    try:
        text = repr(value)
    except ValueError:  # an integer with more digits than Python prints
        return "a number of thousands of digits"
    return text if len(text) <= 60 else f"{text[:57]}..."


# ---------------------------------------------------------------------------------------------------- names


def normal(name: str) -> str:
    """Local. A column's name as the aliases write it."""
    return re.sub(r"[\s\-.]+", "_", name.strip().lower())


def columns_of(names: Iterable[str], given: Mapping[str, str]) -> dict[str, str]:
    """Local. Which column holds which field, by what the user said and by `ALIASES`.

    FieldError when a field has no column, or several: the text lists them.
    """
    names = list(names)
    found: dict[str, str] = {}
    for field in (*REQUIRED, *OPTIONAL):
        if field in given:
            if given[field] not in names:
                refuse(given[field], f"is missing, but was named as {field}; there are {listed(names)}")
            found[field] = given[field]
            continue
        fitting = [name for name in names if _is(field, normal(name)) and name not in given.values()]
        if len(fitting) > 1:
            raise FieldError(f"ambiguous: {listed(fitting)} may all be {field}; {_say(field)}")
        if fitting:
            found[field] = fitting[0]
        elif field in REQUIRED:
            raise FieldError(
                f"no column is known as {field} (such as {', '.join(ALIASES[field][:4])}); there are {listed(names)};"
                f" {_say(field)}"
            )
    return found


def _say(field: str) -> str:
    return f"say which one is with --field {field}=COLUMN"


def optional_field(name: str) -> str | None:
    """Local. The field that need not be there and that this column is usually the name of."""
    name = normal(name)
    return next((field for field in OPTIONAL if _is(field, name)), None)


def _is(field: str, name: str) -> bool:
    return name in ALIASES[field] or (field == "timestamp" and _UNIT_SUFFIX.sub("", name) in ALIASES[field])


def listed(names: Iterable[str]) -> str:
    """Local. Names for a message, a dozen of them at most."""
    known = [shown(name) for name in names]
    return ", ".join(known[:12]) + (f" and {len(known) - 12} more" if len(known) > 12 else "")


# --------------------------------------------------------------------------------------------------- values


def tokens(value: object, field: str) -> int:
    """Local. A token count that is a number already."""
    if type(value) is not int or not 0 <= value <= MAX_TOKENS:  # a bool is an int for isinstance
        refuse(field, f"must be an integer in 0..{MAX_TOKENS}, not {shown(value)}")
    return value


def tokens_of_text(text: str, field: str) -> int:
    """Local. A token count in a cell of a table."""
    digits = text.strip()
    if not (digits.isascii() and digits.isdecimal() and len(digits) < 100):
        refuse(field, f"must be an integer in 0..{MAX_TOKENS}, not {shown(text)}")
    return tokens(int(digits), field)


def block_ids(values: Any, input_tokens: int, block_tokens: int, field: str) -> tuple[int, ...]:
    """Local. The ids of a prefix: as many as the input has blocks, integers below 2^64, none twice."""
    if type(values) not in (list, tuple):
        refuse(field, f"must be a list of integers, not {shown(values)}")
    needed = -(-input_tokens // block_tokens)
    if len(values) != needed:
        refuse(field, f"{len(values)} ids, but {input_tokens} input tokens are {needed} blocks of {block_tokens}")
    return prefix_ids(values, field)


def prefix_ids(values: Any, field: str) -> tuple[int, ...]:
    """Local. The ids of a list or tuple: integers below 2^64, none twice."""
    if values:
        if set(map(type, values)) != {int}:
            refuse(field, f"must hold integers only, not {shown(next(v for v in values if type(v) is not int))}")
        if min(values) < 0 or max(values) >= 1 << 64:
            refuse(field, f"must be in 0..2^64-1, not {shown(next(v for v in values if not 0 <= v < 1 << 64))}")
        if len(set(values)) != len(values):
            seen: set[int] = set()
            twice = next(v for v in values if v in seen or seen.add(v))  # type: ignore[func-returns-value]
            refuse(field, f"{twice} occurs twice in one prefix")
    return tuple(values)


def ids_of_text(text: str, field: str) -> tuple[int, ...]:
    """Local. Ids in a cell of a table: a JSON list, or separated by spaces or semicolons."""
    text = text.strip()
    if text.startswith("["):
        try:
            return _IDS.decode(text)
        except (msgspec.MsgspecError, RecursionError):
            refuse(field, f"must be a list of integers, not {shown(text)}")
    words = text.replace(";", " ").split()
    if not all(word.isascii() and word.isdecimal() and len(word) <= 20 for word in words):
        refuse(field, f"must be integers in 0..2^64-1 between spaces or semicolons, not {shown(text)}")
    return tuple(map(int, words))


def session(value: object, field: str) -> str | int | None:
    """Local. The session of a request: text or an integer; None and empty text say that it has none."""
    if value is None or value == "":
        return None
    if type(value) not in (str, int):
        refuse(field, f"must be text or an integer, not {shown(value)}")
    return value  # type: ignore[return-value]


# ---------------------------------------------------------------------------------------------------- times


def time(value: object, field: str) -> int | float:
    """Local. A time that is a number already, in the file's unit."""
    if type(value) not in (int, float) or not 0 <= value < MAX_TIME:  # type: ignore[operator]  # also NaN
        refuse(field, f"must be a time, a number of 0 or more, not {shown(value)}")
    return value  # type: ignore[return-value]


def time_of_text(text: str, field: str) -> int | float:
    """Local. A number in a cell of a table; integers stay integers, so that nanoseconds stay exact."""
    if text.isascii() and "_" not in text and len(text) < 100:
        try:
            number = int(text) if text.isdecimal() else float(text)
        except ValueError:
            pass
        else:
            if 0 <= number < MAX_TIME:  # not so for NaN
                return number
    return refuse(field, f"must be a time, a number of 0 or more, not {shown(text)}")


class Clock:
    """Seconds since the first request, from what stands in the time's column."""

    def __init__(self, field: str, unit: str, first: object) -> None:
        """Take `unit`, or "auto": ISO dates, then what the name says, then the size of a date's number, else seconds.

        FieldError when `first`, the first request's time, is not of that unit.
        """
        self.field = field
        self.note = ""
        self.unit = unit if unit != "auto" else self._detect(first)
        self.seconds: Callable[[Any], float] = self._iso() if self.unit == "iso" else self._numbers()

    def _detect(self, first: object) -> str:
        if isinstance(first, str) and not _is_number(first):
            return "iso"
        named = _UNIT_SUFFIX.search(normal(self.field))
        if named:
            return named[1] if named[1] in TIME_UNITS else "s"
        number = time_of_text(first, self.field) if isinstance(first, str) else time(first, self.field)
        unit = next(unit for above, unit in _EPOCHS if number >= above)
        if unit == "s" and number < 1e8:
            self.note = f"nothing tells the unit of {self.field!r}: it was taken as seconds (--time-unit names another)"
        return unit

    def _iso(self) -> Callable[[Any], float]:
        field, read = self.field, datetime.fromisoformat
        first: datetime | None = None

        def seconds(value: Any) -> float:
            nonlocal first
            try:
                moment = read(value)
                if first is None:
                    first = moment
                return (moment - first).total_seconds()
            except (ValueError, TypeError, OverflowError):
                pass
            if isinstance(value, str) and value != value.strip():
                return seconds(value.strip())
            zone = isinstance(value, str) and first is not None and _is_date(value)
            what = (
                "a date like the others, with or without a time zone" if zone else "a date like 2023-11-16 18:17:03.98"
            )
            return refuse(field, f"must be {what}, not {shown(value)}")

        return seconds

    def _numbers(self) -> Callable[[Any], float]:
        field, in_a_second = self.field, TIME_UNITS[self.unit]
        first: int | float | None = None

        def seconds(value: Any) -> float:
            nonlocal first
            number = time_of_text(value, field) if type(value) is str else time(value, field)
            if first is None:
                first = number
            return (number - first) / in_a_second

        return seconds


def _is_number(text: str) -> bool:
    try:
        float(text)  # also nan and the like: no time, but no date either
    except ValueError:
        return False
    return True


def _is_date(text: str) -> bool:
    try:
        datetime.fromisoformat(text)
    except ValueError:
        return False
    return True
