"""From documents to their nearest neighbours, and from those to the order to read them in."""
