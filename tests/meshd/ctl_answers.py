"""What a daemon answers, by method, and what meshctl makes of it; every command of meshctl with a method is here."""

from __future__ import annotations

from typing import Any

ALICE = "fd3c:8aa9:32ea:37ba:4f1a:bd0c:2ad6:a6f1"
BOB = "fd91:32ab:9e1f:8e3c:cbd1:ae87:5b1d:c09f"

STATUS = {
    "name": "n1",
    "version": "0.1.0",
    "identity": "03a107bff3ce10be1d70dd18e74bc09967e4d6309ba50d5f1ddc8664125531b8",
    "address": ALICE,
    "uptime_seconds": 93784.5,
    "tasks": 31,
    "interfaces": [
        {"name": "eth0", "address": "fe80::1", "kind": "wired", "security": "none", "up": True},
        {"name": "wlan0", "address": None, "kind": "wireless", "security": "wireguard", "up": False},
    ],
    "neighbours": 2,
    "routes": 5,
    "fee_msat_per_gb": 100_000,
    "paying": True,
    "chain": {"backend": "kernel", "height": 117, "connected": True},
    "wallet": {"balance_sat": 1_234_567},
    "totals": {"carried_bytes": 104_857_600, "earned_msat": 10_485, "spent_msat": 0},
    "fast_lane": {
        "problem": None,
        "outside": {"wlan0": "others have filters (tc) there"},
        "flows": 12,
        "bytes": 52_428_800,
    },
    "counters": {"malformed": 3},
}
NEIGHBOURS = [
    {
        "interface": "eth0", "under": "eth0", "link_local": "fe80::2", "identity": "ab" * 32, "address": BOB,
        "cost": 96, "rxcost": 96, "txcost": 96, "rtt_ms": 12.345, "quality": None, "routing_refused": 0,
        "session": "up", "state": "open",
        "window_msat": 10_000,
        "owed_to_us_msat": 512, "owed_to_them_msat": 0, "bytes_in": 5_120_000, "bytes_out": 999,
        "bytes_free": 0, "bytes_refused": 0, "rate_bits_per_second": None,
    },
    {
        "interface": "wlan0", "under": "wlan0", "link_local": "fe80::3", "identity": None, "address": None,
        "cost": 65535,
        "rxcost": 65535, "txcost": 256, "rtt_ms": None,
        "quality": {
            "share": 0.2484, "source": "expected throughput", "throughput_kbps": 9937, "tq": None, "signal_dbm": -30,
        },
        "routing_refused": 7, "session": "down", "state": "suspended", "window_msat": None,
        "owed_to_us_msat": None, "owed_to_them_msat": None, "bytes_in": 0, "bytes_out": 0,
        "bytes_free": 1234, "bytes_refused": 65_000, "rate_bits_per_second": 64_000,
    },
]  # fmt: skip
OWN = {
    "prefix": f"{ALICE}/128", "source_prefix": None, "interface": None, "under": None, "next_hop": None,
    "neighbour": None, "metric": 0, "advertised_metric": 0,
    "price_msat_per_gb": 0, "announced_price_msat_per_gb": 0, "selected": True, "feasible": True, "refused": False,
    "origin": True,
}  # fmt: skip
CHEAP = {
    "prefix": "10.1.0.0/24", "source_prefix": None, "interface": "eth0", "under": "eth0", "next_hop": "fe80::2",
    "neighbour": BOB,
    "metric": 217, "advertised_metric": 96,
    "price_msat_per_gb": 1_250_000, "announced_price_msat_per_gb": 1_350_000, "selected": True, "feasible": True,
    "origin": False, "refused": False,
}  # fmt: skip
REFUSED = CHEAP | {"prefix": "10.2.0.0/24", "metric": 65535, "selected": False, "refused": True}
DEAR = CHEAP | {
    "interface": "wlan0", "under": "wlan0", "next_hop": "fe80::3", "neighbour": None, "metric": 65535,
    "price_msat_per_gb": 2**32 - 1,
    "announced_price_msat_per_gb": None, "selected": False, "feasible": False,
}  # fmt: skip
PATH = {
    "destination": "10.1.0.7", "prefix": "10.1.0.0/24", "source_prefix": None, "origin": False, "chosen": CHEAP,
    "alternatives": [DEAR | {"reason": "unreachable"}],
}  # fmt: skip
CHANNELS = [
    {
        "channel_id": "0123456789abcdef" * 4, "peer": "ab" * 32, "peer_address": BOB, "direction": "out",
        "state": "open", "capacity_sat": 100_000, "cumulative_msat": 12_345_678, "acknowledged_msat": 12_345_678,
        "funding": "ef" * 32 + ":0",
        "expiry_height": 2133, "closing_txid": None,
    },
    {
        "channel_id": "fedcba9876543210" * 4, "peer": "ab" * 32, "peer_address": BOB, "direction": "in",
        "state": "closing", "capacity_sat": 50_000, "cumulative_msat": 0, "acknowledged_msat": 0,
        "funding": None, "expiry_height": 300,
        "closing_txid": "cd" * 32,
    },
]  # fmt: skip
LEDGER = [
    {
        "peer": "ab" * 32, "peer_address": BOB, "state": "suspended", "window_msat": 10_000, "billed_msat": 20_500,
        "acknowledged_msat": 20_000, "their_billed_msat": 0, "accepted_msat": 0, "sent_msat": 0,
        "received_msat": 5_001, "balance_msat": -15_499, "settlement": "cltv", "counts": {
            "standing": "warned", "finding": "overstated", "ours": {"sent": 2}, "theirs": {"sent": 1},
            "their_earned_msat": 1, "their_owed_msat": 2, "lost_to_them": 0.02, "lost_from_them": 0.0,
            "overstated_bytes": 5, "denied_bytes": 0,
        },
    }
]  # fmt: skip
TUNNELS = [
    {
        "interface": "mw0123456789ab", "under": "gateway", "static": True, "identity": "ab" * 32, "address": BOB,
        "endpoint": "192.0.2.1:51820", "port": 40001, "mtu": 1420, "state": "up", "heard_seconds_ago": 1.6,
        "received_bytes": 12_345,
    },
    {
        "interface": "mwba9876543210", "under": "pi", "static": True, "identity": "cd" * 32, "address": "fd00::1",
        "endpoint": None, "port": 51820, "mtu": 1420, "state": "waiting", "heard_seconds_ago": None,
        "received_bytes": 0,
    },
]  # fmt: skip
FEE: dict[str, Any] = {
    "fee_msat_per_gb": 100_000, "price": "auto", "floor_msat_per_gb": 1_000, "ceiling_msat_per_gb": 2_000_000,
    "capacity_mbit": 20, "load_mbit": 3.5,
}  # fmt: skip
RECEIPTS = [
    {
        "peer": "ab" * 32, "peer_address": BOB, "kind": "payment", "channel_id": "0123456789abcdef" * 2,
        "amount_msat": 12_345_678, "signed": "", "signature": "3045" * 18,
    },
    {
        "peer": "ab" * 32, "peer_address": BOB, "kind": "counts", "channel_id": None, "amount_msat": None,
        "signed": "00" * 40, "signature": "fe" * 64,
    },
]  # fmt: skip
CREDIT = [
    {
        "peer": "ab" * 32, "peer_address": BOB, "limit_msat": 50_000, "balance_msat": -9_000,
        "promised_by_us_msat": 12_000, "acknowledged_msat": 12_000, "promised_by_them_msat": 1_000,
        "redeemed_by_us_msat": 0, "redeemed_by_them_msat": 2_000,
    },
]  # fmt: skip
RULE = {"peer": "ab" * 32, "peer_address": BOB, "rule": "blocked"}
BUDGET = {
    "is_buying": False, "max_price_msat_per_gb": 100_000_000,
    "periods": [
        {"period": "hour", "limit_msat": None, "spent_msat": 5, "ends_at": 0.0},
        {"period": "day", "limit_msat": 9_000, "spent_msat": 9_001, "ends_at": 0.0},
    ],
}  # fmt: skip
HOPS = {
    "destination": "10.1.0.7", "reached": True,
    "hops": [
        {
            "hop": 0, "node": ALICE, "answered": True, "arrived": False, "prefix": "10.1.0.0/24", "next": BOB,
            "metric": 217, "price_msat_per_gb": 1_250_000, "fee_msat_per_gb": 100_000, "link_cost": 96,
            "quality": 0.984, "why": "the only route",
        },
        {
            "hop": 1, "node": BOB, "answered": True, "arrived": True, "prefix": "10.1.0.0/24", "next": None,
            "metric": 0, "price_msat_per_gb": 0, "fee_msat_per_gb": 1_250_000, "link_cost": None, "quality": None,
            "why": "its own",
        },
    ],
}  # fmt: skip
ANSWERS: dict[str, Any] = {
    "path.hops": HOPS,
    "tunnels": TUNNELS,
    "status": STATUS, "neighbours": NEIGHBOURS, "routes": [OWN, CHEAP, DEAR, REFUSED], "path": PATH,
    "channels": CHANNELS, "ledger": LEDGER, "price.show": FEE,
    "price.set": FEE | {"fee_msat_per_gb": 200_000, "price": "fixed"}, "price.auto": FEE,
    "pay.hold": {"paying": False}, "pay.resume": {"paying": True},
    "channel.close": {"channels": ["01" * 32], "txid": "cd" * 32},
    "channel.open": {"peer": "ab" * 32, "peer_address": BOB, "capacity_sat": 200_000},
    "receipts": RECEIPTS,
    "wallet.balance": {
        "confirmed_sat": 1_234_567, "unconfirmed_sat": 0,
        "locked_in_channels_sat": 100_000, "claimable_msat": 12_345_678,
    },
    "wallet.address": {"address": "bcrt1qw508d6qejxtdg4y5r3zarvary0c5xw7kygt080"},
    "wallet.send": {"txid": "ef" * 32, "fee_sat": 282, "broadcast": True},
    "wallet.sweep": {"txid": "ef" * 32, "fee_sat": 1_282, "broadcast": False},
    "wallet.labels": [{"key": "ef" * 32, "text": "roof"}],
    "credit": CREDIT, "credit.redeem": {"peer": "ab" * 32, "amount_msat": 250_000},
    "chain.backends": [
        {"name": "bitcoind 1", "height": 117, "answering": True},
        {"name": "explorer 2", "height": None, "answering": False},
    ],
    "interface.cost": {"interface": "wlan0", "cost": 256},
    "peer.list": [RULE], "peer.set": RULE, "budget.show": BUDGET, "budget.set": BUDGET,
    "metrics": {"content_type": "text/plain", "text": "# HELP a b\na 1\n"},
    "reload": {"filters": 3, "redistributions": 1, "restart_needed": ["routing.port"]},
}  # fmt: skip

GOLDEN = {
    "status": """\
node        n1 (meshd 0.1.0, up 1d 2h)
identity    03a107bff3ce10be1d70dd18e74bc09967e4d6309ba50d5f1ddc8664125531b8
address     fd3c:8aa9:32ea:37ba:4f1a:bd0c:2ad6:a6f1
neighbours  2
routes      5
fee         0.1 sat/MB
paying      yes
chain       kernel, height 117, connected
wallet      1,234,567 sat
carried     104.9 MB
fast lane   12 flows, 52.4 MB carried; not on wlan0: others have filters (tc) there
earned      10.485 sat
spent       0 msat

INTERFACE  KIND      STATE  ADDRESS
eth0       wired     up     fe80::1
wlan0      wireless  down   -""",
    "neighbours": """\
INTERFACE  LINK-LOCAL  ADDRESS                                   COST      RTT  QUALITY                                   SESSION  STATE                  WINDOW  OWED TO US  OWED TO THEM      IN    FREE  REFUSED    OUT
eth0       fe80::2     fd91:32ab:9e1f:8e3c:cbd1:ae87:5b1d:c09f     96  12.3 ms  -                                         up       open                   10 sat    512 msat        0 msat  5.1 MB     0 B      0 B  999 B
wlan0      fe80::3     -                                        65535        -  25 % (9.9 Mbit/s by expected throughput)  down     suspended (64 kbit/s)       -           -             -     0 B  1.2 kB  65.0 kB    0 B""",  # noqa: E501
    "routes": """\
   PREFIX                                       VIA      INTERFACE  METRIC         PRICE    ANNOUNCED  NOTE
*  fd3c:8aa9:32ea:37ba:4f1a:bd0c:2ad6:a6f1/128  -        -               0             -     0 sat/MB  own
*  10.1.0.0/24                                  fe80::2  eth0          217   1.25 sat/MB  1.35 sat/MB
   10.1.0.0/24                                  fe80::3  wlan0       65535  not for sale            -  unfeasible
   10.2.0.0/24                                  fe80::2  eth0        65535   1.25 sat/MB  1.35 sat/MB  refused""",
    "tunnels": """\
INTERFACE       OVER     ADDRESS                                  ENDPOINT          PORT   MTU  STATE      HEARD  RECEIVED
mw0123456789ab  gateway  fd91:32ab:9e1f:8e3c:cbd1:ae87:5b1d:c09f  192.0.2.1:51820  40001  1420  up       2 s ago   12.3 kB
mwba9876543210  pi       fd00::1                                  -                51820  1420  waiting        -       0 B""",  # noqa: E501
    "channels": """\
CHANNEL       PEER                                     DIRECTION  STATE       CAPACITY            PAID  EXPIRES AT  FUNDING       CLOSING
0123456789ab  fd91:32ab:9e1f:8e3c:cbd1:ae87:5b1d:c09f  out        open     100,000 sat  12,345.678 sat        2133  efefefefefef  -
fedcba987654  fd91:32ab:9e1f:8e3c:cbd1:ae87:5b1d:c09f  in         closing   50,000 sat          0 msat         300  -             cdcdcdcdcdcd""",  # noqa: E501
    "ledger": """\
PEER                                     STATE      COUNTS                         WINDOW    BILLED  ACKNOWLEDGED  THEIR BILLED  ACCEPTED    SENT   RECEIVED      BALANCE
fd91:32ab:9e1f:8e3c:cbd1:ae87:5b1d:c09f  suspended  warned: overstated, 2.0% lost  10 sat  20.5 sat        20 sat        0 msat    0 msat  0 msat  5.001 sat  -15.499 sat""",  # noqa: E501
    "credit": """\
PEER                                      LIMIT  BALANCE  PROMISED BY US  PROMISED BY THEM  REDEEMED BY US  REDEEMED BY THEM
fd91:32ab:9e1f:8e3c:cbd1:ae87:5b1d:c09f  50 sat   -9 sat          12 sat             1 sat          0 msat             2 sat""",  # noqa: E501
    "credit.redeem": f"250 sat less are owed by {'ab' * 32}.",
    "chain.backends": """\
BACKEND     HEIGHT  ANSWERS
bitcoind 1     117  yes
explorer 2       -  no""",
    "price.show": (
        "Fee: 0.1 sat/MB (100,000 msat/GB), between 0.001 sat/MB and 2 sat/MB with the load: 3.5 Mbit/s of 20 Mbit/s"
    ),
    "price.auto": (
        "Fee: 0.1 sat/MB (100,000 msat/GB), between 0.001 sat/MB and 2 sat/MB with the load: 3.5 Mbit/s of 20 Mbit/s"
    ),
    "price.set": "Fee: 0.2 sat/MB (200,000 msat/GB)",
    "interface.cost": "Cost of wlan0: 256",
    "peer.list": f"PEER                                     RULE\n{BOB}  blocked",
    "peer.set": f"PEER                                     RULE\n{BOB}  blocked",
    "budget.show": """\
a budget is used up: nothing that costs is bought; at most 100 sat/MB

PERIOD      SPENT  LIMIT  ENDS IN
hour       5 msat   none       0s
day     9.001 sat  9 sat       0s""",
    "metrics": "# HELP a b\na 1",
    "budget.set": """\
a budget is used up: nothing that costs is bought; at most 100 sat/MB

PERIOD      SPENT  LIMIT  ENDS IN
hour       5 msat   none       0s
day     9.001 sat  9 sat       0s""",
    "reload": "In force: 3 filters, 1 rules of redistribution.\nOnly after a restart: routing.port.",
    "pay.hold": "Payments are on hold.",
    "pay.resume": "Paying.",
    "channel.open": f"Opening a channel of 200,000 sat to {BOB}, when it agrees.",
    "receipts": """\
PEER                                     OF       CHANNEL               AMOUNT  SIGNATURE
fd91:32ab:9e1f:8e3c:cbd1:ae87:5b1d:c09f  payment  0123456789ab  12,345.678 sat  304530453045
fd91:32ab:9e1f:8e3c:cbd1:ae87:5b1d:c09f  counts   -                          -  fefefefefefe""",
    "wallet.balance": """\
WHERE                      AMOUNT
confirmed           1,234,567 sat
unconfirmed                 0 sat
locked in channels    100,000 sat
to be claimed          12,345 sat""",
    "wallet.address": "bcrt1qw508d6qejxtdg4y5r3zarvary0c5xw7kygt080",
    "wallet.send": f"{'ef' * 32}, fee 282 sat",
    "wallet.sweep": f"{'ef' * 32}, fee 1,282 sat\nThe chain is away: it is sent when it is back.",
    "wallet.labels": f"ADDRESS OR TRANSACTION{' ' * 44}LABEL\n{'ef' * 32}  roof",
    "channel.close": f"Closing 1 channel, transaction {'cd' * 32}:\n  {'01' * 32}",
}
GOLDEN_PATH = """\
10.1.0.7 matches 10.1.0.0/24: via fe80::2 on eth0, metric 217, price 1.25 sat/MB

HOP  NODE                                     METRIC        PRICE          FEE  LINK COST  QUALITY  WHY
  0  fd3c:8aa9:32ea:37ba:4f1a:bd0c:2ad6:a6f1     217  1.25 sat/MB   0.1 sat/MB         96     98 %  the only route
  1  fd91:32ab:9e1f:8e3c:cbd1:ae87:5b1d:c09f       0            -  1.25 sat/MB          -        -  its own

  PREFIX       VIA      INTERFACE  METRIC         PRICE  ANNOUNCED  WHY NOT
  10.1.0.0/24  fe80::3  wlan0       65535  not for sale          -  unreachable"""
