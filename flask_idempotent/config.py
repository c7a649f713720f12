"""Settings: read once in init_app, frozen, every mistake reported at once and by its key."""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from .core.store import OnOutage, Terms

PREFIX: Final = "IDEMPOTENCY_"
CACHE_PREFIX: Final = "IDEMPOTENCY_CACHE_"
_CACHE_SYNONYMS: Final = {
    "IDEMPOTENCY_CACHE_KEY_PREFIX": "key_prefix",
    "IDEMPOTENCY_CACHE_DEFAULT_TIMEOUT": "ttl",
}
_FIELD_NAME: Final = r"[\w!#$%&'*+\-.^`|~]+"  # RFC 9110, section 5.6.2
_YEAR: Final = 366 * 86400.0


class ConfigurationError(ValueError):
    """The extension is set up in a way that cannot work. The message names every mistake and its remedy."""

    def __init__(self, mistakes: Iterable[str]) -> None:
        self.mistakes = tuple(mistakes)
        super().__init__(
            "Flask app is not set up for idempotency:\n" + "\n".join(f"- {line}" for line in self.mistakes)
        )


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The settings of one app, or of one route of it. Times are in seconds, sizes in bytes.

    Each is read from ``IDEMPOTENCY_<NAME>``; those in :data:`ROUTE_SETTINGS` can be given to ``@idempotent`` by their
    name, and those in :data:`RUN_SETTINGS` to ``Idempotency.runner``.

    :param ttl: retention of an outcome.
    :param lease: how long a worker may be silent before it counts as dead.
    :param wait: how long a duplicate waits for a running request before it gets 409.
    :param required: whether a request without a key is refused.
    :param methods: the guarded request methods.
    :param header: the request header with the key.
    :param form_field: the form field with the key.
    :param replay_header: the response header that marks a replay.
    :param max_key_length: the longest key that is taken.
    :param max_body: the largest response body that is stored.
    :param compress_over: the size from which a stored response is compressed, where that pays.
    :param key_prefix: what every key in the store begins with.
    :param local_tier: ``"shared"`` (one file for all workers of the host), ``"memory"`` (this process), None for Redis
        alone; ``"auto"`` is shared with Redis, and memory without.
    :param shared_path: the file of the shared tier; None for one in shared memory or the temporary directory.
    :param min_replicas: how many replicas must have a claim and an outcome before they count.
    :param on_outage: ``"local"``, ``"reject"`` or ``"execute"``: what becomes of new keys while Redis is away.
    :param on_crash: ``"resume"`` or ``"refuse"``: what becomes of a request whose worker died.
    :param store_timeout: how long Redis may take to answer; None for 0.25, or 1 over TLS.
    :param max_runtime: how long a running request keeps its lease.
    :param ignored_fields: form fields and JSON members that are not part of the request's fingerprint.
    :param docs_url: where the API's errors are explained; becomes the problems' ``type``.
    """

    ttl: float = 600.0
    lease: float = 30.0
    wait: float = 0.0
    required: bool = False
    methods: frozenset[str] = frozenset({"POST", "PATCH"})
    header: str = "Idempotency-Key"
    form_field: str = "idempotency_key"
    replay_header: str = "Idempotent-Replayed"
    max_key_length: int = 255
    max_body: int = 1024 * 1024
    compress_over: int = 1024
    key_prefix: str = "idempotency:"
    local_tier: str | None = "auto"
    shared_path: Path | None = None
    min_replicas: int = 0
    on_outage: OnOutage = OnOutage.LOCAL
    on_crash: str = "resume"
    store_timeout: float | None = None
    max_runtime: float = 3600.0
    ignored_fields: frozenset[str] = frozenset({"csrf_token"})
    docs_url: str | None = None

    @cached_property
    def terms(self) -> Terms:
        """What the guard needs to know, in milliseconds."""
        return Terms(
            lease_ms=milliseconds(self.lease),
            ttl_ms=milliseconds(self.ttl),
            wait_ms=milliseconds(self.wait),
            max_runtime_ms=milliseconds(self.max_runtime),
            resume=self.on_crash == "resume",
            on_outage=self.on_outage,
        )

    @cached_property
    def uncounted_fields(self) -> frozenset[str]:
        """The fields and members of a body that are no part of what is compared."""
        return self.ignored_fields | {self.form_field}

    def override(self, options: Mapping[str, Any]) -> Settings:
        """These settings with the options of one route.

        :param options: values by the names in :data:`ROUTE_SETTINGS`, already checked by :func:`check_route`.
        :raises ConfigurationError: the options do not go with the app's settings.
        """
        return _consistent(dataclasses.replace(self, **options), lambda name: name)


ROUTE_SETTINGS: Final = frozenset(
    "ttl lease wait required methods header form_field replay_header max_key_length max_body compress_over on_outage"
    " on_crash max_runtime ignored_fields docs_url".split()
)
RUN_SETTINGS: Final = frozenset("ttl lease wait max_body compress_over on_outage on_crash max_runtime docs_url".split())


def read_settings(config: Mapping[str, Any]) -> tuple[Settings, list[str]]:
    """The settings in an app's config, with the list of mistakes found in them.

    Keys that begin with ``IDEMPOTENCY_CACHE_`` belong to the store and are left alone, but for the two that say the
    same as settings of ours: they count where ours are not given.
    """
    spelling = {
        name: key for key, name in _CACHE_SYNONYMS.items() if key in config and PREFIX + name.upper() not in config
    }
    given = {name: config[key] for name, key in spelling.items()} | {
        key[len(PREFIX) :].lower(): value
        for key, value in config.items()
        if key.startswith(PREFIX) and not key.startswith(CACHE_PREFIX)
    }

    def spell(name: str) -> str:
        return spelling.get(name, PREFIX + name.upper())

    values, mistakes = _checked(given, spell, _RULES)
    if "on_outage" in given and "on_outage" not in values:  # reported; what else it contradicts is not known
        return Settings(), mistakes
    try:
        return _consistent(Settings(**values), spell), mistakes
    except ConfigurationError as error:
        return Settings(), [*mistakes, *error.mistakes]


def check_route(options: Mapping[str, Any]) -> dict[str, Any]:
    """The settings given to ``@idempotent``, checked.

    :raises ConfigurationError: with every mistake.
    """
    return _check_options(options, "@idempotent", ROUTE_SETTINGS)


def check_run(options: Mapping[str, Any]) -> dict[str, Any]:
    """The settings given to ``Idempotency.runner``, checked.

    :raises ConfigurationError: with every mistake.
    """
    return _check_options(options, "Idempotency.runner", RUN_SETTINGS)


def _check_options(options: Mapping[str, Any], where: str, known: frozenset[str]) -> dict[str, Any]:
    rules = {name: rule for name, rule in _RULES.items() if name in known}
    values, mistakes = _checked(options, lambda name: f"{where}({name}=...)", rules)
    if mistakes:
        raise ConfigurationError(mistakes)
    return values


def milliseconds(seconds: float) -> int:
    """Whole milliseconds, at least 1 for anything above zero."""
    return max(round(seconds * 1000), 1 if seconds > 0 else 0)


def duration(value: Any, minimum: float = 0.001) -> float:
    """A time span in seconds, from a number of seconds or a timedelta.

    :raises ValueError: it is neither, not finite, under ``minimum`` or over a year.
    """
    if isinstance(value, timedelta):
        value = value.total_seconds()
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value:
        raise ValueError("must be a number of seconds or a timedelta")
    if not minimum <= value <= _YEAR:
        raise ValueError(f"must be between {minimum:g} and {_YEAR:.0f} seconds")
    return float(value)


def _checked(
    given: Mapping[str, Any], spell: Callable[[str], str], rules: Mapping[str, Callable[[Any], Any]]
) -> tuple[dict[str, Any], list[str]]:
    values, mistakes = {}, []
    for name, value in given.items():
        rule = rules.get(name)
        if rule is None:
            close = difflib.get_close_matches(name, rules, n=1)
            hint = f"did you mean {spell(close[0])}?" if close else f"known are {', '.join(sorted(rules))}"
            mistakes.append(f"{spell(name)} is not a setting; {hint}")
            continue
        try:
            values[name] = rule(value)
        except ValueError as error:
            mistakes.append(f"{spell(name)} {error}, not {value!r}")
    return values, mistakes


def _consistent(settings: Settings, spell: Callable[[str], str]) -> Settings:
    if settings.local_tier is None and settings.on_outage is OnOutage.LOCAL:
        raise ConfigurationError(
            [f"{spell('on_outage')} is 'local', but IDEMPOTENCY_LOCAL_TIER is None; use 'reject' or 'execute'"]
        )
    return settings


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError("must be True or False")
    return value


def _size(minimum: int, maximum: int) -> Callable[[Any], int]:
    def rule(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not minimum <= value <= maximum:
            raise ValueError(f"must be a whole number between {minimum} and {maximum}")
        return value

    return rule


def _choice(*choices: Any) -> Callable[[Any], Any]:
    def rule(value: Any) -> Any:
        if value not in choices:
            raise ValueError(f"must be one of {', '.join(map(repr, choices))}")
        return value

    return rule


def _token(value: Any) -> str:
    if not isinstance(value, str) or not re.fullmatch(_FIELD_NAME, value, re.ASCII):
        raise ValueError("must be a header or field name")
    return value


def _prefix(value: Any) -> str:
    if not isinstance(value, str) or not value or set(value) & set("{}") or not value.isprintable():
        raise ValueError("must be a non-empty string without braces")
    return value


def _path(value: Any) -> Path | None:
    if value is None:
        return None
    if not isinstance(value, str | Path) or not Path(value).is_absolute():
        raise ValueError("must be the absolute path of a file")
    return Path(value)


def _names(value: Any) -> frozenset[str]:
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise ValueError("must be a collection of names")
    names = list(value)
    if not all(isinstance(name, str) and name for name in names):
        raise ValueError("must be a collection of names")
    return frozenset(names)


def _methods(value: Any) -> frozenset[str]:
    names = frozenset(name.upper() for name in _names(value))
    unsafe = {"POST", "PATCH", "PUT", "DELETE"}
    if not names or not names <= unsafe:
        raise ValueError(f"must name some of {', '.join(sorted(unsafe))}")
    return names


def _url(value: Any) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str) or not re.fullmatch(r"https?://[\x21\x23-\x3b\x3d\x3f-\x7e]+", value):
        raise ValueError("must be an http or https URL, or None")
    return value


def _outage(value: Any) -> OnOutage:
    return OnOutage(_choice(*(choice.value for choice in OnOutage))(value))


_RULES: Final[dict[str, Callable[[Any], Any]]] = {
    "ttl": duration,
    "lease": duration,
    "wait": lambda value: duration(value, minimum=0),
    "required": _flag,
    "methods": _methods,
    "header": _token,
    "form_field": _token,
    "replay_header": _token,
    "max_key_length": _size(1, 4096),
    "max_body": _size(0, 512 * 1024 * 1024),
    "compress_over": _size(0, 512 * 1024 * 1024),
    "key_prefix": _prefix,
    "local_tier": _choice("auto", "shared", "memory", None),
    "shared_path": _path,
    "min_replicas": _size(0, 100),
    "on_outage": _outage,
    "on_crash": _choice("resume", "refuse"),
    "store_timeout": lambda value: None if value is None else duration(value),
    "max_runtime": duration,
    "ignored_fields": _names,
    "docs_url": _url,
}
