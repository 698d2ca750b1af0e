"""Does a generated adapter do what its sentence says? Measured on a small world, beside all that could do as well."""
