"""The type of the store's client."""

from __future__ import annotations

from typing import Any, TypeAlias

Client: TypeAlias = Any
"""A redis.asyncio.Redis that answers with bytes. Its published types leave open whether an answer is bytes or text."""
