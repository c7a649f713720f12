"""Whether this app is served by more than one process, as far as can be seen from the outside."""

from __future__ import annotations

import ast
import configparser
import shlex
from collections.abc import Iterator, Mapping
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

_ENVIRONMENT = ("WEB_CONCURRENCY", "UWSGI_PROCESSES", "UWSGI_WORKERS")


def sign_of_several(environ: Mapping[str, str], directory: Path) -> str | None:
    """What says that there are several workers, such as ``"WEB_CONCURRENCY is 4"``; None where nothing does.

    :param environ: the process environment.
    :param directory: where the app is started; gunicorn and uwsgi keep their settings there.
    """
    for place, value in (*_in_environment(environ), *_in_files(directory)):
        if not value.strip().isdigit() or int(value) > 1:  # an expression counts cores
            return f"{place} is {value.strip()}"
    return None


def _in_environment(environ: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    for name in _ENVIRONMENT:
        if environ.get(name, "").strip().isdigit():
            yield name, environ[name]
    words: list[str] = []
    with suppress(ValueError):  # not what a shell would take
        words = shlex.split(environ.get("GUNICORN_CMD_ARGS", ""))
    for word, following in pairwise([*words, ""]):
        option, _, value = word.partition("=")
        if option.startswith("-w") and option[2:].isdigit():
            option, value = "-w", option[2:]
        if option in ("-w", "--workers") and (value or following):
            yield "GUNICORN_CMD_ARGS --workers", value or following


def _in_files(directory: Path) -> Iterator[tuple[str, str]]:
    with suppress(OSError, SyntaxError, ValueError):
        for node in ast.parse((directory / "gunicorn.conf.py").read_text(encoding="utf-8")).body:
            if isinstance(node, ast.Assign) and "workers" in [getattr(each, "id", None) for each in node.targets]:
                yield "workers in gunicorn.conf.py", ast.unparse(node.value)
    settings = configparser.ConfigParser(strict=False, interpolation=None, allow_no_value=True)
    with suppress(OSError, ValueError, configparser.Error):
        settings.read(directory / "uwsgi.ini", encoding="utf-8")
    for name in ("processes", "workers"):
        if value := settings.get("uwsgi", name, fallback=None):
            yield f"{name} in uwsgi.ini", value
