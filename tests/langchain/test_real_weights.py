"""LangChain around really unsafe text, judged by the real weights; the examples run as they are."""

from __future__ import annotations

import asyncio
import runpy
from pathlib import Path
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain_core.language_models import FakeListChatModel, GenericFakeChatModel
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate

from srllm_guard import Blocked, Guard, Policy
from srllm_guard.middleware.langchain import GuardMiddleware
from tests.langchain.base_llm import BaseLLM

EXAMPLES = Path(__file__).parents[2] / "examples"
ANSWER = "Lunch is at noon. Only an idiot would be late, though. Bring 3 chairs."
INSULT = "Send me the invoice by Friday, you clueless moron."


@pytest.fixture(scope="module")
def llm() -> BaseLLM:
    return BaseLLM()


def test_a_chain_releases_what_rewrite_does(real_guard: Guard) -> None:
    llm = FakeListChatModel(responses=[ANSWER])
    released = real_guard.rewrite(ANSWER)
    assert "idiot" not in released
    assert "3 chairs" in released
    chain = llm | real_guard.as_runnable() | StrOutputParser()
    assert chain.invoke("When is lunch?") == released
    assert "".join(chain.stream("When is lunch?")) == released
    assert chain.batch(["When?", "Where?"]) == [released, released]
    model = real_guard.guard_model(llm)
    assert model.invoke("When is lunch?").content == released

    async def main() -> str:
        return "".join([str(chunk.content) async for chunk in model.astream("When is lunch?")])

    assert asyncio.run(main()) == released


def test_what_is_said_to_the_base_model_is_safe_and_its_answer_is_judged(
    real_guard: Guard, llm: BaseLLM
) -> None:
    results: list[Any] = []
    guard = Guard(real_guard.runtime, on_result=results.append)
    prompt = ChatPromptTemplate.from_messages([("system", "Be brief."), ("human", "{q}")])
    chain = prompt | guard.guard_model(llm) | StrOutputParser()
    streamed = "".join(chain.stream({"q": INSULT}))
    asked, answered = results
    assert asked.action == "rewrite"
    assert "moron" not in asked.text
    assert streamed == answered.text
    assert answered.safe or answered.action == "unverified"
    said = (prompt | llm).invoke({"q": asked.text}).content
    assert answered.original == said  # the model saw what was released, and nothing else


def test_an_agent_keeps_what_was_released(real_guard: Guard) -> None:
    llm = GenericFakeChatModel(messages=iter([AIMessage(ANSWER)] * 2))
    agent: Any = create_agent(llm, [], middleware=[GuardMiddleware(real_guard)])
    asked: Any = {"messages": [HumanMessage(INSULT)]}
    first, last = agent.invoke(asked)["messages"]
    assert "moron" not in first.content
    assert last.content == real_guard.rewrite(ANSWER)
    tokens = [c.text for c, _ in agent.stream(asked, stream_mode="messages")]
    assert "idiot" not in "".join(tokens)


def test_blocked_falls_back(real_guard: Guard) -> None:
    strict = Guard(real_guard.runtime, policy=Policy(ladder=("block",), on_block="raise"))
    chain = FakeListChatModel(responses=[ANSWER]) | strict.as_runnable()
    with pytest.raises(Blocked):
        chain.invoke("When is lunch?")
    other = FakeListChatModel(responses=["Lunch is at noon."])
    safe = chain.with_fallbacks([other], exceptions_to_handle=(Blocked,))
    assert safe.invoke("When is lunch?").content == "Lunch is at noon."


@pytest.mark.parametrize("name", ["langchain_chain", "langchain_agent"])
def test_examples_run(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    out = capsys.readouterr().out
    assert out
    assert not any(word in out for word in ("idiot", "moron"))
