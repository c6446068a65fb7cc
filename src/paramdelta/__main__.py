"""``python -m paramdelta``."""

from paramdelta.cli.app import main

if __name__ == "__main__":
    main()
