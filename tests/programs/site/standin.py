"""Stand-ins for the commands that pages use and a test machine does not have: standin.py NAME ARGUMENTS...

A page's commands are written for people in front of a fresh checkout or a cluster. Here they run in a folder
that looks like such a checkout. What installs is checked and not done; what launches really launches, on two
ranks at most; an option or file that does not exist is an error, as it would be there.

Covers python and pip of a virtual environment, module, Slurm, Apptainer, Open MPI's mpirun. Does not cover how
the real ones behave beyond their options. The folder of all state is $PAGES_ROOT, around the checkout.
"""

from __future__ import annotations

import argparse
import configparser
import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

ROOT = Path(os.environ.get("PAGES_ROOT", ""))
DONE = Path(os.environ.get("PAGES_DONE", ""))  # what has been launched already, by any of the pages
REAL_MPIEXEC = os.environ.get("PAGES_MPIEXEC", "mpiexec")
MOST_RANKS = 2
FEW_REQUESTS = ["--requests", "20"]
SITE_COMMANDS = ("module", "ml", "srun", "sbatch", "salloc", "apptainer", "apt-get")
COMMANDS = ("python3", "python")


def fail(text: str) -> NoReturn:
    sys.stderr.write(f"{sys.argv[1]}: {text}\n")
    raise SystemExit(2)


def install_commands(folder: Path, names: tuple[str, ...], *first: str) -> None:
    """Put stand-ins with these names into a folder; `first` are arguments that each of them gets in front."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        line = " ".join(f"'{each}'" for each in (sys.executable, os.path.realpath(__file__), name, *first))
        (folder / name).write_text(f'#!/bin/sh\nexec {line} "$@"\n')
        (folder / name).chmod(0o755)


def replace_process(command: list[str]) -> NoReturn:
    sys.stdout.flush()
    try:
        os.execvp(command[0], command)
    except OSError as error:
        fail(f"{command[0]}: {error.strerror}")


# ------------------------------------------------------------------------------------------ virtual environments


def python(arguments: list[str]) -> None:
    venv = os.environ.get("PAGES_VENV")
    if arguments[:2] == ["-m", "venv"]:
        make_venv(arguments[2:])
    elif arguments[:2] == ["-m", "pip"]:
        pip(arguments[2:])
    else:
        if arguments[:2] == ["-m", "cascade_mpi"]:
            if venv is None or "cascade_mpi" not in installed(Path(venv)):
                fail("cascade_mpi is not installed in this environment")
            arguments = arguments[:2] + sparing(arguments[2:])
        elif arguments[:2] == ["-m", "pytest"]:
            if venv is None or "pytest" not in installed(Path(venv)):
                fail("pytest is not installed in this environment")
            arguments = [*arguments, "--collect-only", "tests/unit/test_config.py"]  # all of them are CI's own step
        replace_process([sys.executable, *arguments])


def sparing(arguments: list[str]) -> list[str]:
    """A workload of a few requests, where the page does not say how many."""
    few = arguments[:1] == ["workload"] and "--requests" not in arguments
    return arguments + (FEW_REQUESTS if few else [])


def make_venv(arguments: list[str]) -> None:
    if len(arguments) != 1 or arguments[0].startswith("-"):
        fail(f"-m venv {' '.join(arguments)}: give one folder")
    venv = Path(arguments[0]).absolute()
    install_commands(venv / "bin", ("python", "python3", "pip"), f"--venv={venv}")
    (venv / "bin" / "activate").write_text(f"PATH='{venv}/bin':$PATH\nVIRTUAL_ENV='{venv}'\nexport PATH VIRTUAL_ENV\n")
    (venv / "installed").touch()


def installed(venv: Path) -> list[str]:
    return (venv / "installed").read_text().split()


def pip(arguments: list[str]) -> None:
    if arguments[:1] != ["install"]:
        fail(f"{' '.join(arguments)}: pages install")
    parser = argparse.ArgumentParser("pip install", allow_abbrev=False)
    parser.add_argument("-q", "--quiet", action="store_true")
    parser.add_argument("-U", "--upgrade", action="store_true")
    parser.add_argument("-e", "--editable", action="append", default=[])
    parser.add_argument("--no-cache-dir", action="store_true")
    parser.add_argument("--force-reinstall", action="store_true")
    parser.add_argument("--no-binary", action="append", default=[])
    parser.add_argument("requirements", nargs="*")
    options = parser.parse_args(arguments[1:])
    if "PAGES_VENV" not in os.environ:
        fail("pages install into a virtual environment")
    venv = Path(os.environ["PAGES_VENV"])
    wanted = options.editable + options.requirements
    if not wanted:
        fail("nothing to install")
    names = [name for each in wanted for name in requirement(each)]
    for source in options.no_binary:
        if source not in names:
            fail(f"--no-binary={source}, but {source} is not among what is installed")
        compiler = os.environ.get("MPI4PY_BUILD_MPICC") or os.environ.get("MPICC") or "mpicc"
        if source == "mpi4py" and shutil.which(compiler.split()[0]) is None:
            fail(f"mpi4py is built with {compiler!r}, which is not in PATH")
    with (venv / "installed").open("a") as file:
        file.writelines(f"{name}\n" for name in names)
    if "cascade_mpi" in names:
        install_commands(venv / "bin", ("cascade",), f"--venv={venv}")
    if "mpich" in names:
        install_commands(venv / "bin", ("mpiexec",))
    if "openmpi" in names:
        install_commands(venv / "bin", ("mpirun",))


def requirement(text: str) -> list[str]:
    """The packages that a requirement names; of the checkout also what its extras do."""
    match = re.fullmatch(r"(?P<what>[\w./-]+?)(\[(?P<extras>[\w,-]+)\])?([=<>!~]=?[\w.]+)?", text)
    if match is None:
        fail(f"{text!r} is no requirement")
    extras = match["extras"].split(",") if match["extras"] else []
    if not match["what"].startswith((".", "/")):
        return [match["what"]]
    setup = Path(match["what"]) / "setup.cfg"
    if not setup.is_file():
        fail(f"{match['what']} is no checkout")
    config = configparser.ConfigParser()
    config.read(setup)
    names = ["cascade_mpi"]
    for extra in extras:
        if extra not in config["options.extras_require"]:
            fail(f"setup.cfg has no extra {extra!r}")
        lines = config["options.extras_require"][extra].splitlines()
        names += [re.split(r"[^\w-]", line, maxsplit=1)[0] for line in lines if line]
    return names


def cascade(arguments: list[str]) -> None:
    replace_process([sys.executable, "-m", "cascade_mpi", *sparing(arguments)])


# -------------------------------------------------------------------------------------------------- launchers


def mpiexec(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser("mpiexec", allow_abbrev=False)
    parser.add_argument("-n", "-np", type=int, required=True)
    launch(parser, arguments)


def mpirun(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser("mpirun", allow_abbrev=False)
    parser.add_argument("-n", "-np", type=int, required=True)
    parser.add_argument("--map-by", type=_map_by)
    parser.add_argument("--bind-to", choices=["core", "none", "numa"])
    parser.add_argument("--oversubscribe", action="store_true")
    launch(parser, arguments)


def _map_by(text: str) -> str:
    if not re.fullmatch(r"(ppr:\d+:(node|numa|package)|core|node|slot)(:[\w=]+)*", text):
        raise argparse.ArgumentTypeError(f"{text!r} is no mapping")
    return text


def srun(arguments: list[str]) -> None:
    parser = slurm_options("srun")
    parser.add_argument("--mpi", choices=["pmi2", "pmix", "cray_shasta", "none"])
    parser.add_argument("--cpu-bind", choices=["cores", "none"])
    parser.add_argument("--gpu-bind", choices=["none", "single:1"])
    parser.add_argument("-K", "--kill-on-bad-exit", nargs="?", const="1", choices=["0", "1"])
    launch(parser, arguments)


def launch(parser: argparse.ArgumentParser, arguments: list[str]) -> None:
    """Start what stands behind the options with MPI, on as many ranks as they say, up to a few."""
    parser.add_argument("program", nargs=argparse.REMAINDER)
    options = parser.parse_args(arguments)
    if getattr(options, "mpi", None) == "none" and options.program[:2] != ["cascade", "cleanup"]:
        fail("--mpi=none makes a world of its own of each process")
    if not options.program or options.program[0].startswith("-"):
        fail(f"no program to start in: {' '.join(arguments)}")
    per_node = getattr(options, "ntasks_per_node", None)
    ranks = options.n or (per_node and per_node * (options.nodes or 1))
    if not ranks:
        fail("the number of tasks is not given: -n, or -N and --ntasks-per-node")
    if shutil.which(options.program[0]) is None:
        fail(f"{options.program[0]} is not in PATH")
    settings = sorted(f"{name}={text}" for name, text in os.environ.items() if name.startswith("CASCADE_"))
    done = DONE / hashlib.sha256(repr((settings, options.program)).encode()).hexdigest()
    if done.exists():  # four recipes that end in the same command need not run it four times
        return
    started = subprocess.run([REAL_MPIEXEC, "-n", str(min(ranks, MOST_RANKS)), *options.program], check=False)
    if started.returncode:
        raise SystemExit(started.returncode)
    if not any(each.startswith("--") for each in options.program):  # one with options may write files
        done.touch()


def slurm_options(name: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(name, allow_abbrev=False)
    parser.add_argument("-N", "--nodes", type=int)
    parser.add_argument("--signal")
    parser.add_argument("-n", "--ntasks", dest="n", type=int)
    parser.add_argument("--ntasks-per-node", type=int)
    parser.add_argument("-c", "--cpus-per-task", type=int)
    parser.add_argument("--gpus-per-node", type=int)
    for option in ("-A --account", "-C --constraint", "-q --qos", "-p --partition", "-t --time", "--mem"):
        parser.add_argument(*option.split())
    return parser


def salloc(arguments: list[str]) -> None:
    if slurm_options("salloc").parse_args(arguments).nodes is None:
        fail("how many nodes?")


def sbatch(arguments: list[str]) -> None:
    parser = slurm_options("sbatch")
    parser.add_argument("script", type=Path)
    script = parser.parse_args(arguments).script
    if not script.is_file():
        fail(f"{script} does not exist")
    text = script.read_text()
    if "#SBATCH" not in text:
        fail(f"{script} has no line with #SBATCH")
    if subprocess.run(["bash", "-n", str(script)], check=False).returncode:
        fail(f"{script} is not bash")
    for name in os.environ:
        if name.startswith("JOB_") and f"${{{name}" not in text:
            fail(f"{script} knows no {name}")
    print("Submitted batch job 1")


def module(arguments: list[str]) -> None:
    if arguments[:1] != ["load"] or len(arguments) < 2:
        fail(f"{' '.join(arguments)}: pages load modules")
    for name in arguments[1:]:
        if not re.fullmatch(r"[A-Za-z][\w+.-]*(/[\w.-]+)?", name):
            fail(f"{name!r} is no name of a module")
        if name.startswith("PrgEnv-"):  # the compiler wrapper of that environment
            shutil.copy(shutil.which("true") or "/bin/true", ROOT / "bin" / "cc")
        if name.startswith("openmpi"):
            install_commands(ROOT / "bin", ("mpirun",))
        if name.startswith("mpich"):
            install_commands(ROOT / "bin", ("mpiexec",))


def ml(arguments: list[str]) -> None:
    module(["load", *arguments])


# -------------------------------------------------------------------------------------------------- Apptainer


def apptainer(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser("apptainer", allow_abbrev=False)
    actions = parser.add_subparsers(dest="action", required=True)
    build = actions.add_parser("build", allow_abbrev=False)
    build.add_argument("--fakeroot", action="store_true")
    build.add_argument("image", type=Path)
    build.add_argument("definition", type=Path)
    execute = actions.add_parser("exec", allow_abbrev=False)
    execute.add_argument("--nv", action="store_true")
    execute.add_argument("--bind", action="append", default=[])
    execute.add_argument("--env", action="append", default=[])
    execute.add_argument("image", type=Path)
    execute.add_argument("program", nargs=argparse.REMAINDER)
    options = parser.parse_args(arguments)
    if options.action == "build":
        build_image(options.image, options.definition)
    else:
        if not options.image.is_file():
            fail(f"{options.image} was not built")
        for each in options.bind:
            if not re.fullmatch(r"(/[^:]+)(:/[^:]+)?", each):  # of another machine
                fail(f"--bind {each}: folders are written /SOURCE or /SOURCE:/TARGET")
        if not all(re.fullmatch(r"\w+=.*", each) for each in options.env):
            fail(f"--env {options.env}: NAME=VALUE")
        environment = options.image.read_text()  # not the bound MPI: there is none here
        replace_process(["bash", "-euc", f'{environment}\nexec "$@"', "container", *options.program])


def build_image(image: Path, definition: Path) -> None:
    """Run %post in a folder that plays the container, %test afterwards; %environment becomes the image."""
    if not definition.is_file():
        fail(f"{definition} does not exist")
    header, *parts = re.split(r"^%(\w+)[^\n]*\n", definition.read_text(), flags=re.MULTILINE)
    sections = dict(zip(parts[::2], parts[1::2], strict=True))
    for line in ("Bootstrap: ", "From: "):
        if line not in header:
            fail(f"{definition} has no line with {line}")
    inside = ROOT / "container"
    for line in sections.get("files", "").split("\n"):
        if line.strip():
            source, target = line.split()
            if not Path(source).exists():
                fail(f"%files: {source} does not exist")
            (inside / target.strip("/")).parent.mkdir(parents=True, exist_ok=True)
            os.symlink(Path(source).resolve(), inside / target.strip("/"))
    (inside / "opt").mkdir(parents=True, exist_ok=True)
    environment = sections.get("environment", "").replace("/opt/", f"{inside}/opt/")
    for name, before in (("post", ""), ("test", environment)):
        script = before + sections.get(name, "").replace("/opt/", f"{inside}/opt/")
        if subprocess.run(["bash", "-euc", script], cwd=inside, check=False).returncode:
            fail(f"%{name} failed")
    image.write_text(environment)


def apt_get(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser("apt-get", allow_abbrev=False)
    parser.add_argument("action", choices=["update", "install", "clean"])
    parser.add_argument("-y", action="store_true")
    parser.add_argument("--no-install-recommends", action="store_true")
    parser.add_argument("packages", nargs="*")
    options = parser.parse_args(arguments)
    if (options.action == "install") != bool(options.packages and options.y):
        fail(f"{' '.join(arguments)}: install -y PACKAGES, or nothing else")


STANDINS: dict[str, Callable[[list[str]], None]] = {
    "python": python, "python3": python, "pip": pip, "cascade": cascade, "mpiexec": mpiexec, "mpirun": mpirun,
    "srun": srun, "salloc": salloc, "sbatch": sbatch, "module": module, "ml": ml, "apptainer": apptainer,
    "apt-get": apt_get,
}  # fmt: skip


def main() -> None:
    arguments = sys.argv[2:]
    if arguments and arguments[0].startswith("--venv="):
        os.environ["PAGES_VENV"] = arguments.pop(0).removeprefix("--venv=")
    STANDINS[sys.argv[1]](arguments)


if __name__ == "__main__":
    main()
