"""The images are built once for the session; each test module runs its containers from them."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.image.container_engine import ContainerEngine, what_is_missing
from tests.image.image_builds import Images, build_images


@pytest.fixture(scope="session")
def engine() -> Iterator[ContainerEngine]:
    """Not below pytest's own folder, which keeps the last three runs: this is gigabytes."""
    missing = what_is_missing()
    if missing is not None:
        if os.environ.get("CI"):
            pytest.fail(f"CI must check the image: {missing}")
        pytest.skip(f"the image is not checked: {missing}")
    engine = ContainerEngine(Path(tempfile.mkdtemp(prefix="quire-image-")))
    yield engine
    engine.close()


@pytest.fixture(scope="session")
def images(engine: ContainerEngine) -> Images:
    return build_images(engine)
