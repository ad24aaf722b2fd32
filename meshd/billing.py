"""From metered flows to debt: which price applied to which byte.

The seller bills each byte that a neighbour handed it for a destination at the price that it announced for it; the buyer
computes, from its own meter and the prices it heard, the most that it can owe, and refuses to be billed more. Both sums
are exact integers in debt units (1 unit = 1 byte at 1 msat/GB = 10^-9 msat).
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

from payments.price_history import LAG, PriceHistory

Address = IPv4Address | IPv6Address
Prefix = IPv4Network | IPv6Network

Pair = tuple[Prefix, Prefix | None]  # a prefix, and the source prefix of a source-specific route (RFC 9079)


class PriceBook:
    """Prices by prefix and source prefix, found as the kernel finds routes: by the longest matching prefix that has a
    source prefix to match, then by the longest of these."""

    def __init__(self) -> None:
        self._histories: dict[Pair, PriceHistory] = {}
        self._sources: dict[Prefix, list[Prefix | None]] = {}  # for each prefix, the longest first, None last
        self._withdrawn_at: dict[Pair, float] = {}
        self._by_length: dict[tuple[int, int], dict[int, Prefix]] = {}  # (IP version, length) -> network -> prefix
        self._lengths: list[tuple[int, int]] = []  # the keys of that, the longest first

    def change(
        self, prefix: Prefix, price_msat_per_gb: int | None, *, source_prefix: Prefix | None = None, now: float
    ) -> None:
        """None: withdrawn. Its history stays for packets still on their way, until `forget_withdrawn`."""
        pair = (prefix, source_prefix)
        if price_msat_per_gb is None:
            if pair in self._histories:
                self._withdrawn_at.setdefault(pair, now)
            return
        self._withdrawn_at.pop(pair, None)
        if pair not in self._histories:
            self._histories[pair] = PriceHistory()
            self._index(prefix, source_prefix)
        self._histories[pair].change(price_msat_per_gb, now=now)

    def forget_withdrawn(self, window: float, *, now: float) -> None:
        """Drop what was withdrawn longer than `window` seconds ago."""
        for pair in [p for p, at in self._withdrawn_at.items() if at <= now - window]:
            del self._histories[pair], self._withdrawn_at[pair]
            self._unindex(*pair)

    def _index(self, prefix: Prefix, source_prefix: Prefix | None) -> None:
        sources = self._sources.setdefault(prefix, [])
        sources.append(source_prefix)
        sources.sort(key=lambda source: -1 if source is None else source.prefixlen, reverse=True)
        key = (prefix.version, prefix.prefixlen)
        self._by_length.setdefault(key, {})[int(prefix.network_address)] = prefix
        self._lengths = sorted(self._by_length, reverse=True)

    def _unindex(self, prefix: Prefix, source_prefix: Prefix | None) -> None:
        self._sources[prefix].remove(source_prefix)
        if self._sources[prefix]:
            return
        del self._sources[prefix]
        key = (prefix.version, prefix.prefixlen)
        del self._by_length[key][int(prefix.network_address)]
        if not self._by_length[key]:
            del self._by_length[key]
            self._lengths.remove(key)

    def lookup(self, destination: Address, source: Address | None = None) -> PriceHistory | None:
        """By longest match. Remembers nothing: addresses are chosen by whoever sends, as many as it likes."""
        value, version, bits = int(destination), destination.version, destination.max_prefixlen
        for length in self._lengths:
            if length[0] == version:
                host_bits = bits - length[1]
                prefix = self._by_length[length].get(value >> host_bits << host_bits)
                if prefix is None:
                    continue
                for source_prefix in self._sources[prefix]:
                    if source_prefix is None or (source is not None and source in source_prefix):
                        return self._histories[prefix, source_prefix]
        return None

    def _candidates(self, destination: Address | None, source: Address | None) -> list[PriceHistory]:
        if destination is None:
            return list(self._histories.values())
        history = self.lookup(destination, source)
        return [] if history is None else [history]

    def lowest(self, destination: Address | None, window: float, *, source: Address | None = None, now: float) -> int:
        """The seller's price: a rise takes effect after `window` seconds' notice, a fall at once. 0 if unpriced.

        Traffic to destinations that were too many to tell apart (None) costs what the dearest of them does: nobody is
        to travel for less by spreading it.
        """
        return max((min(h.in_force(window, now=now)) for h in self._candidates(destination, source)), default=0)

    def highest(self, destination: Address | None, window: float, *, source: Address | None = None, now: float) -> int:
        """The buyer's bound: no honest seller asks more than the highest price it announced within `window` seconds."""
        return max((max(h.in_force(window, now=now)) for h in self._candidates(destination, source)), default=0)


LinkKey = tuple[str, IPv6Address]  # (interface, the neighbour's link-local address)


class Billing:
    """All prices that one node asks and is asked. `price_notice` in seconds (design section 8).

    `source` and `destination` are addresses of packets, None where there were too many flows to tell them apart.
    """

    def __init__(self, *, price_notice: float) -> None:
        self.price_notice = price_notice
        self._asked = PriceBook()
        self._heard: dict[LinkKey, PriceBook] = {}

    def announced(
        self, prefix: Prefix, price_msat_per_gb: int | None, *, source_prefix: Prefix | None = None, now: float
    ) -> None:
        self._asked.change(prefix, price_msat_per_gb, source_prefix=source_prefix, now=now)

    def learned(
        self,
        link: LinkKey,
        prefix: Prefix,
        price_msat_per_gb: int | None,
        *,
        source_prefix: Prefix | None = None,
        now: float,
    ) -> None:
        if price_msat_per_gb is not None or link in self._heard:  # routes of a neighbour that is gone end after it
            book = self._heard.setdefault(link, PriceBook())
            book.change(prefix, price_msat_per_gb, source_prefix=source_prefix, now=now)

    def neighbour_gone(self, link: LinkKey) -> None:
        self._heard.pop(link, None)

    def is_asked(self, destination: Address | None, *, source: Address | None = None) -> bool:
        """We have announced a price for it."""
        return destination is None or self._asked.lookup(destination, source) is not None

    def is_heard(self, link: LinkKey, destination: Address | None, *, source: Address | None = None) -> bool:
        """`link` has announced a price for it."""
        book = self._heard.get(link)
        return book is not None and (destination is None or book.lookup(destination, source) is not None)

    def price_asked(self, destination: Address | None, *, source: Address | None = None, now: float) -> int:
        """What a neighbour owes us, in msat per GB, for handing us traffic for `destination`."""
        return self._asked.lowest(destination, self.price_notice, source=source, now=now)

    def highest_price_heard(
        self, link: LinkKey, destination: Address | None, *, source: Address | None = None, now: float
    ) -> int:
        """The most that we can owe `link`, in msat per GB, for traffic to `destination` that we gave it."""
        book = self._heard.get(link)
        if book is None:
            return 0
        return book.highest(destination, self.price_notice + LAG, source=source, now=now)

    def forget_withdrawn(self, *, now: float) -> None:
        for book in (self._asked, *self._heard.values()):
            book.forget_withdrawn(self.price_notice + LAG, now=now)
