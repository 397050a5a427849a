"""The cross-encoder LLM that teaches: prompts, tuning, scores and their files."""
