"""A caller who has no generated code can find the service and call it."""

from __future__ import annotations

import numpy as np
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

SERVICE = "softkin.v1.OutlierService"


def test_reflection_lists_the_services(shared_server):
    """OutlierService, the Open Inference Protocol, health and reflection itself."""
    services = ProtoReflectionDescriptorDatabase(shared_server.channel).get_services()

    assert sorted(services) == [
        "grpc.health.v1.Health",
        "grpc.reflection.v1alpha.ServerReflection",
        "inference.GRPCInferenceService",
        SERVICE,
    ]


def test_score_can_be_called_with_messages_built_from_reflection_alone(shared_server):
    """As grpcurl does."""
    pool = DescriptorPool(ProtoReflectionDescriptorDatabase(shared_server.channel))
    method = pool.FindServiceByName(SERVICE).methods_by_name["Score"]
    request = GetMessageClass(method.input_type)(
        inputs={"dtype": "DATA_TYPE_FLOAT32", "shape": [1, 2, 3], "data": np.arange(6, dtype="<f4").tobytes()}
    )
    call = shared_server.channel.unary_unary(
        f"/{SERVICE}/{method.name}",
        request_serializer=lambda m: m.SerializeToString(),
        response_deserializer=GetMessageClass(method.output_type).FromString,
    )

    response = call(request, timeout=20)

    assert list(response.outlier_score) == [15.0]
    assert response.budget.detector == "standin"
