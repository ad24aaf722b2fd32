"""What must hold between two neighbours after a crash of either, and what the crash has cost."""

from __future__ import annotations

from dataclasses import dataclass

UNITS_PER_MSAT = 10**9
ROUNDING_MSAT = 1_000  # below a sat, a debt waits for more
METERS_SHARE = 0.001  # by which the two ends may count differently, of what was carried


@dataclass(frozen=True, slots=True)
class Books:
    """Of a buyer and its seller, since they met. `carried_bytes`: counted by a witness in the seller's kernel that no
    daemon knows of; `paid_by_channel`: both ends' sums."""

    carried_bytes: int
    billed_msat: int
    sent_msat: int  # as the buyer has it
    received_msat: int  # as the seller has it
    window_msat: int
    paid_by_channel: dict[str, tuple[int, int]]

    def worth_msat(self, price_msat_per_gb: int) -> int:
        return self.carried_bytes * price_msat_per_gb // UNITS_PER_MSAT

    def lost_msat(self, price_msat_per_gb: int) -> int:
        """What the seller has carried and was not paid for, and never will be: all debts are settled now."""
        return self.worth_msat(price_msat_per_gb) - self.received_msat


@dataclass(frozen=True, slots=True)
class Bound:
    """What one crash may cost the seller: the window, and one reading of the meter (docs/threat-model.md)."""

    price_msat_per_gb: int
    max_window_msat: int
    reading_msat: int

    @property
    def msat(self) -> int:
        return self.max_window_msat + self.reading_msat


def violations(before: Books, now: Books, bound: Bound) -> list[str]:
    """Between two moments at which all was settled, with a crash between them; empty: all is well."""
    found = []
    if now.sent_msat != now.received_msat:
        found.append(f"paid {now.sent_msat}, received {now.received_msat} msat")
    for channel, (sent, received) in now.paid_by_channel.items():
        if sent != received:
            found.append(f"channel {channel}: {sent} msat at the payer, {received} at the payee")
        if (sent, received) < before.paid_by_channel.get(channel, (0, 0)):
            found.append(f"channel {channel} went back")
    price = bound.price_msat_per_gb
    allowance = ROUNDING_MSAT + int(METERS_SHARE * now.worth_msat(price))
    lost = now.lost_msat(price) - before.lost_msat(price)
    if lost > bound.msat + allowance:
        found.append(f"the seller lost {lost} msat, and may lose {bound.msat}")
    if now.lost_msat(price) < -allowance:
        found.append(f"the buyer paid {-now.lost_msat(price)} msat more than was carried")
    if not 0 <= now.billed_msat - now.received_msat <= ROUNDING_MSAT:
        found.append(f"billed {now.billed_msat}, paid {now.received_msat} msat")
    return found
