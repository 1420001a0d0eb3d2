"""A made-up trace with the structure of retrieval-augmented generation: popular documents in varying order.

Covers one service: a shared system prompt, a corpus of documents, sessions of a few questions. Does not
cover the index that finds the documents.

A prompt is: the system prompt, the documents found for this question, what was said in the session
before, the question. A block id names a prefix, so that documents are reused only as far as two prompts
begin alike: the system prompt always, then the documents for as long as they are the same ones in the
same order. What stands behind the first difference is new, popular or not.

The ids of all lists of documents seen so far are kept, so memory grows with their number.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count

from cascade_mpi.traces.prefixes import BLOCK_TOKENS, TOKENS_PER_S, Chain, Part
from cascade_mpi.traces.random_draws import Draws, zipf
from cascade_mpi.traces.request import Request


@dataclass(frozen=True, slots=True)
class Retrieval:
    """Its shape; tokens and seconds are means, of system prompt and documents uniform, else exponential."""

    system_tokens: int = 1200
    documents: int = 200
    document_tokens: int = 900
    popularity: float = 1.0
    """Zipf exponent: the k-th document is found k ** -popularity as often as the first."""
    mean_found: float = 3.0
    most_found: int = 8
    question_tokens: int = 120
    answer_tokens: int = 300
    mean_turns: float = 2.0
    between_sessions_s: float = 2.0
    between_turns_s: float = 45.0


@dataclass(slots=True)
class _Session:
    number: int
    turns: int
    said: list[Part] = field(default_factory=list)  # earlier questions and answers
    chains: dict[tuple[int, ...], Chain] = field(default_factory=dict)
    """Of each list of documents: should one come back, its prompt goes on where it ended."""


class _Shelf:
    """All documents, and the prompts that begin with lists of them: a tree of chains."""

    def __init__(self, draws: Draws, shape: Retrieval, ids: Iterator[int]) -> None:
        self._lengths = [draws.around(shape.document_tokens) for _ in range(shape.documents)]
        self._system = draws.around(shape.system_tokens)
        self._root = Chain(ids, BLOCK_TOKENS)
        self._chains: dict[tuple[int, ...], Chain] = {}

    def parts(self, documents: tuple[int, ...]) -> list[Part]:
        """The beginning of every prompt with these documents."""
        return [("system", self._system), *((document, self._lengths[document]) for document in documents)]

    def chain(self, documents: tuple[int, ...]) -> Chain:
        """A new prompt with that beginning."""
        chain, tokens = self._root, self._system
        for place, document in enumerate(documents, 1):
            listed = documents[:place]
            if listed not in self._chains:
                self._chains[listed] = chain.branch(tokens)
            chain = self._chains[listed]
            tokens += self._lengths[document]
        return chain.branch(tokens)


def retrieval(seed: int = 0, shape: Retrieval | None = None) -> Iterator[Request]:
    """Local. The requests of this seed, without end, in the order of time."""
    return (request for request, _ in prompts(seed, shape or Retrieval()))


def prompts(seed: int, shape: Retrieval) -> Iterator[tuple[Request, tuple[Part, ...]]]:
    """Local. The requests, and the parts of their prompts."""
    draws = Draws(seed)
    ids, tickets, numbers = count(), count(), count()  # a ticket decides between questions of the same time
    shelf = _Shelf(draws, shape, ids)
    popularity = zipf(shape.documents, shape.popularity)
    arrival = 0.0
    waiting: list[tuple[float, int, _Session]] = []
    for index in count():
        while not waiting or arrival <= waiting[0][0]:
            session = _Session(next(numbers), draws.rounds(shape.mean_turns))
            heapq.heappush(waiting, (arrival, next(tickets), session))
            arrival += draws.exponential(shape.between_sessions_s)
        now, _, session = heapq.heappop(waiting)
        found = min(draws.rounds(shape.mean_found), shape.most_found)
        documents = tuple(dict.fromkeys(draws.index(popularity) for _ in range(found)))  # one found twice is one
        question = (("question", index), draws.tokens(shape.question_tokens))
        answer = (("answer", index), draws.tokens(shape.answer_tokens))
        if documents not in session.chains:
            session.chains[documents] = shelf.chain(documents)
        parts = (*shelf.parts(documents), *session.said, question)
        input_tokens, output_tokens = sum(tokens for _, tokens in parts), answer[1]
        block_ids = session.chains[documents].request(input_tokens)
        yield Request(index, now, input_tokens, output_tokens, block_ids, session.number), parts
        session.turns -= 1
        session.said += [question, answer]
        if session.turns:
            again = now + output_tokens / TOKENS_PER_S + draws.exponential(shape.between_turns_s)
            heapq.heappush(waiting, (again, next(tickets), session))
