"""The map of a run in a real browser, where there is one; and where it puts nodes that have no place."""

from __future__ import annotations

import json
import math
import random
import re
import shutil
import subprocess
from itertools import pairwise
from pathlib import Path
from typing import Any

import networkx as nx
import pytest

from simulator import layout, topology, webmap
from simulator.exact.world import Happening, World
from simulator.scenario import parse

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
BROWSER_TIMEOUT = 300
FAULTS = '[[fault]]\nat = 5\nkind = "node_down"\nnodes = 4\n'
# Works the page as a person would, and writes down what became of it.
PROBE = """
<pre id="probe"></pre><script>
"use strict";
const seen = {};
function colours() {
  const { data } = pen.getImageData(0, 0, canvas.width, canvas.height), found = new Set();
  for (let i = 0; i < data.length; i += 4) found.add(data[i] << 16 | data[i + 1] << 8 | data[i + 2]);
  return [...found].sort().join();
}
try {
  $("play").click();
  seen.paused = $("play").textContent;
  const pictures = [];
  for (const layer of ["fee", "earned", "carried"]) {
    $("layer").value = layer; $("layer").onchange(); pictures.push(colours() + $("high").textContent);
  }
  seen.layers = new Set(pictures).size;
  $("time").value = $("time").max; $("time").oninput();
  seen.clock = $("clock").textContent;
  const late = colours();
  $("faults").checked = false; $("faults").onchange();
  seen.faults = late !== colours();
  $("time").value = 0; $("time").oninput();
  seen.began = $("clock").textContent;
  const isShown = ([x, y]) => x >= 0 && y >= 0 && x < canvas.width && y < canvas.height;
  seen.shown = nodes.filter((_, n) => isShown(place(n))).length;
  seen.play = ($("play").click(), $("play").textContent);
} catch (error) { seen.error = String(error); }
document.getElementById("probe").textContent = JSON.stringify(seen);
</script></body>"""


def looked_at(page: str, folder: Path) -> dict[str, Any]:
    """What the probe says of the page, in a browser that is cut off from every network."""
    browser = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if browser is None:
        pytest.skip(f"no browser is installed ({', '.join(BROWSERS)})")
    file = folder / "map.html"
    file.write_text(page.replace("</body>", PROBE), "utf-8")
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--window-size=1200,800", "--dump-dom"]
    command += [f"--user-data-dir={folder / 'profile'}", "--host-resolver-rules=MAP * ~NOTFOUND", f"file://{file}"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=BROWSER_TIMEOUT)
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        pytest.skip(f"the browser does not run here: {error}")
    found = re.search(r'<pre id="probe">(\{.*?\})</pre>', done.stdout)
    assert found, done.stdout[-500:]
    seen: dict[str, Any] = json.loads(found[1])
    return seen


def test_ten_nodes_can_be_looked_at_in_a_browser(tmp_path: Path) -> None:
    text = '[scenario]\nduration = 10\n[topology]\ngraph = "grid:5x2"\n[[role]]\nnodes = 9\nrole = "gateway"\n'
    text += "[[price]]\nfee = [1_000_000, 2_000_000]\n[[demand]]\nsource = [0, 1, 5]\nrate = 800_000\n"
    world = World(parse(text + FAULTS), seed=1)
    world.run()
    seen = looked_at(webmap.render(world), tmp_path)
    assert "error" not in seen, seen
    assert (seen["paused"], seen["play"], seen["layers"], seen["shown"]) == ("play", "pause", 3, 10)
    assert (seen["began"].split(",")[0], seen["clock"].split(",")[0]) == ("1.0 s", "10.0 s")
    assert seen["faults"]


def test_five_thousand_nodes_can_be_looked_at_in_a_browser(tmp_path: Path) -> None:
    """The samples are made up: to simulate so many takes hours."""
    world = World(parse('[scenario]\nduration = 1\n[topology]\ngraph = "grid:2x2"'), seed=1)
    rng = random.Random(1)
    graph = topology.build("geometric:5000", rng, max_nodes=5000)
    world.graph, world.names = graph, [str(node) for node in graph]
    world.roles = dict.fromkeys(graph, "relay") | {0: "gateway"}
    world.edges = sorted(tuple(sorted(edge)) for edge in graph.edges)
    world.happenings = [Happening(2.0, "node down", (7,))]
    for at in range(1, 7):
        world.samples.times.append(float(at))
        world.samples.totals.append((25e6, 0, 0, 0, 0, 0, 0))
        world.samples.nodes.append(
            [(int(n % 97 != 7), rng.randint(1000, 10**6), 0, rng.randint(0, 10**5), 0, 0, 0, 0) for n in graph]
        )
        world.samples.links.append([(int(rng.random() > 0.01), rng.randint(0, 10**6), 0, 0) for _ in world.edges])
    page = webmap.render(world)
    assert len(page) < 30e6
    seen = looked_at(page, tmp_path)
    assert "error" not in seen, seen
    assert (seen["layers"], seen["shown"], seen["faults"]) == (3, 5000, True)


@pytest.mark.parametrize("name", ["grid:6x6", "line:20", "ring:24", "grid:24x24", "star:30"])
def test_nodes_without_a_place_are_put_as_far_apart_as_their_hops(name: str) -> None:
    graph = nx.star_graph(30) if name.startswith("star") else topology.build(name, random.Random(1))
    place = layout.places(graph)
    assert set(place) == set(graph)
    rng = random.Random(2)
    pairs = [rng.sample(sorted(graph), 2) for _ in range(300)]
    hops = [nx.shortest_path_length(graph, a, b) for a, b in pairs]
    apart = [math.dist(place[a], place[b]) for a, b in pairs]
    if name.startswith("star"):
        assert min(math.dist(place[0], place[leaf]) for leaf in range(1, 31)) > 0.3
        return
    mean_hops, mean_apart = sum(hops) / len(hops), sum(apart) / len(apart)
    both = sum((h - mean_hops) * (a - mean_apart) for h, a in zip(hops, apart, strict=True))
    spread = math.sqrt(sum((h - mean_hops) ** 2 for h in hops) * sum((a - mean_apart) ** 2 for a in apart))
    assert both / spread > 0.9
    links = sorted(math.dist(place[a], place[b]) for a, b in graph.edges)
    assert links[-1] < 3 * links[len(links) // 2]


def test_parts_that_are_not_connected_and_tiny_graphs_have_places() -> None:
    apart = nx.Graph()
    apart.add_edges_from([*pairwise(range(5)), *pairwise(range(5, 9))])
    assert all(math.isfinite(x) for place in layout.places(apart).values() for x in place)
    for count in (1, 2):
        assert len(set(layout.places(nx.path_graph(count)).values())) == count
