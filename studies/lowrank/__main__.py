"""`python -m studies.lowrank`."""

from studies.lowrank.run import main

main()
