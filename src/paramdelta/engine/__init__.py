"""Carries out a plan in bounded memory."""
