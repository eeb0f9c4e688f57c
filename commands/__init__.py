"""The command line. Importing it is cheap, so that ``--help`` and typos answer at once."""
