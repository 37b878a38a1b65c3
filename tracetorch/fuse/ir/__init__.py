"""Intermediate representation: trace a step and its gradient into straight-line arithmetic."""
