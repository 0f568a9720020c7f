"""`python -m cachegraph.cli`."""

from .process import run_process

if __name__ == "__main__":
    run_process()
