"""What the README says is executed here."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from flask import Flask

from flask_idempotent import config

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
QUICK_START = re.search(r"<!-- executed by tests/test_readme.py -->\n```python\n(.*?)```", README, re.DOTALL)


@pytest.fixture
def app() -> Flask:
    assert QUICK_START is not None
    namespace: dict[str, object] = {"__name__": "quick_start"}
    exec(compile(QUICK_START[1], "README.md", "exec"), namespace)
    app = namespace["app"]
    assert isinstance(app, Flask)
    return app


def test_the_quick_start_runs_once_and_replays(client):
    request = {"json": {"items": ["tea"]}, "headers": {"Idempotency-Key": "8e03978e"}}
    first, again = client.post("/orders", **request), client.post("/orders", **request)
    assert (first.status_code, first.json) == (again.status_code, again.json) == (201, {"order": 1})
    assert "Idempotent-Replayed" not in first.headers
    assert again.headers["Idempotent-Replayed"] == "true"


def test_the_quick_start_is_ten_lines_long():
    assert QUICK_START is not None
    assert len([line for line in QUICK_START[1].splitlines() if line.strip()]) <= 10


def test_every_setting_is_in_the_table_with_its_route_mark():
    rows = dict(re.findall(r"^\| `([A-Z_]+)` \| [^|]+ \|([ ✓]*)\|", README, re.MULTILINE))
    settings = {field.upper() for field in config.Settings.__dataclass_fields__}
    assert set(rows) == settings
    assert {name.lower() for name, mark in rows.items() if "✓" in mark} == config.ROUTE_SETTINGS


def test_nobody_is_told_to_install_somebody_elses_package():
    assert "install flask-idempotent" not in README.replace("_", "-")
