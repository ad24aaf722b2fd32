"""What the operator has said of single peers: `meshctl peer block | allow | free`. Kept across restarts.

A blocked peer is held to the free tier, and no routes are taken from it: nothing is bought from it, and nothing beyond
the crumbs of that tier carried for it. One that is free is carried without limit, and not billed.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from enum import Enum
from pathlib import Path

import msgspec
import trio
from msgspec import structs

from meshd.logs import Logger
from payments.events import MeteredTraffic

log = Logger("meshd.peers")
MAX_RULES = 10_000


class Rule(Enum):
    NORMAL = "normal"
    BLOCKED = "blocked"
    FREE = "free"


class PeerRules:
    """`hold` opens or shuts a peer's gate; `on_change` is told that routes of others are taken now. The engine's own
    wish to have a peer carried or held comes through `set_carrying`, and counts where there is no rule."""

    def __init__(
        self,
        file: Path | None,
        *,
        hold: Callable[[bytes, bool], Awaitable[None]],
        on_change: Callable[[], Awaitable[None]],
    ) -> None:
        self._file = file
        self._hold = hold
        self._on_change = on_change
        self._rule_by_peer = _load(file)
        self._held_by_engine: set[bytes] = set()

    @property
    def blocked(self) -> frozenset[bytes]:
        return frozenset(peer for peer, rule in self._rule_by_peer.items() if rule is Rule.BLOCKED)

    def of(self, peer: bytes) -> Rule:
        return self._rule_by_peer.get(peer, Rule.NORMAL)

    def all(self) -> dict[bytes, Rule]:
        return dict(self._rule_by_peer)

    async def start(self) -> None:
        """Those who are blocked are held from the beginning."""
        for peer in self.blocked:
            await self._hold(peer, False)

    async def set(self, peer: bytes, rule: Rule) -> None:
        """In force, and on the disk, when it returns. Raises OSError; then nothing has changed."""
        rules = {other: known for other, known in self._rule_by_peer.items() if other != peer}
        if rule is not Rule.NORMAL:
            rules[peer] = rule
        if self._file is not None:
            await trio.to_thread.run_sync(_save, self._file, rules)
        self._rule_by_peer = rules
        log.info("rule for a peer", peer=peer, rule=rule.value)
        await self._hold(peer, self._may_carry(peer))
        await self._on_change()

    async def set_carrying(self, peer: bytes, carrying: bool) -> None:
        (self._held_by_engine.discard if carrying else self._held_by_engine.add)(peer)
        await self._hold(peer, self._may_carry(peer))

    def _may_carry(self, peer: bytes) -> bool:
        rule = self.of(peer)
        return rule is Rule.FREE or (rule is Rule.NORMAL and peer not in self._held_by_engine)

    def billed(self, traffic: MeteredTraffic) -> MeteredTraffic:
        """What of it is to be paid for."""
        return structs.replace(traffic, earned_units=0) if self.of(traffic.peer) is Rule.FREE else traffic


def _load(file: Path | None) -> dict[bytes, Rule]:
    if file is None or not file.exists():
        return {}
    try:
        words = msgspec.json.decode(file.read_bytes(), type=dict[str, str])
        return {bytes.fromhex(peer): Rule(word) for peer, word in list(words.items())[:MAX_RULES]}
    except (OSError, ValueError) as error:
        log.error("the rules for single peers cannot be read, and none is in force", file=file, reason=error)
        return {}


def _save(file: Path, rules: dict[bytes, Rule]) -> None:
    temporary = file.with_name(file.name + ".new")
    with temporary.open("wb") as opened:
        opened.write(msgspec.json.encode({peer.hex(): rule.value for peer, rule in rules.items()}))
        opened.flush()
        os.fsync(opened.fileno())
    temporary.replace(file)
