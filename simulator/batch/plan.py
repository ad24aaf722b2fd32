"""What a scenario is for the batch engine: a cold start, then one step for each link that fails, returns or changes.

Its faults keep their order; their times do not count, since a step begins when the one before has settled.
"""

from __future__ import annotations

from dataclasses import dataclass

from simulator.batch.engine import Step
from simulator.draft import Break, Draft
from simulator.scenario import Scenario, ScenarioError

STEPS_MAX = 100_000


@dataclass(frozen=True, slots=True)
class Plan:
    """`left_out`: what of the scenario makes no difference here."""

    steps: list[Step]
    left_out: list[str]


def refuse(scenario: Scenario, fidelity: str) -> None:
    """What would move routes, and is only in exact. Raises ScenarioError."""
    wrong = [
        name for name, tables in (("mobility", scenario.mobilities), ("adversary", scenario.adversaries)) if tables
    ]
    if any(table.kind == "wireless" or (table.loss or (0.0, 0.0))[1] > 0 for table in scenario.links):
        wrong.append("link with loss")
    if wrong:
        raise ScenarioError(f"[[{wrong[0]}]]: not in {fidelity}; `meshsim run` has it")


def plan(draft: Draft) -> Plan:
    """Raises ScenarioError."""
    scenario = draft.scenario
    refuse(scenario, "batch")
    if any(table.policy == "auto" for table in scenario.prices):
        raise ScenarioError('[[price]] policy = "auto": not in batch; flow and `meshsim run` have it')
    left_out = [f"[[{name}]]" for name, tables in (("demand", scenario.demands),) if tables]
    left_out += ["[payments]"] * scenario.payments.enabled
    links = _Links(draft)
    steps = [Step("originate")]
    for item in sorted(draft.faults(), key=lambda item: item.fault.at):
        if item.fault.at > scenario.run.duration:
            continue
        if item.fault.kind == "loss":
            raise ScenarioError("[[fault]] loss: not in batch; `meshsim run` has it")
        steps += links.apply(item)
        if len(steps) > STEPS_MAX:
            raise ScenarioError(f"more than {STEPS_MAX} links fail and return")
    return Plan(steps, left_out)


class _Links:
    """Which are up: those that did not fail themselves, and whose two ends are up."""

    def __init__(self, draft: Draft) -> None:
        self._graph = draft.graph
        self._failed: set[tuple[int, int]] = set()
        self._down: set[int] = set()

    def apply(self, item: Break) -> list[Step]:
        kind, nodes = item.fault.kind, item.nodes
        links = [(min(link), max(link)) for link in item.links]
        touched = links or sorted({(min(n, m), max(n, m)) for n in nodes for m in self._graph[n]})
        before = {link: self._is_up(link) for link in touched}
        if kind == "cost":
            return [Step("cost", a, b, max(1, int(item.fault.value))) for a, b in links]
        if kind == "node_down":
            self._down.update(nodes)
        elif kind == "node_up":
            self._down.difference_update(nodes)
        elif kind == "link_down":
            self._failed.update(links)
        else:
            self._failed.difference_update(links)
        changed = [link for link in touched if self._is_up(link) != before[link]]
        return [Step("link_down" if before[link] else "link_up", *link) for link in changed]

    def _is_up(self, link: tuple[int, int]) -> bool:
        return link not in self._failed and not self._down & set(link)
