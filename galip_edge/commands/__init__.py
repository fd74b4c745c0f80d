"""One module for each command of `galip-edge`; each has a click command named `command`."""
