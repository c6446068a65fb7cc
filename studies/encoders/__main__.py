"""`python -m studies.encoders`."""

from studies.encoders.run import main

main()
