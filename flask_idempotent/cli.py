"""``flask idempotency``: look at a record, settle one whose worker died, and examine the store."""

from __future__ import annotations

import json
import os
import secrets
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import reduce
from pathlib import Path
from typing import Any, BinaryIO, Final

import click
from flask import Flask, current_app
from flask.cli import AppGroup

from .config import Settings, duration, milliseconds
from .core.record import OWNER_SIZE, State, StoredResponse, UnstorableResponse
from .core.resolution import Answer, NotResolvable, interrupted, resolve
from .core.steps import journal_key
from .core.store import Found, Store, StoreError
from .inspection import in_words, steps_in_words
from .lookup import CannotLookUp, ClientRequest, storage_keys
from .state import AppState, app_state
from .stores.diagnosis import diagnose, milliseconds_left, tiers
from .stores.findings import Finding, Level
from .stores.memory import MemoryStore
from .web import stored_headers
from .workers import sign_of_several

EXIT: Final = {Level.OK: 0, Level.NOTE: 0, Level.WARNING: 1, Level.FAILURE: 2}

commands = AppGroup()

Place = tuple[str, Store, Found]


# --- doctor -------------------------------------------------------------------------------------------------------


@commands.command("doctor")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def doctor(as_json: bool) -> None:
    """Examine the store, and say what to do.

    One line for each check: ok, note, warning or failure. The exit status is 0, 1 with warnings, and 2 with failures.
    """
    _, state = _here()
    findings = diagnose(state.store, state.settings.key_prefix)
    if isinstance(state.store, MemoryStore):
        findings.append(_one_process(sign_of_several(os.environ, Path.cwd())))
    worst = max(finding.level for finding in findings)
    click.echo(_as_json(findings, worst) if as_json else _as_text(findings))
    state.store.close()
    click.get_current_context().exit(EXIT[worst])


def _one_process(sign: str | None) -> Finding:
    """Whether records in the memory of each process are enough."""
    if sign is None:
        return Finding("workers", Level.NOTE, "only this process sees its records; for several workers use Redis")
    text = f"{sign}, and each worker sees its own records alone: a retry that reaches another one runs again; use Redis"
    return Finding("workers", Level.WARNING, text)


def _as_json(findings: Iterable[Finding], worst: Level) -> str:
    lines = [{"check": each.check, "level": each.level.name.lower(), "text": each.text} for each in findings]
    return json.dumps({"level": worst.name.lower(), "findings": lines}, indent=2)


def _as_text(findings: Iterable[Finding]) -> str:
    lines = [f"{each.level.name.lower():8} {each.check:12} {each.text}" for each in findings]
    counted = Counter(each.level for each in findings)
    troubles = [
        f"{count} {level.name.lower()}{'s' if count > 1 else ''}"
        for level in (Level.FAILURE, Level.WARNING)
        if (count := counted[level])
    ]
    return "\n".join([*lines, "", ", ".join(troubles) or "All is well."])


# --- records ------------------------------------------------------------------------------------------------------

KEY_OPTIONS: Final = (
    click.argument("key"),
    click.option("--path", help="KEY is a client's key: the request's path, with the mount point."),
    click.option("--method", default="POST", show_default=True, help="The request's method."),
    click.option(
        "--principal", multiple=True, help="What the principal loader returned; once for each part of a tuple."
    ),
    click.option("--host", help="The request's host, where the app tells its routes apart by host."),
)


def _with_key(command: Callable[..., None]) -> Callable[..., None]:
    """KEY, and what it takes to find a client's key."""
    return reduce(lambda decorated, option: option(decorated), reversed(KEY_OPTIONS), command)


@commands.command("show")
@_with_key
def show(**asked: Any) -> None:
    """Print what stands under KEY, without its body.

    KEY is a storage key as it stands in logs, such as 'idempotency:{...}', or with --path a client's key.
    """
    app, state = _here()
    with _clear_errors(state.store):
        missed: list[StoreError] = []
        key, places = _find(app, state, missed=missed, **asked)
        _print(key, places)
        if missed:
            raise missed[0]


@commands.command("resolve")
@_with_key
@click.option("--never-happened", is_flag=True, help="The request did nothing: its key is free again.")
@click.option("--status", type=click.IntRange(200, 599), help="The request is done: the status of its answer.")
@click.option("--body", help="The body of the answer.")
@click.option("--body-file", type=click.File("rb"), help="A file with the body of the answer.")
@click.option("--header", "headers", multiple=True, help="A header of the answer, as 'Name: value'.")
@click.option("--ttl", type=float, help="Seconds for which the answer is replayed; IDEMPOTENCY_TTL by default.")
@click.option("--yes", is_flag=True, help="Do not ask.")
def resolve_(
    never_happened: bool,
    status: int | None,
    body: str | None,
    body_file: BinaryIO | None,
    headers: tuple[str, ...],
    ttl: float | None,
    yes: bool,
    **asked: Any,
) -> None:
    """Settle a request whose worker died, and whose outcome is unknown (on_crash="refuse", or a step at_most_once).

    Find out what the request did. Then say --never-happened, or --status with the answer that its client is to get.
    KEY is a storage key as it stands in logs, such as 'idempotency:{...}', or with --path a client's key.

    Without a Content-Type header a JSON body is application/json, and any other text/plain.
    """
    app, state = _here()
    if never_happened == (status is not None):
        raise click.UsageError("say either --never-happened, or --status with the answer")
    if never_happened and (body is not None or body_file or headers or ttl is not None):
        raise click.UsageError("--never-happened goes without an answer")
    if body is not None and body_file:
        raise click.UsageError("give either --body or --body-file")
    content = body_file.read() if body_file else (body or "").encode()
    answer = None if status is None else _answer(app, state.settings, status, content, headers, ttl)
    with _clear_errors(state.store):
        key, places = _find(app, state, **asked)
        heads = [interrupted(found, tier.get(journal_key(key))) for _, tier, found in places]
        if not yes:
            _print(key, places)
            click.confirm(f"\n{_question(answer, heads[0].state)}", abort=True)
        for _, tier, found in places:
            resolve(tier, key, found, secrets.token_bytes(OWNER_SIZE), state.settings.terms, answer)
        click.echo(_done(answer, heads[0].state))


def _done(answer: Answer | None, was: State) -> str:
    if answer is not None:
        return "From now on, the answer is replayed."
    return "The step may run again." if was is State.FAILED else "The key is free again."


def _question(answer: Answer | None, was: State) -> str:
    if answer is None and was is State.FAILED:
        return "Let the step run again when the request is repeated?"
    if answer is None:
        return "Free the key, so that the next request under it runs?"
    size, seconds = len(answer.response.body or b""), answer.ttl_ms / 1000
    return f"Answer every repetition with {answer.response.status} and {size} bytes, for {seconds:g} s?"


def _answer(
    app: Flask, settings: Settings, status: int, content: bytes, headers: Iterable[str], ttl: float | None
) -> Answer:
    """The answer that an operator gives for a request, as a view's would be stored."""
    response = app.response_class(content, status=status)
    response.headers.clear()
    try:
        for header in headers:
            name, colon, value = header.partition(":")
            if not colon or not name.strip():
                raise ValueError(f"--header is 'Name: value', unlike {header!r}")
            response.headers.add(name.strip(), value.strip())
        given = response.headers.keys()
        if content and "Content-Type" not in response.headers:
            response.headers["Content-Type"] = _content_type(content)
        kept = stored_headers(response, settings)
        if dropped := set(given) - {name for name, _ in kept}:
            raise ValueError(f"never stored, but made anew for each answer: {', '.join(sorted(dropped))}")
        seconds = settings.ttl if ttl is None else duration(ttl)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    return Answer(StoredResponse(response.status, kept, content), milliseconds(seconds), settings.compress_over)


def _content_type(content: bytes) -> str:
    try:
        json.loads(content)
    except ValueError:
        return "text/plain; charset=utf-8"
    return "application/json"


def _find(
    app: Flask,
    state: AppState,
    key: str,
    path: str | None,
    method: str,
    principal: tuple[str, ...],
    host: str | None,
    missed: list[StoreError] | None = None,
) -> tuple[str, list[Place]]:
    """The storage key under which something stands, and where it stands.

    :param missed: see :func:`_places`.
    """
    if path is None and (principal or host):
        raise click.UsageError("--principal and --host go with --path")
    request = None if path is None else ClientRequest(method, path, host, principal)
    keys = storage_keys(app, state.settings, key, request)
    for each in keys:
        if places := list(_places(state.store, each, missed)):
            return each, places
    if missed:
        raise missed[0]
    raise click.ClickException(_nothing(app, state, keys[0], request is not None))


def _places(store: Store, key: str, missed: list[StoreError] | None) -> Iterator[Place]:
    """Where something stands under a key.

    :param missed: takes the errors of places that cannot be asked; None: they are raised.
    """
    for name, tier in tiers(store):
        try:
            found = tier.peek(key)
        except StoreError as error:
            if missed is None:
                raise
            missed.append(error)
        else:
            if found is not None:
                yield name, tier, found


def _nothing(app: Flask, state: AppState, key: str, computed: bool) -> str:
    text = f"nothing stands under {key}: the key was never used, has expired, or its request was refused"
    if computed:
        text += f". Compare --method, --path, --principal and --host with the request; the app's name is {app.name!r}"
    if isinstance(state.store, MemoryStore):
        text += ". This app keeps its records in the memory of each of its processes: no other process can see them"
    return text


def _print(key: str, places: Iterable[Place]) -> None:
    click.echo(f"key      {key}")
    for name, tier, found in places:
        rows = {"where": name, **in_words(found)}
        if journal := tier.get(journal_key(key)):
            rows["steps"] = steps_in_words(journal)
        rows["kept"] = f"for another {milliseconds_left(tier, key) / 1000:.0f} s"
        click.echo(_table(rows))


def _table(rows: Mapping[str, str]) -> str:
    return "\n".join(f"{name:8} {text}" for name, text in rows.items())


# --- all ----------------------------------------------------------------------------------------------------------


def _here() -> tuple[Flask, AppState]:
    app: Flask = current_app._get_current_object()  # type: ignore[attr-defined]
    return app, app_state(app)


@contextmanager
def _clear_errors(store: Store) -> Iterator[None]:
    """What is wrong in one line, with what to do; connections are given back."""
    try:
        yield
    except (CannotLookUp, UnstorableResponse) as error:
        raise click.UsageError(str(error)) from error
    except NotResolvable as error:
        raise click.ClickException(f"not resolved: {error}") from error
    except StoreError as error:
        raise click.ClickException(f"{error}; nothing has changed. See `flask idempotency doctor`") from error
    finally:
        store.close()
