"""`python -m midward`."""

from midward.cli import main

if __name__ == "__main__":
    main()
