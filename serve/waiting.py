"""Answers that wait for a place: bounded, and fair between clients."""

from collections import OrderedDict, deque
from collections.abc import Iterator

from ..formats.errors import EngineError
from .answer import Answer


class QueueFull(EngineError):
    """So many requests wait that another one would wait too long."""


class Waiting:
    """A queue of answers: clients take turns, each client's answers come in their order."""

    def __init__(self, limit: int) -> None:
        """Let `limit` answers wait."""
        self.limit = limit
        self._clients: OrderedDict[str, deque[Answer]] = OrderedDict()
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Answer]:
        return (answer for answers in self._clients.values() for answer in answers)

    def demand_room(self, n_answers: int, n_places: int) -> None:
        """Raise QueueFull when, beside the n_places that are free, more answers would wait than may."""
        if self._count + n_answers > self.limit + n_places:
            raise QueueFull(f"{self._count} requests wait already; try again later")

    def push(self, answer: Answer) -> None:
        """Take an answer."""
        self._clients.setdefault(answer.client, deque()).append(answer)
        self._count += 1

    def push_back(self, answer: Answer) -> None:
        """Take back an answer that was begun, to be the next one; it has waited, so no limit holds it off."""
        self._clients.setdefault(answer.client, deque()).appendleft(answer)
        self._clients.move_to_end(answer.client, last=False)
        self._count += 1

    def pop(self) -> Answer | None:
        """Return the next answer, None when nobody waits."""
        if not self._clients:
            return None
        client, answers = next(iter(self._clients.items()))
        answer = answers.popleft()
        self._count -= 1
        self._clients.move_to_end(client)
        if not answers:
            del self._clients[client]
        return answer

    def drop(self, unwanted: set[int]) -> None:
        """Take out the answers with these ids (of Python), which nobody waits for any more."""
        for client in list(self._clients):
            kept = deque(answer for answer in self._clients[client] if id(answer) not in unwanted)
            self._count -= len(self._clients[client]) - len(kept)
            self._clients[client] = kept
            if not kept:
                del self._clients[client]
