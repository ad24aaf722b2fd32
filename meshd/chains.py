"""Chain and wallet as configured."""

from __future__ import annotations

from meshd.config import Config, ConfigError
from meshd.config_chain import BackendConfig
from meshd.logs import Logger
from payments.adapters.bitcoind import BitcoindChain
from payments.adapters.bitcoind_rpc import RpcConfig
from payments.adapters.chain_client import KernelChainClient
from payments.adapters.combined_chain import CombinedChain
from payments.adapters.wallet_bitcoind import BitcoindWallet
from payments.ports import ChainPort, WalletError, WalletPort

log = Logger("meshd.payments")

# By Bitcoin Core's name of it, as in the configuration: bitcoinlib's.
WALLET_NETWORKS = {
    "regtest": "regtest",
    "signet": "signet",
    "test": "testnet",
    "testnet4": "testnet4",
    "main": "bitcoin",
}


def open_chain(config: Config) -> ChainPort:
    """Nothing is connected yet. Raises ConfigError for a password that cannot be read, or an extra that is missing."""
    network = config.chain.network
    if network == "main":
        log.warning("real money is at stake: docs/threat-model.md says what can be lost")
    is_real = network != "regtest"
    configured = (config.chain, *config.backends)
    backends = [(f"{each.backend} {n}", _backend(config, each)) for n, each in enumerate(configured, start=1)]
    if len(backends) == 1 and (not is_real or configured[0].backend == "explorer"):
        return backends[0][1]
    return CombinedChain(backends, is_real=is_real)  # also of one alone: the clock stands in for a node that stops


def _backend(config: Config, wanted: BackendConfig) -> ChainPort:
    network = config.chain.network
    if wanted.backend == "kernel":
        return KernelChainClient(wanted.socket)
    if wanted.backend == "bitcoind":
        return BitcoindChain(_rpc(wanted), network=network)
    try:
        from payments.adapters.explorer import explorer_chain  # noqa: PLC0415  needs an extra, and is heavy
    except ImportError as error:
        raise ConfigError(f'[chain] backend = "explorer": {error}: install meshd[wallet]') from error
    directory = config.node.state_dir / "wallet"
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    return explorer_chain(
        wanted.explorers, network=WALLET_NETWORKS[network], directory=directory, is_real=network != "regtest"
    )


def _rpc(config: BackendConfig) -> RpcConfig:
    password = ""
    if config.rpc_password_file is not None:
        try:
            password = config.rpc_password_file.read_text("utf-8").rstrip("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"[chain] rpc_password_file: {error}") from error
    return RpcConfig(config.rpc_port, config.rpc_host, config.rpc_cookie, config.rpc_user, password)


async def open_wallet(config: Config, chain: ChainPort, *, seed: bytes) -> WalletPort:
    """Raises WalletError and ChainError."""
    state_dir, network = config.node.state_dir, config.chain.network
    if config.chain.wallet == "bitcoind":
        return await BitcoindWallet.open(
            _rpc(config.chain),
            config.chain.rpc_wallet,
            directory=state_dir / "wallet-bitcoind",
            chain=chain,
            network=network,
        )
    # Heavy (45 MB), and an extra: a node without payments does not need it.
    try:
        from payments.adapters.wallet_bitcoinlib import BitcoinlibWallet  # noqa: PLC0415
    except ImportError as error:
        raise WalletError(f"{error}: install meshd[wallet]") from error
    return await BitcoinlibWallet.open(state_dir / "wallet", chain, seed=seed, network=WALLET_NETWORKS[network])
