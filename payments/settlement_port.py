"""The settlement port: how a debt with one neighbour is paid, once both ends agree on what it is.

Metering, bills, the window and its enforcement are the same for all; `payments.settlement` asks the method to pay what
is due. Which method holds with whom is configured (`PaymentConfig.terms_with`) and compared in the session's `Hello`;
`payments.settlement_methods` has the methods.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from payments.core import Core, Peer


class SettlementMethod(Protocol):
    """Stateless: what it knows of a peer is in the `Peer`, and on the disk before it is told to anybody."""

    @property
    def name(self) -> str:
        """As in the configuration and in `Hello`."""

    @property
    def is_paid(self) -> bool:
        """False: debts are shown, and neither kept, nor asked for, nor enforced."""

    @property
    def needs_chain(self) -> bool: ...

    def begin_session(self, core: Core, peer: Peer) -> None:
        """Both ends have said hello: tell the peer what it may have lost."""

    def pay(self, core: Core, peer: Peer, amount_msat: int) -> int:
        """Pay up to so much now; how much it was. What is left stays wanted."""

    def review(self, core: Core, peer: Peer, *, now: float) -> None:
        """After each input that touched the peer: prepare for what will have to be paid."""
