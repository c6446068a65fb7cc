"""`python -m studies.decoder`."""

from studies.decoder.run import main

main()
