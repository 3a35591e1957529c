"""What the benchmarks compare with: the same work as people write it elsewhere."""
