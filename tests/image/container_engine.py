"""buildah and podman with a storage of their own: nothing stays behind, nothing is met.

Works as root in a sandbox without systemd and without a registry: images are built under chroot,
run by runc with plain cgroups, and named localhost/..., which is never asked for over a network.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

# mmdebstrap makes the base image; netavark and aardvark-dns let containers find each other by name,
# and netavark publishes ports with iptables.
COMMANDS = ("buildah", "podman", "runc", "mmdebstrap", "iptables")
HELPERS = ("netavark", "aardvark-dns")
PACKAGES = "buildah podman runc mmdebstrap netavark aardvark-dns iptables"
_HELPER_FOLDERS = ("/usr/lib/podman", "/usr/libexec/podman", "/usr/local/libexec/podman")

_LONGEST_S = 1500.0  # of one command, on a machine that does much else

# Some sandboxes refuse to raise limits, which podman would do by default.
LIMITS = {"nofile": 1024, "nproc": 1000}


def what_is_missing() -> str | None:
    """Why containers cannot be built and run here, or None where they can."""
    if os.geteuid() != 0:
        return "it needs root, for chroot and mounts"
    absent = [name for name in COMMANDS if shutil.which(name) is None]
    absent += [name for name in HELPERS if not any(Path(f, name).exists() for f in _HELPER_FOLDERS)]
    if absent:
        return f"{', '.join(absent)} not found; apt-get install {PACKAGES}"
    return None


class CommandFailed(Exception):
    """A command's exit code was not 0; carries the end of what it said."""


def run(
    command: list[str], environment: dict[str, str] | None = None, timeout: float = _LONGEST_S
) -> str:
    """The standard output of a command.

    Raises:
        CommandFailed: it ended with another code than 0.
    """
    done = subprocess.run(
        command,
        env=None if environment is None else os.environ | environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    if done.returncode != 0:
        said = (done.stdout + done.stderr)[-4000:]
        raise CommandFailed(f"{' '.join(command)}: exit code {done.returncode}\n{said}")
    return done.stdout


class ContainerEngine:
    """Everything that it makes lies below ``folder`` and is gone after ``close``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._environment = {
            "CONTAINERS_CONF": str(self._containers_conf()),
            "CONTAINERS_STORAGE_CONF": str(self._storage_conf("overlay")),
            "BUILDAH_ISOLATION": "chroot",
            "TMPDIR": str(self._made("tmp")),
        }
        try:
            self.podman("info")
        except CommandFailed:  # a file system below which the kernel lays no other
            shutil.rmtree(self.folder / "graph", ignore_errors=True)
            self._storage_conf("vfs")
            self.podman("info")

    def podman(self, *arguments: str, timeout: float = 300) -> str:
        return run(["podman", *arguments], self._environment, timeout)

    def logs(self, container: str) -> str:
        """Both streams: Quire reports on one and logs to the other."""
        return run(["sh", "-c", 'podman logs "$0" 2>&1', container], self._environment)

    def buildah(self, *arguments: str, timeout: float = _LONGEST_S) -> str:
        return run(["buildah", *arguments], self._environment, timeout)

    def compose(
        self, *arguments: str, files: list[Path], project: str, variables: dict[str, str]
    ) -> str:
        """podman-compose in the folder of the first of ``files``, each container on its own."""
        named = [part for file in files for part in ("-f", str(file))]
        command = [sys.executable, "-m", "podman_compose", "--in-pod", "false", "-p", project]
        return run([*command, *named, *arguments], self._environment | variables, 120)

    def close(self) -> None:
        """Ends and removes everything. Each step is tried, whatever became of the others."""
        problems = []
        for step in (
            ("rm", "--all", "--force", "--time", "5"),
            ("network", "prune", "--force"),
            ("volume", "prune", "--force"),
            ("rmi", "--all", "--force"),
        ):
            try:
                self.podman(*step)
            except (CommandFailed, subprocess.TimeoutExpired) as error:
                problems.append(str(error))
        self._unmount()
        shutil.rmtree(self.folder)
        if problems:
            raise CommandFailed("\n".join(problems))

    def _unmount(self) -> None:
        below = f"{self.folder}/"
        mounted = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
        for point in sorted((p for p in mounted if p.startswith(below)), reverse=True):
            run(["umount", "--lazy", point])

    def _made(self, name: str) -> Path:
        made = self.folder / name
        made.mkdir(parents=True, exist_ok=True)
        return made

    def _containers_conf(self) -> Path:
        file = self.folder / "containers.conf"
        limits = ", ".join(f'"{name}={limit}:{limit}"' for name, limit in LIMITS.items())
        file.write_text(
            f"[containers]\ndefault_ulimits = [{limits}]\n"
            f'[engine]\nruntime = "runc"\ncgroup_manager = "cgroupfs"\nevents_logger = "file"\n'
            f'tmp_dir = "{self._made("libpod")}"\nvolume_path = "{self._made("volumes")}"\n'
            f'[network]\nnetwork_backend = "netavark"\n'
            f'network_config_dir = "{self._made("networks")}"\n'
        )
        return file

    def _storage_conf(self, driver: str) -> Path:
        file = self.folder / "storage.conf"
        file.write_text(
            f'[storage]\ndriver = "{driver}"\ngraphroot = "{self._made("graph")}"\n'
            f'runroot = "{self._made("run")}"\n'
        )
        return file
