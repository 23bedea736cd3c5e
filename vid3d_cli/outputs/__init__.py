"""What goes to disk or to a pipe: one file a format; every file appears whole or not at all."""
