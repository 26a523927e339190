"""A task group whose body's own exception comes out as it is."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import anyio.abc


@asynccontextmanager
async def open_background() -> AsyncIterator[anyio.abc.TaskGroup]:
    """Tasks that serve the body and are cancelled when it ends.

    A task group wraps whatever its body raises in an ``ExceptionGroup``; for the user of a library, whose
    ``except NotFound`` stands outside the block, that is no good. What a background task raises is a bug
    and stays a group.
    """
    raised: BaseException | None = None
    async with anyio.create_task_group() as tasks:
        try:
            yield tasks
        except (anyio.get_cancelled_exc_class(), GeneratorExit):
            raise
        except BaseException as error:  # noqa: BLE001 - re-raised below, outside the group
            raised = error
        tasks.cancel_scope.cancel()
    if raised is not None:
        raise raised
