"""From labelled frames to a trained potential."""
