"""What each command of the command line does; with `splitload.cli` the only place that joins all parts."""
