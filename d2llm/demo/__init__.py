"""The demonstration on real input: a real LLM teaches a student to search Python's standard library."""
