"""One command that tests and times every kernel on the GPU at hand: ``python -m benchmarks.gpu_report``."""
