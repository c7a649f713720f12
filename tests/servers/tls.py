"""TLS for a server of a test: an authority of its own, a certificate for the server and one for its clients."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

Clients = Literal["no", "optional", "yes"]


@dataclass(frozen=True)
class Tls:
    """Where the files are, and what the server wants of its clients.

    :param directory: holds ``ca.pem``, ``server.pem``, ``server.key``, ``client.pem`` and ``client.key``.
    :param clients: whether a client shows a certificate: ``no``, ``optional`` (a wrong one is refused), ``yes``.
    """

    directory: Path
    clients: Clients = "no"

    @classmethod
    def make(cls, directory: Path, clients: Clients = "no") -> Self:
        """Make the authority and the certificates, for ``localhost`` and ``127.0.0.1``."""
        import trustme  # the benchmark has no use for it

        directory.mkdir(parents=True, exist_ok=True)
        authority = trustme.CA()
        authority.cert_pem.write_to_path(str(directory / "ca.pem"))
        for role, names in {"server": ("localhost", "127.0.0.1"), "client": ("worker",)}.items():
            certificate = authority.issue_cert(*names)
            chain = b"".join(blob.bytes() for blob in certificate.cert_chain_pems)
            (directory / f"{role}.pem").write_bytes(chain)
            certificate.private_key_pem.write_to_path(str(directory / f"{role}.key"))
        return cls(directory, clients)

    @property
    def ca(self) -> str:
        """The authority's certificate, which clients trust."""
        return str(self.directory / "ca.pem")

    @property
    def client_certificate(self) -> dict[str, str]:
        """The client's certificate, as settings of redis-py."""
        files = {"ssl_certfile": "client.pem", "ssl_keyfile": "client.key"}
        return {setting: str(self.directory / name) for setting, name in files.items()}

    def client_settings(self) -> dict[str, Any]:
        """All that a client needs, as settings of redis-py."""
        return {"ssl": True, "ssl_ca_certs": self.ca, **self.client_certificate}

    def server_options(self, port: int) -> list[str]:
        """For redis-server: TLS on the port, and no port without."""
        files = {"cert-file": "server.pem", "key-file": "server.key", "ca-cert-file": "ca.pem"}
        options = [each for name, file in files.items() for each in (f"--tls-{name}", str(self.directory / file))]
        return ["--port", "0", "--tls-port", str(port), "--tls-auth-clients", self.clients, *options]
