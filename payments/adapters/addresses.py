"""Addresses of people, and the output scripts that they stand for (BIP173, BIP350)."""

from __future__ import annotations

from embit.base import EmbitError
from embit.networks import NETWORKS
from embit.script import Script, address_to_scriptpubkey

from payments.ports import WalletError

# By Bitcoin Core's name of the chain, as in the configuration: embit's.
_NETWORKS = {"main": "main", "test": "test", "testnet4": "test", "signet": "signet", "regtest": "regtest"}


def script_of(address: str, network: str) -> bytes:
    """Raises WalletError unless it is an address of that network."""
    try:
        script = address_to_scriptpubkey(address)
        is_of_network = address_of(script.data, network).lower() == address.lower()
    except (EmbitError, ValueError, KeyError, IndexError, RuntimeError, TypeError) as error:
        raise WalletError(f"not an address: {error}") from error
    if not is_of_network:
        raise WalletError(f"not an address of {network}")
    return bytes(script.data)


def address_of(script_pubkey: bytes, network: str) -> str:
    """Raises WalletError for a script that has no address."""
    try:
        return str(Script(script_pubkey).address(NETWORKS[_NETWORKS[network]]))
    except (EmbitError, ValueError, KeyError, RuntimeError) as error:
        raise WalletError(f"a script without an address on {network}: {error}") from error
