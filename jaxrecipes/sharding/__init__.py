"""Where arrays live: the mesh of devices and the two tables that place leaves and activations."""
