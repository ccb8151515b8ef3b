"""What `make demo` runs: the stack as real processes, its data, the walk, the charts."""
