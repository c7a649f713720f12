"""What the schedules need of a world: workers that can be told apart, asked one by one, and held in their work."""

from __future__ import annotations

import threading

from ..servers.process import until
from .campaigns import CLIENT_TIMEOUT
from .checker import check
from .client import Connection, Traffic, ask
from .evidence import Answer, Lines, Run, read_evidence, read_runs
from .excuses import Rules
from .host import Host
from .plan import Send
from .world import World


class Held:
    """A request whose view works until it is let go."""

    def __init__(self, scene: Scene, host: Host, key: str) -> None:
        self._gate = scene.world.directory / f"gate-{key}"
        self._answer: Answer | None = None
        self._thread = threading.Thread(target=self._ask, args=(scene, host, key))
        self._thread.start()
        until(lambda: scene.runs(key), f"the run of {key}")

    def _ask(self, scene: Scene, host: Host, key: str) -> None:
        self._answer = scene.ask(host, key, str(self._gate))

    def let_go(self) -> Answer:
        """Let the view end, and return what its client got."""
        self._gate.touch()
        self._thread.join()
        assert self._answer is not None
        return self._answer


class Scene:
    """A world in which each thing is done by hand, and written down as in a campaign."""

    def __init__(self, world: World) -> None:
        self.world = world
        self._lines = Lines(world.directory / "answers")

    def close(self) -> None:
        self._lines.close()

    def ask(self, host: Host, key: str, gate: str = "") -> Answer:
        """One request, over a connection of its own."""
        traffic = Traffic(0, 0, 0, [host.port], [host.name], "", 0, 2 * CLIENT_TIMEOUT)
        connection = Connection(traffic)
        try:
            answer, _ = ask(connection, Send(0.0, key, 0, 0, 0.0, gate=gate), 0, host.name)
        finally:
            connection.close()
        self._lines.add(answer)
        return answer

    def runs(self, key: str) -> list[Run]:
        """The runs of a key so far."""
        return [run for run in read_runs(self.world.ledger) if run.key == key]

    def sees(self, host: Host, status: str) -> None:
        """Wait until a worker says of itself that it is healthy, or that it is not."""
        until(lambda: host.state().get("status") == status, f"{host.name} {status}")

    def findings(self, rules: Rules) -> list[str]:
        """What the checker has to say."""
        return [f"{each}" for each in check(read_evidence(self.world.directory), rules).findings]
