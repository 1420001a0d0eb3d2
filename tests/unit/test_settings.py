"""Where settings come from: variables, TOML files, options, their precedence, and the errors that name them."""

from __future__ import annotations

import dataclasses
import json
import pickle
import re
from pathlib import Path
from typing import Any

import pytest

from cascade_mpi import settings
from cascade_mpi.cli import main
from cascade_mpi.config import Config, parse_size
from cascade_mpi.errors import ConfigError
from cascade_mpi.namespaces import Namespace

MIB = 1 << 20
# One value of each setting that is not its default, as a variable or option would have it, and what it means.
OTHERS: dict[str, tuple[str, Any]] = {
    "dram_bytes": ("4GiB", 4 << 30),
    "index_blocks": ("12", 12),
    "windows": ("shared", "shared"),
    "progress": ("thread", "thread"),
    "progress_period_us": ("50", 50),
    "publish": ("deferred", "deferred"),
    "copy_threads": ("3", 3),
    "checksum": ("later", "later"),
    "verify_reads": ("yes", True),
    "when_full": ("refuse", "refuse"),
    "mpi_calls": ("python", "python"),
    "rest_ms": ("2.5", 2.5),
    "namespace_slots": ("7", 7),
    "protected_bytes": ("64KiB", 64 << 10),
    "protect_depth": ("4", 4),
    "protect_shared": ("3", 3),
    "namespace": ('a "b" \\ \u00fc\x7f\n# c', 'a "b" \\ \u00fc\x7f\n# c'),
}


def written(folder: Path, text: str) -> str:
    path = folder / "cascade.toml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def resolve(*arguments: Any, **more: Any) -> settings.Effective:
    return settings.resolve(*arguments, **({"environ": {}} | more))


@pytest.mark.parametrize("name", OTHERS)
def test_each_setting_has_a_variable_and_an_option(name: str) -> None:
    text, value = OTHERS[name]
    variable = f"CASCADE_{name.upper()}"
    found = resolve(environ={variable: text})
    assert (getattr(found.config, name), found.origins[name]) == (value, variable)
    found = resolve(options={name: text})
    assert (getattr(found.config, name), found.origins[name]) == (value, f"--set {name}")
    assert found.config == dataclasses.replace(Config(), **{name: value})


@pytest.mark.parametrize(
    ("text", "value"), [("true", True), ("On", True), ("1", True), ("FALSE", False), ("no", False), ("0", False)]
)
def test_switches(text: str, value: bool) -> None:
    assert resolve({"verify_reads": not value}, options={"verify_reads": text}).config.verify_reads is value


def test_none_is_written() -> None:
    assert resolve({"index_blocks": 7}, options={"index_blocks": "none"}).config.index_blocks is None


def test_precedence(tmp_path: Path) -> None:
    file = written(tmp_path, '[store]\ndram_bytes = "1MiB"\nrest_ms = 2\nprogress = "none"\nwindows = "shared"\n')
    environ = {"CASCADE_CONFIG": file, "CASCADE_REST_MS": "3", "CASCADE_PROGRESS": "thread", "CASCADE_WINDOWS": "auto"}
    found = resolve({"progress": "auto", "publish": "now"}, {"publish": "deferred"}, environ=environ)
    config = found.config
    assert (config.dram_bytes, config.rest_ms, config.progress, config.publish) == (MIB, 3.0, "auto", "deferred")
    assert {name: found.origins[name] for name in ("dram_bytes", "rest_ms", "progress", "windows", "checksum")} == {
        "dram_bytes": f"{file} [store] dram_bytes",
        "rest_ms": "CASCADE_REST_MS",
        "progress": "argument",
        "windows": "CASCADE_WINDOWS",
        "checksum": "default",
    }


def test_a_path_takes_the_place_of_the_variables_file(tmp_path: Path) -> None:
    file = written(tmp_path, "[store]\nrest_ms = 4\n")
    environ = {"CASCADE_CONFIG": "/no/such/file", "CASCADE_INDEX_BLOCKS": "9"}
    for path in (file, Path(file)):
        config = resolve(path, {"copy_threads": 2}, environ=environ).config
        assert (config.rest_ms, config.index_blocks, config.copy_threads) == (4.0, 9, 2)


def test_a_whole_config_is_taken_as_it_is() -> None:
    base = Config(rest_ms=7)
    environ = {"CASCADE_CONFIG": "/no/such/file", "CASCADE_REST_MS": "many", "CASCADE_NONSENSE": ""}
    assert resolve(base, environ=environ).config == base
    assert resolve(base, {"copy_threads": 2}, environ=environ).config == Config(rest_ms=7, copy_threads=2)


def test_make_reads_the_process_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CASCADE_DRAM_BYTES", "3MiB")
    assert Config.make().dram_bytes == 3 * MIB
    assert Config.make(dram_bytes="5MiB").dram_bytes == 5 * MIB
    assert Config().dram_bytes == 256 * MIB
    config = Config.make()
    monkeypatch.setenv("CASCADE_DRAM_BYTES", "4MiB")
    assert Config.make(pickle.loads(pickle.dumps(config))) == config


@pytest.mark.parametrize(
    ("variable", "text", "problem"),
    [
        ("CASCADE_COPY_THREADS", "many", 'it must be an integer in 1..1024 or "auto"'),
        ("CASCADE_COPY_THREADS", "-1", 'it must be an integer in 1..1024 or "auto"'),
        ("CASCADE_COPY_THREADS", "\u0664", 'it must be an integer in 1..1024 or "auto"'),
        ("CASCADE_COPY_THREADS", "9" * 5000, 'it must be an integer in 1..1024 or "auto"'),
        ("CASCADE_DRAM_BYTES", "4 XiB", "'4 XiB' is not a size"),
        ("CASCADE_DRAM_BYTES", "", "'' is not a size"),
        ("CASCADE_DRAM_BYTES", "1", "it must be at least one page, 4096 bytes"),
        ("CASCADE_VERIFY_READS", "maybe", "it must be True or False"),
        ("CASCADE_REST_MS", "nan", "it must be a finite number of milliseconds"),
        ("CASCADE_REST_MS", "soon", "it must be a finite number of milliseconds"),
        ("CASCADE_WINDOWS", "Auto", 'it must be one of "auto", "allocate", "shared"'),
        ("CASCADE_PROGRESS", "none ", 'it must be one of "auto", "thread", "none"'),
        ("CASCADE_INDEX_BLOCKS", "1.5", "or None"),
    ],
)
def test_a_wrong_variable_is_named_with_its_text(variable: str, text: str, problem: str) -> None:
    name = variable.removeprefix("CASCADE_").lower()
    for overrides in ({}, {name: getattr(Config(), name)}):  # also where a keyword argument has the last word
        with pytest.raises(ConfigError) as caught:
            resolve(None, overrides, environ={variable: text})
        assert str(caught.value).startswith(f"{variable} is {text!r}: ")
        assert problem in str(caught.value)


@pytest.mark.parametrize(
    ("variable", "near"),
    [
        ("CASCADE_DRAM", "did you mean 'CASCADE_DRAM_BYTES'?"),
        ("CASCADE_dram_bytes", "did you mean 'CASCADE_DRAM_BYTES'?"),
        ("CASCADE_LOGLEVEL", "did you mean 'CASCADE_LOG_LEVEL'?"),
        ("CASCADE_CONF", "did you mean 'CASCADE_CONFIG'?"),
        ("CASCADE_ZZZZ", "known are CASCADE_DRAM_BYTES, "),
    ],
)
def test_an_unknown_variable_gets_the_nearest_one(variable: str, near: str) -> None:
    with pytest.raises(ConfigError) as caught:
        resolve(environ={variable: "1"})
    assert str(caught.value).startswith(f"unknown variable {variable}: {near}")


def test_other_variables_are_none_of_ours() -> None:
    environ = {"CASCADE": "1", "CASCADES_X": "1", "PATH": "x", "CASCADE_LOG_LEVEL": "info", "CASCADE_LOG_RANKS": "all"}
    assert resolve(environ=environ).config == Config()


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[store\n", "{file} is not TOML: "),
        ("[store]\nrest_ms = 1\nrest_ms = 2\n", "{file} is not TOML: "),
        ("rest_ms = 1\n", "{file}: rest_ms stands outside of a table: put it under [store]"),
        ("[stores]\nrest_ms = 1\n", "{file}: unknown table 'stores': settings stand under [store]"),
        ("size = 1\n", "{file}: unknown key 'size': settings stand under [store]"),
        ("store = 1\n", "{file}: store is 1: it must be a table, [store]"),
        ("[store]\nrest = 1\n", "{file} [store]: unknown setting 'rest': did you mean 'rest_ms'?"),
        ('[store]\nrest_ms = "1"\n', "{file} [store] rest_ms is '1': it must be a finite number"),
        ("[store]\nverify_reads = 1\n", "{file} [store] verify_reads is 1: it must be True or False"),
        ("[store]\ndram_bytes = -1\n", "{file} [store] dram_bytes is -1: size -1 is outside"),
        ("[store]\ncopy_threads = [1]\n", "{file} [store] copy_threads is [1]: it must be an integer in 1..1024"),
        ("[store.windows]\na = 1\n", "{file} [store] windows is {{'a': 1}}: it must be one of"),
    ],
)
def test_a_wrong_file_is_named_with_its_key(tmp_path: Path, text: str, problem: str) -> None:
    file = written(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        resolve(environ={"CASCADE_CONFIG": file})
    assert problem.format(file=file) in str(caught.value)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    missing, binary = tmp_path / "missing.toml", tmp_path / "binary.toml"
    binary.write_bytes(b"\xff\xfe[store]")
    for path, problem in ((missing, "no such file"), (tmp_path, "is a directory"), (binary, "is not TOML")):
        for call, source in (
            (lambda path=path: resolve(environ={"CASCADE_CONFIG": str(path)}), "CASCADE_CONFIG"),
            (lambda path=path: resolve(path), "config file"),
        ):
            with pytest.raises(ConfigError, match=problem) as caught:
                call()
            assert str(caught.value).startswith(f"{source} {path}")
    with pytest.raises(ConfigError, match="CASCADE_CONFIG is empty"):
        resolve(environ={"CASCADE_CONFIG": ""})


def test_a_contradiction_says_where_both_stand(tmp_path: Path) -> None:
    file = written(tmp_path, '[store]\nchecksum = "off"\n')
    with pytest.raises(ConfigError) as caught:
        resolve(file, environ={"CASCADE_VERIFY_READS": "1"})
    assert "verify_reads is True, checksum is" in str(caught.value)
    assert "verify_reads from CASCADE_VERIFY_READS" in str(caught.value)
    assert "checksum from cascade.toml [store] checksum" in str(caught.value)


def test_the_printed_file_reads_back(tmp_path: Path) -> None:
    everything = resolve(options={name: text for name, (text, _) in OTHERS.items()})
    for effective in (resolve(), resolve(options={"rest_ms": "2"}), everything):
        text = settings.as_toml(effective)
        again = resolve(written(tmp_path, text))
        assert again.config == effective.config
        for name in settings.NAMES:  # every setting is in it, and one that nobody gave stays so
            default = effective.origins[name] == settings.DEFAULT
            assert (again.origins[name] == settings.DEFAULT) is default
            assert f"\n{'# ' if default else ''}{name} = " in text
        assert resolve(written(tmp_path, re.sub(r"(?m)^# (\w+ = )", r"\1", text))).config == effective.config
    assert "# Sleep of the progress thread" in settings.as_toml(everything)
    assert "# from --set rest_ms" in settings.as_toml(everything)


def test_each_setting_has_its_meaning() -> None:
    assert set(settings.NAMES) == set(settings.meanings()) == {field.name for field in dataclasses.fields(Config)}
    assert all(text.endswith(".") and len(text) < 200 for text in settings.meanings().values())


@pytest.mark.parametrize("nbytes", [0, 1, 1023, 1024, 4096, 256 * MIB, 3 << 40, (1 << 40) + 1, (1 << 63) - 1])
def test_exact_sizes(nbytes: int) -> None:
    assert parse_size(settings.exact_size(nbytes)) == nbytes


def test_secrets_are_not_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings, "SECRETS", frozenset({"namespace", "rest_ms"}))
    effective = resolve({"namespace": "xyzzy"})
    assert "xyzzy" not in settings.as_toml(effective)
    assert "xyzzy" not in json.dumps(settings.as_record(effective))
    assert settings.as_record(effective)["namespace"]["value"] == settings.HIDDEN
    with pytest.raises(ConfigError, match=r"CASCADE_REST_MS is \(hidden\): it must be") as caught:
        resolve(environ={"CASCADE_REST_MS": "xyzzy"})
    assert "xyzzy" not in str(caught.value)


# ------------------------------------------------------------------------------------------------ cascade config


@pytest.fixture
def no_variables(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in list(settings.os.environ):
        if name.startswith("CASCADE_"):
            monkeypatch.delenv(name)
    return monkeypatch


def test_the_command_prints_values_and_origins(
    no_variables: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = written(tmp_path, "[store]\nrest_ms = 4\n")
    no_variables.setenv("CASCADE_DRAM_BYTES", "512MB")
    assert main(["config", "--config", file, "--set", "windows=shared", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["rest_ms"] | {"meaning": ""} == {"value": 4.0, "from": f"{file} [store] rest_ms", "meaning": ""}
    assert (found["dram_bytes"]["value"], found["dram_bytes"]["from"]) == (512_000_000, "CASCADE_DRAM_BYTES")
    assert (found["windows"]["value"], found["windows"]["from"]) == ("shared", "--set windows")
    assert found["checksum"]["from"] == "default"
    assert main(["config", "--set", "dram_bytes=2GiB"]) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if "dram_bytes" in line)
    assert line.split()[:4] == ["dram_bytes", "2GiB", "--set", "dram_bytes"]


def test_the_printed_file_is_one_for_the_command(
    no_variables: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["config", "--toml", "--set", "rest_ms=9"]) == 0
    file = written(tmp_path, capsys.readouterr().out)
    assert main(["config", "--config", file, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rest_ms"]["value"] == 9.0


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (["--set", "dram=1"], "did you mean 'dram_bytes'?"),
        (["--set", "dram_bytes"], "write NAME=VALUE"),
        (["--set", "rest_ms=1", "--set", "rest_ms=2"], "given twice"),
        (["--set", "rest_ms=0"], "--set rest_ms is '0'"),
        (["--config", "/no/such.toml"], "no such file"),
        (["--json", "--toml"], "give one of them"),
    ],
)
def test_what_is_wrong_ends_with_2(
    no_variables: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], options: list[str], problem: str
) -> None:
    assert main(["config", *options]) == 2
    printed = capsys.readouterr()
    assert problem in " ".join(printed.err.replace("\u2502", " ").split())
    assert printed.out == ""


def test_a_wrong_log_variable_ends_a_command_with_2(
    no_variables: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    no_variables.setenv("CASCADE_LOG_LEVEL", "verbose")
    assert main(["config"]) == 2
    assert "CASCADE_LOG_LEVEL is 'verbose': it must be one of debug, info" in capsys.readouterr().err


def test_only_the_launchers_first_rank_prints(
    no_variables: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    no_variables.setenv("PMI_RANK", "1")
    no_variables.setenv("PMI_SIZE", "2")
    assert main(["config"]) == 0
    assert capsys.readouterr().out == ""


def test_a_namespace_is_a_table_and_its_salt_is_not_shown(tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text('[store]\nnamespace = { name = "chat", model = "llama", salt = "xyzzy" }\n')
    effective = resolve(file, environ={})
    assert effective.config.namespace == Namespace("chat", "llama", salt=b"xyzzy")
    records = settings.as_record(effective), settings.as_record(effective, for_people=True)
    shown = f"{settings.as_toml(effective)} {records} {effective.config}"
    assert "xyzzy" not in shown
    assert "chat/llama (salted)" in shown
    for rules in ({}, {"protect_depth": 0, "ttl": 2.5}, {"protect_depth": 4, "content_keys": True}):
        plain = resolve({"namespace": Namespace("chat", layout='tp "4"', **rules)}, environ={})
        file.write_text(settings.as_toml(plain))
        assert resolve(file, environ={}).config == plain.config
    file.write_text('[store]\nnamespace = { salt = "xyzzy", modell = "llama" }\n')
    with pytest.raises(ConfigError, match="unknown part 'modell': did you mean 'model'") as caught:
        resolve(file, environ={})
    assert "xyzzy" not in str(caught.value)
