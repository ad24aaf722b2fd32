"""Two peers and a chain; a crash, a restored old backup or a reorganisation at any moment. What each role can lose.

A crash strikes between any two outputs of an engine: before or after a row is written, a message sent, a transaction
broadcast. A torn write is a write that did not happen: the store's transactions are atomic (tests/payments/test_store).
An old backup is everything as it was at some earlier moment. Channels are opened, paid through, spliced, closed
together, claimed and refunded, at fees that change, with blocks that leave their transactions out, and with a wallet
that may be empty. `tools/prove-money` makes it 100,000 steps and more, and prints what was lost at most.

Declared bounds, checked below, without an old backup / of whoever restores one:

- payer: nothing / nothing of what it had paid; the capacity of channels that it opened since cannot be refunded by it
- payee: what it has not been paid yet (W and one reading), and claims that are not worth their fee / what it was paid
  since through outputs that it does not know any more
"""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Callable

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from payments import events as ev
from payments.channel import Channel
from payments.channel_tx import claim_fee
from payments.fees import MIN_RELAY_FEE_RATE
from payments.mutual_tx import is_payment_claim
from payments.ports import Outpoint
from payments.records import ChannelState, Direction
from payments.units import MSAT_PER_SAT, UNITS_PER_MSAT
from tests.payments.world import Crash, MemoryStore, Node, World, priced

START_WINDOW_MSAT = 100_000
MAX_WINDOW_MSAT = 800_000
MAX_METERED_MSAT = 300_000
DUST_SAT = 294  # of the payee's own output in a claim
FORGONE_SAT = 293  # below the dust limit, which a common close does not pay out
STEPS = 100
EXAMPLES = int(os.environ.get("MESHD_CRASH_EXAMPLES", "20"))
SPLICED_AT_LEAST = 100  # in so many examples: else the schedule does not try what it should

# Shrinking takes longer than reading the trace of a failure; the seed is printed.
PHASES = (Phase.explicit, Phase.reuse, Phase.generate)

names = st.sampled_from("ab")


class Tally:
    """What has happened in all examples, and what was lost at most: msat, by role."""

    def __init__(self) -> None:
        self.examples = 0
        self.steps = 0
        self.seen: Counter[str] = Counter()
        self.lost_msat = {"payer": 0, "payee": 0, "payer, restored": 0, "payee, restored": 0, "exposure": 0}

    def note_loss(self, role: str, msat: int) -> None:
        self.lost_msat[role] = max(self.lost_msat[role], msat)

    def note_world(self, world: World) -> None:
        self.examples += 1
        for node in world.nodes:
            self.seen["restarts"] += node.restarts - 1
            for output in node.log:
                if isinstance(output, ev.ChannelStateChanged) and output.direction is Direction.OUT:
                    self.seen[f"payer: {output.reason.split(':')[0] or output.state.value}"] += 1
                elif isinstance(output, ev.BroadcastTransaction):
                    self.seen[f"broadcast: {output.kind.value}"] += 1
                elif isinstance(output, ev.Persist | ev.SendMessage):
                    self.seen[type(output).__name__] += 1
        if "MESHD_CRASH_EXAMPLES" in os.environ and self.examples % 50 == 0:
            print(self.line(), file=sys.stderr, flush=True)

    def line(self) -> str:
        lost = ", ".join(f"{role} {msat / MSAT_PER_SAT:.3f}" for role, msat in self.lost_msat.items())
        return f"{self.examples} schedules, {self.steps} steps; lost at most, sat: {lost}"


TALLY = Tally()


class Peers(RuleBasedStateMachine):
    world: World

    @initialize(metered_delay=st.sampled_from([0.0, 1.0]))
    def begin(self, metered_delay: float) -> None:
        self.world = World(
            metered_delay=metered_delay,
            start_window_msat=START_WINDOW_MSAT,
            max_window_msat=MAX_WINDOW_MSAT,
            capacity_sat=1_500,
            min_capacity_sat=600,
        )
        self.backups: dict[str, MemoryStore] = {}
        self.restored: set[str] = set()
        self.world.connect()

    def node(self, name: str) -> Node:
        return self.world.a if name == "a" else self.world.b

    def survive(self, action: Callable[[], object]) -> None:
        """Whoever dies over it starts again; that may kill the other."""
        try:
            action()
        except Crash:
            while down := next((node for node in self.world.nodes if node.is_down), None):
                try:
                    self.world.crash(down)
                except Crash:
                    continue

    @rule(name=names, units=st.integers(1, MAX_METERED_MSAT * UNITS_PER_MSAT))
    def meter(self, name: str, units: int) -> None:
        seller = self.node(name)
        buyer = self.world.other(seller)
        if buyer.key in seller.suspended:
            return
        bought, sold = priced(seller, buyer, units)

        def both() -> None:
            buyer.give(bought)
            seller.give(sold)

        self.survive(both)

    @rule(name=names, times=st.integers(1, 12), blocks=st.integers(0, 1))
    def trade(self, name: str, times: int, blocks: int) -> None:
        """An ordinary minute, unless somebody dies in it."""
        seller = self.node(name)
        bought, sold = priced(seller, self.world.other(seller), 60_000 * UNITS_PER_MSAT)

        def minute() -> None:
            if not self.world.is_connected:
                self.world.connect()
            for _ in range(times):
                if self.world.other(seller).key not in seller.suspended:
                    self.world.other(seller).give(bought)
                    seller.give(sold)
                self.world.advance(0.25)
            self.world.mine(blocks)

        self.survive(minute)

    @rule(name=names, count=st.integers(1, 4))
    def deliver(self, name: str, count: int) -> None:
        self.survive(lambda: self.world.deliver(self.node(name), count))

    @rule(name=names)
    def work(self, name: str) -> None:
        self.survive(lambda: self.world.work(self.node(name)))

    @rule()
    def pump(self) -> None:
        self.survive(self.world.pump)

    @rule(seconds=st.sampled_from([0.05, 0.3, 5.0]))
    def advance(self, seconds: float) -> None:
        self.survive(lambda: self.world.advance(seconds))

    @rule(blocks=st.integers(1, 3))
    def mine(self, blocks: int) -> None:
        self.survive(lambda: self.world.mine(blocks))

    @rule(depth=st.integers(1, 6), vanish=st.booleans())
    def reorganise(self, depth: int, vanish: bool) -> None:
        """Longer by a block than what it replaces, as a chain must be to win."""
        self.world.chain.reorganise(depth, vanish=vanish)
        self.survive(self.report)
        self.world.chain.height += depth
        self.survive(lambda: self.world.mine(1))

    def report(self) -> None:
        for node in self.world.nodes:
            node.new_block()
        self.world.pump()

    @rule(blocks=st.integers(1, 8))
    def mine_others(self, blocks: int) -> None:
        """Blocks of what pays more than ours."""
        self.world.chain.height += blocks
        self.survive(self.report)

    @rule(rate=st.sampled_from([1.0, 1.0, 2.5, 8.0]))
    def change_fees(self, rate: float) -> None:
        self.world.chain.fee_rate = rate

    @rule(is_empty=st.booleans())
    def empty_wallets(self, is_empty: bool) -> None:
        self.world.chain.is_wallet_empty = is_empty

    @rule()
    def connect(self) -> None:
        self.survive(self.world.connect)

    @rule()
    def disconnect(self) -> None:
        self.survive(self.world.disconnect)

    @rule(name=names, outputs=st.integers(0, 6))
    def crash(self, name: str, outputs: int) -> None:
        self.node(name).crash_after = outputs

    @rule(name=names)
    def close(self, name: str) -> None:
        self.survive(lambda: self.node(name).give(ev.OperatorCloseChannels()))

    @rule(name=names)
    def close_outgoing(self, name: str) -> None:
        node = self.node(name)
        for channel in node.channels(direction=Direction.OUT):
            self.survive(lambda channel_id=channel.channel_id: node.give(ev.OperatorCloseChannel(channel_id)))

    @rule(name=names)
    def open(self, name: str) -> None:
        node = self.node(name)
        self.survive(lambda: node.give(ev.OperatorOpenChannel(self.world.other(node).key)))

    @rule(name=names)
    def back_up(self, name: str) -> None:
        self.backups[name] = self.node(name).store.copy()

    @rule(name=names)
    def restore(self, name: str) -> None:
        if name in self.backups:
            node = self.node(name)
            node.store = self.backups[name].copy()
            self.restored.add(name)
            self.survive(lambda: self.world.crash(node))

    # --- what holds after each step ---

    @invariant()
    def nothing_counts_twice(self) -> None:
        """No payee counts what its payer has not signed for; what the payer forgot, it is shown."""
        for payer, payee in (self.world.nodes, self.world.nodes[::-1]):
            signed = {c.channel_id: c for c in payer.channels(direction=Direction.OUT)}
            for channel in payee.channels(direction=Direction.IN):
                theirs = signed.get(channel.channel_id)
                if payer.name in self.restored:
                    continue
                assert theirs is not None or channel.cumulative_msat == 0
                if theirs is not None:
                    slack_msat = MSAT_PER_SAT - 1 if theirs.state is ChannelState.CLOSED else 0
                    assert theirs.cumulative_msat + slack_msat >= channel.cumulative_msat

    @invariant()
    def exposure_is_bounded(self) -> None:
        TALLY.steps += 1
        if not self.restored:
            for node in self.world.nodes:
                for view in node.engine.ledgers():
                    TALLY.note_loss("exposure", view.unpaid_msat)
                    assert view.unpaid_msat <= MAX_WINDOW_MSAT + MAX_METERED_MSAT

    # --- and in the end ---

    def teardown(self) -> None:
        """All is quiet, everything is closed, and the chain says who has what."""
        world = self.world
        for node in world.nodes:
            node.crash_after = None
        world.chain.fee_rate, world.chain.is_wallet_empty = 1.0, False
        world.connect()
        for _ in range(4):
            world.advance(15.0)
            world.mine(2)
        paid_msat = {node.name: sum(v.sent_msat for v in node.engine.ledgers()) for node in world.nodes}
        accepted = {node.name: sum(v.accepted_units for v in node.engine.ledgers()) for node in world.nodes}
        for node in world.nodes:
            node.give(ev.OperatorCloseChannels())
        world.advance(15.0)
        world.mine(world.a.config.max_expiry_blocks)
        world.mine(2)
        for payer, payee in (world.nodes, world.nodes[::-1]):
            for channel in payer.engine._core.channels.values():
                if channel.direction is Direction.OUT and channel.funding is not None:
                    self.check_claim(payer, payee, channel.channel_id)
            if not self.restored:
                # The payer never pays more than it agreed to owe ...
                assert paid_msat[payer.name] * UNITS_PER_MSAT <= accepted[payer.name] + self.received(payer)
                # ... and the payee is told of every msat that the payer counts as paid.
                slack_msat = len(payer.channels(direction=Direction.OUT)) * (MSAT_PER_SAT - 1)
                assert abs(paid_msat[payer.name] - self.received(payee) // UNITS_PER_MSAT) <= slack_msat
        for node in world.nodes:
            assert not node.notices(ev.DropConnection)
        TALLY.note_world(world)

    def received(self, node: Node) -> int:
        return sum(v.received_msat for v in node.engine.ledgers()) * UNITS_PER_MSAT

    def check_claim(self, payer: Node, payee: Node, channel_id: bytes) -> None:
        """The chain has paid out what was paid through the channel: no more, and no less if it was worth its fee."""
        channel = payer.engine._core.channels[channel_id]
        theirs = payee.engine._core.channels.get(channel_id)
        paid_sat = self.paid_on_chain(payer, payee, channel)
        if paid_sat is None:
            return
        over_msat = paid_sat * MSAT_PER_SAT - channel.cumulative_msat
        TALLY.note_loss("payer, restored" if payer.name in self.restored else "payer", over_msat)
        assert over_msat < MSAT_PER_SAT
        if theirs is not None:
            is_restored = payee.name in self.restored
            counted_msat = channel.cumulative_msat if is_restored else theirs.counted_msat
            short_msat = counted_msat - paid_sat * MSAT_PER_SAT
            TALLY.note_loss("payee, restored" if is_restored else "payee", short_msat)
            if not is_restored:
                most_sat = max(claim_fee(MIN_RELAY_FEE_RATE) + DUST_SAT, FORGONE_SAT)
                assert short_msat < (most_sat + 1) * MSAT_PER_SAT

    def paid_on_chain(self, payer: Node, payee: Node, channel: Channel) -> int | None:
        """Sat, from the first funding output of the channel to the last. None: it never was on the chain."""
        chain = self.world.chain
        outpoint = self.first_output(payer, channel.channel_id)
        if outpoint is None or chain.output(outpoint) is None:
            return None
        paid_sat = 0
        while (status := chain.output(outpoint)) is not None and status.spent_by is not None:
            spending = chain.transactions[status.spent_by]
            index = next(i for i, t in enumerate(spending.vin) if bytes(t.txid)[::-1] == outpoint.txid)
            if is_payment_claim(chain.raw[status.spent_by], outpoint):
                return paid_sat + status.value_sat - int(spending.vout[index].value)
            paid_sat += sum(int(o.value) for o in spending.vout if o.script_pubkey.data == channel.payout_script)
            following = [i for i, o in enumerate(spending.vout) if o.script_pubkey.data[:2] == b"\x00\x20"]
            if not following:
                return paid_sat
            outpoint = Outpoint(status.spent_by, following[0])
        return paid_sat

    def first_output(self, payer: Node, channel_id: bytes) -> Outpoint | None:
        watched = (o for o in payer.log if isinstance(o, ev.WatchOutput) and o.channel_id == channel_id)
        first = next(watched, None)
        return None if first is None else first.outpoint


Peers.TestCase.settings = settings(
    max_examples=EXAMPLES,
    stateful_step_count=STEPS,
    deadline=None,
    phases=PHASES,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)


class TestPeers(Peers.TestCase):  # type: ignore[name-defined,misc]
    @classmethod
    def tearDownClass(cls) -> None:
        """For whoever reads along; and the schedule must have tried what it claims to try."""
        if "MESHD_CRASH_EXAMPLES" in os.environ:
            for name, count in sorted(TALLY.seen.items()):
                print(f"{count:9} {name}")
            print(TALLY.line())
        if TALLY.examples >= SPLICED_AT_LEAST:
            for kind in ("splice", "close", "claim", "refund", "funding"):
                assert TALLY.seen[f"broadcast: {kind}"]
