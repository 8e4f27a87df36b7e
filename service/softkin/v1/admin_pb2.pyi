from softkin.v1 import outlier_pb2 as _outlier_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class LoadDetectorRequest(_message.Message):
    __slots__ = ("path", "labels")
    PATH_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    path: str
    labels: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, path: _Optional[str] = ..., labels: _Optional[_Iterable[str]] = ...) -> None: ...

class LoadDetectorResponse(_message.Message):
    __slots__ = ("detector",)
    DETECTOR_FIELD_NUMBER: _ClassVar[int]
    detector: _outlier_pb2.DetectorInfo
    def __init__(self, detector: _Optional[_Union[_outlier_pb2.DetectorInfo, _Mapping]] = ...) -> None: ...

class UnloadDetectorRequest(_message.Message):
    __slots__ = ("detector", "version")
    DETECTOR_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    detector: str
    version: str
    def __init__(self, detector: _Optional[str] = ..., version: _Optional[str] = ...) -> None: ...

class UnloadDetectorResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class SetLabelRequest(_message.Message):
    __slots__ = ("detector", "version", "label", "force")
    DETECTOR_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    LABEL_FIELD_NUMBER: _ClassVar[int]
    FORCE_FIELD_NUMBER: _ClassVar[int]
    detector: str
    version: str
    label: str
    force: bool
    def __init__(self, detector: _Optional[str] = ..., version: _Optional[str] = ..., label: _Optional[str] = ..., force: bool = ...) -> None: ...

class SetLabelResponse(_message.Message):
    __slots__ = ("previous_version",)
    PREVIOUS_VERSION_FIELD_NUMBER: _ClassVar[int]
    previous_version: str
    def __init__(self, previous_version: _Optional[str] = ...) -> None: ...

class RemoveLabelRequest(_message.Message):
    __slots__ = ("detector", "label")
    DETECTOR_FIELD_NUMBER: _ClassVar[int]
    LABEL_FIELD_NUMBER: _ClassVar[int]
    detector: str
    label: str
    def __init__(self, detector: _Optional[str] = ..., label: _Optional[str] = ...) -> None: ...

class RemoveLabelResponse(_message.Message):
    __slots__ = ("previous_version",)
    PREVIOUS_VERSION_FIELD_NUMBER: _ClassVar[int]
    previous_version: str
    def __init__(self, previous_version: _Optional[str] = ...) -> None: ...
