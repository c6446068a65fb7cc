"""Do the intervals and tests of `paramdelta evaluate` keep their promises? By simulation."""
