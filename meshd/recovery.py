"""What the kernel carried while no daemon ran, after a crash: how much of it is not in the books yet, and its price.

Neighbours went on sending at the prices that they last heard from the daemon that died, and so it is those that count
(docs/adr/0005-meters-survive-a-crash.md).
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from ipaddress import ip_address

import trio

from meshd.billing import Billing, LinkKey
from meshd.kernel import Direction, FlowCount
from meshd.logs import Logger
from payments.adapters.store import Store
from payments.records import Reading

log = Logger("meshd.recovery")

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


def flow_of(name: bytes, total_bytes: int) -> FlowCount:
    """The counter that `flow_name` has named, with so much in it. Raises ValueError."""
    direction, _, rest = name.decode().partition("|")
    interface, mac, source, destination, counter = rest.rsplit("|", 4)
    return FlowCount(
        Direction(direction),
        interface,
        bytes.fromhex(mac),
        ip_address(source) if source else None,
        ip_address(destination) if destination else None,
        bytes=total_bytes,
        packets=0,
        total_bytes=total_bytes,
        counter=int(counter),
    )


def billable(leftover: Iterable[FlowCount]) -> dict[bytes, int]:
    """How far those counters had come whose bytes have a price, by `flow_name`."""
    return {
        flow_name(flow): flow.total_bytes
        for flow in leftover
        if flow.direction in (Direction.FORWARD_IN, Direction.OUT)
    }


def unbilled(leftover: Iterable[FlowCount], readings: Mapping[bytes, Reading]) -> list[Unbilled]:
    """Of what a killed daemon's counters hold, the part that came after its last entry in the books.

    A counter below its reading has begun anew since. Once billed, the counter's whole sum is its reading: a further
    crash finds nothing of it to bill.
    """
    found = []
    for flow in leftover:
        reading = readings.get(flow_name(flow))
        before = 0 if reading is None else reading.total_bytes
        new_bytes = flow.total_bytes - before if flow.total_bytes >= before else flow.total_bytes
        if new_bytes and flow.direction in (Direction.FORWARD_IN, Direction.OUT):
            price = None if reading is None else reading.price_msat_per_gb
            found.append(Unbilled(replace(flow, bytes=new_bytes), price))
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


async def keep_leftover(store: Store, leftover: Iterable[FlowCount]) -> None:
    """What a killed daemon's counters hold, written down before they are removed. Raises StoreError."""
    keep = partial(store.keep_leftover, billable(leftover), now=time.time())
    forgotten = await trio.to_thread.run_sync(keep)
    if forgotten:
        log.warning("flows of neighbours that did not come back for too long are not billed", flows=forgotten)


def recovered(store: Store) -> list[Unbilled]:
    """What was written down so, by this start or one before, and is not billed yet. Raises StoreError."""
    flows: list[FlowCount] = []
    for name, total_bytes in store.leftover().items():
        try:
            flows.append(flow_of(name, total_bytes))
        except ValueError:
            log.warning("a flow that waits to be billed has a name that is none", flow=name)
    return unbilled(flows, store.readings())
