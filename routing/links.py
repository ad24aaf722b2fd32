"""Link sensing: Hello histories and link costs (RFC 8966 section 3.4 and appendix A)."""

from __future__ import annotations

from routing import rules
from routing.rules import HISTORY_BITS, METRIC_INFINITY
from routing.tables import NEVER, HelloHistory, Interface, Neighbour

GAP_MAX = 16  # a larger difference of Hello seqnos means that the sender has restarted (appendix A.1)
HELLO_TIMEOUT_INTERVALS = 1.5
SILENCE_HELLOS = 5
WIRELESS_SILENCE = 0xF800  # five Hellos in a row missed: no radio link is worth waiting longer
FIRST_HELLO_WIRED = 0xC000  # enough for 2-out-of-3: a wire that carries one Hello carries the next
FIRST_HELLO = 0x8000


def is_restart(record: HelloHistory, seqno: int) -> bool:
    """The sender has lost its state since the last Hello: whatever we know of it is void (appendix A.1)."""
    return record.count > 0 and GAP_MAX < ((seqno - record.expected_seqno) & 0xFFFF) < 0x10000 - GAP_MAX


def record_hello(record: HelloHistory, seqno: int, interval: float, *, is_wired: bool, now: float) -> None:
    """Appendix A.1. Not for a Hello that `is_restart`."""
    if record.count == 0:
        record.history = FIRST_HELLO_WIRED if is_wired else FIRST_HELLO
        record.count = 1
    else:
        gap = (seqno - record.expected_seqno) & 0xFFFF
        if gap == 0 and record.interval > 0.0:
            seen = (now - record.heard_at) / record.interval - 1.0
            record.lateness = rules.learn_lateness(record.lateness, seen)
        if gap < 0x8000:
            record.history >>= gap  # missed
            record.count = min(HISTORY_BITS, record.count + gap)
        else:
            back = 0x10000 - gap  # counted as missed too early
            record.history = (record.history << back) & 0xFFFF
            record.count = max(0, record.count - back)
        record.history = (record.history >> 1) | FIRST_HELLO
        record.count = min(HISTORY_BITS, record.count + 1)
    record.expected_seqno = rules.seqno_add(seqno, 1)
    record.heard_at = now
    if interval > 0.0:
        record.interval = interval
        record.expires_at = now + HELLO_TIMEOUT_INTERVALS * interval


def expire_hello(record: HelloHistory, *, now: float) -> bool:
    """True: the Hello that was due has not come."""
    if record.expires_at > now:
        return False
    record.history >>= 1
    record.count = min(HISTORY_BITS, record.count + 1)
    record.expected_seqno = rules.seqno_add(record.expected_seqno, 1)
    record.expires_at = now + record.interval if record.history else NEVER
    return True


def silence(record: HelloHistory) -> None:
    """Asked in vain: as if as many Hellos had been missed as a link of any kind survives."""
    record.history >>= SILENCE_HELLOS
    record.count = min(HISTORY_BITS, record.count + SILENCE_HELLOS)


def update_cost(neighbour: Neighbour, *, now: float) -> bool:
    """Recompute the costs of the link (appendix A.2); true if the cost of sending to the neighbour has changed."""
    nominal = neighbour.interface.cost
    multicast, unicast = neighbour.multicast, neighbour.unicast
    if neighbour.interface.is_wired:
        heard = (multicast.history, unicast.history)
        neighbour.rxcost = min(rules.wired_rxcost(history, nominal) for history in heard)
        cost = neighbour.txcost if neighbour.rxcost < METRIC_INFINITY else METRIC_INFINITY
    else:
        ratio = max(_ratio(multicast), _ratio(unicast))
        neighbour.rxcost = rules.convicted_cost(rules.etx_rxcost(ratio, nominal), neighbour.ack_ratio, nominal)
        cost = rules.etx_cost(neighbour.txcost, ratio, nominal)
        cost = rules.convicted_cost(cost, neighbour.ack_ratio, nominal)
        cost = neighbour.etx_cost = rules.damp_cost(cost, neighbour.etx_cost)
    if neighbour.quality is not None:
        blended = rules.blended_cost(cost, nominal, neighbour.quality)
        cost = neighbour.blended_cost = rules.damp_cost(blended, neighbour.blended_cost)
    cost = rules.link_cost(cost, _rtt_cost(neighbour, now=now))
    if cost == neighbour.cost:
        return False
    neighbour.cost = cost
    return True


def _rtt_cost(neighbour: Neighbour, *, now: float) -> int:
    """Of the link's round-trip time, as far as it is known and asked for."""
    bounds = neighbour.interface.rtt
    if bounds is None or not neighbour.rtt.is_known(now=now):
        neighbour.rtt_cost = 0
    else:
        cost = rules.rtt_cost(neighbour.rtt.smoothed, bounds.minimum, bounds.maximum, bounds.penalty)
        neighbour.rtt_cost = rules.damp_cost(cost, neighbour.rtt_cost)
    return neighbour.rtt_cost


def _ratio(record: HelloHistory) -> float:
    if not record.history & WIRELESS_SILENCE:
        return 0.0
    return rules.reception_ratio(record.history, record.count)


def has_losses(interface: Interface) -> bool:
    """Some of the last Hellos of a neighbour are missing: so may be some of what we send."""
    return any(_has_gaps(n.multicast) or _has_gaps(n.unicast) for n in interface.neighbours.values())


def _has_gaps(record: HelloHistory) -> bool:
    return record.history.bit_count() < record.count
