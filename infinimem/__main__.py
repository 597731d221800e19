"""`python -m infinimem` is the command line."""

from .cli import main

main(prog_name="infinimem")
