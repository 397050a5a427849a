"""One server that existing clients speak to: embedder, re-ranker and search engine (docs/serving.md)."""
