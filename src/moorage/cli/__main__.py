"""`python -m moorage.cli`, where the program is not on the path."""

from moorage.cli import main

main()
