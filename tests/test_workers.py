"""Signs that an app is served by several processes."""

from __future__ import annotations

from pathlib import Path

import pytest

from flask_idempotent.workers import sign_of_several

ENVIRONMENTS = [
    ({}, None),
    ({"WEB_CONCURRENCY": "1"}, None),
    ({"WEB_CONCURRENCY": ""}, None),
    ({"WEB_CONCURRENCY": "many"}, None),
    ({"WEB_CONCURRENCY": "4"}, "WEB_CONCURRENCY is 4"),
    ({"UWSGI_PROCESSES": "2"}, "UWSGI_PROCESSES is 2"),
    ({"UWSGI_WORKERS": " 8 "}, "UWSGI_WORKERS is 8"),
    ({"GUNICORN_CMD_ARGS": "--bind=:80 -w 4"}, "GUNICORN_CMD_ARGS --workers is 4"),
    ({"GUNICORN_CMD_ARGS": "-w3"}, "GUNICORN_CMD_ARGS --workers is 3"),
    ({"GUNICORN_CMD_ARGS": "--workers=2"}, "GUNICORN_CMD_ARGS --workers is 2"),
    ({"GUNICORN_CMD_ARGS": "--workers 1 --threads 8"}, None),
    ({"GUNICORN_CMD_ARGS": "--worker-class gthread --threads 8"}, None),
    ({"GUNICORN_CMD_ARGS": "--workers 'unended"}, None),
    ({"GUNICORN_CMD_ARGS": "--workers"}, None),
]


@pytest.mark.parametrize(("environ", "sign"), ENVIRONMENTS)
def test_the_environment_tells_of_workers(environ: dict[str, str], sign: str | None, tmp_path: Path) -> None:
    assert sign_of_several(environ, tmp_path) == sign


FILES = [
    ("gunicorn.conf.py", "workers = 4\n", "workers in gunicorn.conf.py is 4"),
    ("gunicorn.conf.py", "bind = ':80'\nworkers = 1\n", None),
    (
        "gunicorn.conf.py",
        "import os\nworkers = os.cpu_count() * 2 + 1\n",
        "workers in gunicorn.conf.py is os.cpu_count() * 2 + 1",
    ),
    ("gunicorn.conf.py", "workers = = 4", None),
    ("gunicorn.conf.py", "def workers(): return 4\n", None),
    ("uwsgi.ini", "[uwsgi]\nmaster\nprocesses = 3\n", "processes in uwsgi.ini is 3"),
    ("uwsgi.ini", "[uwsgi]\nworkers = 1\n", None),
    ("uwsgi.ini", "[other]\nworkers = 3\n", None),
    ("uwsgi.ini", "no settings", None),
    ("uwsgi.ini", "[uwsgi]\nprocesses = %k\n", "processes in uwsgi.ini is %k"),
]


@pytest.mark.parametrize(("name", "text", "sign"), FILES)
def test_the_settings_of_servers_tell_of_workers(name: str, text: str, sign: str | None, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    assert sign_of_several({}, tmp_path) == sign


def test_a_settings_file_is_read_and_never_run(tmp_path: Path) -> None:
    (tmp_path / "gunicorn.conf.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nworkers = 2\n")
    assert sign_of_several({}, tmp_path) == "workers in gunicorn.conf.py is 2"
    assert not (tmp_path / "ran").exists()
