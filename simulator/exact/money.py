"""Payments in virtual time: a real payment engine for each node that sells or buys, over one simulated chain.

Channels, signatures, ledgers and windows are those of `payments`. Only the chain is simple here: outputs, spends and
heights, a block at fixed intervals, no fees between nodes, and a wallet that never runs dry.
"""

from __future__ import annotations

import hashlib
import random
from collections import deque
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

from embit.script import Script
from embit.transaction import Transaction, TransactionInput, TransactionOutput

from payments import events as ev
from payments.config import PaymentConfig
from payments.engine import PaymentEngine
from payments.ports import BroadcastResult, ForeignInput, Outpoint, OutputStatus, SignedTransaction
from payments.records import EngineState
from simulator.network import Network
from simulator.scenario import PaymentsConfig

CHAIN = "regtest"


class Chain:
    """Who spends what, and in which block: no scripts, no fees."""

    def __init__(self) -> None:
        self.height = 100
        self._transactions: dict[bytes, Any] = {}
        self._raw: dict[bytes, bytes] = {}
        self._height_by_txid: dict[bytes, int] = {}
        self._pool: list[bytes] = []
        self._spender: dict[Outpoint, bytes] = {}
        self._funded = 0

    def fund(self, script_pubkey: bytes, amount_sat: int) -> SignedTransaction:
        """From an input that nobody else has."""
        return self._fund([], ((script_pubkey, amount_sat),))

    def fund_splice(self, foreign: ForeignInput, outputs: tuple[tuple[bytes, int], ...]) -> SignedTransaction:
        outpoint = foreign.outpoint
        return self._fund([TransactionInput(outpoint.txid[::-1], outpoint.index, sequence=foreign.sequence)], outputs)

    def _fund(self, spent: list[Any], outputs: tuple[tuple[bytes, int], ...]) -> SignedTransaction:
        self._funded += 1
        spent = [*spent, TransactionInput(self._funded.to_bytes(32, "big"), 0, sequence=0xFFFFFFFD)]
        transaction = Transaction(2, spent, [TransactionOutput(v, Script(script)) for script, v in outputs], 0)
        return SignedTransaction(transaction.serialize(), transaction.hash(), 150)

    def broadcast(self, raw: bytes) -> BroadcastResult:
        transaction = Transaction.parse(raw)
        txid: bytes = transaction.hash()
        if txid in self._transactions:
            return BroadcastResult(accepted=True)
        spent = [Outpoint(bytes(i.txid)[::-1], i.vout) for i in transaction.vin]
        if any(outpoint in self._spender for outpoint in spent):
            return BroadcastResult(accepted=False, code="conflict")
        if transaction.locktime > self.height:
            return BroadcastResult(accepted=False, code="non-final")
        self._transactions[txid], self._raw[txid] = transaction, raw
        self._pool.append(txid)
        self._spender.update(dict.fromkeys(spent, txid))
        return BroadcastResult(accepted=True)

    def mine(self) -> None:
        self.height += 1
        self._height_by_txid.update(dict.fromkeys(self._pool, self.height))
        self._pool.clear()

    def output(self, outpoint: Outpoint) -> tuple[OutputStatus | None, bytes | None]:
        """Its status, and the transaction that spends it."""
        transaction = self._transactions.get(outpoint.txid)
        if transaction is None or outpoint.index >= len(transaction.vout):
            return None, None
        output, spender = transaction.vout[outpoint.index], self._spender.get(outpoint)
        status = OutputStatus(
            value_sat=output.value,
            script_pubkey=output.script_pubkey.data,
            height=self._height_by_txid.get(outpoint.txid),
            spent_by=spender,
            spent_height=None if spender is None else self._height_by_txid.get(spender),
        )
        return status, None if spender is None else self._raw[spender]


@dataclass(slots=True)
class _Till:
    """One node's engine, and what is waiting for it."""

    node: int
    key: bytes
    engine: PaymentEngine
    todo: deque[ev.Input] = field(default_factory=deque)
    watched: dict[bytes, Outpoint] = field(default_factory=dict)
    reported: dict[bytes, OutputStatus | None] = field(default_factory=dict)
    scripts: int = 0
    timer_at: float = float("inf")
    is_busy: bool = False


@dataclass(frozen=True, slots=True)
class Balance:
    """Of one node, msat: paid to it and by it, and what its neighbours owe it unpaid by its own bill (its exposure)."""

    received: int = 0
    sent: int = 0
    unpaid: int = 0


class Bank:
    """`traffic` and `settle` are called at each data tick; everything else follows from the network's clock."""

    def __init__(self, network: Network, config: PaymentsConfig) -> None:
        self.suspended: set[tuple[int, int]] = set()  # (seller, debtor)
        self.violation: str | None = None  # of the conservation of money, by `audit`
        self.defaults = 0
        self.payments = 0
        self._network = network
        self._config = PaymentConfig(
            chain=CHAIN,
            tick_interval=config.tick,
            start_window_msat=config.window,
            max_window_msat=config.max_window,
            capacity_sat=max(100_000, 2 * config.max_window // 1000),
        )
        self._block_interval = config.block_interval
        self._chain = Chain()
        self._tills: dict[int, _Till] = {}
        self._node_by_key: dict[bytes, int] = {}
        self._sessions: dict[tuple[int, int], int] = {}  # ends in ascending order -> number; 0: none now
        self._pending: dict[tuple[int, int], list[int]] = {}  # (node, peer) -> units earned, limit of units owed
        self._in_flight: deque[tuple[int, int, int, bytes]] = deque()  # sender, receiver, session, message
        self._held: set[int] = set()
        network.call_at(self._block_interval, self._mine)

    def hold(self, node: int, *, is_held: bool) -> None:
        """The node pays nobody."""
        (self._held.add if is_held else self._held.discard)(node)
        if node in self._tills:
            self._give(self._tills[node], ev.OperatorHoldPayments(is_held))

    def traffic(self, seller: int, buyer: int, *, earned_units: int, limit_units: int) -> None:
        """Since the last call: by the seller's meter and price, and by the buyer's."""
        self._pending.setdefault((seller, buyer), [0, 0])[0] += earned_units
        self._pending.setdefault((buyer, seller), [0, 0])[1] += limit_units

    def settle(self) -> None:
        """Hands what was metered to the engines."""
        pending, self._pending = self._pending, {}
        for (node, peer), (earned, limit) in sorted(pending.items()):
            if earned or limit:
                till, other = self._till(node), self._till(peer)
                self._connect(till, other)
                self._give(till, ev.MeteredTraffic(other.key, earned, limit))
        for ends, session in self._sessions.items():
            if session and not (self._network.is_link_up(*ends) and self._network.is_link_up(*ends[::-1])):
                self._sessions[ends] = 0
                for here, there in (ends, ends[::-1]):
                    self._give(self._tills[here], ev.PeerDisconnected(self._tills[there].key))

    def _till(self, node: int) -> _Till:
        till = self._tills.get(node)
        if till is None:
            key = hashlib.blake2b(f"{self._network.options.seed}/{node}".encode(), digest_size=32).digest()
            rng = random.Random(f"{self._network.options.seed}/till/{node}")
            now = self._network.now
            engine = PaymentEngine(self._config, seed=key, state=EngineState(), rng=rng, now=now)
            till = self._tills[node] = _Till(node, key, engine)
            self._node_by_key[key] = node
            self._run(till, engine.start(now=now))
            self._give(till, ev.ChainTipChanged(self._chain.height, 1.0))
            if node in self._held:
                self._give(till, ev.OperatorHoldPayments(True))
        return till

    def _connect(self, a: _Till, b: _Till) -> None:
        ends = (min(a.node, b.node), max(a.node, b.node))
        if self._sessions.get(ends) or not self._network.is_link_up(*ends) or not self._network.is_link_up(*ends[::-1]):
            return
        self._sessions[ends] = self._network.event_count + 1  # never the same again
        self._give(a, ev.PeerConnected(b.key))
        self._give(b, ev.PeerConnected(a.key))

    def _give(self, till: _Till, event: ev.Input) -> None:
        """What an input makes the engine ask for is answered before the next one."""
        till.todo.append(event)
        if till.is_busy:
            return
        till.is_busy = True
        while till.todo:
            self._run(till, till.engine.handle(till.todo.popleft(), now=self._network.now))
        till.is_busy = False
        due = till.engine.next_deadline()
        if due < till.timer_at:
            till.timer_at = due
            self._network.call_at(due, lambda: self._wake(till, due))

    def _wake(self, till: _Till, at: float) -> None:
        if at != till.timer_at:
            return  # a nearer one has replaced it
        till.timer_at = float("inf")
        self._give(till, ev.TimerExpired())

    def _run(self, till: _Till, outputs: list[ev.Output]) -> None:
        for output in outputs:
            match output:
                case ev.SendMessage():
                    self._send(till, output)
                case ev.FundChannel():
                    transaction = self._chain.fund(output.script_pubkey, output.amount_sat)
                    till.todo.append(ev.ChannelFunded(output.channel_id, transaction))
                case ev.FundSplice():
                    transaction = self._chain.fund_splice(output.foreign, output.outputs)
                    till.todo.append(ev.ChannelFunded(output.channel_id, transaction))
                case ev.InspectInputs():  # of a wallet of ours
                    scripts = tuple(b"\x00\x14" + bytes(20) for _ in output.outpoints)
                    till.todo.append(ev.InputsSeen(output.channel_id, output.txid, scripts))
                case ev.BroadcastTransaction():
                    till.todo.append(ev.BroadcastDone(output.txid, self._chain.broadcast(output.raw)))
                case ev.WatchOutput():
                    till.watched[output.channel_id] = output.outpoint
                    till.reported.pop(output.channel_id, None)
                    self._report(till, output.channel_id, output.outpoint)
                case ev.UnwatchOutput():
                    till.watched.pop(output.channel_id, None)
                case ev.NeedScript():
                    till.scripts += 1
                    till.todo.append(ev.NewScript(b"\x00\x14" + till.key[:8] + till.scripts.to_bytes(12, "big")))
                case _:
                    self._note(till, output)

    def _note(self, till: _Till, output: ev.Output) -> None:
        """What follows outside payments, and what is counted."""
        match output:
            case ev.Suspend():
                self.suspended.add((till.node, self._node_by_key[output.peer]))
            case ev.Resume():
                self.suspended.discard((till.node, self._node_by_key[output.peer]))
            case ev.Defaulted():
                self.defaults += 1
            case ev.PaymentReceived():
                self.payments += 1
                self._network.note(f"{till.node} {output.amount_msat} {self._network.now!r}".encode())

    def _send(self, till: _Till, message: ev.SendMessage) -> None:
        """TCP on the link: in order, after its latency."""
        there = self._node_by_key[message.peer]
        session = self._sessions[min(till.node, there), max(till.node, there)]
        if not session:
            return
        self._in_flight.append((till.node, there, session, message.data))
        item = self._in_flight[-1]
        latency = self._network.pipe(till.node, there).latency if self._network.is_link_up(till.node, there) else 0.0
        self._network.call_at(self._network.now + latency, lambda: self._deliver(item))

    def _deliver(self, item: tuple[int, int, int, bytes]) -> None:
        sender, receiver, session, data = item
        if item not in self._in_flight:
            return
        self._in_flight.remove(item)
        if self._sessions[min(sender, receiver), max(sender, receiver)] == session and self._network.is_link_up(
            sender, receiver
        ):
            self._give(self._tills[receiver], ev.ReceivedMessage(self._tills[sender].key, data))

    def _mine(self) -> None:
        self._chain.mine()
        for till in list(self._tills.values()):
            self._give(till, ev.ChainTipChanged(self._chain.height, 1.0))
            for channel_id, outpoint in list(till.watched.items()):
                self._report(till, channel_id, outpoint)
            self._give(till, ev.TimerExpired())
        self._network.call_at(self._network.now + self._block_interval, self._mine)

    def _report(self, till: _Till, channel_id: bytes, outpoint: Outpoint) -> None:
        """Only what is new: one confirmation is all that the engines here wait for."""
        status, spending = self._chain.output(outpoint)
        if channel_id not in till.reported or till.reported[channel_id] != status:
            till.reported[channel_id] = status
            event = ev.ChannelOutputSeen(channel_id, outpoint, status, spending)
            if till.is_busy:
                till.todo.append(event)
            else:
                self._give(till, event)

    def drain(self) -> None:
        """At the end: no more payments are begun, and those under way arrive."""
        for node in self._tills:
            self.hold(node, is_held=True)
        while self._in_flight:
            self._deliver(self._in_flight[0])

    def balances(self) -> dict[int, Balance]:
        found = {}
        for node, till in self._tills.items():
            views = till.engine.ledgers()
            found[node] = Balance(
                sum(view.received_msat for view in views),
                sum(view.sent_msat for view in views),
                sum(max(0, view.unpaid_msat) for view in views),
            )
        return found

    def audit(self) -> None:
        """At any time nobody may have been paid what nobody has paid, on either end's book."""
        _, surplus = self.difference()
        if surplus and self.violation is None:
            self.violation = f"at {self._network.now:.3f} s {surplus} msat were received that nobody had sent"

    def unpaid_by(self, nodes: Collection[int]) -> int:
        """msat that the others carried for them, by their own bills, and have not been paid."""
        return sum(
            max(0, view.unpaid_msat)
            for node, till in self._tills.items()
            if node not in nodes
            for view in till.engine.ledgers()
            if self._node_by_key[view.peer] in nodes
        )

    def difference(self) -> tuple[int, int]:
        """(msat that payers sent and payees do not have, msat that payees have and nobody sent). After `drain`, the
        first is what is lost with links and nodes that failed, and the second is 0 or the engines are wrong."""
        sent = {
            (node, self._node_by_key[view.peer]): view.sent_msat
            for node, till in self._tills.items()
            for view in till.engine.ledgers()
        }
        missing = surplus = 0
        for node, till in self._tills.items():
            for view in till.engine.ledgers():
                gap = sent.get((self._node_by_key[view.peer], node), 0) - view.received_msat
                missing += max(gap, 0)
                surplus += max(-gap, 0)
        return missing, surplus
