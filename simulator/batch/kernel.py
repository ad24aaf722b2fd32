# long: one protocol, whose functions call each other; numba finds them by module
"""One destination, in the whole network, through a schedule of steps: the code of `routing`, in columns.

Routes to different destinations know nothing of each other but through timers, pacing and budgets. The reduced schedule
here has none of these: each message takes one tick; what a node says leaves in the tick in which it learnt the cause
(`is_immediate`: after each message, as a speaker with urgent_timeout = 0; else once, after all that arrived in it, as a
speaker that waits for more news); nothing is lost; a step begins when the one before is settled; sticky routes take
every gain, as they do in the end. `simulator.lockstep` drives real speakers through the same schedule: the traces are
equal (`meshsim verify`).

Plain functions on scalars and int32 arrays: numba compiles them with the rules of `routing.rules`, or Python runs them
as they are. Rows of `nodes` and `slots` have the columns below; a slot is one end of a link, and slots are sorted by
node, then by neighbour. Messages are kept apart by whether their tick is even or odd (`turn`).
"""

from __future__ import annotations

from typing import Any, NamedTuple

from routing import rules
from routing.rules import METRIC_INFINITY, PRICE_NOT_FOR_SALE

Ints = Any  # int32 arrays: numba and numpy know, and mypy would see more than there is

# Columns of `nodes`. Prices are stored as `stored(price)`.
SELECTED = 0  # the slot of the next hop, or -1
FIRST_SLOT = 1
END_SLOT = 2
IS_ORIGIN = 3
IS_QUEUED = 4  # has something to say: 1: where TO_SEND is set, 2: everywhere
IS_ANNOUNCED = 5
METRIC = 6  # announced
PRICE = 7
EPOCH = 8
HAS_DISTANCE = 9  # the feasibility distance (RFC 8966 section 3.2.5)
DISTANCE_SEQNO = 10
DISTANCE_METRIC = 11
HAS_PENDING = 12  # a seqno request that waits for its answer (section 3.2.7)
UNFEASIBLE_METRIC = 13  # no unfeasible route that is shorter than the selected one is shorter than this
FEE = 14
STAMP = 15  # of the youngest route
PENDING_SEQNO = 16
IS_OURS = 17
SENT_AT = 18
HOP_COUNT = 19
REQUESTERS = 20
SEQNO = 21  # of the origin
RAISED_AT = 22
NODE_COLUMNS = 23

# Columns of `slots`.
NEIGHBOUR = 0
REVERSE = 1  # the other end's slot
COST = 2
IS_UP = 3
HAS_ROUTE = 4
ROUTE_SEQNO = 5
REFMETRIC = 6
ROUTE_METRIC = 7
ROUTE_PRICE = 8
ROUTE_EPOCH = 9
ROUTE_STAMP = 10  # older routes win ties
ADVERTISED = 11
TO_SEND = 12
IS_REQUESTER = 13
OWNER = 14
FIRST = 15  # message that arrives here: two columns, for even and odd ticks
LAST = 17
IS_ASKED = 19  # for the pending seqno, which is ours
SLOT_COLUMNS = 20

# Columns of `messages`.
NEXT = 0
KIND = 1
M_SEQNO = 2
M_METRIC = 3  # or a request's hop count
M_PRICE = 4
M_EPOCH = 5
MESSAGE_COLUMNS = 6
UPDATE, REQUEST = range(2)

# Columns of `changes`.
AT, NODE, VIA, C_METRIC, C_PRICE, CHANGE_COLUMNS = range(6)

# Entries of `state`.
FREE = 0
TICK = 1
AWAKE_COUNT = 2  # nodes that have messages in the next tick
CHANGE_COUNT = 3
IS_FULL = 4
UPDATES = 5
REQUESTS = 6
LOOPS = 7
LAST_CHANGE_AT = 8
CHANGES_KEPT = 9  # of those in `changes`; the others are only counted
STATE_SIZE = 10

# Kinds of steps, and their columns: kind, node or slot, value. REFRESH: everybody repeats its updates (section 3.7.1).
ORIGINATE, SET_FEE, LINK_DOWN, REFRESH, LINK_UP, SET_COST = range(6)
STEP_TICKS = 2000  # from the beginning of a step to that of the next
TICKS_MAX = 1500  # a step that has not settled by then never will: a fault, or a network of more than 500 hops

REQUEST_HOPS = 64
TARGETS_MAX = 3
SEQNO_TICKS = 100  # least time between two increments; ticks of a millisecond
SUPPRESS_TICKS = 200
PRICE_OFFSET = 1 << 31  # prices have 32 bits and no sign, columns have 32 bits and a sign


class Tables(NamedTuple):
    """All that is passed on from function to function: few arrays, as each is many arguments of machine code."""

    nodes: Ints
    slots: Ints
    messages: Ints
    changes: Ints  # one row: they are only counted
    hops: Ints  # the next hop of each node, or -1: what a packet would follow
    awake: Ints  # by turn and node: it has messages in that tick
    state: Any  # int64
    weight: float
    is_immediate: bool


def stored(price: int) -> int:
    return price - PRICE_OFFSET


def price_of(column: int) -> int:
    return int(column) + PRICE_OFFSET


def push(t: Tables, slot: int, kind: int) -> int:
    """A new message to the other end of `slot`: its number, or -1 if there is no room."""
    number = t.state[FREE]
    if number < 0:
        t.state[IS_FULL] = 1
        return -1
    t.state[FREE] = t.messages[number, NEXT]
    t.messages[number, NEXT] = -1
    t.messages[number, KIND] = kind
    turn = (t.state[TICK] + 1) & 1
    there = t.slots[slot, REVERSE]
    if t.slots[there, FIRST + turn] < 0:
        t.slots[there, FIRST + turn] = number
    else:
        t.messages[t.slots[there, LAST + turn], NEXT] = number
    t.slots[there, LAST + turn] = number
    receiver = t.slots[slot, NEIGHBOUR]
    if t.awake[turn, receiver] == 0:
        t.awake[turn, receiver] = 1
        t.state[AWAKE_COUNT] += 1
    return int(number)


def note_change(t: Tables, node: int) -> None:
    """The selected route of `node` is another one. A loop that was not there before goes through it."""
    slot = t.nodes[node, SELECTED]
    hop = t.slots[slot, NEIGHBOUR] if slot >= 0 else -1
    t.hops[node] = hop
    count = t.state[CHANGES_KEPT]
    if t.changes.shape[0] > 1:
        if count >= t.changes.shape[0]:
            t.state[IS_FULL] = 1
            return
        t.changes[count, AT] = t.state[TICK]
        t.changes[count, NODE] = node
        t.changes[count, VIA] = hop
        t.changes[count, C_METRIC] = t.slots[slot, ROUTE_METRIC] if slot >= 0 else METRIC_INFINITY
        t.changes[count, C_PRICE] = t.slots[slot, ROUTE_PRICE] if slot >= 0 else stored(0)
        t.state[CHANGES_KEPT] = count + 1
    t.state[CHANGE_COUNT] += 1
    t.state[LAST_CHANGE_AT] = t.state[TICK]
    for _ in range(t.hops.shape[0] + 1):
        if hop < 0:
            return
        if hop == node:
            t.state[LOOPS] += 1
            return
        hop = t.hops[hop]


def is_slot_feasible(t: Tables, node: int, slot: int) -> bool:
    return t.nodes[node, HAS_DISTANCE] == 0 or rules.distance_less(
        t.slots[slot, ROUTE_SEQNO],
        t.slots[slot, REFMETRIC],
        t.nodes[node, DISTANCE_SEQNO],
        t.nodes[node, DISTANCE_METRIC],
    )


def queue_all(t: Tables, node: int) -> None:
    t.nodes[node, IS_QUEUED] = 2


def queue_one(t: Tables, node: int, slot: int) -> None:
    if t.slots[slot, IS_UP] == 1:
        if t.nodes[node, IS_QUEUED] == 0:
            t.nodes[node, IS_QUEUED] = 1
        t.slots[slot, TO_SEND] = 1


def announce(t: Tables, node: int) -> None:
    """Announcer.announce."""
    is_known, metric, price = 0, 0, 0
    slot = t.nodes[node, SELECTED]
    if t.nodes[node, IS_ORIGIN] == 1:
        is_known = 1
    elif slot >= 0:
        metric = rules.composite_metric(t.slots[slot, ROUTE_METRIC], price_of(t.nodes[node, FEE]), t.weight)
        price = rules.price_add(price_of(t.slots[slot, ROUTE_PRICE]), price_of(t.nodes[node, FEE]))
        is_known = 1 if metric < METRIC_INFINITY and price < PRICE_NOT_FOR_SALE else 0
    if is_known == 0:
        metric, price = 0, 0
    was_known = t.nodes[node, IS_ANNOUNCED]
    if is_known == was_known and metric == t.nodes[node, METRIC] and stored(price) == t.nodes[node, PRICE]:
        return
    if is_known != was_known or stored(price) != t.nodes[node, PRICE]:
        t.nodes[node, EPOCH] = (t.nodes[node, EPOCH] + 1) & 0xFFFF
    t.nodes[node, IS_ANNOUNCED] = is_known
    t.nodes[node, METRIC] = metric
    t.nodes[node, PRICE] = stored(price)
    queue_all(t, node)


def build(t: Tables, node: int) -> int:
    """Announcer._build: the seqno of the update that is about to leave; the feasibility distance follows (3.7.3)."""
    if t.nodes[node, IS_ORIGIN] == 1:
        seqno: int = t.nodes[node, SEQNO]
        return seqno
    if t.nodes[node, IS_ANNOUNCED] == 0:
        return 0
    seqno = t.slots[t.nodes[node, SELECTED], ROUTE_SEQNO]
    metric = t.nodes[node, METRIC]
    if t.nodes[node, HAS_DISTANCE] == 0 or rules.distance_less(
        seqno, metric, t.nodes[node, DISTANCE_SEQNO], t.nodes[node, DISTANCE_METRIC]
    ):
        t.nodes[node, HAS_DISTANCE] = 1
        t.nodes[node, DISTANCE_SEQNO] = seqno
        t.nodes[node, DISTANCE_METRIC] = metric
    return seqno


def send_update(t: Tables, node: int, slot: int, seqno: int) -> None:
    """What is announced; `seqno` -1: a retraction."""
    number = push(t, slot, UPDATE)
    t.state[UPDATES] += 1
    if number < 0:
        return
    price = t.nodes[node, PRICE] if seqno >= 0 else stored(0)
    t.messages[number, M_SEQNO] = seqno
    t.messages[number, M_METRIC] = t.nodes[node, METRIC] if seqno >= 0 else METRIC_INFINITY
    t.messages[number, M_PRICE] = price
    t.messages[number, M_EPOCH] = t.nodes[node, EPOCH] if price != stored(0) else 0


def flush(t: Tables, node: int) -> None:
    """Announcer.flush and _update_on: split horizon, and retractions for those who heard of an earlier route."""
    if t.nodes[node, IS_QUEUED] == 0:
        return
    is_to_all = t.nodes[node, IS_QUEUED] == 2
    t.nodes[node, IS_QUEUED] = 0
    seqno = -1
    is_built = False
    selected = t.nodes[node, SELECTED]
    for slot in range(t.nodes[node, FIRST_SLOT], t.nodes[node, END_SLOT]):
        if not is_to_all and t.slots[slot, TO_SEND] == 0:
            continue
        t.slots[slot, TO_SEND] = 0
        if t.slots[slot, IS_UP] == 0:
            continue
        if not is_built:
            seqno = build(t, node)
            is_built = True
        if t.nodes[node, IS_ANNOUNCED] == 1 and slot != selected:
            t.slots[slot, ADVERTISED] = 1
            send_update(t, node, slot, seqno)
        elif t.slots[slot, ADVERTISED] == 1:
            t.slots[slot, ADVERTISED] = 0
            send_update(t, node, slot, -1)


def send_request(t: Tables, slot: int, seqno: int, hops: int) -> None:
    number = push(t, slot, REQUEST)
    t.state[REQUESTS] += 1
    if number >= 0:
        t.messages[number, M_SEQNO] = seqno
        t.messages[number, M_METRIC] = hops


def is_wanting(t: Tables, node: int) -> bool:
    """Requests._unfeasible: there is an unfeasible route that we would select or still use."""
    selected = t.nodes[node, SELECTED]
    limit = t.slots[selected, ROUTE_METRIC] if selected >= 0 else METRIC_INFINITY
    for slot in range(t.nodes[node, FIRST_SLOT], t.nodes[node, END_SLOT]):
        is_wanted = slot == selected or t.slots[slot, ROUTE_METRIC] < limit
        if t.slots[slot, HAS_ROUTE] == 1 and is_wanted and not is_slot_feasible(t, node, slot):
            return True
    return False


def is_answered(t: Tables, node: int, seqno: int) -> bool:
    """Requests._is_answered_by."""
    if t.nodes[node, IS_ANNOUNCED] == 0:
        return False
    slot = t.nodes[node, SELECTED]
    ours = t.nodes[node, SEQNO] if slot < 0 else t.slots[slot, ROUTE_SEQNO]
    return not rules.seqno_less(ours, seqno)


def forget_request(t: Tables, node: int) -> None:
    if t.nodes[node, IS_OURS] == 0 and t.nodes[node, REQUESTERS] == 0:
        t.nodes[node, HAS_PENDING] = 0


def settle(t: Tables, node: int) -> None:
    """Requests.settle."""
    seqno = t.nodes[node, PENDING_SEQNO]
    if t.nodes[node, IS_OURS] == 1 and not is_wanting(t, node):
        t.nodes[node, IS_OURS] = 0
    if is_answered(t, node, seqno):
        for slot in range(t.nodes[node, FIRST_SLOT], t.nodes[node, END_SLOT]):
            if t.slots[slot, IS_REQUESTER] == 1:
                t.slots[slot, IS_REQUESTER] = 0
                queue_one(t, node, slot)
        t.nodes[node, REQUESTERS] = 0
    forget_request(t, node)


def chase(t: Tables, node: int) -> None:
    """Requests.chase: of unfeasible routes that we would select or still use, the shortest three are asked; of a seqno
    that has been asked for, those that have not been."""
    selected = t.nodes[node, SELECTED]
    limit = t.slots[selected, ROUTE_METRIC] if selected >= 0 else METRIC_INFINITY
    wanted = rules.seqno_add(t.nodes[node, DISTANCE_SEQNO], 1)
    is_asking = t.nodes[node, HAS_PENDING] == 1 and t.nodes[node, IS_OURS] == 1
    is_running = is_asking and not rules.seqno_less(t.nodes[node, PENDING_SEQNO], wanted)
    done_metric, done_stamp = -1, -1
    for turn in range(TARGETS_MAX):
        best = -1
        for slot in range(t.nodes[node, FIRST_SLOT], t.nodes[node, END_SLOT]):
            metric, stamp = t.slots[slot, ROUTE_METRIC], t.slots[slot, ROUTE_STAMP]
            if t.slots[slot, HAS_ROUTE] == 0 or not (slot == selected or metric < limit):
                continue
            if metric < done_metric or (metric == done_metric and stamp <= done_stamp):
                continue
            if is_slot_feasible(t, node, slot) or (is_running and t.slots[slot, IS_ASKED] == 1):
                continue
            if (
                best < 0
                or metric < t.slots[best, ROUTE_METRIC]
                or (metric == t.slots[best, ROUTE_METRIC] and stamp < t.slots[best, ROUTE_STAMP])
            ):
                best = slot
        if best < 0:
            return
        if turn == 0 and not is_running:
            t.nodes[node, HAS_PENDING] = 1
            t.nodes[node, IS_OURS] = 1
            t.nodes[node, PENDING_SEQNO] = wanted
            t.nodes[node, SENT_AT] = t.state[TICK]
            for slot in range(t.nodes[node, FIRST_SLOT], t.nodes[node, END_SLOT]):
                t.slots[slot, IS_ASKED] = 0
        t.slots[best, IS_ASKED] = 1
        send_request(t, best, t.nodes[node, PENDING_SEQNO], REQUEST_HOPS)
        done_metric, done_stamp = t.slots[best, ROUTE_METRIC], t.slots[best, ROUTE_STAMP]


def survey(t: Tables, node: int) -> tuple[int, int, int]:
    """Selection._survey: slot of the shortest selectable route, of the selected one if it may be kept, and the metric
    of the shortest unfeasible one."""
    selected = t.nodes[node, SELECTED]
    best, current = -1, -1
    best_metric = unfeasible_metric = METRIC_INFINITY
    for slot in range(t.nodes[node, FIRST_SLOT], t.nodes[node, END_SLOT]):
        metric = t.slots[slot, ROUTE_METRIC]
        if t.slots[slot, HAS_ROUTE] == 0 or metric >= METRIC_INFINITY:
            continue
        if not is_slot_feasible(t, node, slot):
            unfeasible_metric = min(unfeasible_metric, metric)
            if slot != selected:
                continue
        if slot == selected:
            current = slot
        is_tie = best >= 0 and metric == best_metric and best != selected
        is_first = slot == selected or (is_tie and t.slots[slot, ROUTE_STAMP] < t.slots[best, ROUTE_STAMP])
        if metric < best_metric or (is_tie and is_first):
            best, best_metric = slot, metric
    return best, current, unfeasible_metric


def reconsider(t: Tables, node: int) -> None:
    """Selection.reconsider: select again, and do all that follows from it."""
    best, current, unfeasible_metric = -1, -1, METRIC_INFINITY
    if t.nodes[node, IS_ORIGIN] == 0:
        best, current, unfeasible_metric = survey(t, node)
    t.nodes[node, UNFEASIBLE_METRIC] = unfeasible_metric
    take(t, node, best, current)


def take(t: Tables, node: int, best: int, current: int) -> None:
    """What follows from a survey."""
    selected = t.nodes[node, SELECTED]
    if best >= 0 and current >= 0 and best != current:
        metric, current_metric = t.slots[best, ROUTE_METRIC], t.slots[current, ROUTE_METRIC]
        if not rules.is_route_better(metric, current_metric, 0, True):
            best = current
    if best != selected:
        t.nodes[node, SELECTED] = best
        note_change(t, node)
        if selected >= 0 and best >= 0:
            queue_one(t, node, selected)
            queue_one(t, node, best)
    announce(t, node)
    if t.nodes[node, UNFEASIBLE_METRIC] <= (METRIC_INFINITY - 1 if best < 0 else t.slots[best, ROUTE_METRIC]):
        chase(t, node)
    if t.nodes[node, HAS_PENDING] == 1:
        settle(t, node)


def receive_update(t: Tables, slot: int, number: int) -> None:
    """Selection.receive_update (section 3.5.3)."""
    node = t.slots[slot, OWNER]
    seqno, refmetric = t.messages[number, M_SEQNO], t.messages[number, M_METRIC]
    price, epoch = t.messages[number, M_PRICE], t.messages[number, M_EPOCH]
    has_route = t.slots[slot, HAS_ROUTE] == 1
    if refmetric >= METRIC_INFINITY or t.nodes[node, IS_ORIGIN] == 1:
        if has_route:
            t.slots[slot, HAS_ROUTE] = 0
            if t.nodes[node, SELECTED] == slot:
                reconsider(t, node)
        return
    if (
        has_route
        and seqno == t.slots[slot, ROUTE_SEQNO]
        and refmetric == t.slots[slot, REFMETRIC]
        and price == t.slots[slot, ROUTE_PRICE]
        and epoch == t.slots[slot, ROUTE_EPOCH]
    ):
        return
    if not has_route:
        t.slots[slot, HAS_ROUTE] = 1
        t.nodes[node, STAMP] += 1
        t.slots[slot, ROUTE_STAMP] = t.nodes[node, STAMP]
    t.slots[slot, ROUTE_SEQNO] = seqno
    t.slots[slot, REFMETRIC] = refmetric
    t.slots[slot, ROUTE_PRICE] = price
    t.slots[slot, ROUTE_EPOCH] = epoch
    selected = t.nodes[node, SELECTED]
    metric = rules.metric_add(refmetric, t.slots[slot, COST])
    before = t.slots[selected, ROUTE_METRIC] if selected >= 0 else METRIC_INFINITY
    t.slots[slot, ROUTE_METRIC] = metric
    if selected < 0:
        reconsider(t, node)
    elif selected != slot and metric >= before:
        return
    elif metric <= before < METRIC_INFINITY and is_slot_feasible(t, node, slot):
        # The selected route was the shortest, but for unfeasible ones that UNFEASIBLE_METRIC knows of (those that have
        # become so since are no shorter): this one is now. A survey of all routes would find the same.
        take(t, node, slot, selected)
    else:
        reconsider(t, node)


def next_hop_for(t: Tables, node: int, requester: int) -> int:
    """Requests._next_hop: a slot, or -1."""
    selected: int = t.nodes[node, SELECTED]
    if selected >= 0 and selected != requester:
        return selected
    best = -1
    best_feasible = False
    for slot in range(t.nodes[node, FIRST_SLOT], t.nodes[node, END_SLOT]):
        if slot == requester or t.slots[slot, HAS_ROUTE] == 0 or t.slots[slot, ROUTE_METRIC] >= METRIC_INFINITY:
            continue
        feasible = is_slot_feasible(t, node, slot)
        is_first = best < 0 or (feasible and not best_feasible)
        if not is_first and feasible == best_feasible:
            metric, least = t.slots[slot, ROUTE_METRIC], t.slots[best, ROUTE_METRIC]
            is_first = metric < least or (metric == least and t.slots[slot, ROUTE_STAMP] < t.slots[best, ROUTE_STAMP])
        if is_first:
            best, best_feasible = slot, feasible
    return best


def receive_request(t: Tables, slot: int, number: int) -> None:
    """Requests.handle_seqno_request (section 3.8.1.2), _raise_own_seqno and _forward."""
    node = t.slots[slot, OWNER]
    seqno, hops = t.messages[number, M_SEQNO], t.messages[number, M_METRIC]
    now = t.state[TICK]
    if is_answered(t, node, seqno):
        t.slots[slot, ADVERTISED] = 1
        send_update(t, node, slot, build(t, node))
        return
    if t.nodes[node, IS_ORIGIN] == 1:
        if now < t.nodes[node, RAISED_AT] + SEQNO_TICKS:
            return
        t.nodes[node, RAISED_AT] = now
        t.nodes[node, SEQNO] = rules.seqno_add(t.nodes[node, SEQNO], 1)
        queue_one(t, node, slot)
        return
    if hops < 2:
        return
    is_pending = t.nodes[node, HAS_PENDING] == 1
    is_known = is_pending and not rules.seqno_less(t.nodes[node, PENDING_SEQNO], seqno)
    target = -1
    if not is_known:
        target = next_hop_for(t, node, slot)
        if target < 0:
            return
        if not is_pending:
            t.nodes[node, HAS_PENDING] = 1
            t.nodes[node, IS_OURS] = 0
            t.nodes[node, SENT_AT] = now
        t.nodes[node, PENDING_SEQNO] = seqno
    elif now >= t.nodes[node, SENT_AT] + SUPPRESS_TICKS:
        target = next_hop_for(t, node, slot)
    if t.slots[slot, IS_REQUESTER] == 0:
        t.slots[slot, IS_REQUESTER] = 1
        t.nodes[node, REQUESTERS] += 1
    if target >= 0:
        t.nodes[node, HOP_COUNT] = hops - 1
        send_request(t, target, t.nodes[node, PENDING_SEQNO], hops - 1)
        t.nodes[node, SENT_AT] = now


def lower_link(t: Tables, slot: int) -> None:
    """Neighbourhood.lower_interface, at one end."""
    node = t.slots[slot, OWNER]
    t.slots[slot, IS_UP] = 0
    t.slots[slot, ADVERTISED] = 0
    t.slots[slot, TO_SEND] = 0
    t.slots[slot, IS_ASKED] = 0
    if t.slots[slot, IS_REQUESTER] == 1:
        t.slots[slot, IS_REQUESTER] = 0
        t.nodes[node, REQUESTERS] -= 1
    t.slots[slot, HAS_ROUTE] = 0
    if t.nodes[node, SELECTED] == slot:
        reconsider(t, node)


def raise_link(t: Tables, slot: int) -> None:
    """At one end: a new neighbour is told everything at once."""
    node = t.slots[slot, OWNER]
    t.slots[slot, IS_UP] = 1
    if t.nodes[node, IS_ANNOUNCED] == 1:
        queue_one(t, node, slot)
    flush(t, node)


def set_cost(t: Tables, slot: int, cost: int) -> None:
    """Selection.change_link_cost, at one end."""
    node = t.slots[slot, OWNER]
    t.slots[slot, COST] = cost
    if t.slots[slot, HAS_ROUTE] == 1:
        t.slots[slot, ROUTE_METRIC] = rules.metric_add(t.slots[slot, REFMETRIC], cost)
        reconsider(t, node)
    flush(t, node)


def run_tick(t: Tables) -> None:
    """All that was sent in the last tick, by receiver, then by sender, then in the order in which it was sent."""
    turn = t.state[TICK] & 1
    left = t.state[AWAKE_COUNT]
    t.state[AWAKE_COUNT] = 0
    node = -1
    while left > 0:
        node += 1
        if t.awake[turn, node] == 0:
            continue
        t.awake[turn, node] = 0
        left -= 1
        for slot in range(t.nodes[node, FIRST_SLOT], t.nodes[node, END_SLOT]):
            number = t.slots[slot, FIRST + turn]
            t.slots[slot, FIRST + turn] = -1
            while number >= 0:
                following = t.messages[number, NEXT]
                if t.slots[slot, IS_UP] == 1:
                    if t.messages[number, KIND] == UPDATE:
                        receive_update(t, slot, number)
                    else:
                        receive_request(t, slot, number)
                t.messages[number, NEXT] = t.state[FREE]
                t.state[FREE] = number
                if t.is_immediate:
                    flush(t, node)
                number = following
        flush(t, node)


def repeat(t: Tables, node: int) -> None:
    """The update that is due at regular times. Most neighbours have just that: it is counted, and not sent, as it would
    change nothing there (`receive_update`); nothing else is under way to them."""
    seqno = build(t, node)
    price = t.nodes[node, PRICE]
    epoch = t.nodes[node, EPOCH] if price != stored(0) else 0
    for slot in range(t.nodes[node, FIRST_SLOT], t.nodes[node, END_SLOT]):
        there = t.slots[slot, REVERSE]
        if t.slots[slot, IS_UP] == 0 or slot == t.nodes[node, SELECTED]:
            queue_one(t, node, slot)
        elif t.nodes[t.slots[slot, NEIGHBOUR], IS_ORIGIN] == 1 or (
            t.slots[there, HAS_ROUTE] == 1
            and t.slots[there, ROUTE_SEQNO] == seqno
            and t.slots[there, REFMETRIC] == t.nodes[node, METRIC]
            and t.slots[there, ROUTE_PRICE] == price
            and t.slots[there, ROUTE_EPOCH] == epoch
        ):
            t.slots[slot, ADVERTISED] = 1
            t.state[UPDATES] += 1
        else:
            queue_one(t, node, slot)
    flush(t, node)


def begin_step(t: Tables, kind: int, subject: int, value: int, destination: int) -> None:
    if kind == ORIGINATE:
        t.nodes[destination, IS_ORIGIN] = 1
        reconsider(t, destination)
        flush(t, destination)
    elif kind == SET_FEE:
        t.nodes[subject, FEE] = stored(value)
        announce(t, subject)
        flush(t, subject)
    elif kind == LINK_DOWN:
        there = t.slots[subject, REVERSE]
        lower_link(t, subject)
        flush(t, t.slots[subject, OWNER])
        lower_link(t, there)
        flush(t, t.slots[there, OWNER])
    elif kind == LINK_UP:
        raise_link(t, subject)
        raise_link(t, t.slots[subject, REVERSE])
    elif kind == SET_COST:
        set_cost(t, subject, value)
        set_cost(t, t.slots[subject, REVERSE], value)
    elif kind == REFRESH:
        for node in range(t.nodes.shape[0]):
            if t.nodes[node, IS_ANNOUNCED] == 1:
                repeat(t, node)


def forget_requests(t: Tables) -> None:
    for node in range(t.nodes.shape[0]):
        t.nodes[node, HAS_PENDING] = 0
        t.nodes[node, IS_OURS] = 0
        t.nodes[node, REQUESTERS] = 0
    for slot in range(t.slots.shape[0]):
        t.slots[slot, IS_REQUESTER] = 0


def run_destination(t: Tables, steps: Any, ends: Any, destination: int) -> None:
    """The kernel. The tables are those of a network that knows nothing (`engine.reset`).

    Results: `t.nodes` and `t.slots` at the end, `t.changes` as they came, counts in `t.state`, and in `ends` the tick
    of the last change of each step. With `t.state[IS_FULL]` it has stopped: 1: `t.messages` or `t.changes` is too
    small; 2: it does not settle."""
    for index in range(steps.shape[0]):
        t.state[TICK] = index * STEP_TICKS
        t.state[LAST_CHANGE_AT] = t.state[TICK]
        if index > 0:  # between two steps there is time enough to give up requests that nobody answered
            forget_requests(t)
        begin_step(t, steps[index, 0], steps[index, 1], steps[index, 2], destination)
        while t.state[AWAKE_COUNT] > 0 and t.state[IS_FULL] == 0:
            t.state[TICK] += 1
            if t.state[TICK] > index * STEP_TICKS + TICKS_MAX:
                t.state[IS_FULL] = 2
                return
            run_tick(t)
        ends[index] = t.state[LAST_CHANGE_AT] - index * STEP_TICKS
        if t.state[IS_FULL] != 0:
            return
