"""What the backends for GPUs share, whatever their kernels are written in."""
