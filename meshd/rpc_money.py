"""What meshctl can ask a node about money, and tell it. Money is msat; names carry the unit."""

from __future__ import annotations

from ipaddress import IPv6Address
from typing import TYPE_CHECKING, Any

from msgspec import structs

from meshd import schemas
from meshd.control import INVALID_PARAMS, NOT_FOUND, REFUSED, Method, RpcError
from meshd.identity import overlay_address
from meshd.names import identity_of
from meshd.rpc_chain import chain_methods
from meshd.rpc_channels import channel_methods
from meshd.rpc_credit import credit_methods
from meshd.rpc_wallet import wallet_methods
from payments import events as pay
from payments.agreement import CountsView
from payments.records import ChannelState, Direction

if TYPE_CHECKING:
    from meshd.daemon import Daemon

BALANCE_PATIENCE = 5.0
UNITS_PER_MSAT = 10**9


class MoneyMethods:
    """The handlers; each takes checked parameters and returns JSON."""

    def __init__(self, daemon: Daemon) -> None:
        self.node = daemon

    async def balance(self) -> int | None:
        """On chain, in sat; None: the wallet or the chain does not say."""
        if not self.node.payments_enabled or not self.node.paymaster.engine.needs_chain:
            return None
        balance = await self.node.paymaster.keeper.balance(BALANCE_PATIENCE)
        return None if balance is None else balance.confirmed_sat + balance.unconfirmed_sat

    def require_payments(self) -> None:
        if not self.node.payments_enabled:
            raise RpcError(REFUSED, "payments are switched off in the configuration ([payments] enabled)")

    async def channels(self, _: dict[str, Any]) -> Any:
        return [
            {
                "channel_id": channel.channel_id.hex(),
                "peer": channel.peer.hex(),
                "peer_address": str(overlay_address(channel.peer)),
                "direction": channel.direction.value,
                "state": channel.state.value,
                "capacity_sat": channel.capacity_sat,
                "cumulative_msat": channel.cumulative_msat,
                "acknowledged_msat": channel.acknowledged_msat,
                "funding": None
                if channel.funding is None
                else f"{channel.funding.txid[::-1].hex()}:{channel.funding.index}",
                "expiry_height": channel.expiry_height,
                "closing_txid": None if channel.spend_txid is None else channel.spend_txid[::-1].hex(),
            }
            for channel in self.node.paymaster.engine.channels()
        ]

    async def ledger(self, _: dict[str, Any]) -> Any:
        await self.node.accounting.look()
        counts_by_peer = {view.peer: _counts(view) for view in self.node.paymaster.engine.counts()}
        return [
            {
                "peer": ledger.peer.hex(),
                "peer_address": str(overlay_address(ledger.peer)),
                "state": "suspended" if ledger.is_suspended else "open",
                "window_msat": ledger.window_msat,
                "billed_msat": ledger.billed_units // UNITS_PER_MSAT,
                "acknowledged_msat": ledger.acknowledged_units // UNITS_PER_MSAT,
                "their_billed_msat": ledger.their_billed_units // UNITS_PER_MSAT,
                "accepted_msat": ledger.accepted_units // UNITS_PER_MSAT,
                "sent_msat": ledger.sent_msat,
                "received_msat": ledger.received_msat,
                "balance_msat": ledger.unpaid_msat,
                "settlement": ledger.settlement,
                "counts": counts_by_peer.get(ledger.peer),
            }
            for ledger in self.node.paymaster.engine.ledgers()
        ]

    async def pay_hold(self, _: dict[str, Any]) -> Any:
        self.require_payments()
        await self.node.paymaster.hold_payments(True)
        return {"paying": False}

    async def pay_resume(self, _: dict[str, Any]) -> Any:
        self.require_payments()
        await self.node.paymaster.hold_payments(False)
        return {"paying": True}

    async def channel_close(self, params: dict[str, Any]) -> Any:
        self.require_payments()
        peer = None if params.get("peer") is None else self.find_peer(params["peer"])
        closing = [
            channel.channel_id.hex()
            for channel in self.node.paymaster.engine.channels()
            if channel.direction is Direction.IN and channel.state is ChannelState.OPEN and peer in (None, channel.peer)
        ]
        await self.node.paymaster.put(pay.OperatorCloseChannels(peer))
        return {"channels": closing, "txid": None}

    def find_peer(self, text: str) -> bytes:
        """Raises RpcError. By name, by public key (hex), by the beginning of one, or by overlay address."""
        named = identity_of(self.node.config, text)
        if named is not None:
            return named
        peers = [ledger.peer for ledger in self.node.paymaster.engine.ledgers()]
        if not text:
            raise RpcError(INVALID_PARAMS, "peer is empty: expected a public key, its beginning, or an overlay address")
        wanted: IPv6Address | None = None
        if ":" in text:
            try:
                wanted = IPv6Address(text)
            except ValueError:
                raise RpcError(INVALID_PARAMS, f"{text!r} is neither a public key nor an address") from None
        matches = [
            peer
            for peer in peers
            if (overlay_address(peer) == wanted if wanted is not None else peer.hex().startswith(text.lower()))
        ]
        if len(matches) != 1:
            raise RpcError(NOT_FOUND, f"{'no' if not matches else 'more than one'} peer matches {text!r}")
        return matches[0]


def _counts(view: CountsView) -> dict[str, Any]:
    """Both ends' counts of a link, and what came of comparing them."""
    return {
        "standing": view.standing.name.lower(),
        "finding": view.finding.value,
        "ours": structs.asdict(view.our),
        "theirs": None if view.their is None else structs.asdict(view.their),
        "their_earned_msat": view.their_earned_units // UNITS_PER_MSAT,
        "their_owed_msat": view.their_owed_units // UNITS_PER_MSAT,
        "lost_to_them": round(view.lost_to_them, 4),
        "lost_from_them": round(view.lost_from_them, 4),
        "overstated_bytes": view.overstated_bytes,
        "denied_bytes": view.denied_bytes,
    }


def money_methods(node: MoneyMethods) -> dict[str, Method]:
    """The part of the method table that is about money."""
    return (
        credit_methods(node)
        | wallet_methods(node)
        | channel_methods(node)
        | chain_methods(node)
        | {
            "channels": Method(node.channels, "Payment channels, in and out.", result=schemas.array(schemas.CHANNEL)),
            "ledger": Method(node.ledger, "Bills and payments, per peer.", result=schemas.array(schemas.LEDGER)),
            "pay.hold": Method(node.pay_hold, "Pay nobody until resumed.", result=schemas.PAYING, writes=True),
            "pay.resume": Method(node.pay_resume, "Pay again.", result=schemas.PAYING, writes=True),
        }
    )
