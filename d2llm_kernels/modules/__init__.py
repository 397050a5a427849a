"""PMA and IEM as ``torch.nn`` modules, and what puts them in the place of a model's own."""
