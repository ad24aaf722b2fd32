from ipaddress import IPv6Address, ip_address, ip_network

from hypothesis import given
from hypothesis import strategies as st

from meshd.billing import Billing, PriceBook

LINK = ("eth0", ip_address("fe80::2"))
NET = ip_network("fd00::/64")
HOST = ip_network("fd00::7/128")
DESTINATION = ip_address("fd00::7")


def billing() -> Billing:
    return Billing(price_notice=10.0)


def test_a_byte_costs_the_announced_price() -> None:
    bills = billing()
    bills.announced(HOST, 2_000, now=0.0)
    assert bills.price_asked(DESTINATION, now=1.0) == 2_000


def test_a_rise_takes_effect_after_the_notice_and_a_fall_at_once() -> None:
    bills = billing()
    bills.announced(HOST, 100, now=0.0)
    bills.announced(HOST, 300, now=50.0)
    assert bills.price_asked(DESTINATION, now=59.9) == 100
    assert bills.price_asked(DESTINATION, now=60.0) == 300
    bills.announced(HOST, 50, now=61.0)
    assert bills.price_asked(DESTINATION, now=61.0) == 50


def test_two_rises_each_have_their_own_notice() -> None:
    bills = billing()
    for at, price in ((0.0, 1), (20.0, 2), (25.0, 3)):
        bills.announced(HOST, price, now=at)
    assert [bills.price_asked(DESTINATION, now=now) for now in (29.0, 31.0, 36.0)] == [1, 2, 3]


def test_the_longest_prefix_decides_and_a_new_one_is_seen() -> None:
    bills = billing()
    bills.announced(NET, 100, now=0.0)
    assert bills.price_asked(DESTINATION, now=1.0) == 100
    bills.announced(HOST, 7, now=2.0)
    assert bills.price_asked(DESTINATION, now=2.0) == 7
    assert bills.price_asked(ip_address("fd00::8"), now=2.0) == 100


def test_the_destination_decides_before_the_source() -> None:
    """RFC 9079 section 4: as the kernel chooses the route."""
    near, nearer = ip_network("2001:db8:a::/48"), ip_network("2001:db8:a:1::/64")
    bills = billing()
    prices = {(NET, None): 1, (NET, near): 10, (NET, nearer): 100, (HOST, nearer): 1_000}
    for (prefix, source_prefix), price in prices.items():
        bills.announced(prefix, price, source_prefix=source_prefix, now=0.0)
        bills.learned(LINK, prefix, price, source_prefix=source_prefix, now=0.0)
    other = ip_address("fd00::8")
    for source, destination, price in (
        ("2001:db8:b::1", other, 1),
        ("2001:db8:a:2::1", other, 10),
        ("2001:db8:a:1::1", other, 100),
        ("2001:db8:a:1::1", DESTINATION, 1_000),
        ("2001:db8:a:2::1", DESTINATION, 10),  # the longer prefix has no route for this source
    ):
        sender = ip_address(source)
        assert bills.price_asked(destination, source=sender, now=1.0) == price
        assert bills.highest_price_heard(LINK, destination, source=sender, now=1.0) == price
    bills.announced(NET, None, source_prefix=nearer, now=2.0)
    bills.forget_withdrawn(now=100.0)
    sender = ip_address("2001:db8:a:1::1")
    assert bills.price_asked(other, source=sender, now=100.0) == 10
    assert bills.is_asked(DESTINATION, source=sender)
    bills.announced(HOST, None, source_prefix=nearer, now=100.0)
    bills.announced(NET, None, now=100.0)
    bills.forget_withdrawn(now=200.0)
    assert bills.is_asked(DESTINATION, source=sender)
    assert not bills.is_asked(DESTINATION, source=ip_address("2001:db8:b::1"))


def test_what_was_never_announced_is_free() -> None:
    assert billing().price_asked(ip_address("10.0.0.1"), now=0.0) == 0
    assert billing().highest_price_heard(LINK, DESTINATION, now=0.0) == 0


def test_a_withdrawn_price_is_billed_for_packets_on_their_way_then_forgotten() -> None:
    bills = billing()
    bills.announced(HOST, 100, now=0.0)
    bills.announced(HOST, None, now=5.0)
    bills.forget_withdrawn(now=6.0)
    assert bills.price_asked(DESTINATION, now=6.0) == 100
    bills.forget_withdrawn(now=20.0)
    assert bills.price_asked(DESTINATION, now=20.0) == 0


def test_a_neighbour_that_went_away_can_bill_nothing() -> None:
    bills = billing()
    bills.learned(LINK, HOST, 100, now=0.0)
    assert bills.highest_price_heard(LINK, DESTINATION, now=0.0) == 100
    bills.neighbour_gone(LINK)
    assert bills.highest_price_heard(LINK, DESTINATION, now=0.0) == 0


def test_flows_too_many_to_tell_apart_cost_what_the_dearest_does() -> None:
    bills = billing()
    for prefix, price in ((HOST, 7), (ip_network("10.0.0.0/8"), 9)):
        bills.announced(prefix, price, now=0.0)
        bills.learned(LINK, prefix, price, now=0.0)
    assert bills.price_asked(None, now=1.0) == 9
    assert bills.highest_price_heard(LINK, None, now=1.0) == 9


@given(st.lists(st.tuples(st.floats(0.01, 8.0), st.integers(0, 2**32 - 2)), max_size=40))
def test_the_buyers_limit_covers_every_honest_bill(steps: list[tuple[float, int]]) -> None:
    """Whatever the price does, and though the buyer hears of it late, an honest bill stays within the limit."""
    seller, buyer = billing(), billing()
    now = 0.0
    seller.announced(HOST, 1_000, now=now)
    buyer.learned(LINK, HOST, 1_000, now=now)
    for pause, price in steps:
        now += pause
        seller.announced(HOST, price, now=now)
        billed = seller.price_asked(DESTINATION, now=now)
        assert billed <= buyer.highest_price_heard(LINK, DESTINATION, now=now)
        buyer.learned(LINK, HOST, price, now=now)


@given(
    st.lists(st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 32)), max_size=20, unique_by=lambda p: (p[0], p[1])),
    st.sets(st.integers(0, 19)),
    st.integers(0, 2**32 - 1),
)
def test_longest_match_is_what_comparing_with_every_prefix_finds(
    wanted: list[tuple[int, int]], withdrawn: set[int], host: int
) -> None:
    book = PriceBook()
    price_by_prefix = {ip_network((net, length), strict=False): 1 + n for n, (net, length) in enumerate(wanted)}
    for prefix, price in price_by_prefix.items():
        book.change(prefix, price, now=0.0)
    for prefix in [p for n, p in enumerate(price_by_prefix) if n in withdrawn]:
        book.change(prefix, None, now=1.0)
        del price_by_prefix[prefix]
    book.forget_withdrawn(5.0, now=10.0)
    for address in (ip_address(host), *(prefix.network_address for prefix in price_by_prefix)):
        covering = [p for p in price_by_prefix if address in p]
        expected = price_by_prefix[max(covering, key=lambda p: p.prefixlen)] if covering else 0
        assert book.lowest(address, 5.0, now=10.0) == expected
    assert book.lookup(IPv6Address(host)) is None


def test_a_route_that_ends_after_its_neighbour_leaves_nothing_behind() -> None:
    bills = billing()
    bills.learned(LINK, HOST, 100, now=0.0)
    bills.neighbour_gone(LINK)
    bills.learned(LINK, HOST, None, now=1.0)
    assert not bills._heard
