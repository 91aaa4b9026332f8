"""Methods in closed form from what unlabelled images send through the encoders."""
