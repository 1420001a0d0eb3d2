"""Numbers of things in texts for people: "1 block", "2 blocks".

Covers nouns whose plural has an "s". Does not cover sizes (see `config.format_size`).
"""

from __future__ import annotations


def counted(number: int, noun: str) -> str:
    """Local. The number and the noun."""
    return f"{number} {noun}{'s' * (number != 1)}"
