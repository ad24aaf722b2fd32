"""`tools/package`: a .deb for amd64 or arm64 that needs nothing but Debian 12 or 13, or Raspberry Pi OS of their age.

The package has a virtual environment of its own in /usr/lib/meshd, with the libraries as their authors built them
(wheels) for each Python that these systems come with: a venv looks into lib/pythonX.Y of the Python that runs it. dpkg
owns every file; nothing is downloaded or built when it is installed.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import shtab

from meshd import __version__
from meshd.config_reference import example_config
from meshd.ctl.main import build_parser
from tools.referrer import main as reference

ROOT = Path(__file__).resolve().parents[2]
DEBIAN = Path(__file__).parent / "debian"
PYTHONS = ("3.11", "3.13")  # Debian 12 and 13
WHEEL_MACHINES = {"amd64": "x86_64", "arm64": "aarch64"}
# By the C library that a wheel was built for: Debian 12 has glibc 2.36.
GLIBC = ("2014", "_2_17", "_2_27", "_2_28", "_2_31", "_2_34", "_2_35", "_2_36")
EXTRAS = "wallet,regtest"
SOURCE_ONLY = ("embit",)  # no wheel is published; pure Python
PROGRAMS = ("meshd", "meshctl")
COMPLETIONS = {
    "bash": "usr/share/bash-completion/completions/meshctl",
    "zsh": "usr/share/zsh/vendor-completions/_meshctl",
    "fish": "usr/share/fish/vendor_completions.d/meshctl.fish",
}
DEPENDS = (
    "python3 (>= 3.11)",
    "python3 (<< 3.14)",
    "nftables",
    "iproute2",
    "passwd",
)
CONTROL = """\
Package: meshd
Version: {version}
Architecture: {architecture}
Maintainer: The meshd developers <meshd@localhost>
Installed-Size: {kilobytes}
Depends: {depends}
Recommends: wireguard-go
Section: net
Priority: optional
Description: mesh routing by price and quality, with per-hop Bitcoin micropayments
 People own radios and uplinks. meshd lets them form a network with whoever is in
 range, and get paid for carrying each other's packets: it discovers neighbours,
 picks paths by price and quality (Babel with prices), lets the kernel forward,
 meters every neighbour, and settles in micropayment channels.
"""


class PackageError(Exception):
    """The package was not built; the message names the step and says why."""


def _run(what: str, argv: Sequence[str], *, environment: dict[str, str] | None = None) -> None:
    done = subprocess.run(argv, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise PackageError(f"{what}: {(done.stderr or done.stdout).strip()[-2000:]}")


def _say(text: str) -> None:
    print(f"tools/package: {text}", file=sys.stderr, flush=True)


def _source_date() -> int:
    """Of the last commit: the same commit gives the same times in the package."""
    command = ["git", "-C", str(ROOT), "log", "-1", "--format=%ct"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return int(done.stdout) if done.returncode == 0 and done.stdout.strip() else 0


def _pip(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments]


def build_wheels(directory: Path) -> None:
    """Of meshd itself, and of libraries that publish their source only."""
    for source in (str(ROOT), *SOURCE_ONLY):
        name = "meshd" if source == str(ROOT) else source
        _say(f"wheel of {name}")
        _run(f"the wheel of {name}", _pip("wheel", "--no-deps", "--wheel-dir", str(directory), source))
    for wheel in directory.iterdir():
        if not wheel.name.endswith("-none-any.whl"):
            raise PackageError(f"{wheel.name} is for one kind of machine only, and cannot be put into all packages")


def install_libraries(target: Path, wheels: Path, *, python: str, architecture: str) -> None:
    """meshd and all that it needs, as wheels for `python` on `architecture`; any other machine may build this."""
    platforms = [f"--platform=manylinux{glibc}_{WHEEL_MACHINES[architecture]}" for glibc in GLIBC]
    tag = "cp" + python.replace(".", "")
    what = ["--only-binary=:all:", "--no-compile", "--implementation=cp", f"--python-version={python}"]
    what += [f"--abi={tag}", "--abi=abi3", "--abi=none", f"--find-links={wheels}", f"--target={target}"]
    _run(f"the libraries for Python {python}", _pip("install", *what, *platforms, f"meshd[{EXTRAS}]=={__version__}"))
    shutil.rmtree(target / "bin", ignore_errors=True)  # scripts that name the Python of the machine that built them


def lay_out(tree: Path, wheels: Path, *, architecture: str) -> None:
    """The files of the package below `tree`."""
    venv = tree / "usr/lib/meshd"
    (venv / "bin").mkdir(parents=True)
    (venv / "bin/python3").symlink_to("/usr/bin/python3")
    (venv / "pyvenv.cfg").write_text("home = /usr/bin\ninclude-system-site-packages = false\n")
    for python in PYTHONS:
        _say(f"libraries for Python {python} on {architecture}")
        target = venv / f"lib/python{python}/site-packages"
        install_libraries(target, wheels, python=python, architecture=architecture)
    entry = "#!/usr/lib/meshd/bin/python3 -I\nimport sys\n\nfrom {module} import main\n\nsys.exit(main())\n"
    (tree / "usr/bin").mkdir()
    for program, module in zip(PROGRAMS, ("meshd.main", "meshd.ctl.main"), strict=True):
        script = tree / "usr/bin" / program
        script.write_text(entry.format(module=module))
        script.chmod(0o755)
    documents = tree / "usr/share/doc/meshd"
    documents.mkdir(parents=True)
    shutil.copy(ROOT / "LICENSE", documents / "copyright")
    for name in ("README.md", "CHANGELOG.md"):
        shutil.copy(ROOT / name, documents)
    (documents / "meshd.toml.example").write_text(example_config())
    for source, place in (("meshd.service", "usr/lib/systemd/system"), ("tmpfiles.conf", "usr/lib/tmpfiles.d")):
        (tree / place).mkdir(parents=True)
        shutil.copy(DEBIAN / source, tree / place / source.replace("tmpfiles", "meshd"))
    (tree / "etc/meshd").mkdir(parents=True)
    for shell, path in COMPLETIONS.items():
        (tree / path).parent.mkdir(parents=True, exist_ok=True)
        (tree / path).write_text(shtab.complete(build_parser(), shell=shell))
    reference.write(documents / "reference")
    _normalise(tree)


def _normalise(tree: Path) -> None:
    """Whatever the umask of whoever builds: all may read, the owner may write."""
    for path in [tree, *tree.rglob("*")]:
        if not path.is_symlink():
            path.chmod(0o755 if path.is_dir() or path.stat().st_mode & 0o100 else 0o644)


def build(architecture: str, directory: Path) -> Path:
    """The package's file. Raises PackageError."""
    if shutil.which("dpkg-deb") is None:
        raise PackageError("dpkg-deb is not there: packages are built on Debian, Raspberry Pi OS or Ubuntu")
    directory.mkdir(parents=True, exist_ok=True)
    package = directory / f"meshd_{__version__}_{architecture}.deb"
    with tempfile.TemporaryDirectory(prefix="meshd-package-") as name:
        wheels, tree = Path(name, "wheels"), Path(name, "tree")
        wheels.mkdir()
        tree.mkdir()
        build_wheels(wheels)
        lay_out(tree, wheels, architecture=architecture)
        size = sum(path.lstat().st_size for path in tree.rglob("*") if not path.is_dir())
        control = tree / "DEBIAN"
        control.mkdir(mode=0o755)
        fields = {"version": __version__, "architecture": architecture, "kilobytes": str(size // 1024)}
        (control / "control").write_text(CONTROL.format(depends=", ".join(DEPENDS), **fields))
        for script in ("postinst", "prerm", "postrm"):
            shutil.copy(DEBIAN / script, control / script)
            (control / script).chmod(0o755)
        _say(f"{package.name}, {size // 10**6} MB unpacked")
        unfinished = package.with_suffix(".partial")
        command = ["dpkg-deb", "--root-owner-group", "-Zxz", "--build", str(tree), str(unfinished)]
        _run("dpkg-deb", command, environment={**os.environ, "SOURCE_DATE_EPOCH": str(_source_date())})
        unfinished.replace(package)
    return package


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="tools/package",
        description="Builds meshd_VERSION_ARCH.deb for Debian 12 and 13 and Raspberry Pi OS (64 bit).",
        epilog="Example: tools/package --architecture arm64 --directory dist",
    )
    machine = subprocess.run(
        ["dpkg", "--print-architecture"], capture_output=True, text=True, check=False
    ).stdout.strip()
    parser.add_argument(
        "--architecture",
        choices=list(WHEEL_MACHINES),
        default=machine or "amd64",
        help="of the machines that it is for (default: this machine's); any can be built anywhere",
    )
    parser.add_argument("--directory", type=Path, default=ROOT / "dist", help="for the package (default dist)")
    arguments = parser.parse_args(argv)
    try:
        print(build(arguments.architecture, arguments.directory))
    except (PackageError, OSError) as error:
        print(f"tools/package: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
