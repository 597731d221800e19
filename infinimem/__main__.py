"""`python -m infinimem` is the command line."""

from .cli.main import main

main(prog_name="infinimem")
