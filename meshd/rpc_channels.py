"""What meshctl can do with single channels, and what neighbours have signed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from meshd import schemas
from meshd.control import INVALID_PARAMS, NOT_FOUND, POLICY, Method, Param, RpcError
from meshd.identity import overlay_address
from payments import events as pay
from payments.config import PaymentConfig
from payments.records import ChannelState, Direction

if TYPE_CHECKING:
    from meshd.rpc_money import MoneyMethods

_ACCEPTED = PaymentConfig()  # its bounds are those of the neighbours, where they have not changed them


class ChannelMethods:
    """The handlers; each takes checked parameters and returns JSON."""

    def __init__(self, money: MoneyMethods) -> None:
        self._money = money
        self._paymaster = money.node.paymaster

    async def open(self, params: dict[str, Any]) -> Any:
        """The wallet pays when the peer has agreed, which may be later."""
        self._money.require_payments()
        peer = self._money.find_peer(params["peer"])
        least, most = _ACCEPTED.min_capacity_sat, _ACCEPTED.max_capacity_sat
        capacity_sat = params.get("capacity_sat")
        if capacity_sat is not None and not least <= capacity_sat <= most:
            raise RpcError(INVALID_PARAMS, f"capacity_sat is from {least} to {most}")
        ledgers = self._paymaster.engine.ledgers()
        if not any(ledger.peer == peer and ledger.settlement == "cltv" for ledger in ledgers):
            raise RpcError(POLICY, "debts with this neighbour are not settled through channels")
        await self._paymaster.put(pay.OperatorOpenChannel(peer, capacity_sat))
        return {
            "peer": peer.hex(),
            "peer_address": str(overlay_address(peer)),
            "capacity_sat": capacity_sat or self._money.node.config.payments.channel_capacity_sat,
        }

    async def close(self, params: dict[str, Any]) -> Any:
        if params.get("channel") is None:
            return await self._money.channel_close(params)
        self._money.require_payments()
        text = params["channel"]
        known = [c for c in self._paymaster.engine.channels() if c.state is not ChannelState.CLOSED]
        found = [c for c in known if text and c.channel_id.hex().startswith(text.lower())]
        if len(found) != 1:
            raise RpcError(NOT_FOUND, f"{'no' if not found else 'more than one'} channel matches {text!r}")
        await self._paymaster.put(pay.OperatorCloseChannel(found[0].channel_id))
        return {"channels": [found[0].channel_id.hex()], "txid": None}

    async def receipts(self, _: dict[str, Any]) -> Any:
        state = self._paymaster.engine.records()
        made = [
            _receipt(c.peer, "payment", b"", c.signature, channel_id=c.channel_id, amount_msat=c.cumulative_msat)
            for c in state.channels
            if c.direction is Direction.IN and c.signature
        ]
        made += [_receipt(c.peer, "counts", c.body, c.signature) for c in state.counts if c.signature]
        made += [
            _receipt(c.peer, "credit", b"", c.their_signature, amount_msat=c.their_paid_msat - c.their_redeemed_msat)
            for c in state.credits
            if c.their_signature
        ]
        return made


def _receipt(
    peer: bytes,
    kind: str,
    signed: bytes,
    signature: bytes,
    *,
    channel_id: bytes | None = None,
    amount_msat: int | None = None,
) -> dict[str, Any]:
    return {
        "peer": peer.hex(),
        "peer_address": str(overlay_address(peer)),
        "kind": kind,
        "channel_id": None if channel_id is None else channel_id.hex(),
        "amount_msat": amount_msat,
        "signed": signed.hex(),
        "signature": signature.hex(),
    }


def channel_methods(money: MoneyMethods) -> dict[str, Method]:
    """Their part of the method table."""
    node = ChannelMethods(money)
    peer = "public key, its beginning, or overlay address"
    return {
        "receipts": Method(
            node.receipts, "What neighbours have signed for us last.", result=schemas.array(schemas.RECEIPT)
        ),
        "channel.open": Method(
            node.open,
            "Open a channel to a neighbour, before anything is owed.",
            {
                "peer": Param("string", peer),
                "capacity_sat": Param("integer", "what is locked in it; as configured, if left out", required=False),
            },
            result=schemas.OPENED,
            writes=True,
        ),
        "channel.close": Method(
            node.close,
            "Claim on chain what was paid to us; or end one channel, also one through which we pay.",
            {
                "peer": Param("string", f"{peer}; all if left out", required=False),
                "channel": Param("string", "its id, or the beginning of it: that one alone", required=False),
            },
            result=schemas.CLOSED,
            writes=True,
        ),
    }
