"""A wall clock that a test moves, for one server or worker. The machine's own cannot be set from a container.

libfaketime will not do: redis-server's allocator asks for the time before it is set up, and ``time.sleep`` fails in it.
"""

from __future__ import annotations

import mmap
import os
import struct
import subprocess
from pathlib import Path
from typing import Final

SOURCE: Final = Path(__file__).with_name("clock.c")
_OFFSET: Final = struct.Struct("@q")


class Clock:
    """The offset of a process's time from the machine's.

    :param directory: where the library and the offset lie.
    """

    def __init__(self, directory: Path) -> None:
        self._library, self._file = directory / "clock.so", directory / "offset"
        command = ["gcc", "-shared", "-fPIC", "-O2", "-nostdlib", "-o", str(self._library), str(SOURCE)]
        subprocess.run(command, check=True)
        self._file.write_bytes(_OFFSET.pack(0))
        with self._file.open("r+b") as file:
            self._offset = mmap.mmap(file.fileno(), _OFFSET.size)

    @property
    def variables(self) -> dict[str, str]:
        """Of the environment of a process that goes by this clock."""
        return {"LD_PRELOAD": os.fspath(self._library), "FAULTS_CLOCK": os.fspath(self._file)}

    def move(self, seconds: int) -> None:
        """Set the clock this far from the machine's, at once."""
        self._offset[:] = _OFFSET.pack(seconds)

    def close(self) -> None:
        """Give back the memory. Processes keep the time they have."""
        self._offset.close()
