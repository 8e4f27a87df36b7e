"""Detectors as the Open Inference Protocol describes models."""

from __future__ import annotations

import json
from collections.abc import Sequence

from softkin.inference import grpc_service_pb2 as pb
from softkin.manifest import Manifest
from softkin.oip_converters import EVIDENCE_OUTPUTS, OUTPUTS, WORDS
from softkin.scoring_detector import ScoringDetector
from softkin.settings import ServerSettings

PLATFORM = "softkin"
ANY = -1
"""Stands for an axis whose length differs between requests."""


def model_metadata(
    detector: ScoringDetector, *, versions: Sequence[str], labels: Sequence[str], alpha: float, guarantee: str
) -> pb.ModelMetadataResponse:
    """Describe a detector.

    Args:
        detector: the version asked for.
        versions: all that are loaded of its name.
        labels: that this one carries.
        alpha: used when a request names none.
        guarantee: likewise.
    """
    m, tensor = detector.manifest, pb.ModelMetadataResponse.TensorMetadata
    return pb.ModelMetadataResponse(
        name=m.name,
        versions=versions,
        platform=PLATFORM,
        inputs=[tensor(name=m.input_name, datatype=WORDS[m.input_dtype], shape=[ANY, *m.input_shape])],
        outputs=[
            tensor(name=name, datatype=datatype, shape=[ANY, *_axes(name, m)]) for name, datatype in OUTPUTS.items()
        ],
        properties={
            "version": m.version,
            "digest": detector.digest,
            "device": detector.device,
            "labels": json.dumps(labels),
            "classes": json.dumps(m.classes),
            "layers": json.dumps([layer.name for layer in m.layers]),
            "parts": json.dumps(m.parts),
            "default_alpha": repr(alpha),
            "default_guarantee": guarantee,
            "evidence_outputs": json.dumps(list(EVIDENCE_OUTPUTS)),
        },
    )


def model_config(detector: ScoringDetector, settings: ServerSettings) -> pb.ModelConfigResponse:
    """Describe a detector as Triton would."""
    m = detector.manifest
    return pb.ModelConfigResponse(
        config=pb.ModelConfig(
            name=m.name,
            platform=PLATFORM,
            max_batch_size=settings.max_rows,
            input=[pb.ModelInput(name=m.input_name, data_type=_type(WORDS[m.input_dtype]), dims=m.input_shape)],
            output=[
                pb.ModelOutput(name=name, data_type=_type(datatype), dims=_axes(name, m))
                for name, datatype in OUTPUTS.items()
            ],
            dynamic_batching=pb.ModelDynamicBatching(
                max_queue_delay_microseconds=round(settings.batch_delay_seconds * 1e6)
            ),
        )
    )


def _axes(output: str, manifest: Manifest) -> list[int]:
    """The axes of an output, without the rows."""
    return [len(manifest.classes)] if output == "class_p_values" else []


def _type(datatype: str) -> pb.DataType:
    return getattr(pb, f"TYPE_{datatype}")
