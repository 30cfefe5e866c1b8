"""One inference on two machines: a device and a server compute different rows of the same operators."""
