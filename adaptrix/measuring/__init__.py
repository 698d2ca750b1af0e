"""What a plan of layers costs: the adapted model under it beside the fully adapted one, on a user's own text."""
