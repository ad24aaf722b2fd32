"""The picture in README.md and docs/index.md: the mesh of tools/demo, and what each hop is paid.

`PYTHONPATH=. .venv/bin/python -m tools.documenter.picture` writes it anew; a test compares.
"""

from __future__ import annotations

from tools.documenter.main import ROOT
from tools.showcase.main import BUYER, CHEAP, DEAR, ENTRY, EXIT, FEES, LINKS, SAT_PER_MB, SHOP

PATH = ROOT / "docs" / "mesh.svg"
WIDTH, HEIGHT, RADIUS = 860, 270, 38
PLACES = {BUYER: (70, 135), ENTRY: (240, 135), CHEAP: (430, 60), DEAR: (430, 210), EXIT: (620, 135), SHOP: (790, 135)}
TAKEN, OTHER, INK, PAPER = "#00796b", "#9e9e9e", "#212121", "#ffffff"


def price_beyond(node: str) -> int:
    """What the node asks for carrying to the shop, in sat/MB: its fee, and what its cheapest next hop asks."""
    if node == SHOP:
        return 0
    return FEES[node] // SAT_PER_MB + min(price_beyond(far) for near, far in LINKS if near == node)


def draw() -> str:
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" '
        'font-size="15" text-anchor="middle" role="img">',
        "<title>A buyer's traffic goes to the shop by the cheaper of two ways, and every hop is paid</title>",
        f'<rect width="{WIDTH}" height="{HEIGHT}" rx="12" fill="{PAPER}"/>',
    ]
    parts += [_link(near, far) for near, far in LINKS]
    parts += [_node(name) for name in PLACES]
    return "\n".join([*parts, "</svg>"]) + "\n"


def _link(near: str, far: str) -> str:
    (x1, y1), (x2, y2) = PLACES[near], PLACES[far]
    is_taken = DEAR not in (near, far)
    colour, dashes = (TAKEN, "") if is_taken else (OTHER, ' stroke-dasharray="7 6"')
    line = f'<line x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}" stroke="{colour}" stroke-width="4"{dashes}/>'
    above = 12 if y1 == y2 else 26
    x, y = (x1 + x2) // 2, (y1 + y2) // 2 + (above + 14 if y1 + y2 > HEIGHT else -above)
    return f'{line}\n<text x="{x}" y="{y}" fill="{colour}">{price_beyond(far)} sat/MB</text>'


def _node(name: str) -> str:
    x, y = PLACES[name]
    fee = "" if name in (BUYER, SHOP) else f"+{FEES[name] // SAT_PER_MB}"
    colour = OTHER if name == DEAR else TAKEN
    lines = [f'<circle cx="{x}" cy="{y}" r="{RADIUS}" fill="{PAPER}" stroke="{colour}" stroke-width="3"/>']
    lines.append(f'<text x="{x}" y="{y + (0 if fee else 5)}" fill="{INK}" font-weight="bold">{name}</text>')
    if fee:
        lines.append(f'<text x="{x}" y="{y + 19}" fill="{colour}">{fee}</text>')
    return "\n".join(lines)


if __name__ == "__main__":
    PATH.write_text(draw(), "utf-8")
