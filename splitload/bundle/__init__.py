"""The format of a bundle: read, write, replace, check; and the personalized tails beside its frozen files."""
