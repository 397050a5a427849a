"""A package by name, so that no other installed ``tests`` can stand in its place."""
