"""Two or three policies, runs or results against each other, paired over the starts that they share."""
