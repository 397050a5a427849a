"""``python -m d2llm.cli`` is ``d2llm``."""

from d2llm.cli import main

main()
