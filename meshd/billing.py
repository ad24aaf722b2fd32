"""From metered flows to debt: which price applied to which byte.

The seller bills each byte that a neighbour handed it for a destination at the price that it announced for it; the buyer
computes, from its own meter and the prices it heard, the most that it can owe, and refuses to be billed more. Both sums
are exact integers in debt units (1 unit = 1 byte at 1 msat/GB = 10^-9 msat).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

Address = IPv4Address | IPv6Address
Prefix = IPv4Network | IPv6Network

# An update and the packets that follow it may overtake each other between two meter readings.
LAG = 2.0


@dataclass(slots=True)
class PriceHistory:
    """The prices in force for one prefix over the last few seconds, oldest first."""

    changes: list[tuple[float, int]] = field(default_factory=list)  # (from when, msat per GB)

    def change(self, price_msat_per_gb: int, *, now: float) -> None:
        if not self.changes or self.changes[-1][1] != price_msat_per_gb:
            self.changes.append((now, price_msat_per_gb))

    def in_force(self, window: float, *, now: float) -> list[int]:
        """Every price that applied at some moment of the last `window` seconds; forgets what ended earlier."""
        while len(self.changes) > 1 and self.changes[1][0] <= now - window:
            del self.changes[0]
        return [price for _, price in self.changes]


class PriceBook:
    """Prices by prefix, found by longest match."""

    def __init__(self) -> None:
        self._histories: dict[Prefix, PriceHistory] = {}
        self._withdrawn_at: dict[Prefix, float] = {}
        self._by_length: dict[tuple[int, int], dict[int, Prefix]] = {}  # (IP version, length) -> network -> prefix
        self._lengths: list[tuple[int, int]] = []  # the keys of that, the longest first

    def change(self, prefix: Prefix, price_msat_per_gb: int | None, *, now: float) -> None:
        """None: withdrawn. Its history stays for packets still on their way, until `forget_withdrawn`."""
        if price_msat_per_gb is None:
            if prefix in self._histories:
                self._withdrawn_at.setdefault(prefix, now)
            return
        self._withdrawn_at.pop(prefix, None)
        if prefix not in self._histories:
            self._histories[prefix] = PriceHistory()
            self._index(prefix)
        self._histories[prefix].change(price_msat_per_gb, now=now)

    def forget_withdrawn(self, window: float, *, now: float) -> None:
        """Drop prefixes withdrawn longer than `window` seconds ago."""
        for prefix in [p for p, at in self._withdrawn_at.items() if at <= now - window]:
            del self._histories[prefix], self._withdrawn_at[prefix]
            self._unindex(prefix)

    def _index(self, prefix: Prefix) -> None:
        key = (prefix.version, prefix.prefixlen)
        self._by_length.setdefault(key, {})[int(prefix.network_address)] = prefix
        self._lengths = sorted(self._by_length, reverse=True)

    def _unindex(self, prefix: Prefix) -> None:
        key = (prefix.version, prefix.prefixlen)
        del self._by_length[key][int(prefix.network_address)]
        if not self._by_length[key]:
            del self._by_length[key]
            self._lengths.remove(key)

    def lookup(self, destination: Address) -> PriceHistory | None:
        """By longest match. Remembers nothing: destinations are chosen by whoever sends, as many as it likes."""
        value, version, bits = int(destination), destination.version, destination.max_prefixlen
        for length in self._lengths:
            if length[0] == version:
                host_bits = bits - length[1]
                prefix = self._by_length[length].get(value >> host_bits << host_bits)
                if prefix is not None:
                    return self._histories[prefix]
        return None

    def _candidates(self, destination: Address | None) -> list[PriceHistory]:
        if destination is None:
            return list(self._histories.values())
        history = self.lookup(destination)
        return [] if history is None else [history]

    def lowest(self, destination: Address | None, window: float, *, now: float) -> int:
        """The seller's price: a rise takes effect after `window` seconds' notice, a fall at once. 0 if unpriced.

        Traffic to destinations that were too many to tell apart (None) costs what the dearest of them does: nobody is
        to travel for less by spreading it.
        """
        return max((min(h.in_force(window, now=now)) for h in self._candidates(destination)), default=0)

    def highest(self, destination: Address | None, window: float, *, now: float) -> int:
        """The buyer's bound: no honest seller asks more than the highest price it announced within `window` seconds."""
        return max((max(h.in_force(window, now=now)) for h in self._candidates(destination)), default=0)


LinkKey = tuple[str, IPv6Address]  # (interface, the neighbour's link-local address)


class Billing:
    """All prices that one node asks and is asked. `price_notice` in seconds (design section 8)."""

    def __init__(self, *, price_notice: float) -> None:
        self.price_notice = price_notice
        self._asked = PriceBook()
        self._heard: dict[LinkKey, PriceBook] = {}

    def announced(self, prefix: Prefix, price_msat_per_gb: int | None, *, now: float) -> None:
        self._asked.change(prefix, price_msat_per_gb, now=now)

    def learned(self, link: LinkKey, prefix: Prefix, price_msat_per_gb: int | None, *, now: float) -> None:
        if price_msat_per_gb is not None or link in self._heard:  # routes of a neighbour that is gone end after it
            self._heard.setdefault(link, PriceBook()).change(prefix, price_msat_per_gb, now=now)

    def neighbour_gone(self, link: LinkKey) -> None:
        self._heard.pop(link, None)

    def is_asked(self, destination: Address | None) -> bool:
        """We have announced a price for it."""
        return destination is None or self._asked.lookup(destination) is not None

    def is_heard(self, link: LinkKey, destination: Address | None) -> bool:
        """`link` has announced a price for it."""
        book = self._heard.get(link)
        return book is not None and (destination is None or book.lookup(destination) is not None)

    def earned_units(self, destination: Address | None, carried_bytes: int, *, now: float) -> int:
        """What a neighbour owes us for handing us `carried_bytes` for `destination`."""
        return carried_bytes * self._asked.lowest(destination, self.price_notice, now=now)

    def owed_limit_units(self, link: LinkKey, destination: Address | None, sent_bytes: int, *, now: float) -> int:
        """The most that we can owe `link` for the `sent_bytes` that we gave it for `destination`."""
        book = self._heard.get(link)
        return 0 if book is None else sent_bytes * book.highest(destination, self.price_notice + LAG, now=now)

    def forget_withdrawn(self, *, now: float) -> None:
        for book in (self._asked, *self._heard.values()):
            book.forget_withdrawn(self.price_notice + LAG, now=now)
