"""From windows to texts: greedy choice, slots, the pool, jobs."""
