"""Every icefall recipe with a transducer loss, as data; one batch through each, both ways."""
