"""Words and pictures to token ids and back, and the ground all other packages stand on."""
