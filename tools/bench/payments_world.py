"""The payment parts of daemons, as they are: engine, paymaster, store on disk, Noise sessions over TCP. Only the chain
and the kernel's meter are made up.

Payers and sellers come in pairs, each with a session and a channel. The ends of several pairs may share an engine and
a store: then they are one daemon with so many neighbours.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import cast

import trio

from meshd import session as sessions
from meshd.identity import Identity
from meshd.paymaster import METERED_DELAY, Paymaster
from meshd.tcp import Connection, Interface, LinkLocalTcp, TcpConnection, TcpListener
from payments import events as ev
from payments.adapters.store import Store
from payments.channel import channel_key
from payments.channel_tx import ChannelTerms, funding_script_pubkey, public_key
from payments.config import PaymentConfig
from payments.counts import Signer, Traffic
from payments.engine import PaymentEngine
from payments.ports import BroadcastResult, ChainTip, Outpoint, OutputStatus, TransactionStatus, Utxo, WalletPort
from payments.records import ChannelRecord, ChannelState, Direction
from payments.units import msat_to_units

PAYMENT_MSAT = 1_000
_PRICE_MSAT_PER_GB = 1_000_000
_UNITS = msat_to_units(PAYMENT_MSAT)
_BYTES = _UNITS // _PRICE_MSAT_PER_GB
_HEIGHT = 100
_CAPACITY_SAT = 10_000_000
_PAYER_SEED, _SELLER_SEED = b"A" * 32, b"B" * 32
_INTERFACE = "bench0"
_SELLER_ADDRESS = IPv6Address("fe80::ffff:ffff")  # the higher one: it is connected to
_PAYER_ADDRESSES, _PAYER_SOURCES = int(IPv6Address("fe80::")), int(IPv4Address("127.1.0.0"))
_LIMITS = sessions.Limits(inbound_per_interface=1000)


@dataclass(frozen=True)
class Pair:
    """`shop`: which seller it is; pairs with the same one share its identity."""

    number: int
    shop: int

    @cached_property
    def payer(self) -> Identity:
        return Identity(hashlib.sha256(f"payer {self.number}".encode()).digest())

    @cached_property
    def seller(self) -> Identity:
        return Identity(hashlib.sha256(f"seller {self.shop}".encode()).digest())

    @cached_property
    def payer_key(self) -> bytes:
        return self.payer.public_key

    @cached_property
    def seller_key(self) -> bytes:
        return self.seller.public_key


def bench_config(*, tick_interval: float, min_interval: float) -> PaymentConfig:
    """Half a window is one payment, and it does not grow, so that all payments are alike."""
    window_msat = 2 * PAYMENT_MSAT
    return PaymentConfig(
        tick_interval=tick_interval,
        min_interval=min_interval,
        start_window_msat=window_msat,
        max_window_msat=window_msat,
        metered_delay=METERED_DELAY,
    )


class _Chain:
    """One block, in which every channel is."""

    def __init__(self, channels: Sequence[ChannelRecord]) -> None:
        self._outputs = {
            channel.funding: OutputStatus(channel.terms.capacity_sat, funding_script_pubkey(channel.terms), 1)
            for channel in channels
        }

    async def tip(self) -> ChainTip:
        return ChainTip(_HEIGHT, bytes(32))

    async def fee_rate(self) -> float:
        return 1.0

    async def broadcast(self, raw: bytes) -> BroadcastResult:
        raise NotImplementedError

    async def transaction(self, txid: bytes) -> TransactionStatus | None:
        raise NotImplementedError

    async def output(self, outpoint: Outpoint) -> OutputStatus | None:
        return self._outputs.get(outpoint)

    async def utxos(self, script_pubkeys: Sequence[bytes]) -> list[Utxo]:
        raise NotImplementedError

    async def tips(self) -> AsyncIterator[ChainTip]:
        yield await self.tip()
        await trio.sleep_forever()


class _Wallet:
    """Gives the one script that the engine keeps at hand."""

    async def pending(self) -> list[object]:
        return []

    async def sent(self) -> list[object]:
        return []

    async def new_script_pubkey(self) -> bytes:
        return b"\x00\x14" + bytes(20)


async def _open_wallet() -> WalletPort:
    return cast("WalletPort", _Wallet())


class _SellerTcp(LinkLocalTcp):
    """Real TCP on the loopback; the n-th payer comes from the n-th address."""

    def __init__(self, listener: trio.SocketListener) -> None:
        super().__init__()
        self._listener = listener

    async def listen(self) -> Sequence[trio.abc.Listener[Connection]]:
        await trio.lowlevel.checkpoint()
        return [TcpListener(self._listener)]

    def source(self, stream: Connection) -> tuple[int, IPv6Address] | None:
        assert isinstance(stream, TcpConnection)  # noqa: S101  what our listener accepts
        number = int(IPv4Address(stream.socket.getpeername()[0])) - _PAYER_SOURCES
        return 1, IPv6Address(_PAYER_ADDRESSES + number)


class _PayerTcp(LinkLocalTcp):
    def __init__(self, port: int, number: int) -> None:
        super().__init__()
        self._remote_port, self._number = port, number

    async def listen(self) -> Sequence[trio.abc.Listener[Connection]]:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        return [TcpListener(listener)]  # nobody connects to it

    async def connect(self, interface: Interface, address: IPv6Address) -> Connection:  # noqa: ARG002
        sock = trio.socket.socket(trio.socket.AF_INET, trio.socket.SOCK_STREAM)
        await sock.bind((str(IPv4Address(_PAYER_SOURCES + self._number)), 0))
        await sock.connect(("127.0.0.1", self._remote_port))
        return TcpConnection(trio.SocketStream(sock))


def _channel(pair: Pair, direction: Direction) -> ChannelRecord:
    """From the payer to the seller, open, with nothing paid yet."""
    channel_id = hashlib.blake2b(pair.number.to_bytes(8, "big"), digest_size=16).digest()
    terms = ChannelTerms(
        payer_pubkey=public_key(channel_key(_PAYER_SEED, channel_id)),
        payee_pubkey=public_key(channel_key(_SELLER_SEED, channel_id)),
        expiry_height=_HEIGHT + 2016,
        capacity_sat=_CAPACITY_SAT,
        payer_change_script=b"\x00\x14" + bytes(20),
    )
    return ChannelRecord(
        channel_id=channel_id,
        peer=(pair.seller if direction is Direction.OUT else pair.payer).public_key,
        direction=direction,
        state=ChannelState.OPEN,
        terms=terms,
        opened_height=1,
        funding=Outpoint(hashlib.sha256(channel_id).digest(), 0),
        funding_raw=None,
        is_confirmed=True,
        cumulative_msat=0,
        signature=None,
        acknowledged_msat=0,
        spend_txid=None,
        spend_raw=None,
    )


@dataclass
class End:
    """The payment parts of one daemon: of the payers, or of the sellers, of some pairs.

    `before_message` sees each message of a neighbour before the engine is given it: when the daemon reads its meter.
    """

    direction: Direction
    pairs: Sequence[Pair]
    store: Store
    paymaster: Paymaster
    managers: Sequence[sessions.SessionManager]
    before_message: Callable[[bytes, bytes], Awaitable[None]] | None = None

    def neighbour(self, pair: Pair) -> bytes:
        return pair.seller_key if self.direction is Direction.OUT else pair.payer_key

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Until cancelled; then the store is closed."""
        try:
            async with trio.open_nursery() as nursery:
                await nursery.start(self.paymaster.run)
                for manager in self.managers:
                    await nursery.start(manager.run)
                nursery.start_soon(self._follow)
                self._meet()
                task_status.started()
        finally:
            self.store.close()

    def _meet(self) -> None:
        for number, manager in enumerate(self.managers):
            is_payer = self.direction is Direction.OUT
            own = IPv6Address(_PAYER_ADDRESSES + self.pairs[number].number + 1) if is_payer else _SELLER_ADDRESS
            manager.interface_up(_INTERFACE, 1, own)
            if is_payer:
                manager.neighbour_up(_INTERFACE, _SELLER_ADDRESS)

    async def _follow(self) -> None:
        """What `Daemon._follow_sessions` does, but for the kernel's meter."""
        while True:
            for event in await self.managers[0].next_events():
                await self._handle_session(event)

    async def _handle_session(self, event: sessions.SessionEvent) -> None:
        match event:
            case sessions.PeerConnected():
                await self.paymaster.put(ev.PeerConnected(event.peer))
            case sessions.PeerMessage():
                if self.before_message is not None:
                    await self.before_message(event.peer, event.data)
                await self.paymaster.put(ev.ReceivedMessage(event.peer, event.data))
            case sessions.PeerDisconnected():
                raise RuntimeError(f"a session ended: {event.reason}")

    async def meter(self, pair: Pair, share: float = 1.0) -> None:
        """Traffic worth so much of one payment."""
        units, size = int(share * _UNITS), int(share * _BYTES)
        if self.direction is Direction.OUT:
            traffic = ev.MeteredTraffic(self.neighbour(pair), 0, units, Traffic(sent=size))
        else:
            traffic = ev.MeteredTraffic(self.neighbour(pair), units, 0, Traffic(received=size, carried=size))
        await self.paymaster.put_metered(traffic, {})

    @property
    def is_ready(self) -> bool:
        """All sessions are up and have said hello."""
        return sum(ledger.is_connected for ledger in self.paymaster.engine.ledgers()) == len(self.pairs)


def build_end(
    direction: Direction,
    pairs: Sequence[Pair],
    managers: Sequence[sessions.SessionManager],
    path: Path,
    config: PaymentConfig,
    *,
    signer: Signer | None = None,
) -> End:
    """`managers`: one for all pairs, or one for each."""
    channels = [_channel(pair, direction) for pair in pairs]
    store = Store.open(path)
    store.apply(channels)
    seed = _PAYER_SEED if direction is Direction.OUT else _SELLER_SEED
    rng, now = random.Random(str(path)), trio.current_time()
    engine = PaymentEngine(config, seed=seed, state=store.load(), rng=rng, now=now, signer=signer)
    for other in managers[1:]:
        other.events = managers[0].events
    shares = [managers[0]] * len(pairs) if len(managers) == 1 else managers
    is_payer = direction is Direction.OUT
    keys = [(pair.seller if is_payer else pair.payer).public_key for pair in pairs]
    manager_by_peer = dict(zip(keys, shares, strict=True))

    async def ignore(_peer: bytes, _flag: bool) -> None:
        pass

    paymaster = Paymaster(
        engine,
        store,
        _Chain(channels),
        _open_wallet,
        deliver=lambda peer, *messages: manager_by_peer[peer].send(peer, *messages),
        drop=lambda peer: manager_by_peer[peer].disconnect(peer, "payment protocol"),
        set_carrying=ignore,
        set_trusted=ignore,
        counters=tuple,
    )
    return End(direction, pairs, store, paymaster, managers)


async def seller_manager(pair: Pair) -> tuple[sessions.SessionManager, int]:
    """And the port at which it is reached."""
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port: int = listener.socket.getsockname()[1]
    return sessions.SessionManager(pair.seller, network=_SellerTcp(listener), limits=_LIMITS), port


def payer_manager(pair: Pair, port: int) -> sessions.SessionManager:
    return sessions.SessionManager(pair.payer, network=_PayerTcp(port, pair.number + 1), limits=_LIMITS)
