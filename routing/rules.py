"""The arithmetic of the protocol: scalar functions on ints and floats, nothing else.

The daemon calls them; the simulator's batch engine compiles these same functions with numba. So: no objects, no
containers, no keyword-only arguments, no exceptions.
"""

from __future__ import annotations

METRIC_INFINITY = 0xFFFF
LOT_MAX = 5.0  # of the sticky fraction: a price that is by half lower moves everybody
PRICE_NOT_FOR_SALE = 0xFFFF_FFFF
MSAT_PER_GB_AT_1_SAT_PER_MB = 1_000_000
HISTORY_BITS = 16
HELLO_SLACK_MIN = 0.05  # seconds: what a busy machine may delay any packet
CHECK_WAIT_MIN = 0.2
CHECK_WAIT_MAX = 0.3
CHECKS_WIRED = 3
LAG_MAX = 1.0
TRUST_ENOUGH = 12  # a radio link that was convicted has its good name back
CHECKS_MAX = 12
CHECK_DOUBT = 0.002
RTT_MEMORY = 0.836  # of the smoothed RTT (RFC 9616 section 4.1)
QUALITY_MIN = 1.0 / 1024.0
QUALITY_MEMORY = 0.75  # of the smoothed quality, from one reading to the next
BLEND_MAX = 8  # times what Hellos tell: what a driver says of an idle link may be nonsense
TQ_FULL = 255
BITRATE_SHARE = 0.5  # of the raw bitrate that is left after preambles, acknowledgments and waiting


def seqno_less(a: int, b: int) -> bool:
    """a < b modulo 2^16 (RFC 8966 section 3.2.1)."""
    return 0 < ((b - a) & 0xFFFF) < 0x8000


def seqno_add(seqno: int, n: int) -> int:
    return (seqno + n) & 0xFFFF


def metric_add(a: int, b: int) -> int:
    """Saturates at infinity, and stays there."""
    total = a + b
    return total if total < METRIC_INFINITY else METRIC_INFINITY


def price_add(a: int, b: int) -> int:
    """Saturates at "not for sale", and stays there: a sum never wraps into a bargain."""
    total = a + b
    return total if total < PRICE_NOT_FOR_SALE else PRICE_NOT_FOR_SALE


def price_metric(price_msat_per_gb: int, price_weight: float) -> int:
    """A price in metric units, rounded to nearest, half up. `price_weight` is the metric of 1 sat/MB."""
    if price_msat_per_gb >= PRICE_NOT_FOR_SALE:
        return METRIC_INFINITY
    scaled = price_msat_per_gb * price_weight / MSAT_PER_GB_AT_1_SAT_PER_MB + 0.5
    return int(scaled) if scaled < METRIC_INFINITY else METRIC_INFINITY


def composite_metric(metric: int, fee_msat_per_gb: int, price_weight: float) -> int:
    """What a relay announces: the metric of its own route, and its fee as a metric."""
    return metric_add(metric, price_metric(fee_msat_per_gb, price_weight))


def distance_less(seqno: int, metric: int, than_seqno: int, than_metric: int) -> bool:
    """A distance is strictly better than another (RFC 8966 section 3.5.1): newer, or as new and shorter."""
    return seqno_less(than_seqno, seqno) or (seqno == than_seqno and metric < than_metric)


def is_feasible(seqno: int, metric: int, fd_seqno: int, fd_metric: int) -> bool:
    """RFC 8966 section 3.5.1: a retraction is always feasible; else the distance beats the feasibility distance."""
    return metric >= METRIC_INFINITY or distance_less(seqno, metric, fd_seqno, fd_metric)


def learn_lateness(lateness: float, seen: float) -> float:
    """How late a neighbour's Hellos come, as a share of their interval: rises at once, forgets slowly; 0 to 1/2."""
    if seen < lateness:
        lateness += (max(seen, 0.0) - lateness) / 8.0
    else:
        lateness = seen
    return min(lateness, 0.5)


def hello_patience(interval: float, lateness: float) -> float:
    """Seconds from a Hello until the next one is suspiciously late; at most one and a half intervals."""
    return interval + max(HELLO_SLACK_MIN, interval * min(0.5, 1.25 * lateness + 0.05))


def check_wait(interval: float) -> float:
    """Seconds that a neighbour has to answer one Acknowledgment Request: an eighth of its Hello interval, bounded."""
    return min(max(interval / 8.0, CHECK_WAIT_MIN), CHECK_WAIT_MAX)


def learn_lag(lag: float, late: float) -> float:
    """Seconds by which our own timers run late: rises at once, forgets slowly; at most 1."""
    return min(max(late, lag * 0.9), LAG_MAX)


def check_tries(ratio: float) -> int:
    """How many requests in a row must be lost to tell silence from loss, if `ratio` of them are answered as a rule.

    0: too many. The chance of a mistake is at most 1 in 500.
    """
    lost = 1.0
    for tries in range(1, CHECKS_MAX + 1):
        lost *= 1.0 - ratio
        if lost <= CHECK_DOUBT and tries > CHECKS_WIRED:
            return tries
    return 0


def wired_rxcost(history: int, nominal: int) -> int:
    """2-out-of-3 (RFC 8966 appendix A.2.1). The newest Hello is bit 15 of `history`."""
    newest = history >> 13
    heard = (newest & 1) + ((newest >> 1) & 1) + ((newest >> 2) & 1)
    return nominal if heard >= 2 else METRIC_INFINITY


def reception_ratio(history: int, expected: int) -> float:
    """Share of the last `expected` (at most 16) Hellos that arrived, each weighing 15/16 of the next newer one."""
    weight = 1.0
    total = 0.0
    heard = 0.0
    for i in range(min(expected, HISTORY_BITS)):
        total += weight
        if (history >> (HISTORY_BITS - 1 - i)) & 1:
            heard += weight
        weight *= 0.9375
    return heard / total if total > 0.0 else 0.0


def etx_rxcost(ratio: float, nominal: int) -> int:
    """What we tell the neighbour in an IHU: nominal / beta (RFC 8966 appendix A.2.2)."""
    if ratio <= 0.0:
        return METRIC_INFINITY
    cost = nominal / ratio + 0.5
    return int(cost) if cost < METRIC_INFINITY else METRIC_INFINITY


def etx_cost(txcost: int, ratio: float, nominal: int) -> int:
    """nominal / (alpha x beta), where alpha = min(1, nominal / txcost) (RFC 8966 appendix A.2.2)."""
    if ratio <= 0.0 or txcost >= METRIC_INFINITY:
        return METRIC_INFINITY
    cost = max(txcost, nominal) / ratio + 0.5
    return int(cost) if cost < METRIC_INFINITY else METRIC_INFINITY


def is_small_change(old: int, new: int) -> bool:
    """A move of a metric or price below a tenth: the news of it may wait."""
    return old == new or abs(new - old) * 10 < old


def rtt_sample(origin: int, received: int, sent: int, arrived: int, stale: float) -> float:
    """Seconds on the way, there and back (RFC 9616 section 3.2); -1: not to be believed.

    `origin` and `arrived` are our clock's, `received` and `sent` the neighbour's: microseconds modulo 2^32. `stale`:
    seconds; neither end can have waited that long. A negative time is of a clock that was set, or of a liar.
    """
    waited = ((arrived - origin) & 0xFFFFFFFF) / 1e6
    held = ((sent - received) & 0xFFFFFFFF) / 1e6
    if waited >= stale or held > waited:
        return -1.0
    return waited - held


def smooth_rtt(smoothed: float, sample: float) -> float:
    return RTT_MEMORY * smoothed + (1.0 - RTT_MEMORY) * sample


def rtt_cost(rtt: float, rtt_min: float, rtt_max: float, penalty: int) -> int:
    """0 up to `rtt_min` seconds, `penalty` from `rtt_max`, linear between them (RFC 9616 section 4.2)."""
    if rtt <= rtt_min:
        return 0
    if rtt >= rtt_max:
        return penalty
    return int(penalty * (rtt - rtt_min) / (rtt_max - rtt_min) + 0.5)


def link_cost(cost: int, penalty: int) -> int:
    """With a penalty, which alone does not make a link unusable; never 0."""
    if cost >= METRIC_INFINITY:
        return METRIC_INFINITY
    return min(max(1, cost) + penalty, METRIC_INFINITY - 1)


def damp_cost(cost: int, before: int) -> int:
    """A measured cost is kept until it has moved by an eighth, and by more than 2: less is noise.

    Not so what it is when all is well (0 of a penalty) or lost.
    """
    if cost == 0 or cost >= METRIC_INFINITY or before >= METRIC_INFINITY:
        return cost
    return cost if abs(cost - before) > max(2, before // 8) else before


def radio_throughput(bitrate: int, sent: int, retries: int, failed: int) -> float:
    """What to expect of a radio whose driver tells its bitrate only: half of it, less what is sent in vain.

    `sent`, `retries`, `failed`: frames since the reading before; in the unit of `bitrate`.
    """
    arrived = max(sent - failed, 0)
    share = arrived / (sent + retries) if sent > 0 else 1.0
    return bitrate * BITRATE_SHARE * min(share, 1.0)


def throughput_quality(throughput: float, full: float) -> float:
    """Of a link that `full` makes perfect; both in the same unit."""
    return min(max(throughput / full, QUALITY_MIN), 1.0) if full > 0.0 else 1.0


def tq_quality(tq: int) -> float:
    """Of B.A.T.M.A.N. IV's transmit quality, 0 to 255: the share of packets that arrive on the whole way."""
    return min(max(tq / TQ_FULL, QUALITY_MIN), 1.0)


def smooth_quality(smoothed: float, sample: float) -> float:
    return QUALITY_MEMORY * smoothed + (1.0 - QUALITY_MEMORY) * sample


def blended_cost(hello_cost: int, nominal: int, quality: float) -> int:
    """What a link costs of which Hellos and a driver (or a mesh below us) tell: the worse of the two.

    Hellos are broadcast slowly, without retries: they tell what is lost both ways, but not how fast the link is. The
    driver tells that, with losses of its own in it, so that a sum would count them twice. At most `BLEND_MAX` times
    what Hellos tell; lost when Hellos say so.
    """
    if hello_cost >= METRIC_INFINITY:
        return METRIC_INFINITY
    told = nominal / (min(quality, 1.0) if quality > QUALITY_MIN else QUALITY_MIN) + 0.5
    return max(hello_cost, min(int(told), hello_cost * BLEND_MAX, METRIC_INFINITY - 1))


def convicted_ratio(answers: int, asked: int) -> float:
    """What share of requests to believe answered on a link that has lost so many, and a Hello: 1/8 to 1/2."""
    return min(max(answers / (asked + 1), 0.125), 0.5)


def learn_trust(trust: int, history: int) -> int:
    """Of a convicted link, after a Hello: a step up, and three down for each that was missed just before it.

    With every other Hello lost, `TRUST_ENOUGH` is hardly ever reached; with every tenth, after some 20.
    """
    missed = 0
    while missed < HISTORY_BITS - 1 and not (history >> (HISTORY_BITS - 2 - missed)) & 1:
        missed += 1
    return max(0, trust - 3 * missed) + 1


def convicted_cost(cost: int, ack_ratio: float, nominal: int) -> int:
    """A convicted link costs at least what its answers tell: requests travel both ways, as ETX wants it.

    The other end is told the same, as it may not have noticed yet; when it has, both may count a loss twice.
    """
    if cost >= METRIC_INFINITY:
        return METRIC_INFINITY
    return max(cost, min(int(nominal / ack_ratio + 0.5), METRIC_INFINITY - 1))


def sticky_margin(price_metric_paid: int, quality: int, is_noisy: bool, fraction: float) -> int:
    """Gains up to this are not worth a switch at once: price moves below `fraction`, noise of measured costs."""
    margin = int(price_metric_paid * fraction)
    return margin + quality // 8 if is_noisy else margin


def is_price_move(price_gain: int, gain: int) -> bool:
    """Another route is better mostly for its price. All buyers of a seller hear of it at the same moment."""
    return 0 < gain < 2 * price_gain


def is_price_worth(paid: int, gain: int, fraction: float, lot: float) -> bool:
    """A buyer whose lot that is follows a price move. `paid` and `gain` are in metric units.

    Were the lot of all the same, all would leave a seller at the same price, and then the next one. With lots from 1 to
    `LOT_MAX` they leave one after the other while the difference grows, which it does no more when enough have left.
    """
    return gain > paid * fraction * lot


def is_route_better(metric: int, current_metric: int, margin: int, is_patient: bool) -> bool:
    """Hysteresis (RFC 8966 section 3.6): better by more than the margin now, or better at all for long enough."""
    return metric < current_metric and (is_patient or current_metric - metric > margin)
