"""Memory that bodies share: bounded, and never held up by one that sends nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from stages.serving.document_stream import DocumentStream
from stages.serving.intake import Intake
from stages.serving.refusals import Refused
from stages.serving.settings import Settings
from stages.serving.waiting import FREE, Claim, Pool, Turns

MB = 1 << 20
HEAD = b'{"inputs": {"image": ["'


def test_what_is_held_is_bounded_by_the_limit_and_one_request() -> None:
    async def scenario() -> None:
        pool = Pool(4 * MB)
        most = 0

        async def body(size: int) -> None:
            nonlocal most
            claim = pool.claim(size)
            for held in range(MB // 4, size + 1, MB // 4):
                await claim.hold(held)
                claim.remaining = size - held
                most = max(most, pool.held)
                await asyncio.sleep(0)
            claim.release()

        await asyncio.wait_for(asyncio.gather(*(body(3 * MB) for _ in range(12))), 5)
        assert pool.held == 0 and 4 * MB < most <= 4 * MB + 3 * MB + 12 * FREE

    asyncio.run(scenario())


def test_a_small_request_never_waits_and_the_next_largest_goes_first() -> None:
    async def scenario() -> None:
        pool = Pool(MB)
        full, alone, large, middle, small = (pool.claim(size * MB) for size in (60, 50, 40, 4, 1))
        await full.hold(MB)
        await alone.hold(2 * MB)
        assert not alone.is_waited_for
        done: list[str] = []

        async def hold(claim: Claim, name: str) -> None:
            await claim.hold(MB)
            done.append(name)

        tasks = [asyncio.create_task(hold(large, "large")), asyncio.create_task(hold(middle, "middle"))]
        await asyncio.sleep(0)
        assert alone.is_waited_for and not done
        await asyncio.wait_for(small.hold(FREE), 1)
        alone.release()
        for _ in range(5):
            await asyncio.sleep(0)
        assert done == ["middle"]
        middle.release()
        full.release()
        await asyncio.wait_for(asyncio.gather(*tasks), 1)

    asyncio.run(scenario())


def test_a_claim_that_is_given_up_waits_no_more() -> None:
    async def scenario() -> None:
        pool = Pool(MB)
        first, second = pool.claim(9 * MB), pool.claim(9 * MB)
        await first.hold(2 * MB)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(second.hold(MB), 0.01)
        assert not first.is_waited_for
        second.release()
        first.release()
        assert pool.held == 0

    asyncio.run(scenario())


def intake(pool: Pool, receive: Callable[[], Coroutine[Any, Any, dict]], **settings: int) -> Coroutine[Any, Any, None]:
    stream = DocumentStream(max_images=4, max_image_bytes=1 << 25)
    claim = pool.claim(60 * MB)
    return Intake(Settings(**settings), claim, Turns(), receive).read(stream, None)


def drip(first: bytes, then: bytes, every: float) -> Callable[[], Coroutine[Any, Any, dict]]:
    parts = [first]

    async def receive() -> dict:
        if parts:
            return {"type": "http.request", "body": parts.pop(), "more_body": True}
        await asyncio.sleep(every)
        return {"type": "http.request", "body": then, "more_body": True}

    return receive


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clocks that run a hundred times as fast."""
    monkeypatch.setattr("stages.serving.intake._TICK", 0.01)
    monkeypatch.setattr("stages.serving.intake._DRAIN_SILENCE", 0.01)


@pytest.mark.usefixtures("fast")
@pytest.mark.parametrize("first", [b"", HEAD + b"A" * 300_000])
def test_a_body_that_drips_is_refused(first: bytes) -> None:
    async def scenario() -> None:
        with pytest.raises(Refused, match="too slowly") as caught:
            await asyncio.wait_for(intake(Pool(MB), drip(first, b"A", 0.005)), 5)
        assert caught.value.status == 408

    asyncio.run(scenario())


@pytest.mark.usefixtures("fast")
def test_a_body_that_others_wait_for_must_hurry() -> None:
    async def scenario() -> None:
        pool = Pool(MB)
        slow = asyncio.create_task(intake(pool, drip(HEAD + b"A" * 2 * MB, b"A" * 100, 0.001), min_bytes_per_second=1))
        await asyncio.sleep(0.2)
        assert not slow.done(), "nobody waits"
        claim = pool.claim(4 * MB)
        waiting = asyncio.create_task(claim.hold(4 * MB))
        with pytest.raises(Refused, match="others waiting"):
            await asyncio.wait_for(slow, 5)
        assert not waiting.done()

    asyncio.run(scenario())


@pytest.mark.usefixtures("fast")
def test_a_refused_body_is_read_while_it_comes_and_no_longer() -> None:
    async def scenario() -> None:
        pool = Pool(MB)
        with pytest.raises(Refused, match="not base64"):
            await asyncio.wait_for(intake(pool, drip(HEAD + b"!" * 400, b"A", 60)), 5)
        assert pool.held == 0

    asyncio.run(scenario())


def test_turns_leave_room_for_others_between_two_pieces() -> None:
    async def scenario() -> None:
        turns, order = Turns(), []

        async def reader(name: str) -> None:
            for _ in range(3):
                await turns.next()
                order.append(name)

        async def ping() -> None:
            for _ in range(4):
                await asyncio.sleep(0)
                order.append("ping")

        await asyncio.gather(*(reader(name) for name in "abcdefgh"), ping())
        between = [len(part) for part in "".join(name[0] for name in order).split("p")[1:-1]]
        assert max(between) <= 2, order

    asyncio.run(scenario())
