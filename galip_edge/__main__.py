"""Entry point of `galip-edge` and `python -m galip_edge`."""

import sys

from galip_edge.own_packages import ForeignPackageError, require_own_package


def main() -> None:
    """Run the command line, unless a foreign module hides the runtime."""
    try:
        require_own_package("runtime")
    except ForeignPackageError as error:
        sys.exit(f"Error: {error}")
    from galip_edge.cli import main as run_command

    run_command()


if __name__ == "__main__":
    main()
