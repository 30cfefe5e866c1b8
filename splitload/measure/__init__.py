"""How things are measured: fresh processes, interleaved arms, every sample kept.

- `job` says what a fresh process is told, `fresh` runs it here, `process` builds the command line of every child.
- `__main__` is the program of a fresh process and loads models; `stages`, `arena`, `epoch`, `convert` and `modules` do
  the rest. `running` is what `stages` and `arena` run stages by, `likeness` compares what they give.
- `library_session` has the arms of one session on a device that has the C library alone.
- `arms` says what is compared, `sampling` takes the samples.
- `pagecache` and `storage` make reads cold and slow; `provenance` says where a figure is from.
"""
