"""Methods that treat every number of a parameter apart: sums, masks, signs, schedules."""
