"""An agent of LangChain whose history, tokens and tool results are guarded.

python examples/langchain_agent.py
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from langchain.agents import create_agent
from langchain_core.language_models import GenericFakeChatModel
from langchain_core.messages import AIMessage, HumanMessage

from srllm_guard import Guard
from srllm_guard.middleware.langchain import GuardMiddleware


class Scripted(GenericFakeChatModel):
    """The fake chat model of langchain-core, which takes tools as well."""

    def bind_tools(self, tools: Sequence[Any], **kwargs: Any) -> Any:
        """Take the tools, and say what is in the script all the same."""
        del tools, kwargs
        return self


def reviews(place: str) -> str:
    """What people say about a place."""
    return f"{place}: good soup. The owner is a stupid idiot. Open until 9 p.m."


def main() -> None:
    """Run the agent once for its history, and once for its tokens."""
    call = {"name": "reviews", "args": {"place": "Harbour Inn"}, "id": "call-1"}
    answers = [
        AIMessage("", tool_calls=[call]),
        AIMessage("The soup is good. Only an idiot would miss it, though. Go before 9 p.m."),
    ]
    # Any chat model goes here; this one needs no network. It is asked three times.
    llm = Scripted(messages=iter([*answers, answers[-1]]))
    guard = Guard()
    agent: Any = create_agent(llm, [reviews], middleware=[GuardMiddleware(guard, tools=True)])
    asked: Any = {"messages": [HumanMessage("How is the Harbour Inn?")]}

    for message in agent.invoke(asked)["messages"]:
        print(f"{message.type:6} {message.text}")
    for chunk, _ in agent.stream(asked, stream_mode="messages"):
        if chunk.type == "AIMessageChunk" and chunk.text:
            print(repr(chunk.text))


if __name__ == "__main__":
    main()
