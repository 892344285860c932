"""Ordinary handlers with something around them: each method that is concerned is wrapped once, and looked up after that."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import grpc

Behaviour: TypeAlias = Callable[[bytes, grpc.ServicerContext], bytes]


class WrappedHandlers(grpc.ServerInterceptor):  # type: ignore[type-arg]  # generic for type checkers only
    """Wraps the handlers of methods with one answer. What is wrapped, and in what, its children say."""

    def __init__(self) -> None:
        self._made: dict[str, Any] = {}

    def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Any],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Give the handler of a method; called by gRPC for each call."""
        path = handler_call_details.method
        handler = continuation(handler_call_details)
        if handler is None or handler.unary_unary is None or not self._concerns(path):
            return handler
        made = self._made.get(path)
        if made is None:
            wrapped = self._wrapped(path, handler.unary_unary)
            made = self._made[path] = grpc.unary_unary_rpc_method_handler(wrapped)
        return made

    def _concerns(self, path: str) -> bool:
        """Whether the handler of a method is to be wrapped."""
        raise NotImplementedError

    def _wrapped(self, path: str, behaviour: Behaviour) -> Behaviour:
        raise NotImplementedError
