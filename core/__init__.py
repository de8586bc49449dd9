"""The data plane: compiled, without the GIL, one concept a module. Read the `.pxd` files first."""
