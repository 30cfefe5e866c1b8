"""`python -m splitload` is `splitload`."""

from splitload.cli import main

raise SystemExit(main())
