"""Money: prices become debts, debts become channel updates, channel updates become Bitcoin transactions."""
