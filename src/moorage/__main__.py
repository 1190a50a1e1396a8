"""`python -m moorage`, where the program is not on the path."""

from moorage.cli import main

main()
