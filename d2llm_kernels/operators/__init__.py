"""The operations (``torch.library`` namespace ``d2llm``), the whole contract of each in one file.

Each file holds the checks of the arguments, the public function, which chooses the backend, and behind it the operator:
schema, fake implementation, autograd. The operator takes the name of a backend that was chosen outside of any traced
graph.
"""
