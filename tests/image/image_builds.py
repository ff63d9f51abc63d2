"""The images of the check: a base made from Debian's packages, Quire's own, and a Prometheus.

No registry of images is asked. The base stands in for python:3.11-slim: Debian 12, whose Python is
3.11. What the build installs is downloaded outside, by this machine's own pip and its settings, and
mounted into the build, which then needs no network, no settings and no certificates.
"""

from __future__ import annotations

import shutil
import sys
import tomllib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tests.image.container_engine import ContainerEngine, run

ROOT = Path(__file__).parents[2]
SUITE = "bookworm"
PYTHON = "3.11"
BASE = "localhost/quire-check/base:1"
QUIRE = "localhost/quire-check/quire:cpu"
PROMETHEUS = "localhost/quire-check/prometheus:1"

_PROMETHEUS_DOCKERFILE = f"""\
FROM {BASE}
COPY prometheus promtool /usr/bin/
RUN install -d -o 65534 -g 65534 /prometheus
USER 65534:65534
ENTRYPOINT ["prometheus"]
"""


@dataclass(frozen=True, slots=True)
class Images:
    """``quire_bytes`` is the unpacked size of Quire's image, base included."""

    quire_bytes: int


def build_images(engine: ContainerEngine) -> Images:
    """Makes the three images. What only downloads runs beside what unpacks."""
    with ThreadPoolExecutor() as pool:
        base = pool.submit(_base, engine)
        wheels = pool.submit(_wheels, engine.folder / "wheels")
        prometheus = pool.submit(_prometheus_files, engine.folder / "prometheus")
        base.result()
        _build(engine, _prometheus_context(prometheus.result()), PROMETHEUS)
        _build_quire(engine, wheels.result())
    size = engine.podman("image", "inspect", QUIRE, "--format", "{{.Size}}")
    return Images(quire_bytes=int(size))


def _base(engine: ContainerEngine) -> None:
    """Debian's smallest, with Python; manuals and translations are left out, as in slim images."""
    archive = engine.folder / "base.tar"
    left_out = [
        f"--dpkgopt=path-exclude=/usr/share/{n}/*" for n in ("doc", "man", "locale", "info")
    ]
    run(
        [
            *("mmdebstrap", "--quiet", "--variant=minbase", "--include=python3,python3-venv"),
            *("--dpkgopt=force-unsafe-io", *left_out, SUITE, str(archive)),
        ]
    )
    engine.podman("import", "--quiet", str(archive), BASE)
    archive.unlink()


def _wheels(folder: Path) -> Path:
    """Every wheel that the Dockerfile installs, for the base's Python."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    constraints = ROOT / "constraints.txt"
    (torch,) = (line for line in constraints.read_text().splitlines() if line.startswith("torch=="))
    wanted = [*project["project"]["dependencies"], *project["build-system"]["requires"]]
    run(
        [
            *(sys.executable, "-m", "pip", "download", "--quiet", "--dest", str(folder)),
            *("--only-binary=:all:", "--python-version", PYTHON, "-c", str(constraints)),
            *(f"{torch}+cpu", "ziglang", *wanted),
        ]
    )
    return folder


def _prometheus_files(folder: Path) -> Path:
    """Debian's Prometheus, unpacked: its two programs need nothing but libc."""
    folder.mkdir()
    run(["sh", "-c", f"cd '{folder}' && apt-get download -q prometheus"])
    (package,) = folder.glob("*.deb")
    run(["dpkg", "-x", str(package), str(folder / "unpacked")])
    return folder


def _prometheus_context(folder: Path) -> Path:
    context = folder / "context"
    context.mkdir()
    for program in ("prometheus", "promtool"):
        shutil.move(folder / "unpacked" / "usr" / "bin" / program, context / program)
    (context / "Dockerfile").write_text(_PROMETHEUS_DOCKERFILE)
    shutil.rmtree(folder / "unpacked")
    return context


def _build_quire(engine: ContainerEngine, wheels: Path) -> None:
    _build(
        engine,
        ROOT,
        QUIRE,
        f"--file={ROOT / 'deploy' / 'Dockerfile'}",
        "--network=none",
        f"--volume={wheels}:/wheels:ro",
        f"--build-arg=BASE_IMAGE={BASE}",
        "--build-arg=PIP_ARGS=--no-index --find-links /wheels",
    )


def _build(engine: ContainerEngine, context: Path, tag: str, *options: str) -> None:
    """The format is Docker's: OCI's own has no health check."""
    engine.buildah("bud", "--format=docker", f"--tag={tag}", *options, str(context))
