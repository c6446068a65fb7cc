"""`python -m studies.crossed`."""

from studies.crossed.run import main

main()
