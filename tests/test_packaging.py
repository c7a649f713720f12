"""The package's promises about itself."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib import metadata, resources
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_lowest_versions_that_are_tested_are_the_lower_bounds():
    setup = (ROOT / "setup.py").read_text()
    bounds = dict(re.findall(r'"([a-z0-9-]+)>=([0-9.]+)"', setup.split('"test"')[0]))
    pinned = dict(re.findall(r"^([a-z0-9-]+)==([0-9.]+)$", (ROOT / "tests/lowest.txt").read_text(), re.MULTILINE))
    assert bounds == pinned


def test_the_distribution_has_its_own_name_and_extras():
    distribution = metadata.metadata("flask-idempotency")
    assert {"redis", "stripe", "example", "test", "bench"} <= set(distribution.get_all("Provides-Extra") or ())


def test_the_script_for_browsers_is_part_of_it():
    assert resources.files("flask_idempotent").joinpath("static", "idempotent.js").is_file()


def test_it_is_typed():
    assert resources.files("flask_idempotent").joinpath("py.typed").is_file()


def test_importing_it_imports_neither_redis_nor_stripe():
    program = "import sys, flask_idempotent; sys.exit(bool({'redis', 'stripe'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=False).returncode == 0


def test_every_public_name_is_there():
    import flask_idempotent

    assert sorted(flask_idempotent.__all__) == flask_idempotent.__all__
    assert all(hasattr(flask_idempotent, name) for name in flask_idempotent.__all__)
