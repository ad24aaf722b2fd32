"""Nodes that cheat. Each runs the same engines as everybody and bends what goes into them or comes out.

A kind is a function that prepares one node. It may tamper with packets on their way out, give its own speaker inputs,
or change what its meter and its purse say; nothing here reaches into another node.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

from routing.events import SendPacket, SetPolicy
from routing.filters import REFUSED, Policy, Rule
from routing.rules import METRIC_INFINITY, PRICE_NOT_FOR_SALE, metric_add
from routing.tlv import SeqnoRequest, Update
from simulator.exact.money import Bank
from simulator.exact.traffic import Traffic
from simulator.network import Network, address_of, prefix_of
from simulator.scenario import AdversaryConfig

FLOOD_INTERVAL = 0.1  # seconds
MUTE = Policy(exports=(Rule(add_metric=REFUSED),))


class Host(Protocol):
    """What a run offers to the adversaries in it."""

    network: Network
    traffic: Traffic
    bank: Bank | None


def install(host: Host, config: AdversaryConfig, nodes: list[int]) -> None:
    """They begin at `start` and become honest at `stop`."""
    kind = KINDS[config.kind]
    for node in nodes:
        host.network.call_at(config.start, lambda node=node: kind(host, node, config))  # type: ignore[misc]


def _until(host: Host, config: AdversaryConfig, undo: Callable[[], None]) -> None:
    if config.stop > host.network.now:
        host.network.call_at(config.stop, undo)


def _scaled(fee: int, factor: float) -> int:
    return min(int(fee * factor), PRICE_NOT_FOR_SALE - 1)


def _tamper_updates(host: Host, node: int, config: AdversaryConfig, bend: Callable[[Update], Update]) -> None:
    """Of routes that it relays, not of its own."""
    own = prefix_of(node)

    def tamper(packet: SendPacket) -> SendPacket:
        tlvs = tuple(
            bend(tlv) if isinstance(tlv, Update) and tlv.prefix != own and tlv.metric < METRIC_INFINITY else tlv
            for tlv in packet.tlvs
        )
        return replace(packet, tlvs=tlvs)

    host.network.tampers[node] = tamper
    _until(host, config, lambda: _forget_tamper(host, node))


def _forget_tamper(host: Host, node: int) -> None:
    host.network.tampers.pop(node, None)


def bait_and_switch(host: Host, node: int, config: AdversaryConfig) -> None:
    """Cheap for half of a period, `factor` times as dear for the other half, when buyers have settled on it."""
    bait = host.traffic.fee_by_node[node]

    def turn(is_dear: bool) -> None:
        is_over = host.network.now >= config.stop
        host.traffic.set_fee(node, _scaled(bait, config.factor) if is_dear and not is_over else bait)
        if not is_over:
            host.network.call_at(host.network.now + config.period / 2, lambda: turn(not is_dear))

    turn(is_dear=False)


def metric_liar(host: Host, node: int, config: AdversaryConfig) -> None:
    """Says that every destination is next door, to attract traffic that it can sell."""
    _tamper_updates(host, node, config, lambda update: replace(update, metric=1))


def black_hole(host: Host, node: int, config: AdversaryConfig) -> None:
    """A liar that bills what it is handed, and drops it."""
    metric_liar(host, node, config)
    host.traffic.black_holes.add(node)
    _until(host, config, lambda: host.traffic.black_holes.discard(node))


def free_rider(host: Host, node: int, config: AdversaryConfig) -> None:
    """Never pays."""
    bank = host.bank
    if bank is not None:
        bank.hold(node, is_held=True)
        _until(host, config, lambda: bank.hold(node, is_held=False))


def under_reporter(host: Host, node: int, config: AdversaryConfig) -> None:
    """Pays, but admits only a part of what it owes."""
    host.traffic.admitted[node] = 1.0 / max(config.factor, 1.0)
    _until(host, config, lambda: host.traffic.admitted.update({node: 1.0}))


def false_retraction(host: Host, node: int, config: AdversaryConfig) -> None:
    """Withdraws all its routes for half of each period, though they are there, so that all around it search anew."""

    def turn(is_mute: bool) -> None:
        is_over = host.network.now >= config.stop
        host.network.give(node, SetPolicy(MUTE if is_mute and not is_over else Policy()))
        if not is_over:
            host.network.call_at(host.network.now + config.period / 2, lambda: turn(not is_mute))

    turn(is_mute=True)


def flooder(host: Host, node: int, config: AdversaryConfig) -> None:
    """Asks each neighbour for ever higher seqnos of everybody's routes, `factor` times a second."""
    network = host.network
    others = [other for other in sorted(network.graph) if other != node]
    sent = 0

    def flood() -> None:
        nonlocal sent
        count = max(1, int(config.factor * FLOOD_INTERVAL))
        tlvs = []
        for _ in range(count):
            other = others[sent % len(others)]
            seqno = 1 + sent // len(others)
            tlvs.append(SeqnoRequest(prefix_of(other), seqno & 0xFFFF, 64, (other + 1).to_bytes(8, "big")))
            sent += 1
        for peer in sorted(network.graph[node]):
            network.inject(node, SendPacket(network.interface(peer), address_of(peer), tuple(tlvs)))
        if network.now + FLOOD_INTERVAL < config.stop:
            network.call_at(network.now + FLOOD_INTERVAL, flood)

    if others:
        flood()


def sybil_chain(host: Host, node: int, config: AdversaryConfig) -> None:
    """Pretends that behind it stand `factor` more relays of its own, each with the same fee and the least cost."""
    count = int(config.factor)
    fee = host.traffic.fee_by_node[node]
    host.traffic.set_fee(node, _scaled(fee, count + 1))
    _until(host, config, lambda: host.traffic.set_fee(node, fee))
    _tamper_updates(host, node, config, lambda update: replace(update, metric=metric_add(update.metric, count)))


def colluders(host: Host, node: int, config: AdversaryConfig) -> None:
    """All of them ask `factor` times as much."""
    fee = host.traffic.fee_by_node[node]
    host.traffic.set_fee(node, _scaled(fee, config.factor))
    _until(host, config, lambda: host.traffic.set_fee(node, fee))


KINDS: dict[str, Callable[[Host, int, AdversaryConfig], None]] = {
    kind.__name__: kind
    for kind in (
        bait_and_switch,
        metric_liar,
        black_hole,
        free_rider,
        under_reporter,
        false_retraction,
        flooder,
        sybil_chain,
        colluders,
    )
}
