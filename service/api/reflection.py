"""gRPC reflection under both of its names: v1, and v1alpha, which older tools use. The messages are the same."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool
from grpc_reflection.v1alpha import reflection, reflection_pb2, reflection_pb2_grpc

_OLD = reflection.SERVICE_NAME
_NEW = _OLD.replace("v1alpha", "v1")


class _BothNames:
    """Takes the place of a server: registers the methods of the service under both names."""

    def __init__(self, server: Any) -> None:
        self._server = server

    def add_generic_rpc_handlers(self, handlers: Iterable[grpc.GenericRpcHandler]) -> None:
        """Does nothing: generated code passes the same methods to `add_registered_method_handlers`."""

    def add_registered_method_handlers(self, service: str, handlers: dict[str, Any]) -> None:
        """Registers the methods under both names. Called by generated code."""
        for name in (service, _NEW):
            self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(name, handlers),))
            self._server.add_registered_method_handlers(name, handlers)


def add_reflection(services: Iterable[str], server: Any) -> None:
    """Adds the reflection service, which lists the given services and itself."""
    _describe_new()
    servicer = reflection.aio.ReflectionServicer((*services, _OLD, _NEW))
    reflection_pb2_grpc.add_ServerReflectionServicer_to_server(servicer, _BothNames(server))


def _describe_new() -> None:
    """Adds the service under its new name to the pool of descriptors, so that reflection can describe it."""
    file = descriptor_pb2.FileDescriptorProto()
    reflection_pb2.DESCRIPTOR.CopyToProto(file)
    file.name = file.name.replace("v1alpha", "v1")
    file.package = file.package.replace("v1alpha", "v1")
    for message in file.message_type:
        for field in message.field:
            if field.type_name:
                field.type_name = field.type_name.replace("v1alpha", "v1")
    for method in file.service[0].method:
        method.input_type = method.input_type.replace("v1alpha", "v1")
        method.output_type = method.output_type.replace("v1alpha", "v1")
    descriptor_pool.Default().AddSerializedFile(file.SerializeToString())
