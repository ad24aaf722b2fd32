"""Runs a command in a QEMU machine on Debian's own kernel package: slower, and nothing about that kernel is ours."""

from __future__ import annotations

import gzip
import hashlib
import lzma
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import IO

from tools.vm import initramfs, job, packages
from tools.vm.common import Progress, VmError, cache, exclusive, output_of, require_commands, run_quietly
from tools.vm.job import Request, Time

INIT = Path(__file__).with_name("qemu-init")
_PROGRAM = "qemu-system-x86_64"
_TOOLS = {_PROGRAM: "qemu-system-x86", "depmod": "kmod", "busybox": "busybox-static"}
_FIRST_MODULES = ("virtio_pci", "9pnet_virtio", "9p", "overlay", "virtio_rng")
_SHARE = "security_model=none,multidevs=remap"


def why_not_here() -> str | None:
    """None: this machine can run such a machine, once it has its kernel."""
    if platform.machine() != "x86_64":
        return f"the QEMU machine is for x86_64, not for {platform.machine()}"
    if shutil.which(_PROGRAM) is None:
        return f"{_PROGRAM} is not installed (Debian package qemu-system-x86)"
    return None


def kernel() -> Path | None:
    """The folder of the newest kernel that is ready to run."""
    digest = hashlib.blake2b(INIT.read_bytes(), digest_size=4).hexdigest()
    ready = cache().glob(f"qemu-*-{digest}/initramfs.gz")
    return max((path.parent for path in ready), key=lambda path: path.stat().st_mtime, default=None)


def build(progress: Progress, *, again: bool = False) -> Path:
    """Fetches the kernel and packs its initramfs, about half a minute, unless it is there. Raises VmError."""
    require_commands(_TOOLS, "the QEMU machine")
    if reason := why_not_here():
        raise VmError(reason)
    with exclusive("qemu", progress):
        if (found := kernel()) is not None and not again:
            return found
        with tempfile.TemporaryDirectory(prefix="build-", dir=cache()) as work:
            return _build(Path(work), progress)


def _build(work: Path, progress: Progress) -> Path:
    log, image = work / "log", work / "image"
    _, version = packages.unpack_newest(packages.kernel_image, image, log, progress)
    (modules,) = next(path for path in (image / "lib/modules", image / "usr/lib/modules") if path.is_dir()).iterdir()
    progress(f"packing an initramfs for {modules.name}")
    base = modules.parent.parent.parent
    run_quietly(["depmod", "-b", str(base), modules.name], log, progress)
    finished = work / "finished"
    finished.mkdir()
    shutil.copy(image / "boot" / f"vmlinuz-{modules.name}", finished / "vmlinuz")
    shutil.copytree(modules, finished / "modules" / modules.name)
    archive = initramfs.Archive()
    archive.file("init", INIT.read_bytes(), 0o755)
    _add_busybox(archive)
    _add_modules(archive, base, modules.name)
    (finished / "initramfs.gz").write_bytes(gzip.compress(archive.finish(), 1))
    digest = hashlib.blake2b(INIT.read_bytes(), digest_size=4).hexdigest()
    target = cache() / f"qemu-{version}-{digest}"
    shutil.rmtree(target, ignore_errors=True)
    finished.rename(target)
    return target


def _add_busybox(archive: initramfs.Archive) -> None:
    program = Path(shutil.which("busybox") or "busybox")
    # The other package of that name needs libraries, which an initramfs has not.
    if "not a dynamic executable" not in output_of(["sh", "-c", f"ldd {program} 2>&1"]):
        raise VmError("busybox is not the static one: apt-get install busybox-static")
    archive.file("bin/busybox", program.read_bytes(), 0o755)
    for applet in ("sh", "mount", "mkdir", "insmod", "cat", "chroot", "ln", "uname"):
        archive.link(f"bin/{applet}", "busybox")


def _add_modules(archive: initramfs.Archive, base: Path, version: str) -> None:
    order: list[str] = []
    for module in _FIRST_MODULES:
        shown = output_of(["modprobe", "-d", str(base), "-S", version, "--show-depends", module])
        for line in shown.splitlines():
            kind, _, path = line.partition(" ")
            file = Path(path.strip())
            name = file.name.removesuffix(".xz")
            if kind == "insmod" and name not in order:
                data = file.read_bytes()
                archive.file(f"modules/{name}", lzma.decompress(data) if file.suffix == ".xz" else data)
                order.append(name)
    archive.file("modules/order", "".join(f"{name}\n" for name in order).encode())


def run(request: Request, out: IO[str], err: IO[str]) -> int:
    """The command's exit code. Raises VmError."""
    if reason := why_not_here():
        raise VmError(reason)
    if request.time is not Time.REAL:
        raise VmError("only the User-Mode Linux kernel has another time than the real one: --backend uml")
    found = kernel()
    if found is None:
        raise VmError("no kernel for QEMU: tools/vmlab build --backend qemu")
    with job.folder(request) as folder, (folder / "console").open("wb") as console:
        machine = subprocess.Popen(
            _command(request, found, folder),
            stdin=subprocess.DEVNULL,
            stdout=console,
            stderr=console,
            start_new_session=True,
        )
        return job.follow(machine, folder, request, out, err)


def _command(request: Request, found: Path, folder: Path) -> list[str]:
    (modules,) = (found / "modules").iterdir()
    words = ["console=ttyS0", "quiet", "panic=-1", "mitigations=off", "no_timer_check", f"vmlab.modules={modules}"]
    shares = [f"local,path=/,mount_tag=host,{_SHARE},readonly=on", f"local,path={folder},mount_tag=job,{_SHARE}"]
    if request.exchange is not None:
        words.append(f"vmlab.exchange={request.exchange}")
        shares.append(f"local,path={request.exchange},mount_tag=exchange,{_SHARE}")
    return [
        # Not KVM: where it is there and half works, as in a machine within a machine, the guest stands still.
        *(
            _PROGRAM,
            "-accel",
            "tcg,thread=multi,tb-size=512",
            "-cpu",
            "max",
            "-smp",
            "2",
            "-m",
            f"{request.memory_mb}M",
        ),
        *("-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-serial", "stdio"),
        *("-kernel", str(found / "vmlinuz"), "-initrd", str(found / "initramfs.gz")),
        *("-append", " ".join([*words, *request.kernel_options])),
        *(word for share in shares for word in ("-virtfs", share)),
        *("-device", "virtio-rng-pci"),
    ]
