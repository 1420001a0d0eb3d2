"""Every command, program and settings file of the pages does what it says, and names only what there is."""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import launch
import pages
import pytest
import typer.main
from programs.site import standin

from cascade_mpi import doctor, settings
from cascade_mpi.cli import app
from cascade_mpi.config import Config
from cascade_mpi.store import Store
from cascade_mpi.traces import FORMATS, KINDS, ROUTES
from cascade_mpi.workload import metrics
from cascade_mpi.workload.tally import NAMES

LIMIT_S = 240
BLOCKS = [block for page in pages.PAGES for block in pages.blocks(page)]


def shells() -> list[object]:
    """The blocks that are typed one after the other: a new shell begins where an environment is made."""
    found: list[list[pages.Block]] = []
    for block in BLOCKS:
        if block.language == "sh":
            new = "-m venv" in block.text or "apptainer build" in block.text
            if new or not found or found[-1][0].page != block.page:
                found.append([])
            found[-1].append(block)
    return [pytest.param(each, id=f"{each[0].name} {each[0].section}") for each in found]


def of(kind: str, mark: str) -> list[object]:
    return [pytest.param(block, id=block.name) for block in BLOCKS if (block.kind, block.mark) == (kind, mark)]


def test_every_block_is_marked() -> None:
    assert len(BLOCKS) > 10
    wrong = []
    for block in BLOCKS:
        marks = pages.MARKED.get(block.language)
        if marks is None and block.language not in pages.UNMARKED:
            wrong.append(f"{block.name}: no blocks of {block.language}: use sh, python, toml or text")
        elif marks is not None and (block.kind != "command" or block.mark not in marks):
            wrong.append(f"{block.name}: put <!-- command: {' or '.join(marks)} --> above it")
    assert not wrong, "\n".join(wrong)


# ------------------------------------------------------------------------------------------------------- shell


@pytest.fixture(scope="session")
def launched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the stand-ins of launchers note what they have started."""
    return tmp_path_factory.mktemp("launched")


def checkout(root: Path, *, site: bool) -> dict[str, str]:
    """A folder that looks like a fresh checkout, and the variables for commands in it."""
    folder = root / "checkout"
    folder.mkdir(parents=True)
    tracked = subprocess.run(["git", "ls-files"], cwd=pages.ROOT, capture_output=True, text=True, check=False)
    names = {line.split("/")[0] for line in tracked.stdout.splitlines()} or {"setup.cfg", "jobs", "docs"}
    for name in names | {"jobs", "docs"}:
        if (pages.ROOT / name).exists():
            os.symlink(pages.ROOT / name, folder / name)
    variables = launch.environment(
        PAGES_ROOT=str(root),
        PAGES_PYTHON=sys.executable,
        PAGES_MPIEXEC=str(launch.mpiexec()),
        SCRATCH=str(root),
        TERM="dumb",
    )
    ours = ("CASCADE_", "JOB_", "SLURM_")
    variables = {name: text for name, text in variables.items() if not name.startswith(ours)}
    names = standin.COMMANDS + (standin.SITE_COMMANDS if site else ())
    standin.install_commands(root / "bin", names)
    # Nothing of this machine's own environment: what a page did not install is not there.
    variables["PATH"] = f"{root / 'bin'}:/usr/local/bin:/usr/bin:/bin"
    return variables


@pytest.mark.launch
@pytest.mark.skipif(launch.mpiexec() is None, reason="there is no mpiexec beside python or in PATH")
@pytest.mark.parametrize("blocks", shells())
def test_the_commands(tmp_path: Path, launched: Path, blocks: list[pages.Block]) -> None:
    variables = checkout(tmp_path, site=any(block.mark == "site" for block in blocks)) | {"PAGES_DONE": str(launched)}
    script = "set -euo pipefail\ntrap 'echo \"failed: $PAGE_BLOCK\" >&2' ERR\n"
    for block in blocks:
        script += f"PAGE_BLOCK={block.name}\n{block.text}"
    done = subprocess.run(
        ["timeout", "-k", "5", str(LIMIT_S), "bash", "-c", script],
        cwd=tmp_path / "checkout",
        env=variables,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=LIMIT_S + 15,
        check=False,
    )
    assert done.returncode == 0, launch.Ended(done.returncode, done.stdout, done.stderr)


# ------------------------------------------------------------------------------------------------------ Python


@pytest.mark.launch
@pytest.mark.skipif(launch.mpiexec() is None, reason="there is no mpiexec beside python or in PATH")
@pytest.mark.parametrize("block", of("command", "python"))
def test_a_program(tmp_path: Path, block: pages.Block) -> None:
    program = tmp_path / "program.py"
    program.write_text(block.text)
    ended = launch.run(["-W", "error", str(program)], ranks=int(block.argument), seconds=LIMIT_S)
    assert ended.status == 0, str(ended)


@pytest.mark.parametrize("block", of("command", "fragment"))
def test_a_fragment_names_what_the_store_has(block: pages.Block) -> None:
    wrong = []
    for node in ast.walk(ast.parse(block.text)):
        of_store = isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "store"
        if of_store and not hasattr(Store, node.attr) and node.attr != "config":
            wrong.append(f"store.{node.attr}")
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("Store", "Config"):
            wrong += [key.arg for key in node.keywords if key.arg not in (*settings.NAMES, "config", "comm", None)]
    assert not wrong, f"{block.name} names {wrong}"


# ---------------------------------------------------------------------------------------------- settings, options


@pytest.mark.parametrize("block", of("command", "config"))
def test_a_settings_file_is_read(tmp_path: Path, block: pages.Block) -> None:
    file = tmp_path / "cascade.toml"
    file.write_text(block.text)
    assert settings.from_file(str(file), "file").keys() == tomllib.loads(block.text)["store"].keys()
    assert settings.resolve(file, environ={}).config != Config()


def commands() -> dict[str, set[str]]:
    group = typer.main.get_command(app)
    return {name: {"--help", *(option for each in command.params for option in each.opts + each.secondary_opts)}
            for name, command in group.commands.items()}  # type: ignore[attr-defined]  # fmt: skip


@pytest.mark.parametrize("page", pages.PAGES, ids=lambda page: page.name)
def test_commands_in_the_text_exist_with_their_options(page: Path) -> None:
    known = commands()
    wrong = [
        f"{page.name}:{line}: cascade {command} {' '.join(options)}"
        for line, command, options in pages.inline_commands(page)
        if command not in known or not known[command].issuperset(options)
    ]
    assert not wrong, "\n".join(wrong)


def test_all_settings_have_their_row() -> None:
    text = page("configuration")
    for name, meaning in settings.meanings().items():
        value = settings.shown(name, getattr(Config(), name))
        row = f"| `{name}` | `{value or chr(34) * 2}` | {meaning} |"
        assert row in text, f"docs/configuration.md lacks this row:\n{row}"


# ------------------------------------------------------------------------------------------- names that pages list


def page(name: str) -> str:
    return (pages.ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8")


def names_of_findings() -> set[str]:
    """The names of doctor's lines, read from its source: not every machine has a reason for each of them."""
    names = set()
    for file in Path(doctor.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.args:
                first = node.args[0]
                made = node.func.id in ("ok", "warning", "problem", "Finding", "_judge")
                if made and isinstance(first, ast.Constant) and isinstance(first.value, str):
                    names.add(first.value)
    return names


def test_the_page_on_doctor_lists_its_lines() -> None:
    rows = [line.split("|")[1] for line in page("doctor").splitlines() if line.startswith("| `")]
    listed = {name for row in rows for name in re.findall(r"`([^`]+)`", row)}
    assert listed == names_of_findings()


def test_the_page_on_metrics_lists_them_all() -> None:
    text = page("metrics")
    listed = set(re.findall(r"^\| `(cascade_\w+)`", text, re.MULTILINE))
    assert listed == set(re.findall(r"^(cascade_\w+)", metrics.__doc__ or "", re.MULTILINE))
    assert set(NAMES) <= set(re.findall(r"`(\w+)`", text.split("## JSON lines")[1]))


def test_the_page_on_traces_lists_all_formats_and_generators() -> None:
    text = page("traces")
    formats, made_up = text.split("## Made-up traces")
    rows = [line.split("|")[1] for line in formats.splitlines() if line.startswith("| `")]
    assert {name for row in rows for name in re.findall(r"`([^`]+)`", row)} == set(FORMATS)
    assert set(re.findall(r"^\| (\w+)", made_up, re.MULTILINE)) == {"generator", *KINDS}
    assert set(ROUTES) <= set(re.findall(r"`([a-z-]+)`", made_up))


def test_the_reference_has_what_the_package_shows() -> None:
    listed = re.findall(r"^::: (\S+)$", page("api"), re.MULTILINE)
    for name in listed:
        assert importlib.util.find_spec(name) if name.startswith("cascade_mpi.errors") else resolved(name), name
    shown = {name.split(".")[-1] for name in listed}
    assert {"Store", "Config", "PutResult"} <= shown


def resolved(name: str) -> object:
    module, _, attribute = name.rpartition(".")
    return getattr(importlib.import_module(module), attribute, None)
