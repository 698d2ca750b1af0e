"""Plans: the sites that act, their gains, and what they leave out."""
