"""`python -m studies.transfer`."""

from studies.transfer.run import main

main()
