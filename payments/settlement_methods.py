"""The settlement methods: `cltv`, channels on the chain; `credit`, signed sums between friends; `null`, none at all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar

from payments import crediting, opening, settlement
from payments.core import Core, Peer
from payments.settlement_port import SettlementMethod


@dataclass(frozen=True, slots=True)
class Cltv:
    """Unidirectional channels that expire (docs/spec/channel.md)."""

    name: ClassVar[str] = "cltv"
    is_paid: ClassVar[bool] = True
    needs_chain: ClassVar[bool] = True

    def begin_session(self, core: Core, peer: Peer) -> None:
        """Channels are brought together whatever holds now: earlier ones are still to be claimed."""

    def pay(self, core: Core, peer: Peer, amount_msat: int) -> int:
        return settlement.pay_through_channels(core, peer, amount_msat)

    def review(self, core: Core, peer: Peer, *, now: float) -> None:
        opening.review(core, peer, now=now)


@dataclass(frozen=True, slots=True)
class Credit:
    """Signed promises up to a limit (`payments.credit`)."""

    name: ClassVar[str] = "credit"
    is_paid: ClassVar[bool] = True
    needs_chain: ClassVar[bool] = False

    def begin_session(self, core: Core, peer: Peer) -> None:
        crediting.begin_session(core, peer)

    def pay(self, core: Core, peer: Peer, amount_msat: int) -> int:
        return crediting.pay(core, peer, amount_msat)

    def review(self, core: Core, peer: Peer, *, now: float) -> None:
        """Nothing has to be prepared."""


@dataclass(frozen=True, slots=True)
class Null:
    """Metered and billed, for show: since the start of the daemon, and never paid."""

    name: ClassVar[str] = "null"
    is_paid: ClassVar[bool] = False
    needs_chain: ClassVar[bool] = False

    def begin_session(self, core: Core, peer: Peer) -> None:
        pass

    def pay(self, core: Core, peer: Peer, amount_msat: int) -> int:  # noqa: ARG002
        return 0

    def review(self, core: Core, peer: Peer, *, now: float) -> None:
        pass


METHODS: Mapping[str, SettlementMethod] = MappingProxyType(
    {method.name: method for method in (Cltv(), Credit(), Null())}
)
