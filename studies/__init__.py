"""Studies made with paramdelta: not installed with it."""
