"""The guard around functions, streams, LangChain and OpenAI-compatible clients."""
