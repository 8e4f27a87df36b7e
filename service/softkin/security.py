"""What the settings ask for to guard a gRPC port: a certificate, and tokens."""

from __future__ import annotations

import grpc

from softkin.credentials import ServerCertificate
from softkin.logs import log, log_line
from softkin.loopback import is_loopback
from softkin.metrics import Metrics
from softkin.settings import ServerSettings
from softkin.tokens import TokenFile, TokenInterceptor


class Security:
    """Guards every gRPC port of a server in the same way.

    Args:
        settings: files of certificate, key, client authorities and tokens.
        metrics: shows when the certificate expires.

    Raises:
        InvalidInputError: a file is missing, unreadable or wrong; the message names it, what is wrong and the remedy.
    """

    def __init__(self, settings: ServerSettings, metrics: Metrics) -> None:
        s = settings
        self.interceptors: list[grpc.ServerInterceptor] = []
        """To be put behind the interceptor that counts calls."""
        self._certificate: ServerCertificate | None = None
        if s.tls_cert is not None and s.tls_key is not None:
            self._certificate = ServerCertificate(s.tls_cert, s.tls_key, s.tls_client_ca)
            metrics.certificate_watched(self._certificate.expires)
        if s.token_file is not None:
            self.interceptors.append(TokenInterceptor(TokenFile(s.token_file)))
            hosts = {s.host} if s.admin_port is None else {s.host, s.admin_host}
            for host in sorted(hosts):
                if self._certificate is None and not is_loopback(host):
                    remedy = "tokens can be read on their way here; set tls_cert and tls_key"
                    log.warning(log_line("tokens_in_plaintext", host=host, remedy=remedy))
        tls = "off" if self._certificate is None else "on" if s.tls_client_ca is None else "mutual"
        tokens = "off" if s.token_file is None else "on"
        log.info(log_line("security", tls=tls, tokens=tokens, reflection="on" if s.reflection else "off"))

    def add_port(self, server: grpc.Server, address: str) -> int:
        """Add a port to a server, encrypted where there is a certificate; returns its number.

        Raises:
            RuntimeError: the port cannot be had.
        """
        if self._certificate is None:
            return server.add_insecure_port(address)
        return server.add_secure_port(address, self._certificate.credentials())
