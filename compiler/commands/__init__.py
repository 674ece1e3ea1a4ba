"""Command-line verbs that need the compiler: one file each, holding one click command called `command`."""
