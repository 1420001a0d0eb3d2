"""The blocks of the pages: README.md and docs/*.md, and how each of them is marked to be tested.

Covers finding and naming them. Does not cover running them (see `test_pages`). Above each block of shell,
Python or TOML stands one line that says what a test does with it:

    <!-- command: run -->        run it in a fresh checkout, with everything that a laptop has
    <!-- command: test -->       the same; the block that CI takes as the command for all tests
    <!-- command: site -->       the same on a cluster: with stand-ins for module, srun, sbatch, apptainer
    <!-- command: python N -->   run it as a program on N ranks
    <!-- command: fragment -->   a piece of a program: it is parsed, and the names of the store are looked up
    <!-- command: config -->     a settings file, or a piece of one
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
MARKED = {"sh": ("run", "test", "site"), "python": ("python", "fragment"), "toml": ("config",)}
UNMARKED = ("", "text", "json")  # pictures and output; see `output` blocks

_MARK = re.compile(r"<!-- (command|output): ([a-z]+)(?: (\S+))? -->")
_FENCE = re.compile(r"\s*```(\w*)\s*")
_INLINE = re.compile(r"`([^`\n]+)`")


class Block(NamedTuple):
    """A fenced block: where it begins (a line, from 1), in which section, its language, mark and text."""

    page: Path
    line: int
    section: str
    language: str
    kind: str  # "command", "output" or "" without a mark
    mark: str
    argument: str
    text: str

    @property
    def name(self) -> str:
        return f"{self.page.name}:{self.line}"


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page, in order."""
    found: list[Block] = []
    section, mark, lines = "", ("", "", ""), page.read_text(encoding="utf-8").splitlines()
    number = 0
    while number < len(lines):
        line = lines[number]
        number += 1
        if line.startswith("#"):
            section = line.strip("# ")
        if fence := _FENCE.fullmatch(line):
            start = number
            while number < len(lines) and lines[number].strip() != "```":
                number += 1
            text = "\n".join(lines[start:number]) + "\n"
            found.append(Block(page, start + 1, section, fence[1], *mark, text))
            number += 1
        if line.strip():
            match = _MARK.fullmatch(line.strip())
            mark = (match[1], match[2], match[3] or "") if match else ("", "", "")
    return found


def inline_commands(page: Path) -> list[tuple[int, str, list[str]]]:
    """The command lines of `cascade` within the text: line, command, and the options that they name."""
    found = []
    inside = False
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        if line.lstrip().startswith("```"):
            inside = not inside
        for code in [] if inside else _INLINE.findall(line):
            match = re.search(r"(?:^|\s)(?:cascade|-m cascade_mpi) ([a-z]+)\b(.*)", code)
            if match:
                found.append((number, match[1], re.findall(r"(?<!\S)(--[a-z][a-z-]*)", match[2])))
    return found
