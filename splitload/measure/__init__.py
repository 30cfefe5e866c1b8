"""How things are measured: fresh processes, interleaved arms, every sample kept.

- `job` says what a fresh process is told, `fresh` runs it here, `process` builds the command line of every child.
- `__main__` is the program of a fresh process and loads models; `stages`, `epoch`, `convert` and `modules` do the rest.
- `arms` says what is compared, `sampling` takes the samples.
- `pagecache` and `storage` make reads cold and slow; `provenance` says where a figure is from.
"""
