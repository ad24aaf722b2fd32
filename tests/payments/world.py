"""Payment engines wired together over whole or broken sessions, with a chain that does what its tests need of Bitcoin:
who spends what, when it confirms, what is too early. Time is virtual; whatever is random comes from one seed."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import msgspec
from embit.script import Script
from embit.transaction import Transaction, TransactionInput, TransactionOutput
from nacl import bindings

from payments import events as ev
from payments.counts import Signer, Traffic
from payments.engine import PaymentConfig, PaymentEngine
from payments.ports import BroadcastResult, ForeignInput, Outpoint, OutputStatus, SignedTransaction
from payments.records import (
    Change,
    ChannelRecord,
    CountsRecord,
    CreditRecord,
    EngineState,
    ForgottenChannel,
    HeightRecord,
    KeptRecord,
    LedgerRecord,
    PaidRecord,
)
from payments.units import UNITS_PER_MSAT

PRICE_MSAT_PER_GB = 1_000_000
CONFIG = PaymentConfig(
    keep_for_neighbours=False,  # no message of it among those that tests count
    expiry_blocks=60,
    expiry_margin=6,
    max_expiry_blocks=200,
    min_capacity_sat=1_000,
    max_claim_fee_share=1.0,
    open_debt_msat=1,
)


class Crash(Exception):  # noqa: N818 - an event of the test, not an error
    """The process died here."""


class MemoryStore:
    def __init__(self) -> None:
        self.ledgers: dict[bytes, LedgerRecord] = {}
        self.channels: dict[bytes, ChannelRecord] = {}
        self.counts: dict[bytes, CountsRecord] = {}
        self.credits: dict[bytes, CreditRecord] = {}
        self.kept: dict[bytes, KeptRecord] = {}
        self.height = 0

    def apply(self, changes: tuple[Change, ...]) -> None:
        for change in changes:
            match change:
                case LedgerRecord():
                    self.ledgers[change.peer] = change
                case ChannelRecord():
                    self.channels[change.channel_id] = change
                case PaidRecord():
                    row = self.channels[change.channel_id]
                    self.channels[change.channel_id] = replace(row, **msgspec.structs.asdict(change))
                case CountsRecord():
                    self.counts[change.peer] = change
                case KeptRecord():
                    self.kept[change.peer] = change
                case CreditRecord():
                    self.credits[change.peer] = change
                case HeightRecord():
                    self.height = change.height
                case ForgottenChannel():
                    self.channels.pop(change.channel_id, None)

    def copy(self) -> MemoryStore:
        """A backup: rows are immutable."""
        store = MemoryStore()
        store.ledgers, store.channels = dict(self.ledgers), dict(self.channels)
        store.counts, store.credits, store.height = dict(self.counts), dict(self.credits), self.height
        store.kept = dict(self.kept)
        return store

    def load(self) -> EngineState:
        ledgers, channels = tuple(self.ledgers.values()), tuple(self.channels.values())
        counts, credits_ = tuple(self.counts.values()), tuple(self.credits.values())
        return EngineState(ledgers, channels, self.height, counts, credits_, tuple(self.kept.values()))


class FakeChain:
    """No scripts, no fees of its own: outputs, spends, locktimes, blocks."""

    def __init__(self) -> None:
        self.height = 100
        self.transactions: dict[bytes, Transaction] = {}
        self.raw: dict[bytes, bytes] = {}
        self.height_by_txid: dict[bytes, int | None] = {}
        self.spender: dict[Outpoint, bytes] = {}
        self.is_refusing = False
        self.is_wallet_empty = False
        self.fee_rate = 1.0
        self.value_by_wallet_input: dict[bytes, int] = {}

    def fund(self, script_pubkey: bytes, amount_sat: int) -> SignedTransaction:
        """From an input that nobody else has."""
        return self._fund(None, ((script_pubkey, amount_sat),), 150)

    def fund_splice(self, foreign: ForeignInput, outputs: tuple[tuple[bytes, int], ...]) -> SignedTransaction:
        return self._fund(foreign, outputs, 200)

    def _fund(
        self, foreign: ForeignInput | None, outputs: tuple[tuple[bytes, int], ...], fee_sat: int
    ) -> SignedTransaction:
        txid = (len(self.value_by_wallet_input) + 1).to_bytes(32, "little")
        vin = [TransactionInput(txid[::-1], 0, sequence=0xFFFFFFFD)]
        self.value_by_wallet_input[txid] = sum(value for _, value in outputs) + fee_sat
        if foreign is not None:
            outpoint = foreign.outpoint
            vin.insert(0, TransactionInput(outpoint.txid[::-1], outpoint.index, sequence=foreign.sequence))
            self.value_by_wallet_input[txid] -= foreign.value_sat
        transaction = Transaction(2, vin, [TransactionOutput(v, Script(script)) for script, v in outputs], 0)
        return SignedTransaction(transaction.serialize(), transaction.hash(), fee_sat)

    def value_sat(self, outpoint: Outpoint) -> int | None:
        if outpoint.txid in self.value_by_wallet_input:
            return self.value_by_wallet_input[outpoint.txid]
        transaction = self.transactions.get(outpoint.txid)
        return None if transaction is None else int(transaction.vout[outpoint.index].value)

    def fee_sat(self, transaction: Transaction) -> int | None:
        """None: it spends what there is not."""
        spent = [self.value_sat(Outpoint(bytes(i.txid)[::-1], i.vout)) for i in transaction.vin]
        known = [value for value in spent if value is not None]
        return sum(known) - sum(int(o.value) for o in transaction.vout) if len(known) == len(spent) else None

    def broadcast(self, raw: bytes) -> BroadcastResult:
        transaction = Transaction.parse(raw)
        txid = transaction.hash()
        if txid in self.transactions:
            return BroadcastResult(accepted=True)
        inputs = [Outpoint(bytes(i.txid)[::-1], i.vout) for i in transaction.vin]
        if self.is_refusing:
            return BroadcastResult(accepted=False, code="refusing")
        if transaction.locktime > self.height:
            return BroadcastResult(accepted=False, code="non-final")
        fee_sat = self.fee_sat(transaction)
        if fee_sat is None or fee_sat < 0:
            return BroadcastResult(accepted=False, code="missing")
        if not self._make_room({self.spender[o] for o in inputs if o in self.spender}, fee_sat):
            return BroadcastResult(accepted=False, code="conflict")
        self.transactions[txid], self.raw[txid], self.height_by_txid[txid] = transaction, raw, None
        self.spender.update(dict.fromkeys(inputs, txid))
        return BroadcastResult(accepted=True)

    def _make_room(self, conflicting: set[bytes], fee_sat: int) -> bool:
        """BIP125, roughly: what pays more than all that it contradicts, none of which is in a block."""
        gone = set(conflicting)
        while spending := {s for o, s in self.spender.items() if o.txid in gone} - gone:
            gone |= spending
        fees = sum(self.fee_sat(self.transactions[txid]) or 0 for txid in gone)
        if any(self.height_by_txid[txid] is not None for txid in gone) or (gone and fee_sat <= fees):
            return False
        self._drop(gone)
        return True

    def mine(self, blocks: int = 1) -> None:
        for _ in range(blocks):
            self.height += 1
            for txid, height in self.height_by_txid.items():
                if height is None:
                    self.height_by_txid[txid] = self.height

    def reorganise(self, depth: int, *, vanish: bool) -> None:
        """The last blocks are gone; their transactions are back in the pool, or unknown, with all that spends them."""
        self.height -= depth
        gone = {txid for txid, height in self.height_by_txid.items() if height is not None and height > self.height}
        for txid in gone:
            self.height_by_txid[txid] = None
        if vanish:
            self._drop(gone)

    def _drop(self, gone: set[bytes]) -> None:
        while spending := {s for o, s in self.spender.items() if o.txid in gone} - gone:
            gone |= spending
        for txid in gone:
            del self.transactions[txid], self.raw[txid], self.height_by_txid[txid]
        self.spender = {outpoint: txid for outpoint, txid in self.spender.items() if txid not in gone}

    def output(self, outpoint: Outpoint) -> OutputStatus | None:
        transaction = self.transactions.get(outpoint.txid)
        if transaction is None or outpoint.index >= len(transaction.vout):
            return None
        output = transaction.vout[outpoint.index]
        spender = self.spender.get(outpoint)
        return OutputStatus(
            value_sat=output.value,
            script_pubkey=output.script_pubkey.data,
            height=self.height_by_txid[outpoint.txid],
            spent_by=spender,
            spent_height=None if spender is None else self.height_by_txid[spender],
        )

    def scripts(self, outpoints: tuple[Outpoint, ...]) -> tuple[bytes | None, ...]:
        """Of the wallets' outputs, which are not transactions here."""
        p2wpkh = b"\x00\x14" + bytes(20)
        return tuple(p2wpkh if o.txid in self.value_by_wallet_input else None for o in outpoints)

    def received_sat(self, scripts: set[bytes]) -> int:
        """All that was ever paid to these scripts in a block."""
        return sum(
            int(output.value)
            for txid, transaction in self.transactions.items()
            for output in transaction.vout
            if self.height_by_txid[txid] is not None and output.script_pubkey.data in scripts
        )


@dataclass
class Node:
    """The daemon around one engine, as small as it can be."""

    name: str
    secret: bytes  # 64 bytes: an Ed25519 key
    chain: FakeChain
    config: PaymentConfig
    now: Callable[[], float]
    store: MemoryStore = field(default_factory=MemoryStore)
    watched: dict[bytes, Outpoint] = field(default_factory=dict)
    suspended: set[bytes] = field(default_factory=set)
    distrusted: set[bytes] = field(default_factory=set)
    scripts: set[bytes] = field(default_factory=set)
    log: list[ev.Output] = field(default_factory=list)
    outbox: deque[tuple[bytes, bytes]] = field(default_factory=deque)
    todo: deque[ev.Input] = field(default_factory=deque)
    dropped: set[bytes] = field(default_factory=set)
    crash_after: int | None = None  # so many more outputs are run
    is_down: bool = False
    restarts: int = 0

    def __post_init__(self) -> None:
        self.key = self.secret[32:]
        self.boot()

    def sign(self, data: bytes) -> bytes:
        return bindings.crypto_sign(data, self.secret)[:64]

    def boot(self) -> None:
        """A fresh process on the same disk."""
        self.restarts += 1
        self.crash_after, self.is_down = None, False
        self.outbox.clear()
        self.todo.clear()
        self.watched.clear()
        self.suspended.clear()
        self.distrusted.clear()
        self.engine = PaymentEngine(
            self.config,
            seed=self.key,
            state=self.store.load(),
            rng=random.Random(f"{self.name}{self.restarts}"),
            now=self.now(),
            signer=Signer(self.key, self.sign),
        )
        self.run(self.engine.start(now=self.now()))
        self.todo.append(ev.ChainTipChanged(self.chain.height, self.chain.fee_rate))
        self.report_chain()

    def give(self, event: ev.Input) -> None:
        self.run(self.engine.handle(event, now=self.now()))

    def run(self, outputs: list[ev.Output]) -> None:
        assert not any(isinstance(output, ev.Persist) for output in outputs[1:]), "Persist must come first"
        for output in outputs:
            if self.crash_after is not None:
                if self.crash_after == 0:
                    self.is_down = True
                    raise Crash
                self.crash_after -= 1
            self.log.append(output)
            self._run(output)

    def _run(self, output: ev.Output) -> None:
        match output:
            case ev.Persist():
                self.store.apply(output.changes)
            case ev.SendMessage():
                self.outbox.append((output.peer, output.data))
            case ev.Suspend():
                self.suspended.add(output.peer)
            case ev.Resume():
                self.suspended.discard(output.peer)
            case ev.Distrust():
                self.distrusted.add(output.peer)
            case ev.Trust():
                self.distrusted.discard(output.peer)
            case ev.DropConnection():
                self.dropped.add(output.peer)
            case _:
                self._ask(output)

    def _ask(self, output: ev.Output) -> None:
        """Chain and wallet."""
        match output:
            case ev.FundChannel() | ev.FundSplice() if self.chain.is_wallet_empty:
                self.todo.append(ev.FundingFailed(output.channel_id, "no money"))
            case ev.FundChannel():
                transaction = self.chain.fund(output.script_pubkey, output.amount_sat)
                self.todo.append(ev.ChannelFunded(output.channel_id, transaction))
            case ev.FundSplice():
                transaction = self.chain.fund_splice(output.foreign, output.outputs)
                self.todo.append(ev.ChannelFunded(output.channel_id, transaction))
            case ev.InspectInputs():
                self.todo.append(ev.InputsSeen(output.channel_id, output.txid, self.chain.scripts(output.outpoints)))
            case ev.BroadcastTransaction():
                self.todo.append(ev.BroadcastDone(output.txid, self.chain.broadcast(output.raw)))
            case ev.WatchOutput():
                self.watched[output.channel_id] = output.outpoint
                self.report(output.channel_id)
            case ev.UnwatchOutput():
                self.watched.pop(output.channel_id, None)
            case ev.NeedScript():
                script = b"\x00\x14" + self.key[:8] + len(self.scripts).to_bytes(12, "big")
                self.scripts.add(script)
                self.todo.append(ev.NewScript(script))

    def report(self, channel_id: bytes) -> None:
        outpoint = self.watched[channel_id]
        status = self.chain.output(outpoint)
        raw = None if status is None or status.spent_by is None else self.chain.raw[status.spent_by]
        self.todo.append(ev.ChannelOutputSeen(channel_id, outpoint, status, raw))

    def report_chain(self) -> None:
        for channel_id in list(self.watched):
            self.report(channel_id)

    def new_block(self) -> None:
        self.todo.append(ev.ChainTipChanged(self.chain.height, self.chain.fee_rate))
        self.report_chain()

    def notices(self, kind: type) -> list[ev.Output]:
        return [output for output in self.log if isinstance(output, kind)]

    def ledger(self, other: Node) -> ev.LedgerView:
        return next(view for view in self.engine.ledgers() if view.peer == other.key)

    def channels(self, **wanted: object) -> list[ev.ChannelView]:
        found = self.engine.channels()
        return [c for c in found if all(getattr(c, name) == value for name, value in wanted.items())]


def secret_of(letter: bytes) -> bytes:
    return bindings.crypto_sign_seed_keypair(letter * 32)[1]


def priced(seller: Node, buyer: Node, units: int) -> tuple[ev.MeteredTraffic, ev.MeteredTraffic]:
    """What the buyer meters, and the seller, of traffic at PRICE."""
    size = units // PRICE_MSAT_PER_GB
    bought = ev.MeteredTraffic(seller.key, 0, units, Traffic(sent=size))
    return bought, ev.MeteredTraffic(buyer.key, units, 0, Traffic(received=size, carried=size))


class World:
    """Two nodes, `a` and `b`, one session between them, one chain."""

    def __init__(self, config: PaymentConfig = CONFIG, chain: FakeChain | None = None, **changes: object) -> None:
        self.time = 1000.0
        self.chain = chain or FakeChain()
        config = replace(config, **changes)  # type: ignore[arg-type]
        self.a = Node("a", secret_of(b"A"), self.chain, config, lambda: self.time)
        self.b = Node("b", secret_of(b"B"), self.chain, config, lambda: self.time)
        self.wire: dict[str, deque[bytes]] = {"a": deque(), "b": deque()}  # by receiver
        self.is_connected = False

    @property
    def nodes(self) -> tuple[Node, Node]:
        return self.a, self.b

    def other(self, node: Node) -> Node:
        return self.b if node is self.a else self.a

    def connect(self) -> None:
        self.disconnect()
        self.is_connected = True
        for node in self.nodes:
            node.give(ev.PeerConnected(self.other(node).key))

    def disconnect(self) -> None:
        """What is on its way is lost."""
        for queue in self.wire.values():
            queue.clear()
        for node in self.nodes:
            node.outbox.clear()
            if self.is_connected:
                node.give(ev.PeerDisconnected(self.other(node).key))
                node.outbox.clear()
        self.is_connected = False

    def crash(self, node: Node) -> None:
        node.boot()
        if self.is_connected:
            for queue in self.wire.values():
                queue.clear()
            self.is_connected = False
            self.other(node).outbox.clear()
            self.other(node).give(ev.PeerDisconnected(node.key))
            self.other(node).outbox.clear()

    def collect(self) -> None:
        for node in self.nodes:
            while node.outbox:
                _, data = node.outbox.popleft()
                if self.is_connected:
                    self.wire[self.other(node).name].append(data)

    def deliver(self, node: Node, limit: int = 1) -> int:
        """Up to so many of the messages that are on their way to `node`; how many there were."""
        self.collect()
        queue, count = self.wire[node.name], 0
        while queue and count < limit:
            count += 1
            node.give(ev.ReceivedMessage(self.other(node).key, queue.popleft()))
        return count

    def work(self, node: Node) -> int:
        """What chain and wallet have answered."""
        count = 0
        while node.todo:
            count += 1
            node.give(node.todo.popleft())
        return count

    def pump(self) -> None:
        """Until nobody has anything to do without time passing."""
        for _ in range(10_000):
            if sum(self.work(node) + self.deliver(node, 1000) for node in self.nodes) == 0:
                return
        raise AssertionError("the engines never come to rest")

    def advance(self, seconds: float) -> None:
        self.pump()
        end = self.time + seconds
        for _ in range(100_000):
            deadline = min(node.engine.next_deadline() for node in self.nodes)
            if deadline > end:
                self.time = end
                return
            self.time = max(self.time, deadline)
            for node in self.nodes:
                if node.engine.next_deadline() <= self.time:
                    node.give(ev.TimerExpired())
            self.pump()
        raise AssertionError("the timers never come to rest")

    def mine(self, blocks: int = 1) -> None:
        for _ in range(blocks):
            self.chain.mine()
            for node in self.nodes:
                node.new_block()
            self.pump()

    def meter(self, seller: Node, buyer: Node, msat: float, *, counted_by_buyer: float = 1.0) -> None:
        """The buyer hands the seller traffic worth so much."""
        units = int(msat * UNITS_PER_MSAT)
        buyer.give(priced(seller, buyer, int(units * counted_by_buyer))[0])
        seller.give(priced(seller, buyer, units)[1])

    def with_channel(self) -> World:
        """Connected, and `a` has a channel open to `b` with nothing paid yet (1 msat was owed)."""
        self.connect()
        self.pump()
        self.meter(self.b, self.a, 1)
        self.pump()
        self.mine()
        return self
