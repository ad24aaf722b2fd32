"""One scenario from start to verdict, and the search for a smaller one that fails alike."""

from __future__ import annotations

from dataclasses import dataclass, replace

from tools.prover.scenario import Scenario
from tools.prover.steps import Step
from tools.prover.truth import Truth, name_of
from tools.prover.world import Loop, World

CHUNK = 5.0
STARVATION_MAX = 60.0  # virtual seconds, after the last event, that a pair may have a path and no working route
BEST_TIMEOUT = 300.0  # until every route is a shortest one
CALM = 20.0  # for so long nothing may change then
AFTERMATH = 4.0  # Hello intervals until a wire has found out, and forgotten, that Hellos were lost before


@dataclass(frozen=True, slots=True)
class Verdict:
    """Times in virtual seconds after the last event, to the chunk of 5; None: not within the limit."""

    seed: str
    topology: str
    nodes: int
    changes: int
    removals: int
    packets: int
    virtual_seconds: float
    failure: str | None
    details: tuple[str, ...]
    reached_after: float | None
    best_after: float | None
    shared_loops: int
    restart_loops: int
    longest_loop: float

    @property
    def kind(self) -> str:
        return self.failure or "ok"


def run(scenario: Scenario) -> Verdict:
    world = scenario.build()
    reached_after = best_after = None
    failure: str | None = None
    details: tuple[str, ...] = ()
    try:
        for step in scenario.steps:
            step.take(world)
            if loops := _violations(world):
                failure, details = "loop", tuple(_tell(loop) for loop in loops[:5])
                break
        else:
            reached_after, best_after, failure, details = settle(world)
    except Exception as error:  # the engine must never raise: whatever it is, it is a failure
        failure, details = "exception", (f"t={world.now:.6f}: {type(error).__name__}: {error}",)
    return Verdict(
        seed=scenario.seed,
        topology=scenario.topology,
        nodes=len(scenario.fees),
        changes=world.changes,
        removals=world.removals,
        packets=world.packets,
        virtual_seconds=world.now,
        failure=failure,
        details=details,
        reached_after=reached_after,
        best_after=best_after,
        shared_loops=sum(loop.kind == "shared" for loop in world.loops),
        restart_loops=sum(loop.kind == "restart" for loop in world.loops),
        longest_loop=world.longest_loop,
    )


def settle(world: World) -> tuple[float | None, float | None, str | None, tuple[str, ...]]:
    """No more losses and no more events: when has every pair a working route, and when a shortest one?"""
    for segment in world.segments:
        segment.loss = segment.duplicate = segment.jitter = 0.0
    started = world.now
    reached_after: float | None = None
    wrong: list[str] = []
    since: dict[str, float] = {}
    while world.now - started < BEST_TIMEOUT:
        world.run(CHUNK)
        if loops := _violations(world):
            return reached_after, None, "loop", tuple(_tell(loop) for loop in loops[:5])
        truth = Truth(world)
        wrong = truth.unreached()
        if wrong:
            reached_after = None
            since = {pair: since.get(pair, world.now - CHUNK) for pair in wrong}
            if world.now - min(since.values()) >= STARVATION_MAX:
                return None, None, "starvation", tuple(wrong[:5])
            continue
        since.clear()
        reached_after = reached_after or world.now - started
        wrong = truth.longer()
        if not wrong and world.now - started >= AFTERMATH * world.config.hello_interval:
            return _stay(world, reached_after, world.now - started)
    return reached_after, None, "not shortest", tuple(wrong[:5])


def _stay(
    world: World, reached_after: float, best_after: float
) -> tuple[float | None, float | None, str | None, tuple[str, ...]]:
    world.run(CALM)
    if loops := _violations(world):
        return reached_after, None, "loop", tuple(_tell(loop) for loop in loops[:5])
    truth = Truth(world)
    if wrong := truth.unreached() + truth.longer():
        return reached_after, None, "not calm", tuple(wrong[:5])
    if standing := [loop for loops in world.open_loops.values() for loop in loops]:
        return reached_after, best_after, "standing loop", tuple(_tell(loop) for loop in standing[:5])
    return reached_after, best_after, None, ()


def _violations(world: World) -> list[Loop]:
    return [loop for loop in world.loops if loop.kind == "single"]


def _tell(loop: Loop) -> str:
    return f"t={loop.at:.6f}: loop to {name_of(loop.key)} through {' '.join(map(str, loop.nodes))}"


def shrink(scenario: Scenario, *, tries: int = 300) -> Scenario:
    """Leaves out steps, in ever smaller pieces, as long as the same kind of failure remains."""
    kind = run(scenario).kind
    size = max(1, len(scenario.steps) // 2)
    while size and tries > 0:
        start = 0
        while start < len(scenario.steps) and tries > 0:
            steps: list[Step] = scenario.steps[:start] + scenario.steps[start + size :]
            smaller = replace(scenario, steps=steps)
            tries -= 1
            if run(smaller).kind == kind:
                scenario = smaller
            else:
                start += size
        size //= 2
    return scenario
