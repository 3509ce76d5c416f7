"""OpenAI-compatible clients, guarded where their bytes come in.

The client of the openai package builds everything it returns (completions, parsed models, streams
with their helpers, raw responses) from the bytes of an HTTP response. The guard stands right there:
it replaces text in the JSON, or in the events of a stream, and the client does the rest as ever. So
types, helpers and fields that this package has never heard of stay what they are.
"""
