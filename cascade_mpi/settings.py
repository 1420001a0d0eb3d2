"""Where settings come from: keyword arguments over `CASCADE_*` variables over a TOML file.

Covers the three sources, how text becomes a value, where each value came from, and the file that can be
printed and read back. Does not cover what a setting may be (see `config`). Errors name what people wrote:
the variable, or the file and its key.
"""

from __future__ import annotations

import inspect
import json
import os
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_type_hints

from cascade_mpi import log
from cascade_mpi.config import HIDDEN, Config, nearest
from cascade_mpi.errors import ConfigError
from cascade_mpi.namespaces import Namespace

PREFIX = "CASCADE_"
CONFIG_VARIABLE = "CASCADE_CONFIG"
OTHER_VARIABLES = (CONFIG_VARIABLE, *log.VARIABLES)  # those that are no setting of a store
TABLE = "store"  # the table of the TOML file; others may come for other things
DEFAULT = "default"
SECRETS: frozenset[str] = frozenset()  # settings whose value is printed nowhere
SIZES = frozenset({"dram_bytes", "protected_bytes", "disk_quota", "segment_bytes"})

_SWITCHES = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}
NAMES = tuple(field.name for field in fields(Config))
_KINDS: dict[str, tuple[Any, ...]] = {name: get_args(hint) or (hint,) for name, hint in get_type_hints(Config).items()}


@dataclass(frozen=True, slots=True)
class Given:
    """One setting as somebody gave it: its value, what stood there, and where."""

    value: Any
    written: object
    origin: str


@dataclass(frozen=True, slots=True)
class Effective:
    """The settings in effect, and for each of them where its value came from."""

    config: Config
    origins: Mapping[str, str]


def resolve(
    config: Config | Mapping[str, Any] | str | os.PathLike[str] | None = None,
    overrides: Mapping[str, Any] | None = None,
    *,
    options: Mapping[str, str] | None = None,
    environ: Mapping[str, str] | None = None,
) -> Effective:
    """Local. The settings in effect. `overrides` are values, `options` are text of a command line.

    A `Config` is complete: neither variables nor a file are looked at. A path names the file that is read in
    the place of `CASCADE_CONFIG`. A mapping counts as keyword arguments. ConfigError names the source of what
    is wrong, also where something else overrides it.
    """
    environ = os.environ if environ is None else environ
    given: dict[str, Given] = {}
    if isinstance(config, Config):
        given |= {name: Given(getattr(config, name), getattr(config, name), "Config") for name in NAMES}
    else:
        if isinstance(config, (str, os.PathLike)):
            given |= _checked(from_file(os.fspath(config), "config file"))
        elif CONFIG_VARIABLE in environ:
            given |= _checked(from_file(environ[CONFIG_VARIABLE], CONFIG_VARIABLE))
        given |= _checked(from_environment(environ))
        if isinstance(config, Mapping):
            given |= arguments(config)
        elif config is not None and not isinstance(config, (str, os.PathLike)):
            raise ConfigError(f"config is a {type(config).__name__}: it must be a Config, a mapping, a path or None")
    given |= arguments(overrides or {})
    given |= _checked(from_options(options or {}))
    try:
        made = Config(**{name: each.value for name, each in given.items()})
    except ConfigError as error:
        raise ConfigError(str(error) + _sources(str(error), given)) from None
    return Effective(made, {name: given[name].origin if name in given else DEFAULT for name in NAMES})


def arguments(settings: Mapping[str, Any]) -> dict[str, Given]:
    """Local. Keyword arguments as given settings."""
    _known(settings)
    return {name: Given(value, value, "argument") for name, value in settings.items()}


def from_options(settings: Mapping[str, str]) -> dict[str, Given]:
    """Local. Settings that were written NAME=VALUE on a command line."""
    _known(settings)
    return {name: Given(from_text(name, text), text, f"--set {name}") for name, text in settings.items()}


def from_environment(environ: Mapping[str, str]) -> dict[str, Given]:
    """Local. The settings in the variables `CASCADE_*`; ConfigError for one that is none."""
    variables = {PREFIX + name.upper(): name for name in NAMES}
    given = {}
    for variable in sorted(environ):
        if not variable.startswith(PREFIX) or variable in OTHER_VARIABLES:
            continue
        if variable not in variables:
            near = nearest(variable, (*variables, *OTHER_VARIABLES), skip=len(PREFIX))
            raise ConfigError(f"unknown variable {variable}: {near}")
        name, text = variables[variable], environ[variable]
        given[name] = Given(from_text(name, text), text, variable)
    return given


def from_file(path: str, source: str) -> dict[str, Given]:
    """Local. The settings in the table [store] of a TOML file; `source` says who named the file."""
    if path == "":
        raise ConfigError(f"{source} is empty: name a TOML file, or leave it out")
    try:
        with open(path, "rb") as file:
            content = tomllib.load(file)
    except OSError as error:
        raise ConfigError(f"{source} {path}: {(error.strerror or str(error)).lower()}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"{source} {path} is not TOML: {error}") from None
    for key, value in content.items():
        if key in NAMES and isinstance(value, dict):
            raise ConfigError(f"{path}: table [{key}] stands alone: write [{TABLE}.{key}]")
        if key in NAMES:
            raise ConfigError(f"{path}: {key} stands outside of a table: put it under [{TABLE}]")
        if key != TABLE:
            raise ConfigError(f"{path}: unknown {'table' if isinstance(value, dict) else 'key'} {key!r}: "
                              f"settings stand under [{TABLE}]")  # fmt: skip
    table = content.get(TABLE, {})
    if not isinstance(table, dict):
        raise ConfigError(f"{path}: {TABLE} is {table!r}: it must be a table, [{TABLE}]")
    _known(table, f"{path} [{TABLE}]: ")
    return {name: Given(_from_toml(name, value), value, f"{path} [{TABLE}] {name}") for name, value in table.items()}


def from_text(name: str, text: str) -> Any:
    """Local. The value that a text means for a setting of this type; the text itself where it means none."""
    kinds = _KINDS[name]
    if bool in kinds:
        return _SWITCHES.get(text.lower(), text)
    if NoneType in kinds and text.lower() == "none":
        return None
    if int in kinds and text.isascii() and text.isdecimal():
        return int(text) if len(text) <= 40 else text  # longer ones are no setting, and int() is slow
    if float in kinds:
        try:
            return float(text)
        except ValueError:
            return text
    return text


def meanings() -> dict[str, str]:
    """Local. One sentence or two on each setting, from the docstring of `Config`."""
    found: dict[str, list[str]] = {}
    name = ""
    for line in inspect.cleandoc(Config.__doc__ or "").splitlines():
        if line in NAMES:
            name = line
            found[name] = []
        elif name and line.startswith(" "):
            found[name].append(line.strip())
    return {name: " ".join(found.get(name, [])) for name in NAMES}


def shown(name: str, value: object) -> str:
    """Local. A value for people: sizes with their unit, secrets hidden."""
    if name in SECRETS and value != getattr(Config(), name):
        return HIDDEN
    if isinstance(value, Namespace):
        return str(value)  # without the salt
    if name in SIZES and isinstance(value, int):
        return exact_size(value)
    return value if isinstance(value, str) else str(value)


def exact_size(nbytes: int) -> str:
    """Local. A size as text that parses to exactly these bytes, in the largest unit that divides it: "256MiB"."""
    for power, unit in ((40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")):
        if nbytes and nbytes % (1 << power) == 0:
            return f"{nbytes >> power}{unit}"
    return str(nbytes)


def as_record(effective: Effective, *, for_people: bool = False) -> dict[str, dict[str, Any]]:
    """Local. For each setting its value, where that came from, and what it means; secrets hidden."""
    texts, record = meanings(), {}
    for name in NAMES:
        value = getattr(effective.config, name)
        plain = isinstance(value, (int, float, str, NoneType)) and not for_people
        text = shown(name, value)
        record[name] = {
            "value": value if plain and text != HIDDEN else text,
            "from": effective.origins[name],
            "meaning": texts[name],
        }
    return record


def as_toml(effective: Effective) -> str:
    """Local. A TOML file of all settings, with their meaning and origin as comments; it reads back to the same.

    Defaults are comments, so that they stay defaults: a workload sizes its arenas by itself unless somebody says it.
    """
    lines = [f"# Name this file with {CONFIG_VARIABLE} or --config. Defaults are comments.", f"[{TABLE}]"]
    texts = meanings()
    for name in NAMES:
        value, origin = getattr(effective.config, name), effective.origins[name]
        lines += ["", f"# {texts[name]}"] if texts[name] else [""]
        if origin != DEFAULT:
            lines.append(f"# from {origin}")
        if shown(name, value) == HIDDEN:
            lines.append(f"# {name} = {HIDDEN}")
        else:
            lines.append(f"{'# ' if origin == DEFAULT else ''}{name} = {_toml(name, value)}")
    return "\n".join(lines) + "\n"


def _from_toml(name: str, value: Any) -> Any:
    """TOML has types of its own, but no None: that is written "none"."""
    return None if isinstance(value, str) and value.lower() == "none" and NoneType in _KINDS[name] else value


def _toml(name: str, value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (int, float)) and name not in SIZES:
        return str(value)
    if isinstance(value, Namespace):
        parts = [(part, getattr(value, part)) for part in ("name", "model", "dtype", "layout")]
        parts.append(("salt", HIDDEN if value.salt else ""))  # it is refused when it is read
        if value.content_keys:
            parts.append(("content_keys", True))
        parts += [(name, rule) for name in ("protect_depth", "ttl") if (rule := getattr(value, name)) is not None]
        return "{ " + ", ".join(f"{part} = {_toml(part, text)}" for part, text in parts if text != "") + " }"
    text = "none" if value is None else shown(name, value)
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")  # JSON leaves DEL as it is, TOML forbids it


def _known(names: Iterable[object], where: str = "") -> None:
    for name in names:
        if name not in NAMES:
            raise ConfigError(f"{where}unknown setting {name!r}: {nearest(str(name), NAMES)}")


def _checked(given: dict[str, Given]) -> dict[str, Given]:
    """Each setting alone, so that an error can name its source in the place of the field."""
    for name, each in given.items():
        try:
            Config(**{name: each.value})
        except ConfigError as error:
            problem = str(error).removeprefix(f"{name} is {each.value!r}: ")  # how every such text begins
            hidden = name in SECRETS or (name == "namespace" and isinstance(each.written, Mapping))  # a salt
            written = HIDDEN if hidden else repr(each.written)
            raise ConfigError(f"{each.origin} is {written}: {problem}") from None
    return given


def _sources(error: str, given: Mapping[str, Given]) -> str:
    """Where the settings that an error speaks of came from, if not from the program itself."""
    from_elsewhere = [
        f"{name} from {Path(each.origin).name if os.sep in each.origin else each.origin}"
        for name, each in given.items()
        if each.origin not in ("argument", "Config") and name in error
    ]
    return f" ({', '.join(from_elsewhere)})" if from_elsewhere else ""
