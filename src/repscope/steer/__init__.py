"""Steering: methods that change what a network holds, and see what follows."""
