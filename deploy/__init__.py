"""What runs on a device as a program: personalizing the last stage of a bundle."""
