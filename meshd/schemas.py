"""JSON Schemas of what the control socket's methods answer: the contract with meshctl, and with programs of others.

Plain data, built by the few functions below; nothing is imported, so that meshctl starts quickly. A field may be added
within a version; one that is there keeps its name, its unit and its meaning (docs/reference/rpc.md).
"""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]

DIALECT = "https://json-schema.org/draft/2020-12/schema"


def record(doc: str = "", **fields: Schema) -> Schema:
    """An object that has all of these fields, and perhaps others in later versions."""
    made: Schema = {"type": "object", "properties": fields, "required": list(fields)}
    return {"description": doc, **made} if doc else made


def array(items: Schema, doc: str = "") -> Schema:
    return {**({"description": doc} if doc else {}), "type": "array", "items": items}


def mapping(values: Schema, doc: str = "") -> Schema:
    """An object whose keys are data."""
    return {**({"description": doc} if doc else {}), "type": "object", "additionalProperties": values}


def nullable(schema: Schema) -> Schema:
    if "enum" in schema:
        return {**schema, "type": [schema["type"], "null"], "enum": [*schema["enum"], None]}
    return {**schema, "type": [schema["type"], "null"]}


def text(doc: str = "", *words: str) -> Schema:
    """`words`: the only ones that it may be."""
    return {**({"description": doc} if doc else {}), "type": "string", **({"enum": list(words)} if words else {})}


def integer(doc: str = "") -> Schema:
    return {**({"description": doc} if doc else {}), "type": "integer"}


def number(doc: str = "") -> Schema:
    return {**({"description": doc} if doc else {}), "type": "number"}


def boolean(doc: str = "") -> Schema:
    return {**({"description": doc} if doc else {}), "type": "boolean"}


COUNT = {"type": "integer", "minimum": 0}
MSAT = integer("msat")
PRICE = integer("msat per GB; 4294967295: not for sale")
HEX = {"type": "string", "pattern": "^[0-9a-f]*$"}
IDENTITY = {"type": "string", "pattern": "^[0-9a-f]{64}$", "description": "public key"}
ADDRESS = text("IPv4 or IPv6 address")

_INTERFACE = record(
    name=text(),
    kind=text("", "wired", "wireless", "tunnel"),
    security=text("", "wireguard", "none"),
    up=boolean("it takes part in the mesh"),
    address=nullable(ADDRESS),
)
STATUS = record(
    name=text("what the node is called"),
    version=text(),
    identity=IDENTITY,
    address=text("in the overlay"),
    uptime_seconds=number(),
    tasks=integer(),
    interfaces=array(_INTERFACE),
    neighbours=COUNT,
    routes={**COUNT, "description": "in use"},
    fee_msat_per_gb=PRICE,
    paying=boolean("false: payments are off, or held by the operator"),
    chain=record(backend=text(), height=nullable(integer()), connected=boolean()),
    wallet=record(balance_sat=nullable(integer("on chain, outside of channels"))),
    totals=record(carried_bytes=COUNT, earned_msat=MSAT, spent_msat=MSAT),
    fast_lane=record(
        "established flows that are carried before nftables",
        problem=nullable(text("why there is none")),
        outside=mapping(text(), "interfaces that it carries nothing from and to, and why"),
        flows=COUNT,
        bytes=COUNT,
    ),
    counters=mapping(COUNT, "things that were counted, most of them dropped or refused input"),
)
QUALITY = record(
    "as a driver or batman-adv tells it; null: Hellos alone do",
    share=number("of the best that the link can be"),
    source=text(),
    throughput_kbps=nullable(number()),
    tq=nullable(integer()),
    signal_dbm=nullable(integer()),
)
NEIGHBOUR = record(
    interface=text(),
    under=text("the interface that a tunnel goes over; any other itself"),
    link_local=ADDRESS,
    identity=nullable(IDENTITY),
    address=nullable(ADDRESS),
    cost=integer("of the link; 65535: not to be used"),
    rxcost=integer(),
    txcost=integer(),
    rtt_ms=nullable(number()),
    quality=nullable(QUALITY),
    routing_refused=COUNT,
    session=text("of payments", "up", "down"),
    state=text("what becomes of its traffic", "open", "free", "suspended"),
    rate_bits_per_second=nullable(integer("of the free tier that it is held to")),
    window_msat=nullable(integer("how much it may owe")),
    owed_to_us_msat=nullable(MSAT),
    owed_to_them_msat=nullable(MSAT),
    bytes_in=COUNT,
    bytes_free=COUNT,
    bytes_refused=COUNT,
    bytes_out=COUNT,
)
TUNNEL = record(
    interface=text(),
    under=text(),
    static=boolean("a [[peer]] of the configuration"),
    identity=IDENTITY,
    address=ADDRESS,
    endpoint=nullable(text()),
    port=nullable(integer()),
    mtu=integer(),
    state=text(),
    heard_seconds_ago=nullable(number()),
    received_bytes=COUNT,
)
ROUTE = record(
    prefix=text(),
    source_prefix=nullable(text()),
    interface=nullable(text()),
    under=nullable(text()),
    next_hop=nullable(ADDRESS),
    neighbour=nullable(text("its overlay address")),
    advertised_metric=integer(),
    metric=integer("65535: unreachable"),
    price_msat_per_gb=PRICE,
    announced_price_msat_per_gb=nullable(PRICE),
    selected=boolean(),
    feasible=boolean(),
    refused=boolean("by a filter"),
    origin=boolean("our own"),
)
_REASONED = record(**ROUTE["properties"], reason=text("why it was not chosen"))
PATH = record(
    destination=ADDRESS,
    prefix=text(),
    source_prefix=nullable(text()),
    origin=boolean("this node itself announces the prefix"),
    chosen=nullable(ROUTE),
    alternatives=array(_REASONED),
)
CHANNEL = record(
    channel_id=HEX,
    peer=IDENTITY,
    peer_address=ADDRESS,
    direction=text("in: we are paid through it", "in", "out"),
    state=text(),
    capacity_sat=COUNT,
    cumulative_msat=integer("paid through it"),
    acknowledged_msat=MSAT,
    funding=nullable(text("txid:index")),
    expiry_height=integer(),
    closing_txid=nullable(HEX),
)
COUNTS = record(
    "what both ends of the link counted",
    standing=text(),
    finding=text(),
    ours=mapping(COUNT),
    theirs=nullable(mapping(COUNT)),
    their_earned_msat=MSAT,
    their_owed_msat=MSAT,
    lost_to_them=number("share of the bytes"),
    lost_from_them=number("share of the bytes"),
    overstated_bytes=integer(),
    denied_bytes=integer(),
)
LEDGER = record(
    peer=IDENTITY,
    peer_address=ADDRESS,
    state=text("", "open", "suspended"),
    window_msat=integer("how much it may owe"),
    billed_msat=MSAT,
    acknowledged_msat=MSAT,
    their_billed_msat=MSAT,
    accepted_msat=MSAT,
    sent_msat=MSAT,
    received_msat=MSAT,
    balance_msat=integer("above 0: owed to us"),
    settlement=text("how it is settled", "cltv", "credit", "null"),
    counts=nullable(COUNTS),
)
FEE = record(
    fee_msat_per_gb=PRICE,
    price=text("auto: the fee follows the load", "fixed", "auto"),
    floor_msat_per_gb=nullable(PRICE),
    ceiling_msat_per_gb=nullable(PRICE),
    capacity_mbit=nullable(integer("what the node can carry, Mbit/s")),
    load_mbit=nullable(number("the moving average that the fee follows, Mbit/s; null: none yet")),
)
BUDGET = record(
    is_buying=boolean("false: a budget is used up, and no route with a price is taken"),
    max_price_msat_per_gb=PRICE,
    periods=array(
        record(
            period=text("", "hour", "day", "month"),
            limit_msat=nullable(integer("msat; null: none")),
            spent_msat=integer("paid and owed to neighbours, less what they paid; below 0: more was earned"),
            ends_at=number("Unix time"),
        )
    ),
)
WALLET_BALANCE = record(
    confirmed_sat=COUNT,
    unconfirmed_sat=integer("beside the confirmed"),
    locked_in_channels_sat=integer("of those that we pay through: capacity"),
    claimable_msat=integer("of those that we are paid through: what was paid"),
)
NEW_ADDRESS = record(address=text())
SENT = record(txid=HEX, fee_sat=COUNT, broadcast=boolean("false: it is sent again at the next start"))
LABEL = record(key=text("address or txid"), text=text())
CREDIT = record(
    peer=IDENTITY,
    peer_address=ADDRESS,
    limit_msat=nullable(integer("the lower one of both ends; null: there is no session")),
    balance_msat=integer("in promises; above 0: owed to us"),
    promised_by_us_msat=MSAT,
    acknowledged_msat=integer("of that, countersigned by the peer"),
    promised_by_them_msat=MSAT,
    redeemed_by_us_msat=integer("of their promises, given to us outside"),
    redeemed_by_them_msat=MSAT,
)
BACKEND = record(name=text(), height=nullable(integer("as it last told")), answering=boolean())
REDEEMED = record(peer=IDENTITY, amount_msat=MSAT)
PAYING = record(paying=boolean())
COST = record(interface=text(), cost=integer())
RELOADED = record(
    filters=COUNT,
    redistributions=COUNT,
    restart_needed=array(text(), "keys that have changed and are not in force before the next start"),
)
CLOSED = record(channels=array(HEX), txid=nullable(HEX))
OPENED = record(peer=IDENTITY, peer_address=ADDRESS, capacity_sat=COUNT)
RECEIPT = record(
    "what a neighbour has signed for us last, of each kind",
    peer=IDENTITY,
    peer_address=ADDRESS,
    kind=text("payment: through a channel; counts: its meter; credit: its promises", "payment", "counts", "credit"),
    channel_id=nullable(HEX),
    amount_msat=nullable(MSAT),
    signed=text("hex; empty: what it is over follows from the channel or the sums"),
    signature=HEX,
)
SCRIPT = record(script_pubkey=HEX)
METRICS = record(content_type=text(), text=text("in the text format 0.0.4 of Prometheus"))
PEER_RULE = record(peer=IDENTITY, peer_address=ADDRESS, rule=text("", "normal", "blocked", "free"))
PATH_HOP = record(
    hop=COUNT,
    node=ADDRESS,
    answered=boolean("false: what follows is null"),
    arrived=boolean("the destination is its own"),
    prefix=nullable(text("its route")),
    next=nullable(text("overlay address; null: there is none, or it is not known")),
    metric=nullable(integer("of the whole way from there")),
    price_msat_per_gb=nullable(integer("what it pays its next hop")),
    fee_msat_per_gb=nullable(integer("what it asks itself, on top")),
    link_cost=nullable(integer("to its next hop")),
    quality=nullable(number("of that link, of the best that it can be; null: Hellos alone tell")),
    why=text("that this way was chosen"),
)
PATH_HOPS = record(destination=ADDRESS, reached=boolean(), hops=array(PATH_HOP))
