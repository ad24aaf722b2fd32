"""What the kernel carried while no daemon ran, after a crash: how much of it is not in the books yet, and its price.

Neighbours went on sending at the prices that they last heard from the daemon that died, and so it is those that count
(docs/adr/0005-meters-survive-a-crash.md).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from meshd.billing import Billing, LinkKey
from meshd.kernel import Direction, FlowCount
from payments.records import Reading

# A node that has lost its routing state may at first take a detour, as through a neighbour that still believes in a
# route by way of it, and ask the price of that.
SETTLING_INTERVAL = 5.0


@dataclass(slots=True)
class Unbilled:
    """A flow whose bytes were counted after the last entry in the books. `price_msat_per_gb`: of that entry; None: the
    flow is younger than the books. `priced_at`: since when its price is known to the daemon of today."""

    flow: FlowCount
    price_msat_per_gb: int | None
    priced_at: float = math.inf

    def price(self, now_asked_msat_per_gb: int) -> int:
        """The price to bill or to allow, in msat per GB. What a seller may ask of us it may have raised meanwhile."""
        if self.price_msat_per_gb is None:
            return now_asked_msat_per_gb
        if self.flow.direction is Direction.OUT:
            return max(self.price_msat_per_gb, now_asked_msat_per_gb)
        return self.price_msat_per_gb


def flow_name(flow: FlowCount) -> bytes:
    """A name for a counter of a flow, the same after a restart. One that began anew has another."""
    flow_fields = flow.direction.value, flow.interface, flow.mac.hex(), flow.source or "", flow.destination or ""
    fields = (*flow_fields, flow.counter)
    return "|".join(str(field) for field in fields).encode()


def unbilled(leftover: Iterable[FlowCount], readings: Mapping[bytes, Reading]) -> list[Unbilled]:
    """Of what a killed daemon's counters hold, the part that came after its last entry in the books.

    A counter below its reading has begun anew since. The counters themselves are gone now: new ones start at 0.
    """
    found = []
    for flow in leftover:
        reading = readings.get(flow_name(flow))
        before = 0 if reading is None else reading.total_bytes
        new_bytes = flow.total_bytes - before if flow.total_bytes >= before else flow.total_bytes
        if new_bytes and flow.direction in (Direction.FORWARD_IN, Direction.OUT):
            price = None if reading is None else reading.price_msat_per_gb
            found.append(Unbilled(replace(flow, bytes=new_bytes, total_bytes=0), price))
    return found


def is_priced(entry: Unbilled, link: LinkKey, billing: Billing, *, now: float) -> bool:
    """What its bytes cost is known, and will not change for being a few seconds too early."""
    flow = entry.flow
    if flow.direction is Direction.OUT:
        is_known = billing.is_heard(link, flow.destination, source=flow.source)
    elif entry.price_msat_per_gb is not None:
        return True
    else:
        is_known = billing.is_asked(flow.destination, source=flow.source)
    entry.priced_at = min(entry.priced_at, now) if is_known else math.inf
    return now >= entry.priced_at + SETTLING_INTERVAL
