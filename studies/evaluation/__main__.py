"""`python -m studies.evaluation`."""

from studies.evaluation.coverage import main

main()
