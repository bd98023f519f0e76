"""`python -m milseg`."""

from milseg.cli import main

raise SystemExit(main())
