"""Commands of the aviary, which `galip-edge` lists where this folder exists."""
