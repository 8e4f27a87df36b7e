from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class DataType(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    DATA_TYPE_UNSPECIFIED: _ClassVar[DataType]
    DATA_TYPE_FLOAT32: _ClassVar[DataType]
    DATA_TYPE_FLOAT64: _ClassVar[DataType]
    DATA_TYPE_UINT8: _ClassVar[DataType]
    DATA_TYPE_INT32: _ClassVar[DataType]
    DATA_TYPE_INT64: _ClassVar[DataType]
DATA_TYPE_UNSPECIFIED: DataType
DATA_TYPE_FLOAT32: DataType
DATA_TYPE_FLOAT64: DataType
DATA_TYPE_UINT8: DataType
DATA_TYPE_INT32: DataType
DATA_TYPE_INT64: DataType

class Tensor(_message.Message):
    __slots__ = ("dtype", "shape", "data")
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    dtype: DataType
    shape: _containers.RepeatedScalarFieldContainer[int]
    data: bytes
    def __init__(self, dtype: _Optional[_Union[DataType, str]] = ..., shape: _Optional[_Iterable[int]] = ..., data: _Optional[bytes] = ...) -> None: ...

class ScoreRequest(_message.Message):
    __slots__ = ("detector", "version", "inputs", "alpha", "num_neighbors")
    DETECTOR_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    INPUTS_FIELD_NUMBER: _ClassVar[int]
    ALPHA_FIELD_NUMBER: _ClassVar[int]
    NUM_NEIGHBORS_FIELD_NUMBER: _ClassVar[int]
    detector: str
    version: str
    inputs: Tensor
    alpha: float
    num_neighbors: int
    def __init__(self, detector: _Optional[str] = ..., version: _Optional[str] = ..., inputs: _Optional[_Union[Tensor, _Mapping]] = ..., alpha: _Optional[float] = ..., num_neighbors: _Optional[int] = ...) -> None: ...

class ScoreResponse(_message.Message):
    __slots__ = ("outlier_score", "p_value", "is_outlier", "predicted_class", "credibility", "confidence", "class_p_values", "neighbors", "budget", "stage_seconds")
    class StageSecondsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    OUTLIER_SCORE_FIELD_NUMBER: _ClassVar[int]
    P_VALUE_FIELD_NUMBER: _ClassVar[int]
    IS_OUTLIER_FIELD_NUMBER: _ClassVar[int]
    PREDICTED_CLASS_FIELD_NUMBER: _ClassVar[int]
    CREDIBILITY_FIELD_NUMBER: _ClassVar[int]
    CONFIDENCE_FIELD_NUMBER: _ClassVar[int]
    CLASS_P_VALUES_FIELD_NUMBER: _ClassVar[int]
    NEIGHBORS_FIELD_NUMBER: _ClassVar[int]
    BUDGET_FIELD_NUMBER: _ClassVar[int]
    STAGE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    outlier_score: _containers.RepeatedScalarFieldContainer[float]
    p_value: _containers.RepeatedScalarFieldContainer[float]
    is_outlier: _containers.RepeatedScalarFieldContainer[bool]
    predicted_class: _containers.RepeatedScalarFieldContainer[int]
    credibility: _containers.RepeatedScalarFieldContainer[float]
    confidence: _containers.RepeatedScalarFieldContainer[float]
    class_p_values: Tensor
    neighbors: Neighbors
    budget: ErrorBudget
    stage_seconds: _containers.ScalarMap[str, float]
    def __init__(self, outlier_score: _Optional[_Iterable[float]] = ..., p_value: _Optional[_Iterable[float]] = ..., is_outlier: _Optional[_Iterable[bool]] = ..., predicted_class: _Optional[_Iterable[int]] = ..., credibility: _Optional[_Iterable[float]] = ..., confidence: _Optional[_Iterable[float]] = ..., class_p_values: _Optional[_Union[Tensor, _Mapping]] = ..., neighbors: _Optional[_Union[Neighbors, _Mapping]] = ..., budget: _Optional[_Union[ErrorBudget, _Mapping]] = ..., stage_seconds: _Optional[_Mapping[str, float]] = ...) -> None: ...

class Neighbors(_message.Message):
    __slots__ = ("layers", "ids", "labels", "distances", "shares")
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    IDS_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    DISTANCES_FIELD_NUMBER: _ClassVar[int]
    SHARES_FIELD_NUMBER: _ClassVar[int]
    layers: _containers.RepeatedScalarFieldContainer[str]
    ids: Tensor
    labels: Tensor
    distances: Tensor
    shares: Tensor
    def __init__(self, layers: _Optional[_Iterable[str]] = ..., ids: _Optional[_Union[Tensor, _Mapping]] = ..., labels: _Optional[_Union[Tensor, _Mapping]] = ..., distances: _Optional[_Union[Tensor, _Mapping]] = ..., shares: _Optional[_Union[Tensor, _Mapping]] = ...) -> None: ...

class ErrorBudget(_message.Message):
    __slots__ = ("detector", "version", "digest", "device", "alpha", "calibration_size", "smallest_p_value")
    DETECTOR_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    ALPHA_FIELD_NUMBER: _ClassVar[int]
    CALIBRATION_SIZE_FIELD_NUMBER: _ClassVar[int]
    SMALLEST_P_VALUE_FIELD_NUMBER: _ClassVar[int]
    detector: str
    version: str
    digest: str
    device: str
    alpha: float
    calibration_size: int
    smallest_p_value: float
    def __init__(self, detector: _Optional[str] = ..., version: _Optional[str] = ..., digest: _Optional[str] = ..., device: _Optional[str] = ..., alpha: _Optional[float] = ..., calibration_size: _Optional[int] = ..., smallest_p_value: _Optional[float] = ...) -> None: ...

class GetDetectorRequest(_message.Message):
    __slots__ = ("detector", "version")
    DETECTOR_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    detector: str
    version: str
    def __init__(self, detector: _Optional[str] = ..., version: _Optional[str] = ...) -> None: ...

class GetDetectorResponse(_message.Message):
    __slots__ = ("detector", "limits")
    DETECTOR_FIELD_NUMBER: _ClassVar[int]
    LIMITS_FIELD_NUMBER: _ClassVar[int]
    detector: DetectorInfo
    limits: Limits
    def __init__(self, detector: _Optional[_Union[DetectorInfo, _Mapping]] = ..., limits: _Optional[_Union[Limits, _Mapping]] = ...) -> None: ...

class ListDetectorsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListDetectorsResponse(_message.Message):
    __slots__ = ("detectors", "limits")
    DETECTORS_FIELD_NUMBER: _ClassVar[int]
    LIMITS_FIELD_NUMBER: _ClassVar[int]
    detectors: _containers.RepeatedCompositeFieldContainer[DetectorInfo]
    limits: Limits
    def __init__(self, detectors: _Optional[_Iterable[_Union[DetectorInfo, _Mapping]]] = ..., limits: _Optional[_Union[Limits, _Mapping]] = ...) -> None: ...

class DetectorInfo(_message.Message):
    __slots__ = ("name", "version", "digest", "device", "input_dtype", "input_shape", "classes", "layers", "nonconformity", "default_alpha", "calibration_size", "smallest_p_value", "bank_size")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    INPUT_DTYPE_FIELD_NUMBER: _ClassVar[int]
    INPUT_SHAPE_FIELD_NUMBER: _ClassVar[int]
    CLASSES_FIELD_NUMBER: _ClassVar[int]
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    NONCONFORMITY_FIELD_NUMBER: _ClassVar[int]
    DEFAULT_ALPHA_FIELD_NUMBER: _ClassVar[int]
    CALIBRATION_SIZE_FIELD_NUMBER: _ClassVar[int]
    SMALLEST_P_VALUE_FIELD_NUMBER: _ClassVar[int]
    BANK_SIZE_FIELD_NUMBER: _ClassVar[int]
    name: str
    version: str
    digest: str
    device: str
    input_dtype: DataType
    input_shape: _containers.RepeatedScalarFieldContainer[int]
    classes: _containers.RepeatedScalarFieldContainer[str]
    layers: _containers.RepeatedCompositeFieldContainer[LayerInfo]
    nonconformity: str
    default_alpha: float
    calibration_size: int
    smallest_p_value: float
    bank_size: int
    def __init__(self, name: _Optional[str] = ..., version: _Optional[str] = ..., digest: _Optional[str] = ..., device: _Optional[str] = ..., input_dtype: _Optional[_Union[DataType, str]] = ..., input_shape: _Optional[_Iterable[int]] = ..., classes: _Optional[_Iterable[str]] = ..., layers: _Optional[_Iterable[_Union[LayerInfo, _Mapping]]] = ..., nonconformity: _Optional[str] = ..., default_alpha: _Optional[float] = ..., calibration_size: _Optional[int] = ..., smallest_p_value: _Optional[float] = ..., bank_size: _Optional[int] = ...) -> None: ...

class LayerInfo(_message.Message):
    __slots__ = ("name", "dim", "metric", "temperature")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DIM_FIELD_NUMBER: _ClassVar[int]
    METRIC_FIELD_NUMBER: _ClassVar[int]
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    name: str
    dim: int
    metric: str
    temperature: float
    def __init__(self, name: _Optional[str] = ..., dim: _Optional[int] = ..., metric: _Optional[str] = ..., temperature: _Optional[float] = ...) -> None: ...

class Limits(_message.Message):
    __slots__ = ("max_rows", "max_message_bytes", "max_neighbors")
    MAX_ROWS_FIELD_NUMBER: _ClassVar[int]
    MAX_MESSAGE_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_NEIGHBORS_FIELD_NUMBER: _ClassVar[int]
    max_rows: int
    max_message_bytes: int
    max_neighbors: int
    def __init__(self, max_rows: _Optional[int] = ..., max_message_bytes: _Optional[int] = ..., max_neighbors: _Optional[int] = ...) -> None: ...
