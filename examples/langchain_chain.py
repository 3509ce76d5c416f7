"""A chain of LangChain whose answers are guarded, whole and as a stream.

python examples/langchain_chain.py
"""

from __future__ import annotations

from langchain_core.language_models import GenericFakeChatModel
from langchain_core.messages import AIMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate

from srllm_guard import Guard

ANSWER = "Lunch is at noon. Only an idiot would be late, though. Bring 3 chairs."


def main() -> None:
    """Guard a chain by a link at its end, then by a model that is guarded itself."""
    guard = Guard()
    # Any chat model goes here; this one needs no network.
    llm = GenericFakeChatModel(messages=iter([AIMessage(ANSWER)] * 3))
    prompt = ChatPromptTemplate.from_messages([("system", "Be brief."), ("human", "{question}")])
    question = {"question": "When is lunch, you clueless moron?"}

    chain = prompt | llm | guard.as_runnable() | StrOutputParser()
    print(chain.invoke(question))

    # Both directions: the model does not see the insult, and no callback sees the answer's.
    guarded = prompt | guard.guard_model(llm) | StrOutputParser()
    print(guarded.invoke(question))
    for sentence in guarded.stream(question):
        print(repr(sentence))


if __name__ == "__main__":
    main()
