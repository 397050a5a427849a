"""Performance, measured with correctness asserted first."""
