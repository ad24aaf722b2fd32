"""The map of a run: one HTML file with everything in it, which asks nothing of any server.

A canvas with the nodes and links at each sample, a time slider, pause, and layers for price, load, earnings and faults.
"""

from __future__ import annotations

import html
import json
from pathlib import Path
from typing import Any

from simulator import layout
from simulator.exact.world import World

TEMPLATE = Path(__file__).with_name("map.html")
MAX_FRAMES = 600
MAX_CELLS = 4_000_000  # numbers of nodes and links over all frames: about 20 MB of HTML


def render(world: World) -> str:
    """The page."""
    samples = world.samples
    per_frame = 3 * len(world.graph) + len(world.edges)
    wanted = max(1, min(MAX_FRAMES, MAX_CELLS // max(per_frame, 1), len(samples.times)))
    step = max(1, -(-len(samples.times) // wanted))
    chosen = range(step - 1, len(samples.times), step) if samples.times else range(0)
    frames = []
    for index in chosen:
        nodes = samples.nodes[index]
        loads = [0] * len(world.edges)
        down = []
        for frame in range(index - step + 1, index + 1):
            for number, row in enumerate(samples.links[frame]):
                loads[number] += row[1] + row[2]
        for number, row in enumerate(samples.links[index]):
            if not row[0]:
                down.append(number)
        frames.append(
            {
                "t": round(samples.times[index], 3),
                "fee": [row[1] for row in nodes],
                "earned": [row[5] - row[6] if world.bank else row[3] - row[4] for row in nodes],
                "off": [node for node, row in enumerate(nodes) if not row[0]],
                "load": loads,
                "down": down,
                "total": list(samples.totals[index]),
            }
        )
    data: dict[str, Any] = {
        "name": world.scenario.run.name,
        "seconds": step * world.scenario.run.sample_interval,
        "nodes": [[name, role, x, y] for (x, y), name, role in _places(world)],
        "cheats": sorted(world.cheats),
        "links": [list(edge) for edge in world.edges],
        "happenings": [[round(h.at, 3), h.text, h.nodes[:20], h.is_bad] for h in world.happenings[:500]],
        "frames": frames,
    }
    # "</" would end the script wherever it stands.
    text = json.dumps(data, separators=(",", ":")).replace("</", "<\\/")
    page = TEMPLATE.read_text("utf-8").replace("__TITLE__", html.escape(world.scenario.run.name))
    return page.replace("__DATA__", text)


def _places(world: World) -> list[tuple[tuple[float, float], str, str]]:
    """Within the unit square, the shape kept."""
    graph, nodes = world.graph, sorted(world.graph)
    if all("x" in graph.nodes[n] and "y" in graph.nodes[n] for n in nodes):
        # Longitude and latitude of a town: a degree of longitude is about 0.65 of one of latitude in Central Europe.
        place = {n: (0.65 * float(graph.nodes[n]["x"]), -float(graph.nodes[n]["y"])) for n in nodes}
    elif all("pos" in graph.nodes[n] for n in nodes):
        place = {n: (float(graph.nodes[n]["pos"][0]), float(graph.nodes[n]["pos"][1])) for n in nodes}
    else:
        place = layout.places(graph)
    low = [min(place[n][axis] for n in nodes) for axis in (0, 1)]
    size = max(max(place[n][axis] for n in nodes) - low[axis] for axis in (0, 1)) or 1.0
    return [
        (
            (round((place[n][0] - low[0]) / size, 4), round((place[n][1] - low[1]) / size, 4)),
            world.names[n],
            world.roles[n],
        )
        for n in nodes
    ]
