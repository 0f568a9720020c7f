"""`python -m cachegraph`."""

from cachegraph.cli.process import run_process

if __name__ == "__main__":
    run_process()
