"""`python -m studies.lineage --out DIR`."""

from studies.lineage.make import main

main()
