"""Two peers and a chain; a crash, a restored old backup or a reorganisation at any moment. What each role can lose.

A crash strikes between any two outputs of an engine: before or after a row is written, a message sent, a transaction
broadcast. A torn write is a write that did not happen: the store's transactions are atomic (tests/payments/test_store).
An old backup is everything as it was at some earlier moment. `MESHD_CRASH_EXAMPLES=2000` makes it 200,000 steps.

Declared bounds, checked below, without an old backup / of whoever restores one:

- payer: nothing / nothing of what it had paid; the capacity of channels that it opened since cannot be refunded by it
- payee: what it has not been paid yet (W and one reading), and claims that are not worth their fee / what it was paid
  since through channels that it does not know any more
"""

from __future__ import annotations

import os
from collections.abc import Callable

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from payments import events as ev
from payments.channel import claimed_sat
from payments.channel_tx import claim_marginal_fee
from payments.records import ChannelState, Direction
from payments.units import MSAT_PER_SAT, UNITS_PER_MSAT
from tests.payments.world import Crash, MemoryStore, Node, World, priced

START_WINDOW_MSAT = 100_000
MAX_WINDOW_MSAT = 800_000
MAX_METERED_MSAT = 300_000
OVERHEAD_SAT = 400  # of a claim of one channel: its own output, which must not be dust, and the rest of it
EXAMPLES = int(os.environ.get("MESHD_CRASH_EXAMPLES", "40"))

# Shrinking takes longer than reading the trace of a failure; the seed is printed.
PHASES = (Phase.explicit, Phase.reuse, Phase.generate)

names = st.sampled_from("ab")


class Peers(RuleBasedStateMachine):
    world: World

    @initialize()
    def begin(self) -> None:
        self.world = World(start_window_msat=START_WINDOW_MSAT, max_window_msat=MAX_WINDOW_MSAT, capacity_sat=1_500)
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
        if not self.restored:
            for node in self.world.nodes:
                for view in node.engine.ledgers():
                    assert view.unpaid_msat <= MAX_WINDOW_MSAT + MAX_METERED_MSAT

    # --- and in the end ---

    def teardown(self) -> None:
        """All is quiet, everything is closed, and the chain says who has what."""
        world = self.world
        for node in world.nodes:
            node.crash_after = None
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

    def received(self, node: Node) -> int:
        return sum(v.received_msat for v in node.engine.ledgers()) * UNITS_PER_MSAT

    def check_claim(self, payer: Node, payee: Node, channel_id: bytes) -> None:
        """The chain has paid out what was paid through the channel: no more, and no less if it was worth its fee."""
        channel = payer.engine._core.channels[channel_id]
        status = self.world.chain.output(channel.outpoint)
        if status is None or status.spent_by is None:
            assert channel.state is not ChannelState.CLOSED or status is None
            return
        taken_sat = claimed_sat(channel, self.world.chain.raw[status.spent_by])
        if taken_sat is not None:
            if payer.name not in self.restored:
                assert taken_sat * MSAT_PER_SAT <= channel.cumulative_msat
            return
        theirs = payee.engine._core.channels.get(channel_id)  # it was refunded
        if theirs is not None and payee.name not in self.restored:
            assert theirs.paid_sat <= claim_marginal_fee(1.0) + OVERHEAD_SAT


Peers.TestCase.settings = settings(
    max_examples=EXAMPLES,
    stateful_step_count=100,
    deadline=None,
    phases=PHASES,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
TestPeers = Peers.TestCase
