"""One node: the engines, the kernel, the sessions and the control socket, put together.

Start order matters: the kernel is cleaned and prepared first, sessions listen before routing finds neighbours, and the
control socket comes last, so that whoever can connect to it finds a node that works. The end is the reverse: neighbours
are told to turn away, the meter is read a last time, the payment engine takes that in and is written down.
"""

from __future__ import annotations

import random
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from collections.abc import Set as AbstractSet
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from meshd import __version__
from meshd import session as sessions
from meshd.accounting import Accounting
from meshd.backup import CHANNEL_FILE, ChannelFile
from meshd.billing import Billing
from meshd.budget import BudgetKeeper
from meshd.chains import open_chain, open_wallet
from meshd.config import Config, InterfaceConfig, load
from meshd.config_edit import differences
from meshd.config_price import PriceConfig
from meshd.control import Access, ControlServer
from meshd.enforcement import Enforcement, HeldFile
from meshd.identity import Identity
from meshd.kernel import Kernel, KernelConfig, NetlinkError
from meshd.kernel.batman import Batman
from meshd.kernel.nl80211 import Nl80211
from meshd.logs import Logger
from meshd.neighbours import Neighbours
from meshd.paymaster import METERED_DELAY, Paymaster
from meshd.peer_rules import PeerRules
from meshd.policy import policy_of
from meshd.pricing import PriceFollower
from meshd.radio import QualityReader
from meshd.recorder import Recorder
from meshd.recovery import keep_leftover, recovered
from meshd.redistribution import Redistribution
from meshd.router import Router
from meshd.rpc import methods, path_of
from meshd.tcp import LinkLocalTcp
from meshd.ticks import tick_after
from meshd.tunnel import Tunnel
from meshd.tunnels import SILENCE, Tunnels, next_incarnation
from meshd.waypoints import Waypoint, Waypoints
from payments import events as pay
from payments.adapters.store import Store
from payments.config import SettlementTerms
from payments.counts import Signer
from payments.engine import PaymentConfig, PaymentEngine
from payments.ports import WalletPort
from payments.records import Reading
from routing.config import SpeakerConfig
from routing.events import SetFee, SetPolicy
from routing.filters import Policy
from routing.recording import RecordedSpeaker
from routing.speaker import Speaker

if TYPE_CHECKING:
    from meshd.metrics import MetricsServer

log = Logger("meshd")
LAST_READING_TIMEOUT = 2.0
SMALL_CHANGE_TIMEOUT = 2.0
SILENCE_HELLOS = 3.5
RANK_INTERVAL = 10.0
MEGABYTE = 1_000_000
LOSS_INTERVAL = 5.0
HELLO_HISTORY_BITS = 16
UNLIMITED_MSAT = 2**63


class Daemon:
    """All parts of a running node; `meshd.rpc` shows them."""

    def __init__(
        self,
        config: Config,
        identity: Identity,
        kernel: Kernel,
        store: Store,
        held_file: HeldFile,
        *,
        config_path: Path,
        recorder: Recorder | None,
    ) -> None:
        self.config = config
        self._config_path = config_path
        self.identity = identity
        self.started_at = trio.current_time()
        # Nobody could pay it where there are no payments.
        self.fee_msat_per_gb = config.price.fee_msat_per_gb if config.payments.enabled else 0
        self.billing = Billing(price_notice=config.price.price_notice)
        self.chain = open_chain(config)
        self.sessions = sessions.SessionManager(identity, network=LinkLocalTcp(config.payments.session_port))
        self.router = Router(
            self._speaker(recorder),
            kernel,
            self.billing,
            [interface for interface in config.interfaces if interface.security == "none"],
            port=config.routing.port,
            on_neighbour=self._neighbour_changed,
            on_interface=self._interface_changed,
        )
        self.redistribution = Redistribution(
            kernel.route_watch, config.redistributions, self.own_prefixes, self.router.put
        )
        self.enforcement = Enforcement(
            kernel, Neighbours(), file=held_file, held=held_file.load(), free_rate=config.payments.free_rate
        )
        is_free = config.payments.settlement == "null"  # nobody is held to what nobody pays
        self.peer_rules = self._make_peer_rules()
        self.accounting = Accounting(
            kernel,
            self.billing,
            self.enforcement,
            report=self._metered if config.payments.enabled else None,
            recovered=recovered(store),
            strangers_window_msat=UNLIMITED_MSAT if is_free else config.payments.window_msat,
        )
        self.paymaster = Paymaster(
            self._payment_engine(store),
            store,
            self.chain,
            self._open_wallet,
            deliver=self.sessions.send,
            drop=partial(self.sessions.disconnect, reason="payment protocol"),
            set_carrying=self.peer_rules.set_carrying,
            set_trusted=self._set_trusted,
            counters=kernel.counters,
        )
        self.waypoints = Waypoints(identity, self._waypoint)
        self._make_money_keepers()
        self._kernel, self.lane = kernel, kernel.lane
        self._distrusted: set[bytes] = set()
        self.tunnels = self._make_tunnels()
        self.quality = QualityReader(
            config.interfaces,
            kernel.links,
            Nl80211(),
            Batman(),
            neighbours=self.router.speaker.neighbours,
            below=self._below,
            tell=self.router.put,
        )

    async def _waypoint(self, destination: str) -> Waypoint:
        return await path_of(self).look(destination)

    def _make_peer_rules(self) -> PeerRules:
        return PeerRules(
            self.config.node.state_dir / "peers.json",
            hold=self.enforcement.set_carrying,
            on_change=lambda: self.router.put(SetPolicy(self._policy())),
        )

    def _make_money_keepers(self) -> None:
        """What looks after prices and spending. Neither does anything before it is told to."""
        config = self.config
        self.price_follower = PriceFollower(
            config.price,
            carried=lambda: self.accounting.sum().carried,
            fee=lambda: self.fee_msat_per_gb,
            set_fee=self.set_fee,
        )
        self.budget = BudgetKeeper(
            config.budget.limits(),
            ledgers=self.paymaster.engine.ledgers,
            set_buying=lambda _: self.router.put(SetPolicy(self._policy())),
            file=config.node.state_dir / "budget.json",
        )

    def _below(self, interface: str, address: IPv6Address) -> tuple[str, IPv6Address] | None:
        """Where a neighbour is reached on the link itself, also if all that we see of it is in a tunnel."""
        tunnel = None if self.tunnels is None else self.tunnels.on(interface)
        if tunnel is None:
            return interface, address
        return None if tunnel.found is None else (tunnel.under.name, tunnel.found.address)

    def _speaker(self, recorder: Recorder | None) -> Speaker:
        routing = self.config.routing
        config = SpeakerConfig(
            # A fresh router-id for each start: sequence numbers need not survive a crash, and no neighbour holds an old
            # feasibility distance against us (RFC 8966 section 3.2.1: a router-id is arbitrary).
            router_id=secrets.token_bytes(8),
            fee_msat_per_gb=self.fee_msat_per_gb,
            price_weight=float(routing.price_weight),
            sticky_fraction=routing.sticky_fraction,
            sticky_timeout=routing.sticky_timeout,
            hello_interval=routing.hello_interval,
            update_interval=routing.update_interval,
            # The old price is honoured for longer than the news of a small rise may wait.
            small_change_timeout=min(SMALL_CHANGE_TIMEOUT, self.config.price.price_notice / 2),
            mode=routing.mode,
            stub_prefixes=routing.stub_prefixes,
            policy=policy_of(self.config),
        )
        seed, now = secrets.randbits(64), trio.current_time()
        if recorder is None:
            return Speaker(config, rng=random.Random(seed), now=now)  # noqa: S311  jitter
        started = datetime.now(UTC).isoformat(timespec="milliseconds")
        origin = {"program": f"meshd {__version__}", "node": self.config.node.name, "started": started}
        return RecordedSpeaker(config, seed=seed, now=now, write=recorder.write, origin=origin)

    def _make_tunnels(self) -> Tunnels | None:
        secured = [interface for interface in self.config.interfaces if interface.security == "wireguard"]
        if not secured and not self.config.peers:
            return None
        return Tunnels(
            self.identity,
            self._kernel,
            secured,
            self.config.discovery,
            peers=self.config.peers,
            chain=self.config.chain.network,
            incarnation=next_incarnation(self.config.node.state_dir / "incarnation"),
            silence=max(SILENCE, SILENCE_HELLOS * self.config.routing.hello_interval),
            on_up=self._tunnel_up,
            on_down=self._tunnel_down,
        )

    async def _tunnel_up(self, tunnel: Tunnel) -> None:
        is_named = any(rule.interface == tunnel.under.name for rule in self.config.filters)
        if is_named or tunnel.peer in self._refused_peers():
            await self.router.put(SetPolicy(self._policy()))  # before anything is heard there
        await self.router.add_interface(replace(tunnel.under, name=tunnel.name), tunnel.far_end)

    def _policy(self) -> Policy:
        refused = self._refused_peers()
        distrusted = [link for link, peer in self.accounting.neighbours.peer_by_link.items() if peer in refused]
        # In a tunnel it is known by its key alone: it need not have a session.
        tunnels = [] if self.tunnels is None else self.tunnels.all()
        distrusted += [(tunnel.name, tunnel.far_end) for tunnel in tunnels if tunnel.peer in refused]
        names = None if self.tunnels is None else self.tunnels.names()
        return policy_of(self.config, names, dict.fromkeys(distrusted), is_buying=self.budget.is_buying)

    def _refused_peers(self) -> AbstractSet[bytes]:
        """Whose routes are not taken: their counts contradict ours, or the operator does not want them."""
        return self._distrusted | self.peer_rules.blocked

    async def _set_trusted(self, peer: bytes, is_trusted: bool) -> None:
        (self._distrusted.discard if is_trusted else self._distrusted.add)(peer)
        await self.router.put(SetPolicy(self._policy()))

    async def _tunnel_down(self, tunnel: Tunnel) -> None:
        await self.router.remove_interface(tunnel.name)

    def _payment_engine(self, store: Store) -> PaymentEngine:
        wanted = self.config.payments
        config = PaymentConfig(
            chain=self.config.chain.network,
            tick_interval=wanted.tick,
            metered_delay=METERED_DELAY,
            start_window_msat=wanted.window_msat,
            max_window_msat=wanted.max_window_msat,
            capacity_sat=wanted.channel_capacity_sat,
            expiry_blocks=wanted.channel_expiry_blocks,
            expiry_margin=wanted.expiry_margin_blocks,
            min_confirmations=wanted.min_confirmations,
            keep_for_neighbours=wanted.keep_for_neighbours,
            settlement=SettlementTerms(wanted.settlement, wanted.credit_limit_msat),
            settlement_by_peer={
                other.identity: SettlementTerms(
                    wanted.settlement if other.settlement is None else other.settlement,
                    wanted.credit_limit_msat if other.credit_limit_msat is None else other.credit_limit_msat,
                )
                for other in self.config.neighbours
            },
        )
        return PaymentEngine(
            config,
            seed=self.identity.derive_secret("channel keys"),
            state=store.load(),
            rng=random.SystemRandom(),
            now=trio.current_time(),
            signer=Signer(self.identity.public_key, self.identity.sign),
        )

    async def _open_wallet(self) -> WalletPort:
        seed = self.identity.derive_secret("wallet seed")
        return await open_wallet(self.config, self.chain, seed=seed)

    @property
    def payments_enabled(self) -> bool:
        return self.config.payments.enabled

    @property
    def own_prefixes(self) -> list[IPv4Network | IPv6Network]:
        overlay = IPv6Network(self.identity.address)
        return [overlay, *(prefix for prefix in self.config.routing.announce if prefix != overlay)]

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Until cancelled. Raises what makes going on impossible: a port or socket in use, a broken store."""
        for address in host_addresses(self.own_prefixes):
            await self._kernel.add_address("lo", address)
        async with AsyncExitStack() as stack:
            if self.payments_enabled:
                await stack.enter_async_context(_serving(self.sessions.run))
                await stack.enter_async_context(_serving(self.paymaster.run))
                stack.push_async_callback(self._read_last)
            await stack.enter_async_context(_serving(self.accounting.run))
            if self.tunnels is not None:
                # They are there before the first packet of routing, and until after its last.
                await stack.enter_async_context(_serving(self.tunnels.run))
            nursery = await stack.enter_async_context(trio.open_nursery())
            if self.payments_enabled:
                nursery.start_soon(self._follow_sessions)
                nursery.start_soon(self._report_loss)
                nursery.start_soon(self._rank_peers)
                nursery.start_soon(self._channel_file().run)
                await self.budget.check()  # the speaker knows before it hears of the first route
                nursery.start_soon(self.budget.run)
            await nursery.start(self.router.run)
            for prefix in self.own_prefixes:
                await self.router.originate(prefix)
            for prefix, source_prefix in self.config.routing.announce_from:
                await self.router.originate(prefix, source_prefix)
            nursery.start_soon(self.redistribution.run)
            if self.payments_enabled:
                nursery.start_soon(self.price_follower.run)
            await self.peer_rules.start()
            nursery.start_soon(self.quality.run)
            if self.config.node.tell_paths:
                nursery.start_soon(self.waypoints.run)
            await nursery.start(self._control_server().run)
            if self.config.node.metrics_port:
                await nursery.start(self._metrics_server().run)
            log.info("running", name=self.config.node.name, address=self.identity.address)
            task_status.started()

    def _control_server(self) -> ControlServer:
        node = self.config.node
        access = Access(node.control_group, others_may_read=node.control_others == "read")
        return ControlServer(node.control_socket, methods(self), access=access)

    def _channel_file(self) -> ChannelFile:
        path = self.config.node.state_dir / CHANNEL_FILE
        return ChannelFile(path, self.identity, self.config.chain.network, self.paymaster.engine.records)

    async def exposition(self) -> bytes:
        """What Prometheus reads."""
        from meshd.metrics import Snapshot, exposition  # noqa: PLC0415  only for who asked for it

        table = methods(self)
        names = ("status", "neighbours", "ledger", "channels")
        return exposition(Snapshot(*[await table[name].handler({}) for name in names]))

    def _metrics_server(self) -> MetricsServer:
        from meshd.metrics import MetricsServer  # noqa: PLC0415  only for who asked for it

        return MetricsServer(self.config.node.metrics_port, self.exposition)

    def set_price_rule(self, rule: PriceConfig) -> None:
        """Fixed or by the load, until the next start."""
        self.config = replace(self.config, price=rule)
        self.price_follower.set_rule(rule)

    async def set_fee(self, fee_msat_per_gb: int) -> None:
        """Until the next start. Neighbours hear of it at once, and a rise is billed after `price_notice`."""
        self.fee_msat_per_gb = fee_msat_per_gb
        await self.router.put(SetFee(fee_msat_per_gb))

    async def reload(self) -> list[str]:
        """Take filters, redistribution, `unpriced`, maximum price, fee, budgets, costs and MAC keys of interfaces anew
        from the configuration file. No link and no payment session ends by it.

        Returns the keys that have changed and are not in force before the next start. Raises ConfigError; then nothing
        has changed.
        """
        new = load(self._config_path)
        new_fee = new.price.fee_msat_per_gb
        if new_fee != self.config.price.fee_msat_per_gb and self.payments_enabled:
            await self.set_fee(new_fee)
        new_by_name = {interface.name: interface for interface in new.interfaces}
        self.config = replace(
            self.config,
            routing=replace(
                self.config.routing,
                unpriced=new.routing.unpriced,
                max_price_msat_per_gb=new.routing.max_price_msat_per_gb,
            ),
            budget=new.budget,
            filters=new.filters,
            redistributions=new.redistributions,
            price=replace(self.config.price, fee_msat_per_gb=new_fee),
        )
        await self.router.put(SetPolicy(self._policy()))
        if self.payments_enabled:
            await self.budget.set_limits(new.budget.limits())
        for peer in self.config.peers:
            await self.set_cost(peer.name, {other.name: other.cost for other in new.peers}.get(peer.name, peer.cost))
        for interface in self.config.interfaces:
            wanted = new_by_name.get(interface.name, interface)
            await self.set_cost(interface.name, wanted.cost)
            if interface.security == "none":
                await self.router.set_keys(interface.name, wanted.mac_keys, verify=wanted.mac_verify)
        self.redistribution.set_rules(new.redistributions)
        interfaces = tuple(_with_keys_of(old, new_by_name.get(old.name, old)) for old in self.config.interfaces)
        self.config = replace(self.config, interfaces=interfaces)
        waiting = differences(self.config, new)
        log.info("configuration read anew", file=self._config_path, waiting_for_restart=" ".join(waiting) or "nothing")
        return waiting

    async def set_cost(self, interface: str, cost: int) -> None:
        """Until the next start or `reload`. Raises KeyError if none of that name is configured."""
        interfaces, peers = self.config.interfaces, self.config.peers
        if interface not in {i.name for i in interfaces} | {p.name for p in peers}:
            raise KeyError(interface)
        is_bare = any(known.name == interface and known.security == "none" for known in interfaces)
        if is_bare or self.tunnels is None:
            await self.router.set_cost(interface, cost)
        else:
            for name in self.tunnels.set_cost(interface, cost):
                with suppress(KeyError):  # it is not up: it comes up with the new cost
                    await self.router.set_cost(name, cost)
        self.config = replace(
            self.config,
            interfaces=tuple(replace(i, cost=cost) if i.name == interface else i for i in interfaces),
            peers=tuple(replace(p, cost=cost) if p.name == interface else p for p in peers),
        )

    async def _read_last(self) -> None:
        """After the neighbours were told to turn away: what they still had carried is to be billed."""
        with trio.move_on_after(LAST_READING_TIMEOUT) as scope:
            scope.shield = True
            try:
                await self._kernel.routes.cleanup()  # first: what is carried after the last reading is in none
            except NetlinkError as error:
                log.error("routes not removed", reason=error)
            await self.accounting.read()

    async def _rank_peers(self) -> None:
        """Where there is no room for all, who has paid stays."""
        while self.tunnels is not None:
            ledgers = self.paymaster.engine.ledgers()
            paid = {ledger.peer: ledger.received_msat + ledger.sent_msat for ledger in ledgers}
            self.tunnels.discovery.set_worth({peer: msat for peer, msat in paid.items() if msat > 0})
            await trio.sleep_until(tick_after(trio.current_time(), RANK_INTERVAL))

    async def _metered(self, traffic: pay.MeteredTraffic, readings: Mapping[bytes, Reading]) -> None:
        await self.paymaster.put_metered(self.peer_rules.billed(traffic), readings)

    async def _follow_sessions(self) -> None:
        while True:
            for event in await self.sessions.next_events():
                await self._handle_session(event)

    async def _handle_session(self, event: sessions.SessionEvent) -> None:
        match event:
            case sessions.PeerConnected():
                log.info("session up", peer=event.peer, interface=event.interface, address=event.link_local)
                await self.accounting.peer_connected(event.peer, (event.interface, event.link_local))
                if event.peer in self._refused_peers():
                    await self.router.put(SetPolicy(self._policy()))  # of this link too
                if event.first:
                    await self.paymaster.put(pay.PeerConnected(event.peer))
            case sessions.PeerMessage():
                # The bill in it is judged by our own meter, so that has to be up to date.
                await self.accounting.refresh()
                await self.paymaster.put(pay.ReceivedMessage(event.peer, event.data))
            case sessions.PeerDisconnected():
                log.info("session down", peer=event.peer, interface=event.interface, reason=event.reason)
                self.accounting.peer_disconnected((event.interface, event.link_local))
                # What was under way on it is lost, though another session with the peer may remain: both ends
                # then tell each other anew where they stand.
                await self.paymaster.put(pay.PeerDisconnected(event.peer))
                if not event.last:
                    await self.paymaster.put(pay.PeerConnected(event.peer))

    async def _report_loss(self) -> None:
        """Both ends' counts may differ by what the link loses: the larger share, of a neighbour on several links."""
        told: dict[bytes, float] = {}
        while True:
            await trio.sleep_until(tick_after(trio.current_time(), LOSS_INTERVAL))
            share_by_peer: dict[bytes, float] = {}
            for neighbour in self.router.speaker.neighbours():
                peer = self.sessions.peer_on(neighbour.interface, neighbour.address)
                if peer is not None:
                    share = 1 - neighbour.hello_history.bit_count() / HELLO_HISTORY_BITS
                    share_by_peer[peer] = max(share, share_by_peer.get(peer, 0.0))
            for peer, share in share_by_peer.items():
                if share > 0.0 or told.get(peer) != share:
                    await self.paymaster.put(pay.LinkLossMeasured(peer, share))
            told = share_by_peer

    def _interface_changed(self, name: str, index: int, address: IPv6Address | None) -> None:
        if not self.payments_enabled:
            return
        if address is None:
            self.sessions.interface_down(name)
        else:
            tunnel = None if self.tunnels is None else self.tunnels.on(name)
            self.sessions.interface_up(name, index, address, None if tunnel is None else tunnel.peer)

    def _neighbour_changed(self, interface: str, address: IPv6Address, is_up: bool) -> None:
        (self.accounting.neighbour_up if is_up else self.accounting.neighbour_down)(interface, address)
        if not self.payments_enabled:
            return
        if not is_up:
            self.sessions.neighbour_down(interface, address)
        elif interface in self.router.attached:
            self.sessions.neighbour_up(interface, address)


def _with_keys_of(old: InterfaceConfig, new: InterfaceConfig) -> InterfaceConfig:
    return replace(old, mac_keys=new.mac_keys, mac_verify=new.mac_verify)


@asynccontextmanager
async def _serving(service: Callable[..., Awaitable[None]]) -> AsyncIterator[None]:
    """The service runs to the end of the block, also when that is cancelled: what is in the block ends first."""
    async with trio.open_nursery() as nursery:
        scope = trio.CancelScope()

        async def run(task_status: trio.TaskStatus[None]) -> None:
            with scope:
                await service(task_status=task_status)

        await nursery.start(run)
        scope.shield = True
        try:
            yield
        finally:
            scope.cancel()


def host_addresses(prefixes: list[IPv4Network | IPv6Network]) -> list[IPv4Address | IPv6Address]:
    """Single addresses among what we announce are our own; of wider prefixes we are only the way there."""
    return [prefix.network_address for prefix in prefixes if prefix.prefixlen == prefix.max_prefixlen]


@asynccontextmanager
async def running(config: Config, identity: Identity, config_path: Path) -> AsyncIterator[Daemon]:
    """A node from here to the end of the block; the kernel is as before afterwards.

    `config_path`: where `config` is from, and where `Daemon.reload` looks.
    """
    state = config.node.state_dir
    kernel_config = KernelConfig(
        record_path=state / "kernel.json",
        table=config.routing.table,
        rule_priority=config.routing.rule_priority,
        free_rate=config.payments.free_rate,
        has_fast_lane=config.node.fast_lane == "auto",
    )
    held_file = HeldFile(state / "held.json")
    with ExitStack() as files:
        recorder = None
        if config.node.record is not None:
            recorder = Recorder(config.node.record, max_bytes=config.node.record_max_mb * MEGABYTE)
            files.callback(recorder.close)
            log.info("recording", file=recorder.path)
        store = await trio.to_thread.run_sync(Store.open, Path(state / "payments.sqlite"))
        files.callback(store.close)
        keep = partial(keep_leftover, store) if config.payments.enabled else None
        secured = [interface.name for interface in config.interfaces if interface.security == "wireguard"]
        async with (
            Kernel.open(kernel_config, held_file.load(), keep=keep, guarded=secured) as kernel,
            trio.open_nursery() as nursery,
        ):
            daemon = Daemon(config, identity, kernel, store, held_file, config_path=config_path, recorder=recorder)
            await nursery.start(daemon.run)
            yield daemon
            nursery.cancel_scope.cancel()
