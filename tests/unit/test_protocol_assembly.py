"""The barriers of the protocol, in the machine code of the real kernels on x86-64 and AArch64.

Covers that no way through the code leads from the one step to the other past the barrier: copy and second
look, payload and publish, publish and look at the bucket, removal and look at the pins, pin and second
look. Does not cover what a processor makes of a barrier, nor the order of MPI's own operations (see
`test_onesided`).

On x86-64 the acquire fence is no instruction: there the order of the instructions is what counts.
"""

from __future__ import annotations

import functools
import re
from typing import Any

import pytest
from assembly import Target, assembly, numbers

from cascade_mpi import layout, onesided
from cascade_mpi.kernels import context as c
from cascade_mpi.kernels import probe
from cascade_mpi.onesided import read, read_many, words

TARGETS: tuple[Target, Target] = ("x86_64", "aarch64")
FULL = {"x86_64": r"^(mfence|lock\s)", "aarch64": r"^dmb\s+ish$"}
ACQUIRE = r"^dmb\s+(ishld|ish)$"  # AArch64
STREAMED = {"x86_64": r"^movnt", "aarch64": r"^stnp\s+q"}
CALL = {"x86_64": r"^callq?\s", "aarch64": r"^blr?\s"}
COPIED = {target: f"{STREAMED[target]}|{CALL[target]}" for target in TARGETS}
RETURN = r"^retq?$"
# MPI's functions are called through the context.
MPI_CALL = {
    name: {"x86_64": rf"^callq\s+\*{offset}\(", "aarch64": rf"^blr\s+\w+ through {offset}$"}
    for name, offset in (("get", c.GET * 8), ("put", c.PUT * 8), ("flush", c.FLUSH * 8), ("cas", c.CAS * 8))
}
on_both = pytest.mark.parametrize("target", TARGETS)


@functools.cache
def code(function: Any, target: Target, signature: str | None = None) -> str:
    """The instructions of a function; an AArch64 call says from which field its address came."""
    lines, origin = [], {}
    for line in assembly(function, target, signature).splitlines():
        load = re.match(r"ldr\s+(x\d+), \[x\d+, #(\d+)\]$", line)
        if load:
            origin[load[1]] = load[2]
        call = re.match(r"blr\s+(x\d+)$", line)
        lines.append(f"{line} through {origin.get(call[1])}" if call else line)
    return "\n".join(lines)


def is_guarded(text: str, start: str | None, barrier: str, end: str) -> bool:
    """True if every way from an instruction `start` (None: the entry) to an `end` passes a `barrier`.

    AssertionError if nothing matches start or end: then the compiler made other code, and this test must be
    told how to read it.
    """
    lines = text.splitlines()
    labels = {line[:-1]: number for number, line in enumerate(lines) if line.endswith(":")}
    starts = [-1] if start is None else numbers(start, text)
    assert starts, f"no instruction matches {start!r}:\n{text}"
    assert numbers(end, text), f"no instruction matches {end!r}:\n{text}"
    seen: set[int] = set()
    todo = [number + 1 for number in starts]
    while todo:
        number = todo.pop()
        if number in seen or number >= len(lines) or re.search(barrier, lines[number]):
            continue
        if re.search(end, lines[number]):
            return False
        seen.add(number)
        todo += successors(lines[number], number, labels)
    return True


def successors(line: str, number: int, labels: dict[str, int]) -> list[int]:
    """The lines that may be executed next; jumps out of the function have none."""
    operation, _, operands = line.partition("\t")
    goal = labels.get(operands.split(",")[-1].strip())
    jumps = re.match(r"(j\w+|b|b\.\w+|cbn?z|tbn?z)$", operation)
    ends = re.match(r"(jmpq?|b|br|retq?|ud2|brk)$", operation)
    return [each for each in (goal if jumps else None, None if ends else number + 1) if each is not None]


def test_the_ways_through_the_code():
    text = "str\tx1, [x2]\ncbz\tx3, .A\ndmb\tish\n.A:\nldar\tx4, [x5]\nb\t.B\n.C:\nldr\tx1, [x2]\n.B:\nret"
    assert not is_guarded(text, r"^str", FULL["aarch64"], r"^ldar")
    assert is_guarded(text.replace("cbz\tx3, .A\n", ""), r"^str", FULL["aarch64"], r"^ldar")
    assert not is_guarded(text, None, r"^nothing", RETURN)
    assert is_guarded(text, r"^ldar", r"^nothing", r"^ldr")  # no way leads there
    with pytest.raises(AssertionError, match="no instruction matches"):
        is_guarded(text, r"^stlr", FULL["aarch64"], r"^ldar")


# ------------------------------------------------------------------------------------------------- reading

COPY_THEN_RELOAD = (probe.copy_then_reload, "uint64(int64,int64,int64,int64,int64)")
RELOAD_WORD = (words.reload_word, "Tuple((int64,uint64))(int64,int64,int64,int64,int64)")


def test_copy_is_complete_before_the_second_look_on_aarch64():
    function, signature = COPY_THEN_RELOAD
    text = code(function, "aarch64", signature)
    assert is_guarded(text, COPIED["aarch64"], ACQUIRE, r"^lda(p?)r\s")
    assert is_guarded(text, r"^ld[pr]\s+q", ACQUIRE, r"^lda(p?)r\s")


def test_copy_is_complete_before_the_second_look_on_x86():
    function, signature = COPY_THEN_RELOAD
    text = code(function, "x86_64", signature)
    looks = numbers(r"^movq\s+\(%\w+\), %\w+$", text)
    assert len(looks) == 1, text
    assert looks[0] > max(numbers(COPIED["x86_64"], text))
    assert is_guarded(text, rf"^{re.escape(text.splitlines()[looks[0]])}$", r"^nothing", COPIED["x86_64"])


@pytest.mark.parametrize(("function", "signature"), [(probe.reload, None), RELOAD_WORD])
def test_second_look_waits_for_earlier_loads(function, signature):
    """What was read before may have been read by others: by threads, or by MPI."""
    assert is_guarded(code(function, "aarch64", signature), None, ACQUIRE, r"^lda(p?)r\s")


def test_copy_is_complete_before_a_second_look_by_mpi():
    """The payload is mapped, its index word is not: the caller looks again through MPI."""
    signature = "Tuple((int64,uint64))(int64,int64,uint64,uint64,uint64,int64,int64,int64,int64,int64)"
    text = code(read._fetch, "aarch64", signature)
    after = rf"^ldr\s+x\d+, \[x\d+, #{c.VERIFY * 8}\]$"  # the field that is read next
    assert is_guarded(text, r"^stnp\s+q|^bl\s.*4copy4copy", ACQUIRE, after)


def test_words_of_a_batch_are_looked_at_after_the_payloads():
    signature = "int64(int64,int64,int64,int64,int64,int64,int64,int64,int64)"
    text = code(read_many._get_chunk, "aarch64", signature)
    assert is_guarded(text, CALL["aarch64"], ACQUIRE, r"^lda(p?)r\s")


# ------------------------------------------------------------------------------------------------- writing


@on_both
def test_payload_before_whatever_follows(target):
    text = code(probe.write_cell_payload, target)
    if not numbers(STREAMED[target], text):  # not compiled into the kernel
        text = code(probe.write_payload_then_fence, target, "void(int64,int64,int64)")
    assert is_guarded(text, COPIED[target], FULL[target], RETURN)


def magic_store(target: Target, text: str) -> str:
    """The instruction that makes a descriptor valid."""
    if target == "x86_64":
        return rf"^movl\s+\${layout.MAGIC}, "
    register = re.search(rf"^movk\s+(w\d+), #{layout.MAGIC >> 16}, lsl #16$", text, flags=re.MULTILINE)
    assert register, text
    return rf"^str\s+{register[1]}, \["


@on_both
def test_cell_before_its_word(target):
    text = code(probe.write_cell, target)
    valid = magic_store(target, text)
    assert is_guarded(text, COPIED[target], FULL[target], valid)
    assert is_guarded(text, valid, FULL[target], RETURN)


@on_both
def test_old_descriptor_is_void_before_the_cell_is_written(target):
    text = code(probe.write_cell, target)
    void = r"^movl\s+\$0, " if target == "x86_64" else r"^str\s+wzr, \[x\d+\]$"
    assert is_guarded(text, None, void, COPIED[target])
    first = rf"^{re.escape(text.splitlines()[numbers(void, text)[0]])}$"
    assert is_guarded(text, first, FULL[target], COPIED[target])


@on_both
def test_publish_after_everything_before(target):
    assert is_guarded(code(onesided.publish, target), None, FULL[target], MPI_CALL["cas"][target])


@on_both
def test_publish_before_the_look_at_the_bucket(target):
    """Two putters of one key in two slots: at least one of them must see both words."""
    text = code(onesided.publish, target)
    if numbers(r"read_bucket", text):
        look = r"^callq\s+\*\(" if target == "x86_64" else r"^bl\s.*read_bucket"
    else:  # compiled into the kernel
        look = MPI_CALL["get"][target]
    assert is_guarded(text, MPI_CALL["cas"][target], FULL[target], look)


@on_both
def test_removal_before_the_look_at_the_pins(target):
    """Every way out, but for that of an MPI error, whose code is noted in the scratch."""
    offset = c.MPI_ERROR * 8
    error = rf"^movq\s+%\w+, {offset}\(" if target == "x86_64" else rf"^str\s+x\d+, \[x\d+, #{offset}\]$"
    text = code(onesided.remove, target)
    assert is_guarded(text, MPI_CALL["cas"][target], f"{FULL[target]}|{error}", RETURN)
    assert not is_guarded(text, MPI_CALL["cas"][target], error, FULL[target])  # the barrier is behind the CAS


@on_both
def test_pin_before_the_second_look(target):
    text = code(onesided.pin, target)
    assert is_guarded(text, None, FULL[target], MPI_CALL["get"][target])
    # In mapped memory: from the store of the pin to the load of the word, or to its comparison.
    store = r"^movq\s+%\w+, \(%\w+,%\w+\)$" if target == "x86_64" else r"^str\s+x\d+, \[x\d+, x\d+\]$"
    look = r"^cmpq\s" if target == "x86_64" else r"^lda(p?)r\s"
    assert is_guarded(text, store, FULL[target], look)
    assert is_guarded(text, MPI_CALL["put"][target], f"{FULL[target]}|^movq\\s+\\$0,|xzr", look)


@on_both
def test_unpin_after_everything_that_was_read(target):
    text = code(onesided.unpin, target)
    clear = r"^movq\s+\$0, \(%\w+,%\w+\)$" if target == "x86_64" else r"^str\s+xzr, \[x\d+, x\d+\]$"
    assert is_guarded(text, None, FULL[target], f"{clear}|{MPI_CALL['put'][target]}")


@on_both
def test_barriers_that_python_calls(target):
    assert is_guarded(code(probe.full_fence, target), None, FULL[target], RETURN)
    text = code(probe.store_word, target)
    store = r"^movq\s+%\w+, \(%\w+\)$" if target == "x86_64" else r"^str\s+x\d+, \[x\d+\]$"
    assert is_guarded(text, None, FULL[target], store)
    assert is_guarded(text, store, FULL[target], RETURN)
