"""A provider that is an agent: a process of its own that answers ``models/complete``, such as one that hosts a chat
model of LangChain's. It is started when it is needed, and is granted, counted and bounded as any provider.
"""

from __future__ import annotations

from collections.abc import Iterable

import attrs
import msgspec
import trio

from witsd.services.models.provider import OnDelta, Provider, offered
from witsd.supervise.supervisor import Supervisor
from witsd.values.config_models import ProviderConfig
from witsd.values.errors import ModelError, NotFound, WitsdError
from witsd.values.wire.models import Model, ModelsCompleteParams, ModelsCompleteResult


@attrs.define(eq=False)
class AgentProvider:
    """Asks ``config.agent``. ``supervisor`` is set once there is one; before that nothing can be called."""

    config: ProviderConfig
    supervisor: Supervisor | None = None

    @property
    def name(self) -> str:
        return self.config.name

    @property
    def kind(self) -> str:
        return self.config.kind

    async def models(self) -> tuple[Model, ...]:
        reason = None
        try:
            self._agents().unit(self.config.agent)
        except NotFound:
            reason = f"{self.name}: there is no agent {self.config.agent!r}: define it, or change `agent`"
        except ModelError as error:
            reason = error.message
        return tuple(
            offered(name, self.name, reason, streams=False) for name in self.config.models or (self.name,)
        )

    async def complete(
        self, request: ModelsCompleteParams, model: str, on_delta: OnDelta | None
    ) -> ModelsCompleteResult:
        agent = self.config.agent
        wanted = None if model in ("", self.name) else model
        params = msgspec.structs.replace(request, model=wanted, stream=False, run_id=None, timeout_s=None)
        try:
            async with self._agents().lease(agent) as lease:
                try:
                    result = await lease.link.request("models/complete", params, ModelsCompleteResult)
                except trio.BrokenResourceError:
                    raise self._error(f"{agent} {await lease.why_gone()} while it answered", retryable=True) from None
        except ModelError:
            raise
        except WitsdError as error:
            raise self._error(f"{agent} cannot answer: {error.message}") from error
        usage = msgspec.structs.replace(result.usage, calls=1)
        return msgspec.structs.replace(result, provider=self.name, usage=usage)

    async def aclose(self) -> None:
        """Nothing is held open: the agent is the supervisor's."""

    def _agents(self) -> Supervisor:
        if self.supervisor is None:
            raise self._error("agents are not there yet: try again", retryable=True)
        return self.supervisor

    def _error(self, text: str, *, retryable: bool = False) -> ModelError:
        return ModelError(f"{self.name}: {text}", provider=self.name, status=None, retryable=retryable)


def attach(providers: Iterable[Provider], supervisor: Supervisor) -> None:
    """From now on those that are agents can be asked."""
    for provider in providers:
        if isinstance(provider, AgentProvider):
            provider.supervisor = supervisor
