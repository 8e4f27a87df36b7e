from google.rpc import status_pb2 as _status_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Guarantee(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    GUARANTEE_UNSPECIFIED: _ClassVar[Guarantee]
    GUARANTEE_MARGINAL: _ClassVar[Guarantee]
    GUARANTEE_CERTIFIED: _ClassVar[Guarantee]
    GUARANTEE_CLASS_CONDITIONAL: _ClassVar[Guarantee]
    GUARANTEE_FALSE_DISCOVERY_RATE: _ClassVar[Guarantee]

class DataType(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    DATA_TYPE_UNSPECIFIED: _ClassVar[DataType]
    DATA_TYPE_FLOAT32: _ClassVar[DataType]
    DATA_TYPE_FLOAT64: _ClassVar[DataType]
    DATA_TYPE_UINT8: _ClassVar[DataType]
    DATA_TYPE_INT32: _ClassVar[DataType]
    DATA_TYPE_INT64: _ClassVar[DataType]
GUARANTEE_UNSPECIFIED: Guarantee
GUARANTEE_MARGINAL: Guarantee
GUARANTEE_CERTIFIED: Guarantee
GUARANTEE_CLASS_CONDITIONAL: Guarantee
GUARANTEE_FALSE_DISCOVERY_RATE: Guarantee
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
    __slots__ = ("detector", "version", "inputs", "alpha", "num_neighbors", "guarantee", "confidence", "smoothing_seed", "label")
    DETECTOR_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    INPUTS_FIELD_NUMBER: _ClassVar[int]
    ALPHA_FIELD_NUMBER: _ClassVar[int]
    NUM_NEIGHBORS_FIELD_NUMBER: _ClassVar[int]
    GUARANTEE_FIELD_NUMBER: _ClassVar[int]
    CONFIDENCE_FIELD_NUMBER: _ClassVar[int]
    SMOOTHING_SEED_FIELD_NUMBER: _ClassVar[int]
    LABEL_FIELD_NUMBER: _ClassVar[int]
    detector: str
    version: str
    inputs: Tensor
    alpha: float
    num_neighbors: int
    guarantee: Guarantee
    confidence: float
    smoothing_seed: int
    label: str
    def __init__(self, detector: _Optional[str] = ..., version: _Optional[str] = ..., inputs: _Optional[_Union[Tensor, _Mapping]] = ..., alpha: _Optional[float] = ..., num_neighbors: _Optional[int] = ..., guarantee: _Optional[_Union[Guarantee, str]] = ..., confidence: _Optional[float] = ..., smoothing_seed: _Optional[int] = ..., label: _Optional[str] = ...) -> None: ...

class ScoreStreamRequest(_message.Message):
    __slots__ = ("request",)
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    request: ScoreRequest
    def __init__(self, request: _Optional[_Union[ScoreRequest, _Mapping]] = ...) -> None: ...

class ScoreStreamResponse(_message.Message):
    __slots__ = ("answers",)
    ANSWERS_FIELD_NUMBER: _ClassVar[int]
    answers: _containers.RepeatedCompositeFieldContainer[StreamAnswer]
    def __init__(self, answers: _Optional[_Iterable[_Union[StreamAnswer, _Mapping]]] = ...) -> None: ...

class StreamAnswer(_message.Message):
    __slots__ = ("response", "error")
    RESPONSE_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    response: ScoreResponse
    error: _status_pb2.Status
    def __init__(self, response: _Optional[_Union[ScoreResponse, _Mapping]] = ..., error: _Optional[_Union[_status_pb2.Status, _Mapping]] = ...) -> None: ...

class ScoreResponse(_message.Message):
    __slots__ = ("outlier_score", "p_value", "is_outlier", "predicted_class", "credibility", "confidence", "class_p_values", "neighbors", "budget", "stage_seconds", "parts")
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
    PARTS_FIELD_NUMBER: _ClassVar[int]
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
    parts: Parts
    def __init__(self, outlier_score: _Optional[_Iterable[float]] = ..., p_value: _Optional[_Iterable[float]] = ..., is_outlier: _Optional[_Iterable[bool]] = ..., predicted_class: _Optional[_Iterable[int]] = ..., credibility: _Optional[_Iterable[float]] = ..., confidence: _Optional[_Iterable[float]] = ..., class_p_values: _Optional[_Union[Tensor, _Mapping]] = ..., neighbors: _Optional[_Union[Neighbors, _Mapping]] = ..., budget: _Optional[_Union[ErrorBudget, _Mapping]] = ..., stage_seconds: _Optional[_Mapping[str, float]] = ..., parts: _Optional[_Union[Parts, _Mapping]] = ...) -> None: ...

class Neighbors(_message.Message):
    __slots__ = ("layers", "ids", "labels", "distances", "shares", "names")
    class NamesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: int
        value: str
        def __init__(self, key: _Optional[int] = ..., value: _Optional[str] = ...) -> None: ...
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    IDS_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    DISTANCES_FIELD_NUMBER: _ClassVar[int]
    SHARES_FIELD_NUMBER: _ClassVar[int]
    NAMES_FIELD_NUMBER: _ClassVar[int]
    layers: _containers.RepeatedScalarFieldContainer[str]
    ids: Tensor
    labels: Tensor
    distances: Tensor
    shares: Tensor
    names: _containers.ScalarMap[int, str]
    def __init__(self, layers: _Optional[_Iterable[str]] = ..., ids: _Optional[_Union[Tensor, _Mapping]] = ..., labels: _Optional[_Union[Tensor, _Mapping]] = ..., distances: _Optional[_Union[Tensor, _Mapping]] = ..., shares: _Optional[_Union[Tensor, _Mapping]] = ..., names: _Optional[_Mapping[int, str]] = ...) -> None: ...

class Parts(_message.Message):
    __slots__ = ("names", "values")
    NAMES_FIELD_NUMBER: _ClassVar[int]
    VALUES_FIELD_NUMBER: _ClassVar[int]
    names: _containers.RepeatedScalarFieldContainer[str]
    values: Tensor
    def __init__(self, names: _Optional[_Iterable[str]] = ..., values: _Optional[_Union[Tensor, _Mapping]] = ...) -> None: ...

class ErrorBudget(_message.Message):
    __slots__ = ("detector", "version", "digest", "device", "alpha", "calibration_size", "smallest_p_value", "guarantee", "confidence", "p_value_threshold", "false_alarm_bound", "fewest_selectable", "smoothed")
    DETECTOR_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    ALPHA_FIELD_NUMBER: _ClassVar[int]
    CALIBRATION_SIZE_FIELD_NUMBER: _ClassVar[int]
    SMALLEST_P_VALUE_FIELD_NUMBER: _ClassVar[int]
    GUARANTEE_FIELD_NUMBER: _ClassVar[int]
    CONFIDENCE_FIELD_NUMBER: _ClassVar[int]
    P_VALUE_THRESHOLD_FIELD_NUMBER: _ClassVar[int]
    FALSE_ALARM_BOUND_FIELD_NUMBER: _ClassVar[int]
    FEWEST_SELECTABLE_FIELD_NUMBER: _ClassVar[int]
    SMOOTHED_FIELD_NUMBER: _ClassVar[int]
    detector: str
    version: str
    digest: str
    device: str
    alpha: float
    calibration_size: int
    smallest_p_value: float
    guarantee: Guarantee
    confidence: float
    p_value_threshold: float
    false_alarm_bound: float
    fewest_selectable: int
    smoothed: bool
    def __init__(self, detector: _Optional[str] = ..., version: _Optional[str] = ..., digest: _Optional[str] = ..., device: _Optional[str] = ..., alpha: _Optional[float] = ..., calibration_size: _Optional[int] = ..., smallest_p_value: _Optional[float] = ..., guarantee: _Optional[_Union[Guarantee, str]] = ..., confidence: _Optional[float] = ..., p_value_threshold: _Optional[float] = ..., false_alarm_bound: _Optional[float] = ..., fewest_selectable: _Optional[int] = ..., smoothed: bool = ...) -> None: ...

class GetDetectorRequest(_message.Message):
    __slots__ = ("detector", "version", "label")
    DETECTOR_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    LABEL_FIELD_NUMBER: _ClassVar[int]
    detector: str
    version: str
    label: str
    def __init__(self, detector: _Optional[str] = ..., version: _Optional[str] = ..., label: _Optional[str] = ...) -> None: ...

class GetDetectorResponse(_message.Message):
    __slots__ = ("detector", "limits")
    DETECTOR_FIELD_NUMBER: _ClassVar[int]
    LIMITS_FIELD_NUMBER: _ClassVar[int]
    detector: DetectorInfo
    limits: Limits
    def __init__(self, detector: _Optional[_Union[DetectorInfo, _Mapping]] = ..., limits: _Optional[_Union[Limits, _Mapping]] = ...) -> None: ...

class GetDriftRequest(_message.Message):
    __slots__ = ("detector", "version", "label")
    DETECTOR_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    LABEL_FIELD_NUMBER: _ClassVar[int]
    detector: str
    version: str
    label: str
    def __init__(self, detector: _Optional[str] = ..., version: _Optional[str] = ..., label: _Optional[str] = ...) -> None: ...

class GetDriftResponse(_message.Message):
    __slots__ = ("detector", "version", "digest", "rows", "log10_martingale", "max_log10_martingale", "alarm", "alarm_level", "alarm_row", "cusum_no_guarantee", "flag_rate", "alpha", "window_rows", "p_value_histogram")
    DETECTOR_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    LOG10_MARTINGALE_FIELD_NUMBER: _ClassVar[int]
    MAX_LOG10_MARTINGALE_FIELD_NUMBER: _ClassVar[int]
    ALARM_FIELD_NUMBER: _ClassVar[int]
    ALARM_LEVEL_FIELD_NUMBER: _ClassVar[int]
    ALARM_ROW_FIELD_NUMBER: _ClassVar[int]
    CUSUM_NO_GUARANTEE_FIELD_NUMBER: _ClassVar[int]
    FLAG_RATE_FIELD_NUMBER: _ClassVar[int]
    ALPHA_FIELD_NUMBER: _ClassVar[int]
    WINDOW_ROWS_FIELD_NUMBER: _ClassVar[int]
    P_VALUE_HISTOGRAM_FIELD_NUMBER: _ClassVar[int]
    detector: str
    version: str
    digest: str
    rows: int
    log10_martingale: float
    max_log10_martingale: float
    alarm: bool
    alarm_level: float
    alarm_row: int
    cusum_no_guarantee: float
    flag_rate: float
    alpha: float
    window_rows: int
    p_value_histogram: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, detector: _Optional[str] = ..., version: _Optional[str] = ..., digest: _Optional[str] = ..., rows: _Optional[int] = ..., log10_martingale: _Optional[float] = ..., max_log10_martingale: _Optional[float] = ..., alarm: bool = ..., alarm_level: _Optional[float] = ..., alarm_row: _Optional[int] = ..., cusum_no_guarantee: _Optional[float] = ..., flag_rate: _Optional[float] = ..., alpha: _Optional[float] = ..., window_rows: _Optional[int] = ..., p_value_histogram: _Optional[_Iterable[int]] = ...) -> None: ...

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
    __slots__ = ("name", "version", "digest", "device", "input_dtype", "input_shape", "classes", "layers", "nonconformity", "default_alpha", "calibration_size", "smallest_p_value", "bank_size", "default_guarantee", "certificate", "predicted_class_rows", "bank_precision", "condensed_from", "labels", "parts")
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
    DEFAULT_GUARANTEE_FIELD_NUMBER: _ClassVar[int]
    CERTIFICATE_FIELD_NUMBER: _ClassVar[int]
    PREDICTED_CLASS_ROWS_FIELD_NUMBER: _ClassVar[int]
    BANK_PRECISION_FIELD_NUMBER: _ClassVar[int]
    CONDENSED_FROM_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    PARTS_FIELD_NUMBER: _ClassVar[int]
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
    default_guarantee: Guarantee
    certificate: Certificate
    predicted_class_rows: _containers.RepeatedScalarFieldContainer[int]
    bank_precision: str
    condensed_from: int
    labels: _containers.RepeatedScalarFieldContainer[str]
    parts: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, name: _Optional[str] = ..., version: _Optional[str] = ..., digest: _Optional[str] = ..., device: _Optional[str] = ..., input_dtype: _Optional[_Union[DataType, str]] = ..., input_shape: _Optional[_Iterable[int]] = ..., classes: _Optional[_Iterable[str]] = ..., layers: _Optional[_Iterable[_Union[LayerInfo, _Mapping]]] = ..., nonconformity: _Optional[str] = ..., default_alpha: _Optional[float] = ..., calibration_size: _Optional[int] = ..., smallest_p_value: _Optional[float] = ..., bank_size: _Optional[int] = ..., default_guarantee: _Optional[_Union[Guarantee, str]] = ..., certificate: _Optional[_Union[Certificate, _Mapping]] = ..., predicted_class_rows: _Optional[_Iterable[int]] = ..., bank_precision: _Optional[str] = ..., condensed_from: _Optional[int] = ..., labels: _Optional[_Iterable[str]] = ..., parts: _Optional[_Iterable[str]] = ...) -> None: ...

class Certificate(_message.Message):
    __slots__ = ("alpha", "confidence", "false_alarm_bound", "smallest_certified")
    ALPHA_FIELD_NUMBER: _ClassVar[int]
    CONFIDENCE_FIELD_NUMBER: _ClassVar[int]
    FALSE_ALARM_BOUND_FIELD_NUMBER: _ClassVar[int]
    SMALLEST_CERTIFIED_FIELD_NUMBER: _ClassVar[int]
    alpha: float
    confidence: float
    false_alarm_bound: float
    smallest_certified: float
    def __init__(self, alpha: _Optional[float] = ..., confidence: _Optional[float] = ..., false_alarm_bound: _Optional[float] = ..., smallest_certified: _Optional[float] = ...) -> None: ...

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
    __slots__ = ("max_rows", "max_message_bytes", "max_neighbors", "max_pending_rows", "max_pending_bytes", "stream_window")
    MAX_ROWS_FIELD_NUMBER: _ClassVar[int]
    MAX_MESSAGE_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_NEIGHBORS_FIELD_NUMBER: _ClassVar[int]
    MAX_PENDING_ROWS_FIELD_NUMBER: _ClassVar[int]
    MAX_PENDING_BYTES_FIELD_NUMBER: _ClassVar[int]
    STREAM_WINDOW_FIELD_NUMBER: _ClassVar[int]
    max_rows: int
    max_message_bytes: int
    max_neighbors: int
    max_pending_rows: int
    max_pending_bytes: int
    stream_window: int
    def __init__(self, max_rows: _Optional[int] = ..., max_message_bytes: _Optional[int] = ..., max_neighbors: _Optional[int] = ..., max_pending_rows: _Optional[int] = ..., max_pending_bytes: _Optional[int] = ..., stream_window: _Optional[int] = ...) -> None: ...
