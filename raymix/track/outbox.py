"""An outbox: what is to be written somewhere slow, written by a thread of its own, in order."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from itertools import takewhile
from typing import Generic, TypeVar

M = TypeVar("M")


@dataclass(frozen=True)
class Batch(Generic[M]):
    """Values for one run; neighbours in the outbox are written together."""

    run: int
    values: tuple[M, ...]


Action = Callable[[], None]


class UnreachableError(Exception):
    """The other side cannot be reached now; what was to be written may be tried again."""


class Outbox(Generic[M]):
    """Writes batches and actions in the order in which they came, without making anyone wait.

    `write` stores the values of one run. When it or an action raises UnreachableError, everything
    from there on is kept and tried again every `pause` seconds; any other error is told, and what
    it was about is left out. `tell` hears each message, and that nothing is reached, once.
    """

    def __init__(
        self,
        write: Callable[[int, list[M]], None],
        tell: Callable[[str], None],
        gather: float = 1.0,
        pause: float = 30.0,
    ) -> None:
        self._write = write
        self._tell = tell
        self._gather = gather
        self._pause = pause
        self._entries: deque[Batch[M] | Action] = deque()
        self._told: set[str] = set()
        self._changed = threading.Condition()
        self._closing = False
        self._passes = 0
        self._thread = threading.Thread(target=self._work, name="outbox", daemon=True)
        self._thread.start()

    def put(self, entry: Batch[M] | Action) -> None:
        """Leave something to be written; returns at once."""
        with self._changed:
            self._entries.append(entry)
            self._changed.notify()

    def first_pass(self, seconds: float) -> bool:
        """Wait until something has been tried; whether nothing is left then."""
        with self._changed:
            self._changed.wait_for(lambda: self._passes > 0, seconds)
            return not self._entries

    def close(self, seconds: float) -> int:
        """Try once more to write everything; how much was left unwritten after `seconds`."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(seconds)
        with self._changed:
            return len(self._entries)

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._entries or self._closing)
                # A little patience makes many reports one request.
                if self._passes:
                    self._changed.wait_for(lambda: self._closing, self._gather)
                closing = self._closing
            reached = self._send_all()
            with self._changed:
                self._passes += 1
                self._changed.notify_all()
                if closing:
                    return
                if not reached:
                    self._changed.wait_for(lambda: self._closing, self._pause)

    def _send_all(self) -> bool:
        """Write what is there; False when the other side cannot be reached."""
        while entries := self._next():
            try:
                self._send(entries)
            except UnreachableError as error:
                self._once("", str(error))
                return False
            except Exception as error:
                self._once(str(error), str(error))
            self._drop(entries)
        return True

    def _drop(self, sent: list[Batch[M] | Action]) -> None:
        """Forget what was written; what stands behind it is not looked at.

        After an hour without a server there may be ten thousands of entries.
        """
        left, passed = {id(entry) for entry in sent}, []
        with self._changed:
            while left:
                entry = self._entries.popleft()
                if id(entry) in left:
                    left.discard(id(entry))
                else:
                    passed.append(entry)
            self._entries.extendleft(reversed(passed))

    def _next(self) -> list[Batch[M] | Action]:
        """The first entry; with a batch, all others of its run that stand before an action."""
        with self._changed:
            if not self._entries:
                return []
            first = self._entries[0]
            if not isinstance(first, Batch):
                return [first]
            batches = takewhile(lambda entry: isinstance(entry, Batch), self._entries)
            return [e for e in batches if isinstance(e, Batch) and e.run == first.run]

    def _send(self, entries: list[Batch[M] | Action]) -> None:
        values: list[M] = []
        for entry in entries:
            if isinstance(entry, Batch):
                values.extend(entry.values)
                run = entry.run
            else:
                entry()
        if values:
            self._write(run, values)

    def _once(self, kind: str, message: str) -> None:
        if kind not in self._told:
            self._told.add(kind)
            self._tell(message)
