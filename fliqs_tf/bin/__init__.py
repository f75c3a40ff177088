"""Command-line programs: each reads flags, builds a configuration, runs it."""
