"""Dealing: who serves which request under each rule, the totals, and what a trace must know for a rule."""

from __future__ import annotations

from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from recordings import write_recording

from cascade_mpi.errors import ConfigError, TraceError
from cascade_mpi.traces import KINDS, ROUTES, Deal, Request, Trace, deal, generate, open_trace, synthetic
from cascade_mpi.traces.recording import Access, Header
from cascade_mpi.traces.routes import MAX_LOAD, ByPrefix, Continuations, route_named

MOONCAKE = Path(__file__).resolve().parents[2] / ".." / "shared" / "traces" / "mooncake_conversation.jsonl"


def requests(*prefixes: tuple[int, ...]) -> list[Request]:
    return [Request(i, i / 2, 512 * len(ids), 1, ids) for i, ids in enumerate(prefixes)]


def trace(
    found: list[Request], block_tokens: int = 512, *, has_blocks: bool = True, has_sessions: bool = False
) -> Trace:
    return Trace("t", "test", block_tokens, lambda: iter(found), has_blocks=has_blocks, has_sessions=has_sessions)


def ranks_of(found: Any, ranks: int, route: str) -> list[int]:
    """The rank of each request, checked on all ranks."""
    dealt = [deal(found, rank, ranks, route) for rank in range(ranks)]
    assert len({each.totals for each in dealt}) == 1, "the totals are the same on every rank"
    served = {int(index): rank for rank, each in enumerate(dealt) for index in each.indices}
    assert sum(len(each.mine) for each in dealt) == dealt[0].requests == len(served), "each is dealt once"
    assert [len(each.mine) for each in dealt] == list(dealt[0].assigned)
    return [served[index] for index in range(len(served))]


# --------------------------------------------------------------------------------------------- round-robin


def test_requests_are_dealt_in_turn_and_counted() -> None:
    found = requests((0, 1), (0, 1, 2), (0, 3), (), (0, 3))
    first, second = (deal(found, rank, 2) for rank in range(2))
    assert [ids.tolist() for ids in first.mine] == [[0, 1], [0, 3], [0, 3]]
    assert [ids.tolist() for ids in second.mine] == [[0, 1, 2], []]
    assert first.totals == second.totals == (5, 11 - 2, 4, 5, 3, 3, 1, 3, 2)


def test_a_rank_knows_when_its_requests_come() -> None:
    dealt = deal(requests((0,), (1,), (2,), (3,)), 1, 2)
    assert (dealt.indices.dtype, dealt.indices.tolist()) == ("int64", [1, 3])
    assert (dealt.arrivals.dtype, dealt.arrivals.tolist()) == ("float64", [0.5, 1.5])
    assert deal([], 1, 2).arrivals.shape == (0,)


def test_an_id_at_two_positions_is_refused() -> None:
    with pytest.raises(TraceError, match="request 1 begins with block id 2, an earlier one has it behind id 1: an id"):
        deal(requests((1, 2), (2, 1)), 0, 1)


@pytest.mark.parametrize(
    ("prefixes", "said"),
    [
        (((1, 2), (3, 2)), "request 1 has block id 2 behind id 3, an earlier one has it behind id 1: an id must"),
        (((), (1,), (3, 1)), "request 2 has block id 1 behind id 3, an earlier one begins with it: an id must stand"),
        (((0, 1, 2, 3), (0, 1, 4, 3)), "request 1 has block id 3 behind id 4, an earlier one has it behind id 2"),
    ],
)
def test_an_id_with_two_prefixes_is_refused(prefixes: Any, said: str) -> None:
    with pytest.raises(TraceError, match=said):
        deal(requests(*prefixes), 0, 1)


def test_fresh_ids_are_counted_without_being_remembered() -> None:
    found = [
        Request(0, 0.0, 1024, 1, range(2)),
        Request(1, 0.0, 512, 1, range(2, 3)),
        Request(2, 0.0, 0, 1, range(3, 3)),
    ]
    dealt = deal(trace(found, has_blocks=False), 0, 2)
    assert (dealt.accesses, dealt.unique, dealt.prefix_hits, dealt.computes) == (3, 3, 0, (2, 1))
    assert [ids.tolist() for ids in dealt.mine] == [[0, 1], []]
    assert dealt.mine[0].dtype == "uint64"


def brute_force(found: list[Request], chosen: list[int], ranks: int) -> tuple[int, int, list[int]]:
    seen: set[int] = set()
    hits, computes = 0, [0] * ranks
    for request, rank in zip(found, chosen, strict=True):
        known = [block in seen for block in request.block_ids]
        hits += known.index(False) if False in known else len(known)
        computes[rank] += known.count(False)
        seen.update(request.block_ids)
    return len(seen), hits, computes


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("kind", KINDS)
def test_totals_and_computes_are_right_for_each_rule(kind: str, route: str) -> None:
    found = generate(kind, 5).first(300)
    chosen = ranks_of(found, 3, route)
    dealt: Deal = deal(found, 0, 3, route)
    unique, hits, computes = brute_force(list(found), chosen, 3)
    assert (dealt.unique, dealt.prefix_hits, list(dealt.computes)) == (unique, hits, computes)
    assert list(dealt.assigned) == [chosen.count(rank) for rank in range(3)]
    assert sum(dealt.computes) == dealt.unique
    assert ranks_of(found, 3, route) == chosen


# ------------------------------------------------------------------------------------------------- session


def test_named_sessions_stay_on_one_rank_and_loads_are_even() -> None:
    found = generate("chat").first(600)
    chosen = ranks_of(found, 4, "session")
    ranks = {(each.session, rank) for each, rank in zip(found, chosen, strict=True)}
    assert len(ranks) == len({each.session for each in found})
    load = Counter[int]()
    for each, rank in zip(found, chosen, strict=True):
        load[rank] += each.input_tokens + each.output_tokens
    assert max(load.values()) < 1.1 * sum(load.values()) / 4


def test_a_new_session_goes_to_the_rank_with_the_least_tokens() -> None:
    sizes = [("a", 5), ("b", 3), ("c", 1), (None, 1), ("b", 9), ("d", 1), ("a", 1), ("e", 1)]
    found = [Request(i, 0.0, tokens, 0, range(0), session) for i, (session, tokens) in enumerate(sizes)]
    # a: rank 0 (of equals the lowest); b: 1; c: 2; one without a session: 2, with one token; then 5, 12, 2.
    expected = [0, 1, 2, 2, 1, 2, 0, 2]
    assert ranks_of(trace(found, has_blocks=False, has_sessions=True), 3, "session") == expected
    assert ranks_of(found, 3, "session") == expected, "also when nothing but the requests tells"


def sessions(*prompts: tuple[tuple[int, ...], bool]) -> list[int]:
    """The sessions that are found; each prompt: ids, and whether the last one is a whole block."""
    rule = Continuations(512)
    return [
        rule.session_of(Request(i, 0.0, 512 * len(ids) - (0 if whole else 1), 0, ids))
        for i, (ids, whole) in enumerate(prompts)
    ]


WHOLE, PARTLY = True, False


def test_a_prompt_that_goes_on_where_another_ended_is_of_its_session() -> None:
    assert sessions(((0, 1, 2), WHOLE), ((0, 1, 2, 3, 4), WHOLE), ((0, 1, 2, 3, 4, 5), WHOLE)) == [0, 0, 0]
    # The rest of an input that ends within a block is nobody else's: it does not have to come again.
    assert sessions(((0, 1, 20), PARTLY), ((0, 1, 2, 21), PARTLY), ((0, 1, 2, 22), PARTLY)) == [0, 0, 0]


def test_a_shared_system_prompt_makes_no_session() -> None:
    assert sessions(((0, 1, 2), WHOLE), ((0, 1, 3), WHOLE), ((0, 1, 4), WHOLE), ((0, 1, 3, 5), WHOLE)) == [0, 1, 2, 1]
    # A prompt of nothing but known blocks has no end of its own.
    assert sessions(((0, 1, 2), WHOLE), ((0, 1), WHOLE), ((0, 1), WHOLE), ((0, 1, 3), WHOLE)) == [0, 1, 2, 3]


def test_an_end_that_turns_out_to_be_shared_misleads_once() -> None:
    # The first request is the system prompt (0, 1) and a question that fills no block.
    found = sessions(((0, 1, 9), PARTLY), ((0, 1, 2), WHOLE), ((0, 1, 3), WHOLE), ((0, 1, 4), WHOLE))
    assert found == [0, 0, 1, 2]


def test_branches_are_sessions_of_their_own() -> None:
    parent = ((0, 1, 2), WHOLE)
    assert sessions(parent, ((0, 1, 2, 3), WHOLE), ((0, 1, 2, 4), WHOLE), ((0, 1, 2, 4, 5), WHOLE)) == [0, 0, 1, 1]


def test_the_longest_end_counts() -> None:
    # (0, 1) and (0, 1, 2) end different sessions: the second one branched off before it came.
    found = sessions(((0,), WHOLE), ((0, 1), WHOLE), ((0, 1, 2), WHOLE), ((0, 1, 2, 3), WHOLE), ((0, 1, 4), WHOLE))
    assert found == [0, 0, 0, 0, 1]


def test_empty_prompts_are_alone() -> None:
    assert sessions(((), WHOLE), ((), WHOLE), ((5,), PARTLY), ((6,), PARTLY)) == [0, 1, 2, 3]


def test_sessions_are_found_again_where_the_trace_names_them() -> None:
    rule = Continuations(512)
    pairs = Counter((each.session, rule.session_of(each)) for each in generate("chat", 1).first(2000))
    found: dict[int, list[int]] = {}
    for (_, session), count in pairs.items():
        found.setdefault(session, []).append(count)
    assert all(len(counts) == 1 for counts in found.values()), "no two sessions are taken for one"
    torn = len(pairs) - len({session for session, _ in pairs})
    assert torn < 0.02 * 2000


def test_a_trace_that_knows_blocks_only_is_dealt_by_its_prefixes() -> None:
    found = requests((0, 1, 2), (0, 5), (0, 1, 2, 3), (0, 5, 6), (0, 1, 2, 3, 4))
    assert ranks_of(trace(found), 2, "session") == [0, 1, 0, 1, 0]


def test_a_recording_is_dealt_like_the_trace_that_was_recorded(tmp_path: Path) -> None:
    found = list(generate("chat", 1).first(300))
    path = tmp_path / "recording.jsonl"
    lookups = (Access(each.timestamp_s, 0, "lookup", tuple(each.block_ids), 0) for each in found)
    write_recording(path, Header(block_bytes=1, block_tokens=512, ranks=1, trace="chat"), lookups)
    rule = Continuations(512)
    expected = [rule.session_of(each) for each in found]
    chosen = ranks_of(open_trace(path), 4, "session")
    rank_of = dict(zip(expected, chosen, strict=True))
    torn = sum(rank_of[session] != rank for session, rank in zip(expected, chosen, strict=True))
    assert torn < 0.05 * len(found)


@pytest.mark.parametrize("route", ["session", "prefix"])
def test_a_rule_says_what_it_would_have_to_know(route: str) -> None:
    found = trace([Request(0, 0.0, 1, 1, range(1))], has_blocks=False)
    with pytest.raises(TraceError, match=f"the route {route} needs to know .* use round-robin"):
        deal(found, 0, 2, route)
    assert deal(found, 0, 2).requests == 1
    with pytest.raises(ConfigError, match="route 'random'"):
        deal(found, 0, 2, "random")


def test_named_sessions_are_no_block_identity() -> None:
    found = trace([Request(0, 0.0, 1, 1, range(1), "a")], has_blocks=False, has_sessions=True)
    assert ranks_of(found, 2, "session") == [0]
    with pytest.raises(TraceError, match="which blocks inputs share"):
        deal(found, 0, 2, "prefix")


# -------------------------------------------------------------------------------------------------- prefix


def test_a_request_goes_where_the_longest_part_of_its_prefix_was_served() -> None:
    big = (100, *range(200, 300))
    found = requests(big, (0, 1, 2, 3), (9,), (0, 1, 2, 5), (9, 10))
    # Rank 0 serves the big one and is above the limit from then on.
    assert ranks_of(trace(found), 3, "prefix") == [0, 1, 2, 1, 2]


def test_a_busy_rank_gets_nothing_for_its_prefix() -> None:
    found = requests(tuple(range(10)), (*range(10), 20), (0, 30), (*range(10), 20, 40))
    # The first is all there is: rank 0 is above the mean. Then rank 1 is, too; at last it is not, and has the most.
    assert ranks_of(trace(found), 3, "prefix") == [0, 1, 2, 1]


def longest_served(served: list[set[int]], ids: tuple[int, ...], rank: int) -> int:
    return next((k for k, block in enumerate(ids) if block not in served[rank]), len(ids))


prefix_lists = st.lists(
    st.lists(st.integers(0, 2), max_size=5).map(tuple),
    max_size=40,
)


@settings(deadline=None, max_examples=100)
@given(prefix_lists, st.integers(1, 5))
def test_the_rule_of_prefixes_is_the_one_that_is_written_down(paths: list[tuple[int, ...]], ranks: int) -> None:
    names: dict[tuple[int, ...], int] = {}
    found = [
        Request(
            i, 0.0, 512 * len(path), i % 3, tuple(names.setdefault(path[: k + 1], len(names)) for k in range(len(path)))
        )
        for i, path in enumerate(paths)
    ]
    rule = ByPrefix(ranks)
    load, served = [0] * ranks, [set[int]() for _ in range(ranks)]
    for request in found:
        tokens = request.input_tokens + request.output_tokens
        mean = (sum(load) + tokens) / ranks
        allowed = [rank for rank in range(ranks) if load[rank] <= MAX_LOAD * mean]
        best = max(longest_served(served, request.block_ids, rank) for rank in allowed)
        fitting = [rank for rank in allowed if longest_served(served, request.block_ids, rank) == best]
        expected = min(fitting, key=lambda rank: (load[rank], rank))
        assert rule.choose(request) == expected
        load[expected] += tokens
        served[expected].update(request.block_ids)
        assert load[expected] <= MAX_LOAD * sum(load) / ranks + tokens


@pytest.mark.skipif(not MOONCAKE.exists(), reason="the shared Mooncake trace is not beside this checkout")
@pytest.mark.parametrize(("route", "share"), [("round-robin", 0.173), ("session", 0.328), ("prefix", 0.346)])
def test_routes_keep_the_hits_of_the_conversation_trace_on_the_rank(route: str, share: float) -> None:
    found = open_trace(MOONCAKE).first(6000)
    rule = route_named(route, 4, has_blocks=True, has_sessions=False, block_tokens=512)
    served = [set[int]() for _ in range(4)]
    hits = accesses = 0
    for request in found:
        rank = rule.choose(request)
        hits += longest_served(served, tuple(request.block_ids), rank)
        served[rank].update(request.block_ids)
        accesses += len(request.block_ids)
    assert hits / accesses == pytest.approx(share, abs=0.001)


def test_plain_requests_are_as_good_as_a_trace() -> None:
    found = list(islice(synthetic(0), 50))
    assert deal(iter(found), 0, 2, "session").totals == deal(generate("chat").first(50), 0, 2, "session").totals
