"""`python -m repscope` is the command line."""

from repscope.cli import main

if __name__ == "__main__":
    main()
