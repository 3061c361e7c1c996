"""PyTorch: one loop, sharded; knows no Ray and no algorithm by name."""
