"""What the sentinel runs (see `sentinel`): read on stdin whom to watch, and speak if the job dies.

Covers one line on stderr, or none when it was dismissed. It is run by its path, with the standard library only: it
must import nothing of this package.
"""

from __future__ import annotations

import os
import select
import signal
import sys

REST = "the job is over. It was killed from outside, ran out of memory, or crashed"


def said(dead: set[int]) -> str:
    """Local. The line about the ranks that were dead when it was noticed."""
    if len(dead) == 1:
        return f"rank {min(dead)} has died: {REST}"
    return f"a rank has died and the launcher has killed the others: {REST}"


def main() -> int:
    """Local. Watch until dismissed, or until stdin or a process ends."""
    for number in (signal.SIGINT, signal.SIGTERM):  # Slurm sends them to every process of a step; it ends with rank 0
        signal.signal(number, signal.SIG_IGN)
    poll = select.poll()
    poll.register(0, select.POLLIN)
    watched: dict[int, int] = {}
    text = b""
    ended = False
    while True:
        ready = [fd for fd, _ in poll.poll()]
        if 0 in ready:
            heard = os.read(0, 65536)
            text += heard
            *lines, text = text.split(b"\n")
            for line in lines:
                word, *numbers = line.split()
                if word == b"dismissed":
                    return 0
                rank, pid = map(int, numbers)
                try:
                    fd = os.pidfd_open(pid)
                except (OSError, AttributeError):  # gone already, or a kernel without: rank 0's own end is seen anyway
                    continue
                watched[fd] = rank
                poll.register(fd, select.POLLIN)
            ended = not heard
        if ended or any(fd in watched for fd in ready):
            break
    dead = {watched[fd] for fd, _ in poll.poll(0) if fd in watched}
    if ended:
        dead.add(0)  # the other end of stdin is rank 0
    os.write(2, f"cascade: {said(dead)}\n".encode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
