"""`python -m simo_merge`: the same program as `simo-merge`, for launchers that start modules."""

from simo_merge.cli import main

if __name__ == "__main__":
    main()
