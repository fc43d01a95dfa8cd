"""Model directories, weight files, published key names, the hub, cards and export."""
