"""`python -m splitload` is `splitload`, and what the shell's command begins with: `--version` needs no parser."""

import sys

from splitload import __version__
from splitload.base.interrupts import finish


def main() -> int:
    """Run one command, see `splitload.cli.main`."""
    if sys.argv[1:] in (["--version"], ["-V"]) and sys.stdout is not None:
        try:
            sys.stdout.write(f"splitload {__version__}\n")
            sys.stdout.flush()
        except OSError:  # the command line says what to do
            pass
        else:
            finish()
            return 0
    from splitload.cli import main

    return main()


if __name__ == "__main__":
    raise SystemExit(main())
