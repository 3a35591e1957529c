-- Labels name people: they go when their people do.
GRANT DELETE ON labels TO nexus_puabo_nuki_shipping_service;
