"""No byte is lost or billed twice, and no gate left as it should not be, whatever the order of events."""

from __future__ import annotations

import errno
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from ipaddress import ip_address, ip_network

import pytest
import trio

from meshd import accounting, enforcement
from meshd.accounting import Accounting
from meshd.billing import Billing, LinkKey
from meshd.enforcement import Enforcement, HeldFile, State
from meshd.kernel import Direction, NetlinkError, NftError
from meshd.neighbours import Neighbours
from meshd.recovery import Unbilled, flow_name, flow_of, unbilled
from payments.counts import Traffic
from payments.events import MeteredTraffic
from payments.records import Reading
from tests.meshd.fakes import FakeKernel, flow, run, turns_of_others

ADDRESS, OTHER = ip_address("fe80::2"), ip_address("fe80::3")
LINK: LinkKey = ("eth0", ADDRESS)  # type: ignore[assignment]
LINK_OTHER: LinkKey = ("eth0", OTHER)  # type: ignore[assignment]
MAC, MAC_OTHER = b"\x02\0\0\0\0\x02", b"\x02\0\0\0\0\x03"
PORT, PORT_OTHER = ("eth0", MAC), ("eth0", MAC_OTHER)
PEER, PEER_OTHER = b"P" * 32, b"Q" * 32
NET, THERE = ip_network("fd00::/8"), ip_address("fd00::9")
ASKED, HEARD = 1000, 300
WINDOW_MSAT = 1


class Books:
    """An accounting, its kernel, and what it reported."""

    def __init__(self, *, paid: bool = True, recovered: Sequence[Unbilled] = (), is_known: bool = True) -> None:
        self.kernel = FakeKernel()
        self.billing = Billing(price_notice=10.0)
        self.earned: Counter[bytes] = Counter()
        self.owed: Counter[bytes] = Counter()
        self.traffic = Traffic()
        self.readings: dict[bytes, Reading] = {}
        self.report_takes = 0.0
        self.enforcement = Enforcement(
            self.kernel.as_kernel(), Neighbours(), file=HeldFile(None), held={}, free_rate=64_000
        )
        self.under_test = Accounting(
            self.kernel.as_kernel(),
            self.billing,
            self.enforcement,
            report=self._report if paid else None,
            recovered=recovered,
            strangers_window_msat=WINDOW_MSAT,
        )
        if is_known:
            self.billing.announced(NET, ASKED, now=0.0)
            self.hear_price()
        self.kernel.links.mac_by_link = {LINK: MAC, LINK_OTHER: MAC_OTHER}

    def hear_price(self) -> None:
        self.billing.learned(LINK, NET, HEARD, now=0.0)

    async def _report(self, traffic: MeteredTraffic, readings: Mapping[bytes, Reading]) -> None:
        await trio.sleep(self.report_takes)
        self.readings |= readings
        self.earned[traffic.peer] += traffic.earned_units
        self.owed[traffic.peer] += traffic.owed_limit_units
        self.traffic += traffic.traffic

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Accounting]:
        async with trio.open_nursery() as nursery:
            await nursery.start(self.under_test.run)
            yield self.under_test
            nursery.cancel_scope.cancel()

    def carry(self, size: int, mac: bytes = MAC) -> None:
        self.kernel.meter.waiting.append(flow(Direction.FORWARD_IN, mac, size, to=THERE))  # type: ignore[arg-type]

    def send(self, size: int, mac: bytes = MAC) -> None:
        self.kernel.meter.waiting.append(flow(Direction.OUT, mac, size, to=THERE))  # type: ignore[arg-type]

    async def meet(self) -> None:
        self.under_test.neighbour_up(*LINK)
        await trio.sleep(0.1)
        await self.under_test.peer_connected(PEER, LINK)


def test_a_peer_is_billed_for_what_it_handed_us_and_bills_what_we_handed_it() -> None:
    async def scenario() -> None:
        books = Books()
        async with books.running() as accounts:
            await books.meet()
            books.carry(100)
            books.send(10)
            books.kernel.meter.waiting.append(flow(Direction.IN, MAC, 7))
            await accounts.read()
            assert (books.earned[PEER], books.owed[PEER]) == (100 * ASKED, 10 * HEARD)
            totals = accounts.totals[LINK]
            assert (totals.sent, totals.received, totals.carried) == (10, 107, 100)

    run(scenario)


def test_what_was_counted_before_the_mac_address_was_known_is_billed_once() -> None:
    async def scenario() -> None:
        books = Books()
        books.kernel.links.resolve_takes = 0.5
        async with books.running() as accounts:
            accounts.neighbour_up(*LINK)
            await accounts.peer_connected(PEER, LINK)
            books.carry(100)
            books.send(10)
            books.send(5, MAC_OTHER)
            await accounts.read()
            assert not books.earned and not books.owed
            await trio.sleep(3)
            await accounts.read()
            assert (books.earned[PEER], books.owed[PEER]) == (100 * ASKED, 10 * HEARD)

    run(scenario)


def test_a_neighbour_is_asked_for_its_mac_address_until_it_answers() -> None:
    async def scenario() -> None:
        books = Books()
        del books.kernel.links.mac_by_link[LINK]
        async with books.running() as accounts:
            accounts.neighbour_up(*LINK)
            await trio.sleep(20)
            books.kernel.links.mac_by_link[LINK] = MAC
            await trio.sleep(2)
            assert accounts.neighbours.port_by_link == {LINK: PORT}

    run(scenario)


def test_a_vanished_interface_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    async def vanished(*_: object) -> None:
        raise NetlinkError(errno.ENODEV, "eth0")

    async def scenario() -> None:
        books = Books()
        monkeypatch.setattr(books.kernel.links, "resolve_mac", vanished)
        async with books.running() as accounts:
            accounts.neighbour_up(*LINK)
            await trio.sleep(3)
            accounts.neighbour_down(*LINK)
            await trio.sleep(3)
            assert not accounts.neighbours.port_by_link

    run(scenario)


def test_what_was_counted_until_the_neighbour_went_is_billed_then_it_is_forgotten() -> None:
    async def scenario() -> None:
        books = Books()
        async with books.running() as accounts:
            await books.meet()
            await trio.sleep(0.05)
            books.carry(100)
            books.send(10)
            accounts.peer_disconnected(LINK)
            accounts.neighbour_down(*LINK)
            await trio.sleep(0.1)
            assert (books.earned[PEER], books.owed[PEER]) == (100 * ASKED, 10 * HEARD)
            assert accounts.neighbours == Neighbours()
            books.carry(1)  # it is still on its way; whose it is will be known when it comes back
            await accounts.read()
            assert books.earned[PEER] == 100 * ASKED
            await books.meet()
            await accounts.read()
            assert books.earned[PEER] == 101 * ASKED

    run(scenario)


def test_the_meter_keeps_a_place_for_each_neighbour_while_it_is_there() -> None:
    async def scenario() -> None:
        books = Books()
        async with books.running() as accounts:
            books.kernel.links.mac_by_link = {LINK: MAC, LINK_OTHER: MAC}
            for link in (LINK, LINK_OTHER):
                accounts.neighbour_up(*link)
            await trio.sleep(1)
            assert books.kernel.meter.expected == {PORT}
            accounts.neighbour_down(*LINK)
            await trio.sleep(1)
            assert books.kernel.meter.expected == {PORT}  # it has two addresses
            accounts.neighbour_down(*LINK_OTHER)
            await trio.sleep(1)
            assert books.kernel.meter.expected == set()

    run(scenario)


def test_thousands_of_flows_hold_up_nobody() -> None:
    async def scenario() -> None:
        books = Books(paid=False)
        books.kernel.meter.waiting = [flow(Direction.OUT, MAC, 10)] * 2000
        assert await turns_of_others(books.under_test.read) >= 2000 // accounting.FLOWS_AT_ONCE
        assert books.under_test.sum().sent == 20_000

    run(scenario)


def test_a_neighbour_that_is_back_before_it_was_forgotten_is_not_forgotten() -> None:
    async def scenario() -> None:
        books = Books()
        async with books.running() as accounts:
            await books.meet()
            books.kernel.meter.takes = 0.3
            accounts.neighbour_down(*LINK)
            accounts.neighbour_up(*LINK)
            await accounts.peer_connected(PEER, LINK)
            await trio.sleep(5)
            books.send(10)
            await accounts.read()
            assert accounts.neighbours.peer_of(PORT) == PEER
            assert books.owed[PEER] == 10 * HEARD

    run(scenario)


def test_a_mac_address_that_is_found_after_the_neighbour_went_is_not_kept() -> None:
    async def scenario() -> None:
        books = Books()
        books.kernel.links.resolve_takes = 0.9
        async with books.running() as accounts:
            accounts.neighbour_up(*LINK)
            await trio.sleep(0.1)
            accounts.neighbour_down(*LINK)
            await trio.sleep(5)
            assert accounts.neighbours == Neighbours()

    run(scenario)


def test_sessions_on_links_that_routing_never_hears_of_leave_nothing_behind() -> None:
    async def scenario() -> None:
        books = Books()
        async with books.running() as accounts:
            for number in range(50):
                link = ("eth0", ip_address(f"fe80::1:{number}"))
                await accounts.peer_connected(PEER, link)  # type: ignore[arg-type]
                accounts.peer_disconnected(link)  # type: ignore[arg-type]
            await trio.sleep(1)
            assert accounts.neighbours == Neighbours()

    run(scenario)


def test_a_peer_that_comes_back_with_another_network_card_is_found_again() -> None:
    async def scenario() -> None:
        books = Books()
        async with books.running() as accounts:
            await books.meet()
            books.kernel.links.mac_by_link[LINK] = MAC_OTHER
            await accounts.peer_connected(PEER, LINK)
            books.carry(3, MAC_OTHER)
            await accounts.read()
            assert books.earned[PEER] == 3 * ASKED
            assert accounts.neighbours.links_by_port == {PORT_OTHER: [LINK]}

    run(scenario)


def test_a_mac_address_keeps_its_owner_when_one_of_its_two_addresses_goes() -> None:
    known = Neighbours()
    known.learn_port(LINK, MAC)
    known.peer_by_link[LINK] = PEER
    known.learn_port(LINK_OTHER, MAC)  # came back under a new address; no session there yet
    assert known.peer_of(PORT) == PEER
    known.peer_by_link[LINK_OTHER] = PEER_OTHER
    assert known.link_of(PORT) == LINK_OTHER
    assert (known.ports_of(PEER), known.ports_of(PEER_OTHER)) == ([], [PORT])
    known.forget(LINK)
    assert known.peer_of(PORT) == PEER_OTHER
    known.forget(LINK_OTHER)
    assert known == Neighbours()


def test_a_reading_that_is_cancelled_while_reporting_loses_nothing() -> None:
    async def scenario() -> None:
        books = Books()
        async with books.running() as accounts:
            await books.meet()
            books.carry(100)
            books.report_takes = 1.0
            with trio.move_on_after(0.5):
                await accounts.read()
            assert not books.earned
            books.report_takes = 0.0
            books.carry(10)
            await accounts.read()
            assert books.earned[PEER] == 110 * ASKED

    run(scenario)


@pytest.mark.parametrize("error", [NetlinkError(errno.EBUSY), NftError("no chain")])
def test_a_reading_that_fails_is_tried_again(error: Exception) -> None:
    async def scenario() -> None:
        books = Books()
        async with books.running() as accounts:
            await books.meet()
            await trio.sleep(0.1)  # the meter is read once then
            books.carry(100)
            books.kernel.meter.failures = [error]
            assert not await accounts.read()
            assert accounts.failures == 1 and not books.earned
            await trio.sleep(2)
            assert books.earned[PEER] == 100 * ASKED

    run(scenario)


def test_messages_cannot_keep_us_reading() -> None:
    async def scenario() -> None:
        books = Books()
        books.kernel.meter.takes = 0.04  # 10,000 flows
        async with books.running() as accounts:
            await trio.sleep(0.5)
            before, began = books.kernel.meter.readings, trio.current_time()
            for _ in range(1000):
                await accounts.refresh()
                await trio.sleep(0.001)
            spent = 0.04 * (books.kernel.meter.readings - before)
            assert 0 < spent <= 0.3 * (trio.current_time() - began)

    run(scenario)


def test_a_message_is_judged_by_a_meter_that_is_up_to_date() -> None:
    async def scenario() -> None:
        books = Books()
        async with books.running() as accounts:
            await books.meet()
            await trio.sleep(0.5)
            books.carry(100)
            await accounts.refresh()
            assert books.earned[PEER] == 100 * ASKED

    run(scenario)


# --- gates ---


def test_a_stranger_is_shut_out_above_the_window_and_let_in_and_billed_when_it_has_a_session() -> None:
    async def scenario() -> None:
        books = Books()
        async with books.running() as accounts:
            accounts.neighbour_up(*LINK)
            await trio.sleep(0.1)
            books.carry(WINDOW_MSAT * 10**9 // ASKED)
            await accounts.read()
            assert not books.kernel.gate.shut
            books.carry(1)
            await accounts.read()
            assert books.kernel.gate.shut == {PORT}
            assert books.enforcement.state_of(PORT) is State.FREE
            await accounts.peer_connected(PEER, LINK)
            assert not books.kernel.gate.shut
            await accounts.read()
            assert books.earned[PEER] == WINDOW_MSAT * 10**9 + ASKED

    run(scenario)


def test_without_payments_nobody_is_billed_or_shut_out() -> None:
    async def scenario() -> None:
        books = Books(paid=False)
        async with books.running() as accounts:
            accounts.neighbour_up(*LINK)
            await trio.sleep(0.1)
            books.carry(10**9)
            await accounts.read()
            assert not books.kernel.gate.shut
            assert accounts.sum().carried == 10**9

    run(scenario)


def test_a_debtor_known_from_before_the_start_is_shut_out_when_it_appears_on_each_of_its_links() -> None:
    async def scenario() -> None:
        books = Books()
        async with books.running() as accounts:
            await books.enforcement.set_carrying(PEER, False)
            assert not books.kernel.gate.shut
            await books.meet()
            assert books.kernel.gate.shut == {PORT}
            accounts.neighbour_up(*LINK_OTHER)
            await accounts.peer_connected(PEER, LINK_OTHER)
            await trio.sleep(0.1)
            assert books.kernel.gate.shut == {PORT, PORT_OTHER}
            await books.enforcement.set_carrying(PEER, True)
            assert not books.kernel.gate.shut

    run(scenario)


def test_a_debtor_cannot_open_its_gate_by_going_and_is_let_in_if_it_paid_meanwhile() -> None:
    async def scenario() -> None:
        books = Books()
        async with books.running() as accounts:
            await books.meet()
            await books.enforcement.set_carrying(PEER, False)
            accounts.neighbour_down(*LINK)
            accounts.peer_disconnected(LINK)
            await trio.sleep(2)
            assert books.kernel.gate.shut == {PORT}
            await books.enforcement.set_carrying(PEER, True)  # it paid over another link
            await books.meet()
            assert not books.kernel.gate.shut

    run(scenario)


def test_a_resume_that_comes_while_the_gate_is_being_shut_wins() -> None:
    async def scenario() -> None:
        books = Books()
        books.kernel.gate.takes = 0.01
        async with books.running():
            await books.meet()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(books.enforcement.set_carrying, PEER, False)
                await trio.sleep(0.005)
                nursery.start_soon(books.enforcement.set_carrying, PEER, True)
            assert not books.kernel.gate.shut
            assert books.enforcement.state_of(PORT) is State.OPEN

    run(scenario)


def test_a_gate_that_the_kernel_did_not_set_is_set_later() -> None:
    async def scenario() -> None:
        books = Books()
        async with books.running():
            await books.meet()
            await trio.sleep(0.1)  # the meter is read once then
            books.kernel.gate.failures = 1
            await books.enforcement.set_carrying(PEER, False)
            assert not books.kernel.gate.shut
            await trio.sleep(accounting.IDLE_INTERVAL * 2)
            assert books.kernel.gate.shut == {PORT}

    run(scenario)


def test_ever_new_mac_addresses_fill_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accounting, "MAX_STRANGERS", 50)
    monkeypatch.setattr(enforcement, "MAX_STRANGERS_HELD", 10)

    async def scenario() -> None:
        books = Books()
        async with books.running() as accounts:
            await books.meet()
            books.carry(1)
            for number in range(300):
                mac = number.to_bytes(6, "big")
                books.carry(2 * WINDOW_MSAT * 10**9 // ASKED, mac)
                books.send(1, mac)
                books.kernel.meter.waiting.append(flow(Direction.IN, mac, 1))
                if number % 20 == 0:
                    await accounts.read()
            await accounts.read()
            assert len(accounts._pending) <= 50
            assert len(books.kernel.gate.shut) <= 10
            assert len(accounts._unplaced) <= accounting.MAX_UNPLACED
            assert set(accounts.totals) == {LINK}
            assert books.earned[PEER] == ASKED  # and nobody else's place is taken by them

    run(scenario)


def test_readings_say_how_far_a_counter_had_come_and_at_which_price() -> None:
    async def scenario() -> None:
        books = Books()
        async with books.running() as accounts:
            await books.meet()
            books.carry(100)
            await accounts.read()
            ((name, reading),) = books.readings.items()
            assert (reading.total_bytes, reading.price_msat_per_gb) == (100, ASKED)
            assert flow_name(flow_of(name, 100)) == name
            assert flow_of(name, 100).counter == reading.counter

    run(scenario)


def test_the_engine_is_told_every_byte_priced_or_not_of_this_run_alone() -> None:
    async def scenario() -> None:
        old = flow(Direction.FORWARD_IN, MAC, 1_000, to=THERE)  # type: ignore[arg-type]
        books = Books(recovered=unbilled([old], {}))
        async with books.running() as accounts:
            books.carry(100)  # before it is known whose it is
            await accounts.read()
            await books.meet()
            books.send(10)
            for direction, size in ((Direction.IN, 7), (Direction.REFUSED, 3)):
                books.kernel.meter.waiting.append(flow(direction, MAC, size))
            await accounts.read()
            await trio.sleep(70)
            assert books.earned[PEER] == 1_100 * ASKED
            assert books.traffic == Traffic(sent=10, received=110, carried=100, refused=3)

    run(scenario)
