"""The machine code of a kernel, for this machine's family and for AArch64, as text.

Covers the way from a kernel to its assembly, so that tests can look for barriers and their places. Does
not cover what the barriers are for (see `kernels.probe`). The code is made afresh: what Numba loads from
its disk cache cannot be inspected.
"""

from __future__ import annotations

import re
from typing import Any, Literal

import numba
from llvmlite import binding
from numba.core.sigutils import normalize_signature

Target = Literal["x86_64", "aarch64"]
TRIPLES = {"x86_64": "x86_64-unknown-linux-gnu", "aarch64": "aarch64-unknown-linux-gnu"}
COMMENTS = {"x86_64": r"#.*$", "aarch64": r"//.*$"}


def assembly(function: Any, target: Target, signature: str | None = None, *, whole: bool = False) -> str:
    """Local. The instructions that `function` becomes on `target`, one a line, optimised.

    function
        A `jit.Kernel`, a device function or any Numba dispatcher.
    signature
        As Numba writes it; for a `Kernel` its own is known.
    whole
        Also the functions that it calls and Numba's wrappers; otherwise its own code only. Device
        functions are usually compiled into it; where not, a call with their name is left.
    """
    python = getattr(function, "python", None) or getattr(function, "py_func", function)
    arguments = normalize_signature(signature)[0] if signature is not None else function.signature
    dispatcher = numba.njit(nogil=True)(python)
    dispatcher.compile(arguments)
    compiled = dispatcher.overloads[arguments]
    module = binding.parse_assembly(for_target(dispatcher.inspect_llvm(arguments), target))
    module.verify()
    text = machine(target).emit_assembly(module)
    text = tidy(re.sub(COMMENTS[target], "", text, flags=re.MULTILINE))
    return text if whole else own_code(text, compiled.fndesc.llvm_func_name)


def machine(target: Target) -> Any:
    """Local. A code generator for a plain processor of that family."""
    binding.initialize_all_targets()
    binding.initialize_all_asmprinters()
    return binding.Target.from_triple(TRIPLES[target]).create_target_machine(opt=3, reloc="pic")


def for_target(text: str, target: Target) -> str:
    """Local. LLVM's text of a module, no longer bound to the processor that it was compiled for.

    x86's own intrinsics must be gone: AArch64 has no such instructions. RuntimeError names them.
    """
    text = re.sub(r'^target triple = ".*"$', f'target triple = "{TRIPLES[target]}"', text, flags=re.MULTILINE)
    layout = machine(target).target_data
    text = re.sub(r'^target datalayout = ".*"$', f'target datalayout = "{layout}"', text, flags=re.MULTILINE)
    text = re.sub(
        r'"(target-cpu|target-features|tune-cpu|prefer-vector-width|min-legal-vector-width)"="[^"]*"', "", text
    )
    foreign = sorted(set(re.findall(r"@llvm\.x86\.[\w.]+", text)))
    if foreign and target != "x86_64":
        raise RuntimeError(f"the optimised code has intrinsics that only x86 has: {', '.join(foreign)}")
    return text


def tidy(text: str) -> str:
    """Local. Labels and instructions without directives, blank lines and the space around them."""
    lines = (line.strip() for line in text.splitlines())
    return "\n".join(line for line in lines if line and (not line.startswith(".") or line.endswith(":")))


def own_code(text: str, name: str) -> str:
    """Local. The lines of one function. RuntimeError: it is not there."""
    function = re.search(rf'^"?{re.escape(name)}"?:\n(.*?)^\.Lfunc_end\d+:', text, flags=re.MULTILINE | re.DOTALL)
    if function is None:
        raise RuntimeError(f"the assembly has no function {name}")
    return function[1]


def numbers(pattern: str, text: str) -> list[int]:
    """Local. The numbers of the lines in which a regular expression is found."""
    return [number for number, line in enumerate(text.splitlines()) if re.search(pattern, line)]
