"""Operates a running server, through its admin port."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import grpc

from softkin import descriptions
from softkin.client_channel import File
from softkin.connection import Connection
from softkin.descriptions import DetectorInfo
from softkin.errors import InvalidInputError, SoftkinError, UnavailableError
from softkin.requests import check_text
from softkin.v1 import admin_pb2 as pb
from softkin.v1 import admin_pb2_grpc as pb_grpc
from softkin.v1 import outlier_pb2, outlier_pb2_grpc


class AdminClient(Connection):
    """A connection to the admin port of a server. A call that fails has changed nothing there.

    A change that finds as many under way as may be is an `OverloadedError`, with the delay to retry after.

    Args:
        target: `HOST:PORT` of the admin port.
        timeout_seconds: deadline of each call; a large bundle takes minutes to load.
        tls_ca: as for `Client`, like all that follow.
        tls_cert: see there.
        tls_key: see there.
        tls_server_name: see there.
        token: see there.

    Raises:
        InvalidInputError: an argument or a file is wrong, or the token would leave this machine in plaintext.
    """

    _port_option = "--admin-port"

    def __init__(
        self,
        target: str,
        *,
        timeout_seconds: float = 600,
        tls_ca: File | None = None,
        tls_cert: File | None = None,
        tls_key: File | None = None,
        tls_server_name: str | None = None,
        token: str | None = None,
    ) -> None:
        super().__init__(
            target,
            timeout_seconds=timeout_seconds,
            tls_ca=tls_ca,
            tls_cert=tls_cert,
            tls_key=tls_key,
            tls_server_name=tls_server_name,
            token=token,
        )
        self._stub = pb_grpc.DetectorAdminServiceStub(self._channel)  # type: ignore[no-untyped-call]  # generated
        self._outlier = outlier_pb2_grpc.OutlierServiceStub(self._channel)  # type: ignore[no-untyped-call]

    def load(self, path: str, labels: Sequence[str] = ()) -> DetectorInfo:
        """Load a bundle, and give it labels once it serves. One that is loaded already gets the labels.

        Args:
            path: bundle directory, relative to the server's bundle root.
            labels: letters, digits, '-' and '_', at most 40.

        Raises:
            InvalidInputError: the path leaves the bundle root, or it or a label is unfit.
            PreconditionError: the bundle is damaged, or is not what it claims to be.
            ConflictError: its version is loaded already, from another bundle.
            SoftkinError: anything else.
        """
        check_text(path=path)
        if isinstance(labels, str):  # each of its letters would be a label
            raise InvalidInputError("labels", f"got {labels!r}; must be a list of labels")
        for label in labels:
            check_text(labels=label)
        answer = self._call(self._stub.LoadDetector, pb.LoadDetectorRequest(path=path, labels=labels))
        return descriptions.proto_to_detector_info(answer.detector)

    def unload(self, detector: str, version: str) -> None:
        """Stop serving a version.

        Raises:
            InvalidInputError: one of them is no text.
            PreconditionError: it carries a label or is the last one of its name, or without it a version would serve
                that `set_label` would not promote.
            NotFoundError: no such version.
            SoftkinError: anything else.
        """
        check_text(detector=detector, version=version)
        self._call(self._stub.UnloadDetector, pb.UnloadDetectorRequest(detector=detector, version=version))

    def set_label(self, detector: str, version: str, label: str, *, force: bool = False) -> str:
        """Move a label to a loaded version.

        Args:
            detector: name.
            version: that shall carry it.
            label: letters, digits, '-' and '_', at most 40.
            force: promote although the shadow comparison speaks against it.

        Returns:
            The version that carried it before; empty if none did.

        Raises:
            InvalidInputError: the label is unfit, or one of them no text.
            PreconditionError: the version disagrees too much with what serves, or was compared on too few rows.
            NotFoundError: no such version.
            SoftkinError: anything else.
        """
        check_text(detector=detector, version=version, label=label)
        request = pb.SetLabelRequest(detector=detector, version=version, label=label, force=force)
        return str(self._call(self._stub.SetLabel, request).previous_version)

    def remove_label(self, detector: str, label: str) -> str:
        """Take a label away; returns the version that carried it.

        Raises:
            InvalidInputError: the label is unfit, or one of them no text.
            PreconditionError: without `stable` a version would serve that `set_label` would not promote.
            NotFoundError: no version carries it.
            SoftkinError: anything else.
        """
        check_text(detector=detector, label=label)
        request = pb.RemoveLabelRequest(detector=detector, label=label)
        return str(self._call(self._stub.RemoveLabel, request).previous_version)

    def detectors(self) -> list[DetectorInfo]:
        """All that is loaded, in order of name, then version.

        Raises:
            SoftkinError: the server cannot be reached, or does not let this client in.
        """
        answer = self._call(self._outlier.ListDetectors, outlier_pb2.ListDetectorsRequest())
        return [descriptions.proto_to_detector_info(d) for d in answer.detectors]

    def _error(self, e: Any) -> SoftkinError:
        if e.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
            return UnavailableError(
                f"{self._target}: no answer in time; list what is loaded, then try again with more time"
            )
        if e.code() is grpc.StatusCode.UNIMPLEMENTED:
            return SoftkinError(
                f"{self._target}: not an admin port; it is the one that the server was given as {self._port_option}"
            )
        return super()._error(e)
