"""Fitted plans: layers chosen by their effect on a text, and their deltas trained to act for the whole adapter."""
