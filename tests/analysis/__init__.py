"""Tests of what is made of measures."""
