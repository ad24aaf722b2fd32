"""What this node spends at most, and what happens then: nothing that costs is bought until the next window.

Spent is what the owner is out of pocket: paid to neighbours, and owed to them by bills that were accepted, less what
neighbours have paid. A relay that is reimbursed for what it passes on does not run out by it. Once a budget is used up,
routes with a price are left (the speaker's maximum price is 0); free ones, and what is carried to neighbours
themselves, go on.

The sums are those of the payments database, which a crash does not lose; what is kept here is only
where each window began.
"""

from __future__ import annotations

import os
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import trio

from meshd.logs import Logger
from meshd.ticks import tick_after
from payments.budget import LENGTH_BY_PERIOD, NO_LIMIT, Budget, Window
from payments.events import LedgerView

log = Logger("meshd.budget")
CHECK_INTERVAL = 1.0


def spent_msat(ledgers: Iterable[LedgerView]) -> int:
    """Since ever."""
    return sum(view.sent_msat - view.received_msat + max(0, -view.unpaid_msat) for view in ledgers)


class _Entry(msgspec.Struct, frozen=True):
    begins_at: float
    before_msat: int


class BudgetKeeper:
    """`limits` in msat by period ("hour", "day", "month"; 0: none). `set_buying` is told when the state changes.
    `clock` gives Unix time: windows outlast restarts."""

    def __init__(
        self,
        limits: Mapping[str, int],
        *,
        ledgers: Callable[[], Iterable[LedgerView]],
        set_buying: Callable[[bool], Awaitable[None]],
        file: Path | None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._budget = Budget(limits, _load(file))
        self._ledgers = ledgers
        self._set_buying = set_buying
        self._file = file
        self._clock = clock
        self.is_buying = True

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await self.check()
            await trio.sleep_until(tick_after(trio.current_time(), CHECK_INTERVAL))

    async def check(self) -> None:
        """Look at what has been spent, and act on it."""
        if self._budget.observe(spent_msat(self._ledgers()), now=self._clock()):
            await self._save()
        used_up = self._budget.used_up()
        if self.is_buying != (not used_up):
            self.is_buying = not used_up
            if used_up:
                log.warning("budget used up: nothing that costs is bought", period=used_up[0])
            else:
                log.info("buying again")
            await self._set_buying(self.is_buying)

    async def set_limits(self, limits: Mapping[str, int]) -> None:
        """Those that are named; the others stay."""
        self._budget.limits.update(limits)
        await self.check()

    def view(self) -> dict[str, Any]:
        """For people: what was spent in each window, and when it ends (Unix time)."""
        return {
            "is_buying": self.is_buying,
            "periods": [
                {
                    "period": period,
                    "limit_msat": self._budget.limits.get(period, NO_LIMIT) or None,
                    "spent_msat": self._budget.spent_msat(period),
                    "ends_at": self._budget.ends_at(period),
                }
                for period in LENGTH_BY_PERIOD
            ],
        }

    async def _save(self) -> None:
        if self._file is None:
            return
        entries = {name: _Entry(window.begins_at, window.before_msat) for name, window in self._budget.windows.items()}
        try:
            await trio.to_thread.run_sync(_write, self._file, msgspec.json.encode(entries))
        except OSError as error:  # a restart would begin the windows anew; tried again when the next one begins
            log.error("budget not stored", file=self._file, reason=error)


def _load(file: Path | None) -> dict[str, Window]:
    if file is None or not file.exists():
        return {}
    try:
        entries = msgspec.json.decode(file.read_bytes(), type=dict[str, _Entry])
    except (OSError, ValueError) as error:
        log.error("it is not known what was spent lately: budgets begin anew", file=file, reason=error)
        return {}
    return {name: Window(entry.begins_at, entry.before_msat) for name, entry in entries.items()}


def _write(path: Path, data: bytes) -> None:
    temporary = path.with_name(path.name + ".new")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
