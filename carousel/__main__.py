"""`python -m carousel`: the command `carousel`."""

from carousel.cli.entry import main

if __name__ == "__main__":
    main()
