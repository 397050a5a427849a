"""A gate that noise cannot pass or fail: what fixed small calls execute, allocate and multiply, against a baseline."""
