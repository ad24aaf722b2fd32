"""Chain and wallet are those of the configuration."""

from __future__ import annotations

from pathlib import Path

import pytest

from meshd.chains import open_chain
from meshd.config import Config, ConfigError, parse
from payments.adapters.bitcoind import BitcoindChain
from payments.adapters.chain_client import KernelChainClient
from payments.adapters.combined_chain import CombinedChain
from payments.adapters.explorer import EsploraChain

EXPLORERS = 'explorers = ["https://a.example/api", "https://b.example/api"]\n'


def test_the_chain_is_the_one_that_is_configured(tmp_path: Path) -> None:
    assert isinstance(open_chain(Config()), KernelChainClient)
    secret = tmp_path / "password"
    config = parse(f'[chain]\nbackend = "bitcoind"\nrpc_user = "me"\nrpc_password_file = "{secret}"\n')
    with pytest.raises(ConfigError, match="rpc_password_file"):
        open_chain(config)
    secret.write_text("hidden\n")
    chain = open_chain(config)
    assert isinstance(chain, BitcoindChain)
    assert chain._rpc._config.credentials() == "me:hidden"
    assert "hidden" not in repr(chain._rpc._config)


def test_several_backends_are_combined_and_one_alone_is_watched_where_time_is_real(tmp_path: Path) -> None:
    two = open_chain(parse('[chain]\nbackend = "kernel"\n[[backend]]\nbackend = "bitcoind"\n'))
    assert isinstance(two, CombinedChain)
    assert [(each.name, type(each.port)) for each in two.backends] == [
        ("kernel 1", KernelChainClient),
        ("bitcoind 2", BitcoindChain),
    ]
    alone = open_chain(parse('[chain]\nbackend = "bitcoind"\nnetwork = "signet"\n'))
    assert isinstance(alone, CombinedChain)
    assert len(alone.backends) == 1
    state = f'[node]\nstate_dir = "{tmp_path}/state"\n'
    servers = open_chain(parse(f'{state}[chain]\nbackend = "explorer"\nnetwork = "signet"\n{EXPLORERS}'))
    assert isinstance(servers, CombinedChain)
    assert [type(each.port) for each in servers.backends] == [EsploraChain, EsploraChain]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[chain]\nbackend = "bitcoind"\nnetwork = "main"\n', "expected real_money = true"),
        ('[chain]\nnetwork = "signet"\n', 'expected network = "regtest"'),
        ('[chain]\n[[backend]]\nbackend = "explorer"\n', r"\[\[backend\]\] number 1: .*expected two or more explorers"),
        ('[chain]\nbackend = "explorer"\nexplorers = ["https://a/api", "https://a/api"]\n', "two or more explorers"),
        ('[chain]\nwallet = "bitcoind"\n', 'expected backend = "bitcoind"'),
        ('[chain]\nexplorers = ["https://user@host/api"]\n', "a list of addresses"),
    ],
)
def test_what_would_risk_money_by_mistake_is_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse(text)


def test_real_money_takes_two_words() -> None:
    config = parse('[chain]\nbackend = "bitcoind"\nnetwork = "main"\nreal_money = true\n')
    assert isinstance(open_chain(config), CombinedChain)


def test_the_examples_of_the_operators_page_are_configurations() -> None:
    page = (Path(__file__).parents[2] / "docs" / "money.md").read_text("utf-8")
    examples = [block.split("```")[0] for block in page.split("```toml\n")[1:]]
    assert len(examples) == 2
    credit, chain = (parse(example) for example in examples)
    assert credit.neighbours[0].settlement == "credit"
    assert [backend.backend for backend in chain.backends] == ["explorer"]
