"""Networks of the suite: the CIFAR family, and any timm network by its full name."""
