"""The verbs that need no compiler, one a file; see cli.py for how they are found."""
