"""Memory for arriving bodies, bounded and shared fairly: a client that sends nothing delays nobody."""

from __future__ import annotations

import asyncio

FREE = 256 * 1024
"""Bytes that every request may hold: small requests never wait for large ones."""


class Turns:
    """Lets the readers of bodies work one after the other, each for a moment, and the rest of the server in between.

    Without it, a round of the event loop has as many pieces to read as there are bodies, and /ping waits for all.
    """

    def __init__(self) -> None:
        self._lock = asyncio.Lock()

    async def next(self) -> None:
        """Wait for a turn, which ends at the next wait for anything."""
        async with self._lock:
            await asyncio.sleep(0)


class Claim:
    """The memory of one request. `remaining`: bytes it still expects, which decide its turn when memory is short."""

    def __init__(self, pool: Pool, remaining: int):
        self._pool = pool
        self.remaining = remaining
        self.held = 0

    async def hold(self, size: int) -> None:
        """Hold `size` bytes in all; waits for memory if they are more than before."""
        await self._pool.grow(self, size - self.held)

    def release(self) -> None:
        """Give everything back. May be called again."""
        self._pool.release(self)

    @property
    def is_waited_for(self) -> bool:
        """True if others can only continue when this one has finished."""
        return self._pool.is_waited_for(self)


class Pool:
    """Bytes of the bodies in memory: `limit`, and beyond it those of one request, so that one always gets on.

    When the limit is reached, requests that need more wait, and the one with the least to come gets on alone. It must
    hurry (its reader asks :attr:`Claim.is_waited_for`). Requests that are complete give their memory back when they are
    answered, incomplete ones when they are refused.
    """

    def __init__(self, limit: int):
        self.limit = limit
        self.held = 0
        self._alone: Claim | None = None
        self._queue: list[tuple[Claim, asyncio.Future[None]]] = []

    def claim(self, expected: int) -> Claim:
        """The claim of a new request, which holds nothing yet."""
        return Claim(self, expected)

    async def grow(self, claim: Claim, size: int) -> None:
        """Add `size` bytes (less than 0: give some back) to a claim, as soon as there is room."""
        while not self._has_room(claim, size):
            turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._queue.append((claim, turn))
            try:
                await turn
            finally:
                self._queue = [entry for entry in self._queue if entry[1] is not turn]
        claim.held += size
        self.held += size

    def release(self, claim: Claim) -> None:
        """Forget a claim, and let those continue that wait for its bytes."""
        self.held -= claim.held
        claim.held = 0
        if self._alone is claim:
            self._alone = None
        # Each looks for itself whether there is room now; the one with the least to come looks first.
        for _, turn in sorted(self._queue, key=lambda entry: entry[0].remaining):
            if not turn.done():
                turn.set_result(None)

    def is_waited_for(self, claim: Claim) -> bool:
        """True if the claim exceeds the limit while others wait."""
        return self._alone is claim and bool(self._queue)

    def _has_room(self, claim: Claim, size: int) -> bool:
        if claim.held + size <= max(claim.held, FREE) or claim is self._alone:
            return True
        if any(other.remaining < claim.remaining for other, _ in self._queue):
            return False
        if self.held + size <= self.limit:
            return True
        if self._alone is None:
            self._alone = claim
            return True
        return False
