"""The base model that ships with the guard, as an LLM of LangChain: it says what it likes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from pydantic import PrivateAttr
from transformers import AutoModelForCausalLM, AutoTokenizer

from srllm_guard.models.store import find_base, find_bundle

ROLES = {"human": "user", "ai": "assistant", "system": "system"}


class BaseLLM(BaseChatModel):
    """Greedy decoding by transformers, a token a chunk."""

    limit: int = 24
    _tokenizer: Any = PrivateAttr()
    _model: Any = PrivateAttr()

    def model_post_init(self, context: Any, /) -> None:
        super().model_post_init(context)
        folder = find_base(find_bundle(None).manifest.base, None)
        self._tokenizer = AutoTokenizer.from_pretrained(folder)
        self._model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)

    @property
    def _llm_type(self) -> str:
        return "base"

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: Any = None,
        **kwargs: Any,
    ) -> ChatResult:
        text = "".join(str(chunk.message.content) for chunk in self._stream(messages))
        return ChatResult(generations=[ChatGeneration(message=AIMessage(text))])

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: Any = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        chat = [{"role": ROLES[m.type], "content": str(m.content)} for m in messages]
        ids = self._tokenizer.apply_chat_template(chat, add_generation_prompt=True)
        given, cache, said = torch.tensor([ids]), None, ""
        new: list[int] = []
        for _ in range(self.limit):
            with torch.no_grad():
                out = self._model(given, past_key_values=cache, use_cache=True)
            cache, index = out.past_key_values, int(out.logits[0, -1].argmax())
            if index == self._tokenizer.eos_token_id:
                break
            new.append(index)
            given = torch.tensor([[index]])
            text = self._tokenizer.decode(new, skip_special_tokens=True)
            yield ChatGenerationChunk(message=AIMessageChunk(content=text[len(said) :]))
            said = text
