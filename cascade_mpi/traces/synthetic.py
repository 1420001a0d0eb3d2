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
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count

import numpy as np

from cascade_mpi.traces.prefixes import BLOCK_TOKENS
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
    ids: list[int] = field(default_factory=list)


@dataclass(slots=True)
class _Session:
    prompt: _Prompt
    turns: int
    number: int
    context: int  # tokens before the next question
    ids: list[int] = field(default_factory=list)  # of the full blocks behind those of the prompt


def synthetic(seed: int = 0, chat: Chat | None = None) -> Iterator[Request]:
    """Local. The requests of this seed, without end: cut them with `itertools.islice`.

    Only uniform doubles are drawn from the generator, so that the trace does not hang on how a version
    of NumPy samples other distributions.
    """
    chat = chat or Chat()
    uniform = np.random.Generator(np.random.PCG64(seed)).random

    def exponential(mean: float) -> float:
        return -mean * math.log1p(-uniform())

    def tokens(mean: int) -> int:
        return 1 + int(exponential(mean))

    prompts = [_Prompt(tokens(chat.prompt_tokens)) for _ in range(chat.prompts)]
    ids, tickets, numbers = count(), count(), count()  # a ticket decides between turns of the same time
    arrival = 0.0
    waiting: list[tuple[float, int, _Session]] = []
    for index in count():
        while not waiting or arrival <= waiting[0][0]:
            popular = int(chat.prompts * uniform() ** 2)  # the first of n prompts takes a share of n ** -0.5
            turns = 1 + int(math.log1p(-uniform()) / math.log1p(-1 / max(chat.mean_turns, 1.001)))
            context = prompts[popular].tokens + tokens(chat.document_tokens)
            session = _Session(prompts[popular], turns, next(numbers), context)
            heapq.heappush(waiting, (arrival, next(tickets), session))
            arrival += exponential(chat.between_sessions_s)
        now, _, session = heapq.heappop(waiting)
        input_tokens = min(session.context + tokens(chat.question_tokens), chat.max_tokens)
        output_tokens = tokens(chat.answer_tokens)
        block_ids = _block_ids(session, input_tokens, ids)
        yield Request(index, now, input_tokens, output_tokens, block_ids, session.number)
        session.turns -= 1
        session.context = input_tokens + output_tokens
        if session.turns and session.context < chat.max_tokens:
            heapq.heappush(waiting, (now + exponential(chat.between_turns_s), next(tickets), session))


def _block_ids(session: _Session, input_tokens: int, ids: Iterator[int]) -> tuple[int, ...]:
    full = input_tokens // BLOCK_TOKENS
    shared = min(session.prompt.tokens // BLOCK_TOKENS, full)
    session.prompt.ids.extend(next(ids) for _ in range(shared - len(session.prompt.ids)))
    session.ids.extend(next(ids) for _ in range(full - shared - len(session.ids)))
    partly = (next(ids),) if input_tokens % BLOCK_TOKENS else ()
    return (*session.prompt.ids, *session.ids, *partly)
