"""`python -m galip_edge` is `galip-edge`."""

from galip_edge.cli import main

main()
