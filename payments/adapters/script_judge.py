"""Bitcoin Core's script interpreter (py-bitcoinkernel), asked about one transaction."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import reduce
from operator import or_

import pbk
from pbk.script import PrecomputedTransactionData

_FLAGS = pbk.ScriptVerificationFlags
CONSENSUS = frozenset(
    ("P2SH", "DERSIG", "NULLDUMMY", "CHECKLOCKTIMEVERIFY", "CHECKSEQUENCEVERIFY", "WITNESS", "TAPROOT")
)


def is_every_input_valid(raw: bytes, spent: Sequence[tuple[bytes, int]], *, flags: Iterable[str] = CONSENSUS) -> bool:
    """`spent`: script and value (sat) of the outputs that its inputs spend, in their order. `flags`: Core's names of
    what is enforced. False, too, for what is no transaction."""
    enforced = reduce(or_, (getattr(_FLAGS, name) for name in flags), _FLAGS(0))
    try:
        transaction = pbk.Transaction(raw)
        outputs = [pbk.TransactionOutput(pbk.ScriptPubkey(script), value_sat) for script, value_sat in spent]
        precomputed = PrecomputedTransactionData(transaction, outputs)
        return all(
            output.script_pubkey.verify(output.amount, transaction, precomputed, index, enforced)
            for index, output in enumerate(outputs)
        )
    except (RuntimeError, pbk.KernelException):
        return False


def reads_as(raw: bytes) -> bytes | None:
    """The transaction as Core writes what it has read; None: it reads none."""
    try:
        return bytes(pbk.Transaction(raw))
    except (RuntimeError, pbk.KernelException):
        return None
