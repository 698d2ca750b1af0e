"""Everything that third parties may add, and the catalog that holds it. Built-ins come in the same way."""
