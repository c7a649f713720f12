"""Steps: what a view has done is not done again by its retry."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from flask_idempotent import StepError, current_idempotency
from flask_idempotent.core.steps import StepLost

from .conftest import Runs, Server, assert_problem, assert_replay


class Effects:
    """Effects elsewhere, as a ledger: one line for each time that one happens."""

    def __init__(self) -> None:
        self.lines: list[Any] = []

    def charge(self, amount: int, idempotency_key: str | None = None) -> dict[str, Any]:
        self.lines.append(("charge", amount, idempotency_key))
        return {"charged": amount, "number": len(self.lines)}

    def mail(self, to: str) -> None:
        self.lines.append(("mail", to))


@pytest.fixture
def effects() -> Effects:
    return Effects()


def test_a_retry_after_a_failure_gets_the_results_of_the_steps_that_were_done(
    guarded: Callable[..., Server], runs: Runs, effects: Effects
) -> None:
    def view() -> Any:
        charge = current_idempotency.step("charge", effects.charge, 5)
        if runs() == 1:
            raise RuntimeError("between the steps")
        current_idempotency.step("mail", effects.mail, to="ann")
        return charge, 201

    server = guarded(view)
    assert server.post(key="k").status_code == 500
    first = server.post(key="k")
    assert (first.status_code, first.json()) == (201, {"charged": 5, "number": 1})
    assert_replay(server.post(key="k"), first)
    assert effects.lines == [("charge", 5, None), ("mail", "ann")]


def test_a_step_that_did_not_end_runs_again_with_the_same_derived_key(
    guarded: Callable[..., Server], runs: Runs, effects: Effects
) -> None:
    def charge(idempotency_key: str) -> int:
        effects.charge(5, idempotency_key)
        if runs() == 1:
            raise RuntimeError("nobody knows whether it was charged")
        return 5

    server = guarded(lambda: {"paid": current_idempotency.step("charge", charge, key_arg="idempotency_key")})
    assert server.post(key="k").status_code == 500
    assert server.post(key="k").json() == {"paid": 5}
    (first, second) = effects.lines
    assert first == second
    server.post(key="other")
    assert effects.lines[2][2] not in (None, first[2])


def test_a_step_that_must_not_run_twice_is_not_tried_again(
    guarded: Callable[..., Server], runs: Runs, effects: Effects
) -> None:
    def send() -> None:
        effects.mail("ann")
        if runs() == 1:
            raise RuntimeError("nobody knows whether it went out")

    server = guarded(lambda: {"sent": current_idempotency.step("mail", send, at_most_once=True)})
    assert server.post(key="k").status_code == 500
    for _ in range(2):
        assert "'mail'" in assert_problem(server.post(key="k"), "outcome-unknown")["detail"]
    assert effects.lines == [("mail", "ann")]


def test_the_first_run_sees_the_result_as_its_retries_will(guarded: Callable[..., Server], runs: Runs) -> None:
    seen = []

    def view() -> Any:
        seen.append(current_idempotency.step("a", lambda: {"pair": (1, 2), 3: None}))
        seen.append(
            [current_idempotency.step(f"empty {value!r}", lambda value=value: value) for value in (None, 0, "")]
        )
        return {}, 500 if runs() == 1 else 200

    server = guarded(view)
    server.post(key="k")
    assert server.post(key="k").status_code == 200
    assert seen[:2] == seen[2:] == [{"pair": [1, 2], "3": None}, [None, 0, ""]]


def test_a_refusal_after_a_step_frees_nothing(guarded: Callable[..., Server], effects: Effects) -> None:
    """429 says that nothing happened; here something did."""

    def view() -> Any:
        current_idempotency.step("charge", effects.charge, 5)
        return {}, 429

    server = guarded(view)
    assert server.post(key="k", json={"order": 1}).status_code == 429
    assert_problem(server.post(key="k", json={"order": 2}), "key-reused")
    assert server.post(key="k", json={"order": 1}).status_code == 429
    assert len(effects.lines) == 1


WRONG: dict[str, tuple[Callable[[Effects, int], Any], str]] = {
    "twice": (
        lambda effects, run: [current_idempotency.step("charge", effects.charge, 5) for _ in range(2)],
        "is there twice",
    ),
    "other arguments": (
        lambda effects, run: current_idempotency.step("charge", effects.charge, run) and 1 / 0 if run == 1 else
        current_idempotency.step("charge", effects.charge, run),
        "other arguments",
    ),
    "arguments": (lambda effects, run: current_idempotency.step("charge", effects.charge, object()), "must be JSON"),
    "result": (lambda effects, run: current_idempotency.step("charge", object), "must be JSON"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", WRONG)
def test_a_mistake_with_steps_names_the_step(
    guarded: Callable[..., Server], runs: Runs, effects: Effects, mistake: str
) -> None:
    raised: list[BaseException] = []

    def view() -> Any:
        try:
            WRONG[mistake][0](effects, runs())
        except StepError as error:
            raised.append(error)
            raise
        return {}

    server = guarded(view)
    assert [server.post(key="k").status_code for _ in range(2)] == [500, 500]
    assert all("'charge'" in str(error) and WRONG[mistake][1] in str(error) for error in raised)
    assert raised


def test_without_a_key_a_step_is_a_call(guarded: Callable[..., Server], effects: Effects) -> None:
    server = guarded(lambda: current_idempotency.step("charge", effects.charge, 5, key_arg="idempotency_key"))
    for _ in range(2):
        assert server.post().status_code == 200
    assert len({line[2] for line in effects.lines}) == 2


def test_a_worker_that_has_lost_its_key_does_not_begin_another_step(
    guarded: Callable[..., Server], effects: Effects, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever was frozen past the lease must not go on beside the worker that took over."""

    def view() -> Any:
        active = current_idempotency._get_current_object()  # type: ignore[attr-defined]
        claim, store = active._claim, active._store
        current_idempotency.step("first", effects.charge, 1)
        store.forget(claim)
        store.claim(type(claim)(claim.key, b"another worker's", claim.fingerprint, claim.terms))
        current_idempotency.step("second", effects.charge, 2)
        return {}

    assert_problem(guarded(view).post(key="k"), "request-in-progress")
    assert [line[1] for line in effects.lines] == [1]
    assert issubclass(StepLost, Exception)


def test_a_refusal_of_a_later_attempt_does_not_free_the_key_of_an_earlier_one(guarded: Callable[..., Server]) -> None:
    """A step of that one may have been done; another request under the key would get its result."""
    answers = iter([("broken", 500), ("slow down", 429), ("done", 201)])

    def view() -> Any:
        answer = next(answers)
        if answer[1] != 429:
            current_idempotency.step("charge", lambda: 7)
        return answer

    server = guarded(view)
    assert [server.post(key="k", json={"item": "tea"}).status_code for _ in range(2)] == [500, 429]
    assert server.post(key="k", json={"item": "coffee"}).status_code == 422
    assert server.post(key="k", json={"item": "tea"}).status_code == 201
