"""What runs on the device: `ParallelLoader`, sessions, the pool that loads, variants, and the drop-in for clients."""
