"""How things are measured: fresh processes, interleaved arms, every sample kept.

`process` builds the command line of every child process. `sampling` starts one process for each sample; `__main__` is
that process, and `stages` the one that measures stages. `arms` says what is compared and has the files made that other
engines read (`convert`). `pagecache` and `storage` make reads cold and slow. `provenance` says where a figure is from.
"""
