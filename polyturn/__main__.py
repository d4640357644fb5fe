"""`python -m polyturn` is the command `polyturn`."""

from polyturn.cli import main

raise SystemExit(main())
