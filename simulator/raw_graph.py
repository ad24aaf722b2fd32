"""What the readers of topology files hand over, before it is made a graph."""

from __future__ import annotations

from dataclasses import dataclass, field

DEFAULT_COST = 96  # babeld's for a wired link


class TopologyError(Exception):
    """The name, or the file, is not a topology; the message says what is wrong, or what would be one."""


@dataclass(slots=True)
class RawGraph:
    """`nodes`: by name, the place or None twice; `links`: two names and the cost, None if the file tells none."""

    nodes: dict[str, tuple[float | None, float | None]] = field(default_factory=dict)
    links: list[tuple[str, str, float | None]] = field(default_factory=list)

    def add_node(self, name: str, *, x: float | None = None, y: float | None = None) -> None:
        """Raises TopologyError if it is there already."""
        if name in self.nodes:
            raise TopologyError(f"node {name[:40]!r} is there twice")
        self.nodes[name] = (x, y)

    def add_link(self, a: str, b: str, cost: float | None, *, is_strict: bool = True) -> None:
        """Not `is_strict`: its ends may be new. Raises TopologyError if they are not known."""
        for end in (a, b):
            if end not in self.nodes:
                if is_strict:
                    raise TopologyError(f"a link names {end[:40]!r}, which is not a node")
                self.nodes[end] = (None, None)
        self.links.append((a, b, cost))
