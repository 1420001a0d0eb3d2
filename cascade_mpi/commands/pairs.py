"""Options that are written NAME=VALUE and may be given several times.

Covers the text only. Does not cover which names there are, nor what a value may be.
"""

from __future__ import annotations

from collections.abc import Sequence

from cascade_mpi.errors import ConfigError


def parse_pairs(option: str, given: Sequence[str], form: str = "NAME=VALUE", *, empty: bool = True) -> dict[str, str]:
    """Local. The values by name; ConfigError for one without "=" or a name, or given twice.

    option, form
        What errors call the option, and how it is written.
    empty
        Whether a value may be empty.
    """
    pairs: dict[str, str] = {}
    for each in given:
        name, equals, value = each.partition("=")
        if not (name and equals and (value or empty)):
            raise ConfigError(f"{option} {each}: write {form}")
        if name in pairs:
            raise ConfigError(f"{option} {name} is given twice")
        pairs[name] = value
    return pairs
