"""The command line: options, output, exit status. All work is done elsewhere."""
