"""Every icefall recipe with a pruned loss, as data; one batch through each, dense and routed."""
