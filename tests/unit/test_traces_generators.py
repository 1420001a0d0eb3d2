"""Made-up traces: what an id stands for, what is shared, that sessions interleave, that a seed is a trace."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice, pairwise
from typing import Any

import pytest

from cascade_mpi.errors import ConfigError
from cascade_mpi.traces import KINDS, Request, deal, generate
from cascade_mpi.traces import agents as agent_trace
from cascade_mpi.traces import retrieval as retrieval_trace
from cascade_mpi.traces.agents import Agents
from cascade_mpi.traces.prefixes import BLOCK_TOKENS, Part
from cascade_mpi.traces.random_draws import Draws, zipf
from cascade_mpi.traces.retrieval import Retrieval

SHAPES: dict[str, Any] = {
    "rag": (retrieval_trace.prompts, Retrieval()),
    "rag, few documents, long sessions": (
        retrieval_trace.prompts, Retrieval(documents=3, mean_turns=20, system_tokens=100),
    ),
    "rag, small parts": (retrieval_trace.prompts, Retrieval(system_tokens=10, document_tokens=40, documents=5)),
    "agents": (agent_trace.prompts, Agents()),
    "agents that send out many": (agent_trace.prompts, Agents(sending=1.0, mean_sent=6, types=1, tool_tokens=90)),
    "agents with short contexts": (agent_trace.prompts, Agents(max_tokens=3000, mean_steps=50)),
}  # fmt: skip


def prompts(name: str, seed: int = 3) -> Iterator[tuple[Request, tuple[Part, ...]]]:
    make, shape = SHAPES[name]
    return make(seed, shape)


@pytest.mark.parametrize("kind", KINDS)
def test_a_seed_always_gives_the_same_trace(kind: str) -> None:
    trace = generate(kind, 7)
    first = list(trace.first(300))
    assert first == list(trace.first(300)) == list(generate(kind, 7).first(300))
    assert first != list(generate(kind, 8).first(300))
    assert (trace.has_blocks, trace.has_sessions, trace.block_tokens) == (True, True, 512)
    assert "(seed 7)" in trace.name


@pytest.mark.parametrize(
    ("kind", "totals", "arrivals"),
    [
        ("chat", (400, 4768, 1571, 3197, 33, 1571, 400), 131548.137856846),
        ("rag", (400, 3240, 2169, 1071, 20, 2169, 400), 102692.630372845),
        ("agents", (400, 5052, 808, 4244, 36, 808, 400), 41055.489141061),
    ],
)
def test_the_traces_of_seed_0_are_pinned(kind: str, totals: tuple[int, ...], arrivals: float) -> None:
    dealt = deal(generate(kind).first(400), 0, 1)
    assert dealt.totals == totals
    assert float(dealt.arrivals.sum()) == pytest.approx(arrivals, rel=1e-12)


def test_wrong_kinds_and_seeds_are_refused() -> None:
    with pytest.raises(ConfigError, match="generator 'video'"):
        generate("video")
    with pytest.raises(ConfigError, match="seed -1"):
        generate("chat", -1)


@pytest.mark.parametrize("kind", KINDS)
def test_requests_come_in_order_and_fit(kind: str) -> None:
    time = 0.0
    for index, request in enumerate(generate(kind, 1).first(2000)):
        assert request.index == index
        assert request.timestamp_s >= time
        assert request.input_tokens > 0
        assert request.output_tokens > 0
        assert len(request.block_ids) == -(-request.input_tokens // BLOCK_TOKENS)
        time = request.timestamp_s


@pytest.mark.parametrize("kind", KINDS)
def test_sessions_interleave(kind: str) -> None:
    found = list(generate(kind, 2).first(2000))
    others = sum(a.session != b.session for a, b in pairwise(found))
    assert others > 0.85 * len(found)
    turns = Counter(each.session for each in found)
    assert max(turns.values()) > 3


@pytest.mark.parametrize("name", SHAPES)
def test_two_prompts_share_an_id_exactly_when_they_share_the_prefix_up_to_it(name: str) -> None:
    """An oracle that knows nothing of chains: the prefix of a block is all parts up to the one that it ends in."""
    prefix_of: dict[int, tuple[int, tuple[Part, ...]]] = {}
    id_of: dict[tuple[int, tuple[Part, ...]], int] = {}
    for request, parts in islice(prompts(name), 700):
        assert sum(tokens for _, tokens in parts) == request.input_tokens
        ends, total = [], 0
        for _, tokens in parts:
            total += tokens
            ends.append(total)
        whole = request.input_tokens // BLOCK_TOKENS
        part = 0
        for k, block in enumerate(request.block_ids[:whole]):
            while ends[part] < (k + 1) * BLOCK_TOKENS:
                part += 1
            prefix = (k, parts[: part + 1])
            assert prefix_of.setdefault(block, prefix) == prefix, "an id stands for one prefix"
            assert id_of.setdefault(prefix, block) == block, "a prefix has one id"
        for block in request.block_ids[whole:]:
            assert block not in prefix_of, "a block that is not full belongs to its request"
            prefix_of[block] = (whole, parts)


def test_documents_are_popular_and_their_order_varies() -> None:
    listed = Counter[tuple[Any, ...]]()
    used = Counter[Any]()
    for _, parts in islice(prompts("rag"), 2000):
        documents = tuple(what for what, _ in parts if isinstance(what, int))
        assert len(set(documents)) == len(documents) > 0
        listed[documents] += 1
        used.update(documents)
    assert used[0] > 4 * used[20] > 0
    assert any(listed[b, a] for a, b in (each for each in listed if len(each) == 2))


def test_behind_the_first_difference_no_document_is_reused() -> None:
    shape = replace(Retrieval(), documents=3, mean_found=3.0)
    blocks: dict[tuple[Any, ...], set[int]] = {}
    for request, parts in islice(retrieval_trace.prompts(1, shape), 600):
        documents = tuple(what for what, _ in parts if isinstance(what, int))
        system = parts[0][1] // BLOCK_TOKENS
        blocks.setdefault(documents[:1], set()).update(request.block_ids[system:])
    first, second, third = blocks.values()
    assert not (first & second or first & third or second & third)


def test_agents_share_their_types_prompt_and_sub_agents_their_parents_prefix() -> None:
    found = list(islice(prompts("agents that send out many"), 1500))
    uses = Counter(block for request, _ in found for block in request.block_ids)
    assert max(uses.values()) == len(found), "one type: one prompt"
    subs = [(request, parts) for request, parts in found if any(what[0] == "order" for what, _ in parts)]
    results = [parts for _, parts in found if any(what[0] == "result" for what, _ in parts)]
    assert len(subs) > 300
    assert len(results) > 100
    known: dict[tuple[Part, ...], Request] = {parts: request for request, parts in found}
    for request, parts in subs:
        order = next(k for k, (what, _) in enumerate(parts) if what[0] == "order")
        parent = known[parts[: order - 1]]  # behind the parent's prompt stands what it said
        assert parent.session == request.session
        whole = parent.input_tokens // BLOCK_TOKENS
        assert request.block_ids[:whole] == parent.block_ids[:whole]


def test_a_step_has_all_that_was_said_before() -> None:
    last: dict[Any, tuple[Part, ...]] = {}
    grown = 0
    for request, parts in islice(agent_trace.prompts(4, replace(Agents(), sending=0.0)), 800):
        before = last.get(request.session)
        if before is not None:
            assert parts[: len(before)] == before
            assert [what[0] for what, _ in parts[len(before) :]] == ["said", "tool"]
            grown += 1
        last[request.session] = parts
    assert grown > 500


def test_draws_have_their_means() -> None:
    draws = Draws(1)
    assert 95 < sum(draws.exponential(100) for _ in range(5000)) / 5000 < 105
    assert 3.8 < sum(draws.rounds(4.0) for _ in range(5000)) / 5000 < 4.2
    assert sum(draws.rounds(1.0) for _ in range(1000)) < 1010
    assert {draws.around(100) // 50 for _ in range(1000)} == {1, 2}
    assert min(draws.tokens(2) for _ in range(1000)) == 1
    weights = zipf(3, 1.0)
    counts = Counter(draws.index(weights) for _ in range(6000))
    assert set(counts) == {0, 1, 2}
    assert 1.8 < counts[0] / counts[1] < 2.2
    assert 2.7 < counts[0] / counts[2] < 3.3
