"""Drives the payment engine: feeds it what happens, carries out what it says, in order.

One task owns the engine. All inputs that are waiting go in together, so that one commit of the store serves a whole
settlement round. Requests to the wallet and to the chain run beside it and come back as inputs.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import suppress
from typing import Protocol, assert_never

import trio

from meshd.logs import Logger
from meshd.mailbox import Mailbox
from meshd.wallet_keeper import WalletKeeper
from payments import events
from payments.adapters.store import Store
from payments.agreement import Standing
from payments.engine import PaymentEngine
from payments.ports import ChainError, ChainPort, Outpoint, WalletError, WalletPort
from payments.records import LedgerRecord, Reading

log = Logger("meshd.payments")
QUEUE = 4096
CHAIN_RETRY_INTERVAL = 1.0
FLUSH_TIMEOUT = 5.0
METERED_DELAY = 1.0  # of the engine: half of what it costs under load are readings from which nothing follows
# More inputs than this in one round only delay the answers to the first of them.
MAX_ROUND = 512
MANY_READINGS = 10_000  # of what is free; more are not kept in memory


class Deliver(Protocol):
    def __call__(self, peer: bytes, *messages: bytes) -> bool:
        """False: the peer is gone. It will be told anew when it returns."""


class Paymaster:
    """`deliver` sends messages to a peer, `drop` ends its session, `set_carrying` opens or shuts its gate,
    `set_trusted` takes its routes or none."""

    def __init__(
        self,
        engine: PaymentEngine,
        store: Store,
        chain: ChainPort,
        open_wallet: Callable[[], Awaitable[WalletPort]],
        *,
        deliver: Deliver,
        drop: Callable[[bytes], None],
        set_carrying: Callable[[bytes, bool], Awaitable[None]],
        set_trusted: Callable[[bytes, bool], Awaitable[None]],
        counters: Callable[[], Collection[int]],
    ) -> None:
        """`counters`: the numbers of those whose readings are still of use."""
        self.engine = engine
        self._store = store
        self._chain = chain
        self.keeper = WalletKeeper(open_wallet, self._prepare_wallet)
        self._deliver = deliver
        self._drop = drop
        self._set_carrying = set_carrying
        self._set_trusted = set_trusted
        self._counters = counters
        self._inputs = Mailbox[tuple[events.Input, Mapping[bytes, Reading]]](QUEUE)
        # By peer: of what the engine took in and has not written.
        self._readings: dict[bytes, dict[bytes, Reading]] = {}
        self._free_readings: dict[bytes, Reading] = {}
        self._watched: dict[bytes, Outpoint] = {}
        self._nursery: trio.Nursery | None = None
        self.is_paying = True
        self.height: int | None = None
        self.is_chain_connected = False

    async def wallet(self) -> WalletPort:
        """Raises WalletError and ChainError."""
        return await self.keeper.wallet()

    async def _prepare_wallet(self, wallet: WalletPort) -> None:
        await self._release_forgotten(wallet)
        for payment in await wallet.sent():
            with suppress(ChainError):  # it is tried again at the next start
                await self._chain.broadcast(payment.raw)

    async def _release_forgotten(self, wallet: WalletPort) -> None:
        """A crash between the wallet's signature and our record of it leaves inputs set aside for a funding that no
        channel waits for; it was never broadcast."""
        outputs = [output for channel in self.engine.channels() for output in (channel.funding, channel.splice)]
        wanted = {output.txid for output in outputs if output is not None}
        for funding in await wallet.pending():
            if funding.txid not in wanted:
                log.warning("funding that no channel waits for: inputs released", txid=funding.txid[::-1])
                await wallet.release(funding.txid)

    async def put(self, event: events.Input) -> None:
        """Give the engine an input; waits while its queue is full."""
        await self._inputs.put((event, {}))

    async def put_metered(self, traffic: events.MeteredTraffic, readings: Mapping[bytes, Reading]) -> None:
        """`readings` become durable together with the sums that `traffic` adds to: a crash loses or repeats neither."""
        await self._inputs.put((traffic, readings))

    async def hold_payments(self, hold: bool) -> None:
        self.is_paying = not hold
        await self.put(events.OperatorHoldPayments(hold))

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Until cancelled; then what is in the queue is taken in and all is written down. Raises what the store raises:
        without a store there is no going on, and after a fault of it, or of the engine, what it holds is the truth."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            self.keeper.start(nursery)
            await self._execute(self.engine.start(now=trio.current_time()))
            if self.engine.needs_chain:
                nursery.start_soon(self._follow_chain)
            task_status.started()
            try:
                while True:
                    await self._round()
            except trio.Cancelled:
                with trio.move_on_after(FLUSH_TIMEOUT) as cleanup:
                    cleanup.shield = True
                    await self._execute(self.engine.handle_all(self._waiting(QUEUE), now=trio.current_time()))
                    await self._execute(self.engine.flush(now=trio.current_time()))
                raise

    async def _round(self) -> None:
        deadline = self.engine.next_deadline()
        with trio.move_on_at(deadline):
            await self._inputs.wait()
        inputs = self._waiting(MAX_ROUND)
        now = trio.current_time()
        if now >= deadline:
            inputs.append(events.TimerExpired())
        await self._execute(self.engine.handle_all(inputs, now=now))
        if len(self._free_readings) >= MANY_READINGS:
            await self._carry_out(events.Persist(()))  # where nobody pays, nothing else writes them

    def _waiting(self, limit: int) -> list[events.Input]:
        return [self._take(entry) for entry in self._inputs.take(limit)]

    def _take(self, entry: tuple[events.Input, Mapping[bytes, Reading]]) -> events.Input:
        event, readings = entry
        if isinstance(event, events.MeteredTraffic) and readings:
            is_written = (event.earned_units or event.owed_limit_units) and self.engine.is_paid(event.peer)
            unwritten = self._readings.pop(event.peer, {})
            for flow, reading in readings.items():
                # What is free adds to no sum; but what of the same flow was not is written before it, or with it.
                is_free = not (is_written and reading.price_msat_per_gb) and flow not in unwritten
                (self._free_readings if is_free else unwritten)[flow] = reading
            if unwritten:
                self._readings[event.peer] = unwritten
        return event

    def _written_by(self, persist: events.Persist) -> dict[bytes, Reading]:
        """The readings of those peers whose ledgers it writes, and those that have added to no sum."""
        peers = [change.peer for change in persist.changes if isinstance(change, LedgerRecord)]
        readings, self._free_readings = self._free_readings, {}
        for peer in peers:
            readings |= self._readings.pop(peer, {})
        return readings

    async def _execute(self, outputs: Sequence[events.Output]) -> None:
        """In order; what follows one another for one peer leaves together."""
        messages: dict[bytes, list[bytes]] = {}
        for output in outputs:
            if isinstance(output, events.SendMessage):
                messages.setdefault(output.peer, []).append(output.data)
            elif isinstance(output, events.Notice):
                _report(output)
            else:
                self._deliver_all(messages)
                await self._carry_out(output)
        self._deliver_all(messages)

    def _deliver_all(self, messages: dict[bytes, list[bytes]]) -> None:
        for peer, data in messages.items():
            self._deliver(peer, *data)
        messages.clear()

    async def _carry_out(self, output: events.Action) -> None:
        match output:
            case events.Persist():
                # Shielded: a commit that is cancelled half-way would leave the engine ahead of its store.
                with trio.CancelScope(shield=True):
                    counters = self._counters() if self._store.has_many_readings else None
                    readings = self._written_by(output)
                    await trio.to_thread.run_sync(self._store.apply, output.changes, readings, counters)
            case events.DropConnection():
                log.warning("session dropped", peer=output.peer, reason=output.reason)
                self._drop(output.peer)
            case events.Suspend():
                log.warning("suspended", peer=output.peer)
                await self._set_carrying(output.peer, False)
            case events.Resume():
                log.info("resumed", peer=output.peer)
                await self._set_carrying(output.peer, True)
            case events.Distrust():
                log.warning("no routes are taken from it: its counts contradict ours", peer=output.peer)
                await self._set_trusted(output.peer, False)
            case events.Trust():
                log.info("routes are taken from it again", peer=output.peer)
                await self._set_trusted(output.peer, True)
            case _:
                self._request(output)

    def _request(
        self,
        output: events.FundChannel
        | events.FundSplice
        | events.ReleaseFunding
        | events.BroadcastTransaction
        | events.WatchOutput
        | events.UnwatchOutput
        | events.InspectInputs
        | events.NeedScript,
    ) -> None:
        """What takes long runs beside the engine; its answer is an input."""
        if self._nursery is None:
            raise RuntimeError("the paymaster is not running")
        start_soon = self._nursery.start_soon
        match output:
            case events.FundChannel() | events.FundSplice():
                start_soon(self._fund, output)
            case events.InspectInputs():
                start_soon(self._inspect, output)
            case events.ReleaseFunding():
                start_soon(self._release, output.txid)
            case events.BroadcastTransaction():
                start_soon(self._broadcast, output)
            case events.NeedScript():
                start_soon(self._new_script)
            case events.WatchOutput():
                self._watched[output.channel_id] = output.outpoint
                start_soon(self._look_at, output.channel_id, output.outpoint)
            case events.UnwatchOutput():
                self._watched.pop(output.channel_id, None)
            case _:
                assert_never(output)

    async def _fund(self, request: events.FundChannel | events.FundSplice) -> None:
        try:
            wallet = await self.wallet()
            rate = await self._chain.fee_rate()
            if isinstance(request, events.FundSplice):
                transaction = await wallet.fund_splice(request.foreign, request.outputs, fee_rate=rate)
            else:
                transaction = await wallet.fund(request.script_pubkey, request.amount_sat, fee_rate=rate)
        except (WalletError, ChainError) as error:
            log.warning("channel not funded", channel=request.channel_id, reason=error)
            await self.put(events.FundingFailed(request.channel_id, str(error)))
        else:
            await self.put(events.ChannelFunded(request.channel_id, transaction))

    async def _inspect(self, request: events.InspectInputs) -> None:
        """Outputs that the backend can not be asked for count as unknown: the payer proposes again."""
        scripts: list[bytes | None] = []
        for outpoint in request.outpoints:
            try:
                status = await self._chain.output(outpoint)
            except ChainError as error:
                log.debug("input not seen", channel=request.channel_id, reason=error)
                status = None
            scripts.append(None if status is None else status.script_pubkey)
        await self.put(events.InputsSeen(request.channel_id, request.txid, tuple(scripts)))

    async def _release(self, txid: bytes) -> None:
        try:
            await (await self.wallet()).release(txid)
        except (WalletError, ChainError) as error:
            log.warning("inputs not released", txid=txid[::-1], reason=error)

    async def _new_script(self) -> None:
        failure = ""
        while True:
            try:
                script = await (await self.wallet()).new_script_pubkey()
                break
            except (WalletError, ChainError) as error:
                if str(error) != failure:  # it may last as long as the chain is away
                    log.warning("no wallet address", reason=error)
                failure = str(error)
                await trio.sleep(CHAIN_RETRY_INTERVAL)
        await self.put(events.NewScript(script))

    async def _broadcast(self, request: events.BroadcastTransaction) -> None:
        try:
            result = await self._chain.broadcast(request.raw)
        except ChainError as error:
            # That is no refusal: nothing is known of it, and the engine sends it again at a later tip.
            log.warning("transaction not broadcast", kind=request.kind.value, txid=request.txid[::-1], reason=error)
            return
        txid = request.txid[::-1].hex()
        fields = {"kind": request.kind.value, "txid": txid, "fee_sat": request.fee_sat, "code": result.code}
        (log.info if result.accepted else log.warning)("transaction broadcast", accepted=result.accepted, **fields)
        await self.put(events.BroadcastDone(request.txid, result))

    async def _look_at(self, channel_id: bytes, outpoint: Outpoint) -> None:
        try:
            status = await self._chain.output(outpoint)
            spending = None
            if status is not None and status.spent_by is not None:
                spender = await self._chain.transaction(status.spent_by)
                spending = None if spender is None else spender.raw
        except ChainError as error:
            log.debug("output not seen", channel=channel_id, reason=error)
            return
        await self.put(events.ChannelOutputSeen(channel_id, outpoint, status, spending))

    async def _follow_chain(self) -> None:
        while True:
            try:
                async for tip in self._chain.tips():
                    self.height, self.is_chain_connected = tip.height, True
                    await self.put(events.ChainTipChanged(tip.height, await self._chain.fee_rate()))
                    for channel_id, outpoint in list(self._watched.items()):
                        await self._look_at(channel_id, outpoint)
            except ChainError as error:
                if self.is_chain_connected:
                    log.warning("chain backend lost", reason=error)
            self.is_chain_connected = False
            await trio.sleep(CHAIN_RETRY_INTERVAL)


def _report(notice: events.Notice) -> None:
    match notice:
        case events.PaymentSent() | events.PaymentReceived():
            if log.is_debugging:
                event = "payment sent" if isinstance(notice, events.PaymentSent) else "payment received"
                fields = {"peer": notice.peer, "msat": notice.amount_msat, "cumulative_msat": notice.cumulative_msat}
                log.debug(event, channel=notice.channel_id, **fields)
        case events.CreditRedeemed():
            fields = {"msat": notice.amount_msat, "cumulative_msat": notice.cumulative_msat}
            log.info("credit redeemed", peer=notice.peer, **fields)
        case events.ChannelStateChanged():
            fields2 = {"peer": notice.peer, "direction": notice.direction.value, "state": notice.state.value}
            log.info("channel", channel=notice.channel_id, reason=notice.reason, **fields2)
        case events.Disputed():
            units = {"billed_units": notice.their_billed_units, "accepted_units": notice.accepted_units}
            log.warning("bill above our own meter", peer=notice.peer, **units)
        case events.Defaulted():
            log.warning("default", peer=notice.peer, unpaid_msat=notice.unpaid_msat, window_msat=notice.window_msat)
        case events.StandingChanged():
            _report_standing(notice)
        case events.ChannelTooDear():
            fields3 = {"peer": notice.peer, "capacity_sat": notice.capacity_sat, "claim_fee_sat": notice.claim_fee_sat}
            log.warning("no channel opened: at these fees its claim would cost too much of it", **fields3)
        case events.PeerFaultSeen():
            log.warning("peer broke the protocol", peer=notice.peer, reason=notice.reason)
        case events.BroadcastRefused():
            log.error("transaction refused", kind=notice.kind.value, txid=notice.txid[::-1], code=notice.code)
        case _:
            assert_never(notice)


def _report_standing(notice: events.StandingChanged) -> None:
    write = log.info if notice.standing is Standing.TRUSTED else log.warning
    write(
        "counts of both ends compared",
        peer=notice.peer,
        standing=notice.standing.name.lower(),
        finding=notice.finding.value,
        overstated_bytes=notice.overstated_bytes,
        denied_bytes=notice.denied_bytes,
    )
