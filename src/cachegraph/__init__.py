"""cachegraph: graphs of LLM agents whose edges hand over words, or KV caches."""
