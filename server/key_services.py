"""Key services by name: the one of our own, and those that other installed packages bring.

A setting `key_service = "NAME:REST"` names one. A package adds one by an entry point of the group `pickgate.key_services` whose
name is NAME and whose object, called with REST, gives an engine.key_service.KeyService:

    [project.entry-points."pickgate.key_services"]
    cloudkms = "our_kms:open_service"
"""

from __future__ import annotations

import logging
from importlib.metadata import entry_points
from pathlib import Path
from typing import Final

from engine.errors import ConfigError, PickgateError, SetupError
from engine.key_service import KeyService, SoftwareKeyService

_log = logging.getLogger(__name__)

GROUP: Final = "pickgate.key_services"


def find(text: str) -> KeyService:
    """Open the service that a setting names.

    Raises ConfigError for one that is not there, SetupError for one that can't be opened, and what it raises of ours.
    """
    name, colon, rest = text.partition(":")
    if name == "software":
        if not rest:
            raise ConfigError(
                "key_service = 'software:' names no file; write software:/path", field="key_service"
            )
        return SoftwareKeyService(Path(rest))
    found = [one for one in entry_points(group=GROUP) if one.name == name] if colon else []
    if len(found) != 1:
        known = ", ".join(sorted({"software", *(one.name for one in entry_points(group=GROUP))}))
        raise ConfigError(
            f"there is no key service {name!r}; expected NAME:REST with one of {known}, for example software:/path",
            field="key_service",
        )
    try:
        service: KeyService = found[0].load()(rest)
    except PickgateError:
        raise
    except Exception as error:
        # What a stranger's error says may hold what must not be told; its kind does not.
        _log.debug("the key service %s failed to open", name, exc_info=error)
        raise SetupError(
            f"the key service {name} can't be opened: {type(error).__name__}; its own log or --log-level debug says more",
            field="key_service",
        ) from None
    return service
