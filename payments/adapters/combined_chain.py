"""ChainPort over several backends that need not all be there, nor all be honest.

- Height: the highest that anybody says, so that claims begin early rather than late; but not faster than blocks can
  come, so that one lie does not spoil the books, which never take a height back. Where nobody has a block for hours,
  the clock stands in for it: a backend that has stopped must not make a channel expire unseen.
- What brings us money needs all: an output is as deep as the backend says that finds it least deep, and one that was
  never heard of it makes it unconfirmed. Who has spent it counts when `quorum` say so.
- Transactions go to all; one that takes it is enough, and a refusal needs `quorum`.

A backend that does not answer keeps what it last said. As long as one answers, so do we.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import trio

from payments.adapters.polling import poll_tips
from payments.ports import (
    BroadcastResult,
    ChainError,
    ChainPort,
    ChainTip,
    Outpoint,
    OutputStatus,
    TransactionStatus,
    Utxo,
)

ANSWER_TIMEOUT = 15.0
RETRY_INTERVAL = 30.0  # a backend that did not answer is left alone for so long
POLL_INTERVAL = 1.0
FASTEST_BLOCK_INTERVAL = 60.0  # ten times the average: on a real network, no faster for long
MAX_LEAP = 6  # blocks at once, beyond that
STALL_INTERVAL = 3 * 3600.0  # no block for so long: once in ten years
BLOCK_INTERVAL = 600.0
MAX_FEE_RATIO = 10.0  # between what backends say
MAX_REMEMBERED = 10_000

T = TypeVar("T")


@dataclass(slots=True)
class Backend:
    """One of them, with what it last said."""

    name: str
    port: ChainPort
    tip: ChainTip | None = None
    is_answering: bool = False
    retry_at: float = -math.inf
    outputs: dict[Outpoint, OutputStatus | None] = field(default_factory=dict)
    transactions: dict[bytes, TransactionStatus | None] = field(default_factory=dict)


class CombinedChain:
    """`quorum`: how many must agree on what costs us money when it is a lie; all, if left out. `is_real`: blocks come
    every ten minutes; False for regtest."""

    def __init__(
        self,
        backends: Sequence[tuple[str, ChainPort]],
        *,
        quorum: int | None = None,
        is_real: bool = True,
        poll_interval: float = POLL_INTERVAL,
    ) -> None:
        wanted = len(backends) if quorum is None else quorum
        if not 1 <= wanted <= len(backends):
            raise ValueError("a quorum is at least one backend, and at most all")
        self.backends = [Backend(name, port) for name, port in backends]
        self._quorum = wanted
        self._is_real = is_real
        self._poll_interval = poll_interval
        self._height: int | None = None
        self._height_at = -math.inf  # when it last grew
        self._leap = float(MAX_LEAP)  # blocks that may come at once
        self._leap_at = -math.inf

    # --- ChainPort ---

    async def tip(self) -> ChainTip:
        for backend, tip in await self._ask_all(lambda port: port.tip()):
            backend.tip = tip
        known = [backend.tip for backend in self.backends if backend.tip is not None]
        if not known:
            raise ChainError("no backend has ever told its height")
        highest = max(known, key=lambda tip: tip.height)
        height = self._plausible(highest.height, sorted(tip.height for tip in known))
        return ChainTip(height, highest.block_hash)

    async def fee_rate(self) -> float:
        """The highest, within reason: a claim that waits is worse than one that is dear."""
        rates = [rate for _, rate in await self._ask_all(lambda port: port.fee_rate())]
        return min(max(rates), MAX_FEE_RATIO * min(rates))

    async def broadcast(self, raw: bytes) -> BroadcastResult:
        results = [result for _, result in await self._ask_all(lambda port: port.broadcast(raw))]
        accepted = [result for result in results if result.accepted]
        if accepted:
            return accepted[0]
        if len(results) < self._quorum:
            raise ChainError(f"refused by {len(results)} backends ({results[0].code}), and the others do not answer")
        return results[0]

    async def transaction(self, txid: bytes) -> TransactionStatus | None:
        for backend, status in await self._ask_all(lambda port: port.transaction(txid)):
            _remember(backend.transactions, txid, status)
        said = [(backend, backend.transactions.get(txid)) for backend in self.backends]
        known = [status for _, status in said if status is not None]
        if not known:
            return None
        fees = [status.fee_sat for status in known if status.fee_sat is not None]
        depth = min(_depth(backend, None if status is None else status.height) for backend, status in said)
        return TransactionStatus(known[0].raw, self._height_of(depth), fees[0] if fees else None)

    async def output(self, outpoint: Outpoint) -> OutputStatus | None:
        for backend, status in await self._ask_all(lambda port: port.output(outpoint)):
            _remember(backend.outputs, outpoint, status)
        said = [(backend, backend.outputs.get(outpoint)) for backend in self.backends]
        known = [status for _, status in said if status is not None]
        if not known:
            return None
        if len({(status.value_sat, status.script_pubkey) for status in known}) > 1:
            raise ChainError("the backends do not agree on what an output is")
        depth = min(_depth(backend, None if status is None else status.height) for backend, status in said)
        spender, spent_depth = self._spender(said)
        return OutputStatus(
            known[0].value_sat,
            known[0].script_pubkey,
            self._height_of(depth),
            spender,
            None if spender is None else self._height_of(spent_depth),
        )

    async def utxos(self, script_pubkeys: Sequence[bytes]) -> list[Utxo]:
        """What all that answer find unspent; a backend that lacks one makes it none, as it may be spent."""
        answers = await self._ask_all(lambda port: port.utxos(script_pubkeys))
        common = set.intersection(*({utxo.outpoint for utxo in found} for _, found in answers))
        heights: dict[Outpoint, list[int]] = {}
        for backend, found in answers:
            for utxo in found:
                heights.setdefault(utxo.outpoint, []).append(_depth(backend, utxo.height))
        return [
            Utxo(u.outpoint, u.value_sat, u.script_pubkey, self._height_of(min(heights[u.outpoint])), u.coinbase)
            for u in answers[0][1]
            if u.outpoint in common
        ]

    def tips(self) -> AsyncIterator[ChainTip]:
        return poll_tips(self.tip, self._poll_interval)

    # --- What they need ---

    async def _ask_all(self, question: Callable[[ChainPort], Awaitable[T]]) -> list[tuple[Backend, T]]:
        """Who answers, and what. Raises ChainError when nobody does."""
        now = trio.current_time()
        asked = [backend for backend in self.backends if now >= backend.retry_at] or self.backends
        answers: dict[str, tuple[Backend, T]] = {}
        failures: list[str] = []

        async def ask(backend: Backend) -> None:
            backend.is_answering = False
            try:
                with trio.fail_after(ANSWER_TIMEOUT):
                    answers[backend.name] = backend, await question(backend.port)
                backend.is_answering, backend.retry_at = True, -math.inf
            except (ChainError, trio.TooSlowError) as error:
                failures.append(f"{backend.name}: {error or 'no answer'}")
                backend.retry_at = trio.current_time() + RETRY_INTERVAL

        async with trio.open_nursery() as nursery:
            for backend in asked:
                nursery.start_soon(ask, backend)
        if not answers:
            raise ChainError("; ".join(sorted(failures)))
        return [answers[backend.name] for backend in asked if backend.name in answers]

    def _plausible(self, highest: int, heights: list[int]) -> int:
        """The height that we go by; it never goes back."""
        now = trio.current_time()
        if not self._is_real:
            self._height = max(highest, self._height or 0)
            return self._height
        if self._height is None:
            # Of two, the lower one: the other may lie, and the clock will soon have let us come to it.
            self._height = heights[(len(heights) - 1) // 2]
            self._height_at = self._leap_at = now
        self._leap += (now - self._leap_at) / FASTEST_BLOCK_INTERVAL
        self._leap_at = now
        silence = now - self._height_at
        assumed = int(silence / BLOCK_INTERVAL) if silence > STALL_INTERVAL else 0
        growth = max(0, assumed, min(highest - self._height, int(self._leap)))
        if growth:
            self._height, self._height_at = self._height + growth, now
            self._leap = min(self._leap - growth, float(MAX_LEAP))
        return self._height

    def _height_of(self, depth: int) -> int | None:
        """Where something so deep would be, by the height that we go by."""
        return None if depth <= 0 or self._height is None else max(0, self._height - depth + 1)

    def _spender(self, said: list[tuple[Backend, OutputStatus | None]]) -> tuple[bytes | None, int]:
        """Who spends it, by the word of enough, and how deep for the least convinced of all."""
        names = Counter(status.spent_by for _, status in said if status is not None and status.spent_by is not None)
        if not names:
            return None, 0
        spender, count = names.most_common(1)[0]
        if count < self._quorum:
            return None, 0
        depths = [
            _depth(backend, status.spent_height) if status is not None and status.spent_by == spender else 0
            for backend, status in said
        ]
        return spender, min(depths)


def _depth(backend: Backend, height: int | None) -> int:
    """Confirmations, by that backend's own height; 0: none, or it does not know."""
    return 0 if height is None or backend.tip is None else max(0, backend.tip.height - height + 1)


def _remember(known: dict[Any, Any], key: Any, status: Any) -> None:
    known.pop(key, None)
    known[key] = status
    if len(known) > MAX_REMEMBERED:
        del known[next(iter(known))]
