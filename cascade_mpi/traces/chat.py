"""A made-up trace with the structure of a chat service: many sessions at once, a few system prompts.

Covers the default workload: deterministic for a seed, endless, in the order of time. Does not cover
agents, retrieved chunks or load shapes.

Sessions arrive at random, choose one of a few system prompts (the popular ones more often), and take
several turns with pauses between, so that the turns of some tens of sessions interleave. Each turn's
input is all that was said before plus the new question. Block ids are those of prefix chains as in
the Mooncake traces: full blocks within the system prompt are shared by its sessions, later full
blocks by the turns of a session, and a last block that is only partly filled belongs to its turn.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count

from cascade_mpi.traces.prefixes import BLOCK_TOKENS, Chain
from cascade_mpi.traces.random_draws import Draws
from cascade_mpi.traces.request import Request


@dataclass(frozen=True, slots=True)
class Chat:
    """The shape of the sessions; tokens and seconds are means of exponential distributions."""

    prompts: int = 4
    prompt_tokens: int = 2500
    document_tokens: int = 1500
    question_tokens: int = 600
    answer_tokens: int = 400
    mean_turns: float = 4.0
    between_sessions_s: float = 4.0
    between_turns_s: float = 60.0
    max_tokens: int = 128_000


@dataclass(slots=True)
class _Prompt:
    tokens: int
    chain: Chain


@dataclass(slots=True)
class _Session:
    prompt: _Prompt
    turns: int
    number: int
    context: int  # tokens before the next question
    chain: Chain | None = None  # from its first turn on: ids are counted up in the order of their first use


def synthetic(seed: int = 0, chat: Chat | None = None) -> Iterator[Request]:
    """Local. The requests of this seed, without end: cut them with `itertools.islice`."""
    chat = chat or Chat()
    draws = Draws(seed)
    ids, tickets, numbers = count(), count(), count()  # a ticket decides between turns of the same time
    prompts = [_Prompt(draws.tokens(chat.prompt_tokens), Chain(ids, BLOCK_TOKENS)) for _ in range(chat.prompts)]
    arrival = 0.0
    waiting: list[tuple[float, int, _Session]] = []
    for index in count():
        while not waiting or arrival <= waiting[0][0]:
            prompt = prompts[int(chat.prompts * draws.uniform() ** 2)]  # the first of n takes a share of n ** -0.5
            turns = draws.rounds(chat.mean_turns)
            session = _Session(prompt, turns, next(numbers), prompt.tokens + draws.tokens(chat.document_tokens))
            heapq.heappush(waiting, (arrival, next(tickets), session))
            arrival += draws.exponential(chat.between_sessions_s)
        now, _, session = heapq.heappop(waiting)
        input_tokens = min(session.context + draws.tokens(chat.question_tokens), chat.max_tokens)
        output_tokens = draws.tokens(chat.answer_tokens)
        if session.chain is None:
            session.chain = session.prompt.chain.branch(min(session.prompt.tokens, input_tokens))
        yield Request(index, now, input_tokens, output_tokens, session.chain.request(input_tokens), session.number)
        session.turns -= 1
        session.context = input_tokens + output_tokens
        if session.turns and session.context < chat.max_tokens:
            heapq.heappush(waiting, (now + draws.exponential(chat.between_turns_s), next(tickets), session))
