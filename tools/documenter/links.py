"""Dead links in the documentation, found without a network and without mkdocs."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

REFERENCE = "docs/reference/"  # made by tools/reference, and not in the repository
_FENCE = re.compile(r"^(?P<mark>`{3,}|~{3,}).*?^(?P=mark)\s*$", re.MULTILINE | re.DOTALL)
_CODE = re.compile(r"(`+)(?!`).+?(?<!`)\1(?!`)")
_LINK = re.compile(r"\]\((?P<target>[^()\s]+)(?:\s+\"[^\"]*\")?\)")
_HEADING = re.compile(r"^#{1,6}\s+(?P<text>.+?)\s*$", re.MULTILINE)
_ELSEWHERE = re.compile(r"[a-z][a-z0-9+.-]*:")
_NAMED_IN_NAV = re.compile(r"[\w./-]+\.md")
_EXCLUDED = frozenset(["adr/0000-template.md"])


def read_pages(root: Path, generated: Mapping[str, str]) -> dict[str, str]:
    """The text of each page, by its path from the root. `generated`: files of the reference, by their path in it."""
    paths = [*root.glob("*.md"), *(root / "docs").rglob("*.md")]
    texts = {path.relative_to(root).as_posix(): path.read_text("utf-8") for path in paths}
    texts = {name: text for name, text in texts.items() if not name.startswith(REFERENCE)}
    return texts | {REFERENCE + name: text for name, text in generated.items() if name.endswith(".md")}


def dead_links(root: Path, generated: Mapping[str, str]) -> list[str]:
    """One line for each link that leads nowhere, in the pages of the root folder and of docs/."""
    pages = read_pages(root, generated)
    anchors = {name: _anchors(text) for name, text in pages.items()}
    made = {REFERENCE + name for name in generated}
    found = []
    for name, text in sorted(pages.items()):
        for match in _LINK.finditer(_CODE.sub("", _FENCE.sub("", text))):
            target = match["target"]
            if not _ELSEWHERE.match(target):
                fault = _fault(root, name, target, anchors, made)
                found += [f"{name}: ({target}) {fault}"] if fault else []
    return found


def _fault(root: Path, page: str, target: str, anchors: Mapping[str, set[str]], made: set[str]) -> str:
    path, _, anchor = target.partition("#")
    name = os.path.normpath(os.path.join(os.path.dirname(page), path)) if path else page
    of_site = page.startswith("docs/")
    if of_site and not name.startswith("docs/"):
        return "leaves docs/, and so the site"
    if name not in made and not (root / name).exists():
        return "is not there"
    if of_site and (root / name).is_dir():
        return "is a folder, for which the site has no page"
    if anchor and anchor not in anchors.get(name, set()):
        return "has no such heading"
    return ""


def _anchors(text: str) -> set[str]:
    return {slug(match["text"]) for match in _HEADING.finditer(_FENCE.sub("", text))}


def slug(heading: str) -> str:
    """As GitHub makes it, and mkdocs by the slugify of mkdocs.yml."""
    words = re.sub(r"\]\([^)]*\)", "]", heading)
    return re.sub(r"[^\w\- ]", "", words).strip().lower().replace(" ", "-")


def nav_faults(root: Path, generated: Mapping[str, str]) -> list[str]:
    """What differs between the nav of mkdocs.yml and the pages of docs/."""
    nav = (root / "mkdocs.yml").read_text("utf-8").partition("\nnav:\n")[2]
    named = _NAMED_IN_NAV.findall(nav)
    there = {name.removeprefix("docs/") for name in read_pages(root, generated) if name.startswith("docs/")} - _EXCLUDED
    return [
        *(f"mkdocs.yml: nav names {name}, which is not there" for name in sorted(set(named) - there)),
        *(f"mkdocs.yml: nav does not name {name}" for name in sorted(there - set(named))),
        *(f"mkdocs.yml: nav names {name} twice" for name in sorted({n for n in named if named.count(n) > 1})),
    ]
