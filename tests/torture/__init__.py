"""A campaign of mutated inputs, kills, flipped bytes, full disks and lost power: ``python -m tests.torture``.

Each part is a module with ``run(seconds, seed, folder)``, which gives back what it tried and what it found wrong.
"""
