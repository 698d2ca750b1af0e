"""Fitted plans: layers chosen by what they do on a text, and their deltas trained to act for the whole adapter."""
