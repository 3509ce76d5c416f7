"""LangChain's own tests of chat models, passed by a guarded one around a scripted one."""

from __future__ import annotations

from typing import Any

import pytest
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage
from langchain_tests.integration_tests import ChatModelIntegrationTests
from langchain_tests.unit_tests import ChatModelUnitTests

from srllm_guard import Guard
from srllm_guard.middleware.langchain import GuardedChatModel
from tests.byte_engine import ByteEngine, runtime
from tests.langchain.scripted import ScriptedModel

GUARD = Guard(runtime(ByteEngine()))
USAGE: Any = {"input_tokens": 1, "output_tokens": 2, "total_tokens": 3}
ANSWER = AIMessage("Hello there, how are you?", usage_metadata=USAGE)


class Scripted:
    """What both suites have to know of the model."""

    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return GuardedChatModel

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"guard": GUARD, "inner": ScriptedModel(answers=[ANSWER])}

    @property
    def has_structured_output(self) -> bool:
        return False


@pytest.mark.filterwarnings("ignore:.*benchmark:")
class TestUnit(Scripted, ChatModelUnitTests):
    @property
    def has_tool_calling(self) -> bool:
        return True


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.mark.anyio
@pytest.mark.filterwarnings("ignore::langchain_core._api.beta_decorator.LangChainBetaWarning")
class TestCalls(Scripted, ChatModelIntegrationTests):
    """Those that need a provider which obeys (tools, images, stop words) are skipped by suite."""

    @property
    def has_tool_calling(self) -> bool:
        return False
