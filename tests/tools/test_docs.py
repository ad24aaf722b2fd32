"""No dead link in the documentation, and every page has its place in the site's menu."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from meshd.ctl.commands import COMMANDS
from tools.documenter.links import dead_links, nav_faults, slug
from tools.documenter.main import ROOT
from tools.documenter.picture import PATH, draw
from tools.referrer import main as reference


@pytest.fixture(scope="module")
def generated() -> dict[str, str]:
    return reference.files()


def test_every_link_leads_to_a_page_and_a_heading(generated: dict[str, str]) -> None:
    assert dead_links(ROOT, generated) == []


def test_the_menu_names_every_page_once(generated: dict[str, str]) -> None:
    assert nav_faults(ROOT, generated) == []


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    (tmp_path / "docs" / "spec").mkdir(parents=True)
    (tmp_path / "README.md").write_text("[a](docs/a.md) [folder](docs/spec) [other](docs/b.md#two-words)\n")
    (tmp_path / "docs" / "a.md").write_text("# A\n\n[x](reference/x.md#x) [out](https://example.org) `[no](no.md)`\n")
    (tmp_path / "docs" / "b.md").write_text("# B\n\n## Two `words`!\n\n```\n# not a heading\n[no](no.md)\n```\n")
    (tmp_path / "mkdocs.yml").write_text("site_name: x\nnav:\n  - a.md\n  - b.md\n  - reference/x.md\n")
    return tmp_path


MADE = {"x.md": "# X\n", "x.json": "{}"}


def test_what_is_right_is_not_complained_of(tree: Path) -> None:
    assert dead_links(tree, MADE) == []
    assert nav_faults(tree, MADE) == []


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("[x](c.md)", "(c.md) is not there"),
        ("[x](b.md#one)", "(b.md#one) has no such heading"),
        ("[x](b.md#not-a-heading)", "(b.md#not-a-heading) has no such heading"),
        ("[x](#b)", "(#b) has no such heading"),
        ("[x](../README.md)", "(../README.md) leaves docs/, and so the site"),
        ("[x](spec/)", "(spec/) is a folder, for which the site has no page"),
        ("[x](reference/y.md)", "(reference/y.md) is not there"),
        ('![x](c.svg "title")', "(c.svg) is not there"),
    ],
)
def test_dead_links_are_named(tree: Path, text: str, fault: str) -> None:
    (tree / "docs" / "a.md").write_text(f"# A\n\n{text}\n")
    assert dead_links(tree, MADE) == [f"docs/a.md: {fault}"]


def test_pages_without_a_place_and_places_without_a_page_are_named(tree: Path) -> None:
    (tree / "docs" / "c.md").write_text("# C\n")
    (tree / "docs" / "b.md").unlink()
    (tree / "mkdocs.yml").write_text("site_name: x\nnav:\n  - a.md\n  - a.md\n  - b.md\n  - reference/x.md\n")
    assert nav_faults(tree, MADE) == [
        "mkdocs.yml: nav names b.md, which is not there",
        "mkdocs.yml: nav does not name c.md",
        "mkdocs.yml: nav names a.md twice",
    ]


def test_slugs_are_those_of_github() -> None:
    assert slug("[[interface]]") == "interface"
    assert slug("Convergence: `sudo tools/bench/convergence`") == "convergence-sudo-toolsbenchconvergence"


_FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
_VARIES = re.compile(r"\.\.\.|[0-9]+|/[a-z/]+\.[a-z]+")  # numbers and paths of examples, and what dots stand for


def _strings_of_the_code() -> str:
    """Every string, a line each; what is put into one, and numbers and paths in it, as a NUL."""
    found = []
    for package in ("meshd", "payments"):
        for path in sorted((ROOT / package).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    found.append(node.value)
                elif isinstance(node, ast.JoinedStr):
                    parts = [part.value if isinstance(part, ast.Constant) else "\0" for part in node.values]
                    found.append("".join(map(str, parts)))
    return "\n".join(_VARIES.sub("\0", text) for text in found)


def test_troubleshooting_quotes_what_the_programs_say() -> None:
    code = _strings_of_the_code()
    commands = ("sudo ", "meshctl ", "meshd ", "systemctl ", "ip ", "ethtool ")
    page = _FENCE.sub("", (ROOT / "docs" / "troubleshooting.md").read_text())
    quoted = [text for text in re.findall(r"`([^`\n]+)`", page) if " " in text and not text.startswith(commands)]
    parts = [part.strip(" :,()") for text in quoted for part in _VARIES.split(text)]
    assert len(quoted) > 50
    assert [part for part in parts if part not in code] == []


def test_every_command_of_meshctl_in_the_pages_is_one() -> None:
    words = {command.words for command in COMMANDS} | {
        " ".join([*command.words.split()[:-1], alias]) for command in COMMANDS for alias in command.aliases
    }
    groups = {command.split()[0] for command in words if " " in command}
    named = re.compile(r"(?:`|^|sudo |bin/)meshctl ((?:[a-z]+ ?)+)", re.MULTILINE)
    found = set()
    for path in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for match in named.finditer(path.read_text()):
            first, *more = match[1].split()
            is_one = first in words or (first in groups and (not more or f"{first} {more[0]}" in words))
            if not is_one:
                found.add(f"{path.name}: meshctl {match[1]}")
    assert found == set()


def test_the_picture_is_of_the_demo_as_it_is() -> None:
    assert draw() == PATH.read_text()
