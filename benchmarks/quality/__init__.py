"""The evidence for every claim of quality: each module makes tables of docs/quality.md, and the program all of them."""
