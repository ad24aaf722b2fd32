"""Interfaces and neighbours coming and going: Hello, IHU and their timers (RFC 8966 section 3.4)."""

from __future__ import annotations

from ipaddress import IPv6Address

from routing import links
from routing.announcer import Announcer
from routing.budget import ASK_MAX, Bucket, Budget, new_budget
from routing.config import Mode
from routing.events import (
    InterfaceUp,
    LinkQuality,
    NeighbourDown,
    NeighbourUnreachable,
    NeighbourUp,
    ReceivedPacket,
    SendPacket,
)
from routing.liveness import Liveness, Verdict
from routing.requests import Requests
from routing.rtt import micros
from routing.rules import METRIC_INFINITY, seqno_add
from routing.selection import Selection
from routing.tables import NEVER, HelloHistory, Interface, Neighbour, State
from routing.tlv import Ack, Hello, Ihu, RouteRequest, WildcardRetraction

EARLY_HELLO_INTERVALS = (0.3, 0.7)  # the first Hellos follow quickly: either end may have come up a little late
LAZY_HELLO_INTERVALS = (0.01,)  # babeld says Hello twice when it starts
JITTER = (0.9, 1.0)  # of an interval
LAZY_JITTER = (0.75, 1.25)
UPDATE_JITTER = (0.975, 1.0)  # late enough for a Hello to come before it, early enough for who waits for it
UPDATE_EARLY = 0.1  # of its interval: so much earlier an update goes with a Hello
HELLO_EARLY = 0.5  # of its interval: so much earlier a Hello goes with those on other interfaces, once
SETTLED_HELLOS = 0xF000  # the last four have arrived
HELLO_SPACING = 0.02  # least time between two Hellos, however many neighbours turn up
IHU_HOLD_SECONDS_PER_CS = 0.035  # 3.5 intervals (appendix B)
PROBE_TIMEOUT = 0.3  # a new neighbour that has sent no update by then is asked for a full dump
RESTART_INTERVAL = 1.0  # least time between two restarts of a neighbour
NEWCOMERS_RATE = 8.0  # new addresses per second on one interface, beyond as many as there may be
MTU_MIN = 1280  # of IPv6


class Neighbourhood:
    def __init__(self, state: State, selection: Selection, announcer: Announcer, requests: Requests) -> None:
        self._state = state
        self._selection = selection
        self._announcer = announcer
        self._requests = requests
        self._liveness = Liveness(state)
        self._jitter = JITTER if state.config.is_eager else LAZY_JITTER
        self._update_jitter = UPDATE_JITTER if state.config.is_eager else LAZY_JITTER
        self._round_at = -NEVER  # the next Hellos, on all interfaces but those that are new

    def raise_interface(self, event: InterfaceUp, *, now: float) -> None:
        known = self._state.interfaces.get(event.interface)
        if known is not None and known.address == event.address:
            self._change_interface(known, event, now=now)
            return
        if known is not None:
            self.lower_interface(event.interface, now=now)
        interface = Interface(
            name=event.interface,
            address=event.address,
            kind=event.kind,
            mtu=max(MTU_MIN, event.mtu),
            cost=_nominal_cost(event),
            bit=self._free_bit(),
            hello_seqno=self._state.rng.randrange(0x10000),
            address4=event.address4,
            rtt=event.rtt,
        )
        self._state.interfaces[interface.name] = interface
        interface.update_at = now + self._first_update()
        self._send_hello(interface, now=now)
        self._state.arm(interface)

    def lower_interface(self, name: str, *, now: float) -> None:
        interface = self._state.interfaces.pop(name, None)
        if interface is None:
            return
        self._state.timers.cancel(interface)
        self._state.mailbox.pop(interface, None)
        self._state.flushing.pop(interface, None)
        for entry in self._state.prefixes.values():
            self._announcer.forget_interface(entry, interface, now=now)
        self._forget(list(interface.neighbours.values()), now=now)

    def shut_down(self, *, now: float) -> None:
        for interface in list(self._state.interfaces.values()):
            if interface.neighbours:
                self._state.packets.append(SendPacket(interface.name, None, (WildcardRetraction(),)))
            self.lower_interface(interface.name, now=now)
        self._selection.end_holds()

    def sender(self, packet: ReceivedPacket, *, now: float) -> Neighbour | None:
        """The neighbour that the packet is from. Only a Hello makes a new one."""
        interface = self._state.interfaces.get(packet.interface)
        if interface is None:
            self._state.counters["packet_on_unknown_interface"] += 1
            return None
        neighbour = interface.neighbours.get(packet.source)
        if neighbour is not None:
            self._liveness.hear(neighbour)
            return neighbour
        if packet.source == interface.address:
            return None
        if not any(isinstance(tlv, Hello) for tlv in packet.tlvs):
            self._state.counters["packet_from_stranger"] += 1
            return None
        if len(interface.neighbours) >= self._state.config.max_neighbours_per_interface:
            self._state.counters["neighbour_limit"] += 1
            return None
        budget = self._budget(interface, packet.source, now=now)
        if budget is None:
            self._state.counters["newcomer_limit"] += 1
            return None
        return self._meet(self._newcomer(interface, packet.source, budget, now=now), now=now)

    def receive_hello(self, neighbour: Neighbour, hello: Hello, *, now: float) -> Neighbour:
        """Returns the neighbour's entry, which is a new one if it has restarted."""
        record = neighbour.unicast if hello.unicast else neighbour.multicast
        if links.is_restart(record, hello.seqno):
            if now < neighbour.met_at + RESTART_INTERVAL:
                self._state.counters["restart_limit"] += 1
                return neighbour
            self._forget([neighbour], now=now)
            interface, budget = neighbour.interface, neighbour.budget
            fresh = self._newcomer(interface, neighbour.address, budget, now=now)
            neighbour = self._meet(fresh, now=now)
            record = neighbour.unicast if hello.unicast else neighbour.multicast
        is_wired = neighbour.interface.is_wired and self._state.config.is_eager
        if not hello.unicast and record.count == 0:
            self._liveness.meet(neighbour, hello.seqno)
        links.record_hello(record, hello.seqno, hello.interval_cs / 100, is_wired=is_wired, now=now)
        self._liveness.hear_hello(neighbour, record, now=now)
        self._follow_link(neighbour, now=now)
        return neighbour

    def receive_ihu(self, neighbour: Neighbour, ihu: Ihu, *, now: float) -> None:
        if ihu.address is not None and ihu.address != neighbour.interface.address:
            return
        if ihu.interval_cs == 0:
            self._state.counters["ihu_without_interval"] += 1
            return
        if neighbour.txcost != ihu.rxcost and not neighbour.budget.may_change_cost(now=now):
            self._state.counters["ihu_limit"] += 1
            return
        neighbour.txcost = ihu.rxcost
        neighbour.ihu_expires_at = now + IHU_HOLD_SECONDS_PER_CS * ihu.interval_cs
        self._follow_link(neighbour, now=now)

    def doubt(self, event: NeighbourUnreachable, *, now: float) -> None:
        """The kernel got no answer to its neighbour solicitations."""
        interface = self._state.interfaces.get(event.interface)
        neighbour = interface.neighbours.get(event.address) if interface is not None else None
        if neighbour is not None:
            self._liveness.doubt(neighbour, now=now)
            self.run_neighbour(neighbour, now=now)

    def rate(self, event: LinkQuality, *, now: float) -> None:
        """A driver's opinion of a link; what comes next from its Hellos is blended with it."""
        interface = self._state.interfaces.get(event.interface)
        neighbour = interface.neighbours.get(event.address) if interface is not None else None
        if neighbour is not None and neighbour.quality != event.quality:
            neighbour.quality = event.quality
            if event.quality is None:
                neighbour.blended_cost = METRIC_INFINITY
            self._follow_link(neighbour, now=now)

    def receive_ack(self, neighbour: Neighbour, ack: Ack) -> bool:
        """False: it answers something else than a check of ours."""
        return self._liveness.acknowledge(neighbour, ack)

    def measure(self, neighbour: Neighbour, packet: ReceivedPacket, *, now: float) -> None:
        """Of a packet whose Hello and IHU have been dealt with: the round-trip time, where we want to know it."""
        interface = neighbour.interface
        if interface.rtt is None:
            return
        hello = next((tlv for tlv in packet.tlvs if isinstance(tlv, Hello)), None)
        ours = (tlv for tlv in packet.tlvs if isinstance(tlv, Ihu) and tlv.address in (None, interface.address))
        neighbour.rtt.hear(hello, next(ours, None), self._state.counters, now=now)
        self._follow_link(neighbour, now=now)

    def run_interface(self, interface: Interface, *, now: float) -> None:
        hello_at = min(interface.hello_at, interface.greet_at)
        if hello_at <= now:
            self._liveness.note_lag(now - hello_at)
            self._send_hello(interface, now=now)
        if interface.resend_at <= now:
            self._announcer.resend(interface, now=now)
        update_interval = self._state.config.update_interval
        early = UPDATE_EARLY * update_interval if hello_at <= now and self._state.config.is_eager else 0.0
        if interface.update_at <= now + early:
            interface.update_at = now + update_interval * self._state.rng.uniform(*self._update_jitter)
            self._announcer.request_full_update(interface)
        elif interface.flush_at <= now:
            self._state.flushing[interface] = None
            interface.flush_at = NEVER
        self._state.arm(interface)

    def run_neighbour(self, neighbour: Neighbour, *, now: float) -> None:
        for record in (neighbour.multicast, neighbour.unicast):
            if links.expire_hello(record, now=now):
                self._liveness.miss_hello(neighbour, record, now=now)
        verdict = self._liveness.run(neighbour, now=now)
        if verdict is Verdict.GONE:
            links.silence(neighbour.multicast)
            links.silence(neighbour.unicast)
        if neighbour.ihu_expires_at <= now:
            neighbour.ihu_expires_at = NEVER
            neighbour.txcost = METRIC_INFINITY
        if neighbour.probe_at <= now:
            neighbour.probe_at = NEVER
            config = self._state.config
            for prefix in config.stub_prefixes if config.mode is Mode.STUB else (None,):
                self._state.send(neighbour, RouteRequest(prefix))
        if neighbour.ask_at <= now:
            self._ask_for_missed(neighbour)
        if neighbour.dump_at <= now:
            neighbour.dump_at = NEVER  # it may have to wait again, for others on its link
            self._announcer.request_dump(neighbour, now=now)
        self._follow_link(neighbour, now=now)
        if verdict is Verdict.LOSSY:
            for to in (neighbour, neighbour.interface):  # of two, one may arrive
                self._state.send(to, self._ihu(neighbour))
        if self._is_lost(neighbour):
            # It may still hear us: let it know at once that it is talking to the deaf.
            self._state.send(neighbour, self._ihu(neighbour))
            self._liveness.bury(neighbour)
            self._forget([neighbour], now=now)

    def _change_interface(self, interface: Interface, event: InterfaceUp, *, now: float) -> None:
        """The operator, or the driver, has another opinion of a link that stays up: no neighbour is lost by that."""
        interface.kind = event.kind
        interface.mtu = max(MTU_MIN, event.mtu)
        if interface.address4 != event.address4:
            interface.address4 = event.address4
            self._announcer.request_full_update(interface)
        if (interface.cost, interface.rtt) == (_nominal_cost(event), event.rtt):
            return
        interface.rtt = event.rtt
        interface.cost = _nominal_cost(event)
        for neighbour in interface.neighbours.values():
            self._follow_link(neighbour, now=now)
            interface.unanswered[neighbour] = None
        self._send_hello(interface, now=now)
        self._state.arm(interface)

    def _first_update(self) -> float:
        interval = self._state.config.update_interval
        is_eager = self._state.config.is_eager
        return self._state.jitter(interval) if is_eager else interval * self._state.rng.uniform(*LAZY_JITTER)

    def _free_bit(self) -> int:
        used = sum(interface.bit for interface in self._state.interfaces.values())
        return ~used & (used + 1)

    def _budget(self, interface: Interface, address: IPv6Address, *, now: float) -> Budget | None:
        """What it has left from last time; a new one if there have not been too many new addresses lately."""
        known = interface.budgets.get(address)
        if known is not None:
            return known
        most = self._state.config.max_neighbours_per_interface
        if interface.newcomers is None:
            interface.newcomers = Bucket(float(most), now)
        if not interface.newcomers.take(float(most), NEWCOMERS_RATE, now=now):
            return None
        if len(interface.budgets) >= 2 * most:
            interface.budgets = {a: b for a, b in interface.budgets.items() if a in interface.neighbours}
        budget = new_budget(self._state.config.max_routes_per_neighbour, now=now)
        interface.budgets[address] = budget
        return budget

    def _ask_for_missed(self, neighbour: Neighbour) -> None:
        """Of what exceeded its budget we know nothing: perhaps it has come to rest by now."""
        neighbour.ask_at = NEVER
        missed, neighbour.budget.missed = neighbour.budget.missed, {}
        if len(missed) > ASK_MAX:
            self._state.send(neighbour, RouteRequest(None))
            return
        for key in missed:
            prefix, source_prefix = key if isinstance(key, tuple) else (key, None)
            self._state.send(neighbour, RouteRequest(prefix, source_prefix))

    def _newcomer(self, interface: Interface, address: IPv6Address, budget: Budget, *, now: float) -> Neighbour:
        number = self._state.free_number()
        return Neighbour(interface, address, HelloHistory(), HelloHistory(), budget, now, number)

    def _meet(self, neighbour: Neighbour, *, now: float) -> Neighbour:
        interface = neighbour.interface
        is_first = not interface.neighbours
        interface.neighbours[neighbour.address] = neighbour
        self._state.outputs.append(NeighbourUp(interface.name, neighbour.address))
        interface.unanswered[neighbour] = None
        if not self._state.config.is_eager:
            return neighbour
        greet_at = max(now, interface.last_hello_at + HELLO_SPACING)
        if not is_first:
            greet_at += self._state.jitter(self._state.config.urgent_timeout)
        interface.greet_at = min(interface.greet_at, greet_at)
        self._state.timers.set_earlier(interface, interface.greet_at)
        return neighbour

    def _follow_link(self, neighbour: Neighbour, *, now: float) -> None:
        was_reachable = neighbour.cost < METRIC_INFINITY
        if links.update_cost(neighbour, now=now):
            if not was_reachable and self._state.config.is_eager:
                self._announcer.request_dump(neighbour, now=now)
                if neighbour.route_count == 0:
                    neighbour.probe_at = now + PROBE_TIMEOUT
            self._selection.change_link_cost(neighbour, now=now)
        self._state.arm(neighbour)

    @staticmethod
    def _is_lost(neighbour: Neighbour) -> bool:
        is_silent = not (neighbour.multicast.history or neighbour.unicast.history)
        return is_silent or (neighbour.interface.is_wired and neighbour.rxcost >= METRIC_INFINITY)

    def _forget(self, neighbours: list[Neighbour], *, now: float) -> None:
        for neighbour in neighbours:
            interface = neighbour.interface
            interface.neighbours.pop(neighbour.address, None)
            interface.unanswered.pop(neighbour, None)
            self._state.timers.cancel(neighbour)
            self._requests.forget_neighbour(neighbour)
            self._announcer.delivery.forget_neighbour(neighbour)
        self._selection.forget_neighbours(neighbours, now=now)
        self._state.outputs += [NeighbourDown(n.interface.name, n.address) for n in neighbours]

    def _send_hello(self, interface: Interface, *, now: float) -> None:
        config = self._state.config
        interval_cs = max(1, round(config.hello_interval * 100))
        interface.hello_seqno = seqno_add(interface.hello_seqno, 1)
        timestamp = micros(now) if interface.rtt is not None else None
        self._state.send(interface, Hello(interface.hello_seqno, interval_cs, timestamp=timestamp))
        interface.hellos_until_ihu -= 1
        is_round = interface.hellos_until_ihu <= 0
        if is_round:
            interface.hellos_until_ihu = config.ihu_multiplier
        for neighbour in interface.neighbours.values():
            is_news = neighbour in interface.unanswered or neighbour.ack_ratio < 1.0
            if not config.is_eager and neighbour.multicast.history < SETTLED_HELLOS:
                is_news = True  # nobody has told it out of turn
            if is_round or is_news or neighbour.cost >= METRIC_INFINITY:
                stamps = neighbour.rtt.stamps(now=now) if interface.rtt is not None else None
                self._state.send(interface, self._ihu(neighbour, stamps))
        interface.unanswered.clear()
        interface.last_hello_at = now
        interface.greet_at = NEVER
        early = EARLY_HELLO_INTERVALS if config.is_eager else LAZY_HELLO_INTERVALS
        if interface.hellos_sent < len(early):
            interface.hello_at = now + min(early[interface.hellos_sent], config.hello_interval)
        else:
            interface.hello_at = self._next_round(now=now)
        interface.hellos_sent += 1

    def _next_round(self, *, now: float) -> float:
        """Hellos on several interfaces leave together: most of what an idle node does is to wake up. It is the jitter
        of all of them, and the same for each as if it were its own; only when an interface falls in with the others
        one of its Hellos comes earlier."""
        interval = self._state.config.hello_interval
        is_together = self._state.config.is_eager
        if not is_together or not now + HELLO_EARLY * interval <= self._round_at <= now + interval:
            self._round_at = now + interval * self._state.rng.uniform(*self._jitter)
        return self._round_at

    def _ihu(self, neighbour: Neighbour, stamps: tuple[int, int] | None = None) -> Ihu:
        config = self._state.config
        interval_cs = min(0xFFFF, max(1, round(config.hello_interval * config.ihu_multiplier * 100)))
        return Ihu(neighbour.rxcost, interval_cs, neighbour.address, stamps)


def _nominal_cost(event: InterfaceUp) -> int:
    """Never 0: loop-freedom rests on strictly positive link costs (RFC 8966 section 3.5.2)."""
    return min(max(1, event.cost), METRIC_INFINITY - 1)
