"""A made-up trace with the structure of agents: many short steps over a context that only grows.

Covers tasks of several agent types, tool loops, and sub-agents. Does not cover what the tools do.

Each type of agent has a long prompt of instructions and tools that all its tasks share. A step's input
is all that was said before and the output of the tool that the step before has called. Some agents
stop once and send out sub-agents: these begin with all that their parent has seen, go on with
instructions of their own, and take some steps side by side; their results become part of the parent's
context in the order in which they finish. A session is a task with all its sub-agents. Tens of tasks
are under way at a time, so that their steps interleave.
"""

from __future__ import annotations

import heapq
from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from itertools import count

from cascade_mpi.traces.prefixes import BLOCK_TOKENS, TOKENS_PER_S, Chain, Part
from cascade_mpi.traces.random_draws import Draws, zipf
from cascade_mpi.traces.request import Request


@dataclass(frozen=True, slots=True)
class Agents:
    """The shape of the tasks; tokens and seconds are means: of the types' prompts uniform, else exponential."""

    types: int = 4
    prompt_tokens: int = 4000
    task_tokens: int = 300
    call_tokens: int = 90
    tool_tokens: int = 500
    mean_steps: float = 8.0
    sending: float = 0.3
    """Share of the agents that send out sub-agents."""
    mean_sent: float = 3.0
    order_tokens: int = 120
    """Of the instructions of a sub-agent."""
    mean_sub_steps: float = 3.0
    result_tokens: int = 250
    """What the parent gets of a sub-agent."""
    between_tasks_s: float = 3.0
    tool_s: float = 4.0
    max_tokens: int = 128_000
    """An agent near it takes no further step."""


@dataclass(slots=True)
class _Agent:
    session: int
    chain: Chain
    parts: list[Part]
    tokens: int
    steps: int
    sends_after: int = 0  # so many steps before its end; 0: never
    parent: _Agent | None = None
    away: int = 0  # sub-agents that it waits for

    def add(self, what: Hashable, tokens: int) -> None:
        self.parts.append((what, tokens))
        self.tokens += tokens


def agents(seed: int = 0, shape: Agents | None = None) -> Iterator[Request]:
    """Local. The requests of this seed, without end, in the order of time."""
    return (request for request, _ in prompts(seed, shape or Agents()))


def prompts(seed: int, shape: Agents) -> Iterator[tuple[Request, tuple[Part, ...]]]:
    """Local. The requests, and the parts of their prompts."""
    draws = Draws(seed)
    ids, tickets, numbers = count(), count(), count()  # a ticket decides between steps of the same time
    lengths = [draws.around(shape.prompt_tokens) for _ in range(shape.types)]
    shared = [Chain(ids, BLOCK_TOKENS) for _ in lengths]
    popularity = zipf(shape.types, 1.0)
    waiting: list[tuple[float, int, _Agent]] = []

    def call(agent: _Agent, time: float) -> None:
        heapq.heappush(waiting, (time, next(tickets), agent))

    def new_task() -> _Agent:
        kind = draws.index(popularity)
        steps = draws.rounds(shape.mean_steps)
        agent = _Agent(next(numbers), shared[kind].branch(lengths[kind]), [], 0, steps)
        agent.add(("prompt", kind), lengths[kind])
        agent.add(("task", agent.session), draws.tokens(shape.task_tokens))
        if draws.uniform() < shape.sending and steps > 1:
            agent.sends_after = 1 + int(draws.uniform() * (steps - 1))
        return agent

    def send_out(parent: _Agent, time: float) -> None:
        for _ in range(draws.rounds(shape.mean_sent)):
            chain = parent.chain.branch(parent.tokens)
            sub = _Agent(parent.session, chain, list(parent.parts), parent.tokens, draws.rounds(shape.mean_sub_steps))
            sub.parent = parent
            sub.add(("order", next(tickets)), draws.tokens(shape.order_tokens))
            parent.away += 1
            call(sub, time)

    arrival = 0.0
    for index in count():
        while not waiting or arrival <= waiting[0][0]:
            call(new_task(), arrival)
            arrival += draws.exponential(shape.between_tasks_s)
        now, _, agent = heapq.heappop(waiting)
        output_tokens = draws.tokens(shape.call_tokens)
        block_ids = agent.chain.request(agent.tokens)
        yield Request(index, now, agent.tokens, output_tokens, block_ids, agent.session), tuple(agent.parts)
        agent.add(("said", index), output_tokens)
        agent.steps -= 1
        later = now + output_tokens / TOKENS_PER_S
        if agent.tokens > shape.max_tokens - shape.tool_tokens:
            agent.steps = 0
        if agent.steps and agent.steps == agent.sends_after:
            send_out(agent, later)
        elif agent.steps:
            agent.add(("tool", index), draws.tokens(shape.tool_tokens))
            call(agent, later + draws.exponential(shape.tool_s))
        elif agent.parent is not None:
            parent = agent.parent
            parent.add(("result", index), draws.tokens(shape.result_tokens))
            parent.away -= 1
            if not parent.away:
                call(parent, later)
