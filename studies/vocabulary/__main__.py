"""`python -m studies.vocabulary`."""

from studies.vocabulary.run import main

main()
