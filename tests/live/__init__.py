"""Tests of paramdelta.live."""
