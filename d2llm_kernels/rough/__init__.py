"""Top-k by scores of few bits that rank the best of them again at full precision."""
