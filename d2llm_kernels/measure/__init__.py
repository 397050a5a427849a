"""What an operation costs on the machine at hand: its time, its limit, its memory, and what others take.

``d2llm bench`` times a user's own shapes; the suite in ``benchmarks/`` and the report for GPUs time fixed ones. A row
is one operation at one shape (``case.py``); its variants are the backends, the literal form, that form compiled, and
peers.
"""
